"""python minscoop.py -n 2 examples/gridsearch.py

scikit-learn, and anything else that uses joblib: a backend for joblib, and a grid search that runs in the pool.
"""
from joblib import parallel_config, register_parallel_backend
from joblib.parallel import ParallelBackendBase
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

import minscoop


class MinscoopBackend(ParallelBackendBase):
    """Runs joblib's batches as tasks, on the pool of the launcher or of an Executor."""

    default_n_jobs = -1
    # If true, joblib polls for results. In tasks it is false: there joblib blocks on each result in turn, and meanwhile
    # the worker runs other tasks, among them those that are waited for.
    supports_retrieve_callback = property(lambda self: minscoop.IS_ORIGIN)

    def start_call(self):
        self.submitted = []

    def effective_n_jobs(self, n_jobs):
        """How many batches run at a time; -1: one per worker, -2: one fewer."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 has no meaning")
        return max(1, minscoop.SIZE + 1 + n_jobs) if n_jobs < 0 else n_jobs

    def submit(self, func, callback=None):
        """Run a batch in the pool; at its end, `callback` gives joblib the result and lets it submit the next batch."""
        future = minscoop.submit(func)
        future.get = future.result  # joblib calls it by this name
        self.submitted.append(future)
        if callback:
            future.add_done_callback(callback)
        return future

    apply_async = submit  # the name of this method before joblib 1.5

    def retrieve_result_callback(self, future):
        return future.result()

    def abort_everything(self, ensure_ready=True):
        """A batch has failed: cancel those that have not begun."""
        for future in self.submitted[:]:
            future.cancel()

    def get_nested_backend(self):
        """Tasks may create tasks, so joblib may use the pool inside of tasks, too."""
        return type(self)(nesting_level=self.nesting_level + 1), -1


register_parallel_backend("minscoop", MinscoopBackend)

if __name__ == "__main__":
    search = GridSearchCV(SVC(), {"C": [0.1, 1, 10], "gamma": [0.01, 0.1, 1]}, cv=3)
    with parallel_config("minscoop"):
        search.fit(*load_iris(return_X_y=True))
    print(search.best_params_, f"{search.best_score_:.3f}")
