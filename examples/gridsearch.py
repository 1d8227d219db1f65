"""python minscoop.py -n 2 examples/gridsearch.py

scikit-learn, and all else that uses joblib: a backend for it, and a grid search that runs in the pool.
"""
from joblib import parallel_config, register_parallel_backend
from joblib.parallel import ParallelBackendBase
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

import minscoop


class MinscoopBackend(ParallelBackendBase):
    """joblib's batches as tasks, on the pool of the launcher or of an Executor."""

    default_n_jobs = -1
    # With it joblib looks for results again and again. Without it, as in tasks, it waits for each, and meanwhile the
    # worker goes on with other tasks, those it waits for among them.
    supports_retrieve_callback = property(lambda self: minscoop.IS_ORIGIN)

    def start_call(self):
        self.submitted = []

    def effective_n_jobs(self, n_jobs):
        """How many run at a time; -1 is all workers, -2 all but one."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 has no meaning")
        return max(1, minscoop.SIZE + 1 + n_jobs) if n_jobs < 0 else n_jobs

    def submit(self, func, callback=None):
        """Run a batch in the pool; then `callback` gives joblib its result, and lets it submit the next."""
        future = minscoop.submit(func)
        future.get = future.result  # as joblib calls it where it waits
        self.submitted.append(future)
        if callback:
            future.add_done_callback(callback)
        return future

    apply_async = submit  # its name before joblib 1.5

    def retrieve_result_callback(self, future):
        return future.result()

    def abort_everything(self, ensure_ready=True):
        """A batch has failed: the others need not begin."""
        for future in self.submitted[:]:
            future.cancel()

    def get_nested_backend(self):
        """Tasks may create tasks, and so may joblib in them."""
        return type(self)(nesting_level=self.nesting_level + 1), -1


register_parallel_backend("minscoop", MinscoopBackend)

if __name__ == "__main__":
    search = GridSearchCV(SVC(), {"C": [0.1, 1, 10], "gamma": [0.01, 0.1, 1]}, cv=3)
    with parallel_config("minscoop"):
        search.fit(*load_iris(return_X_y=True))
    print(search.best_params_, f"{search.best_score_:.3f}")
