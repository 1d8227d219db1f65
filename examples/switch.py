"""PYTHONPATH=. python examples/switch.py

A program that is given an executor runs on any: its caller chooses one in one line. Add processes, dask or mpi to the
command to try the others.
"""
import importlib
import sys
from concurrent.futures import as_completed

EXECUTORS = {
    "minscoop": lambda: importlib.import_module("minscoop").Executor(2),
    "processes": lambda: importlib.import_module("concurrent.futures").ProcessPoolExecutor(2),
    "dask": lambda: importlib.import_module("distributed").Client(n_workers=2, dashboard_address=None).get_executor(),
    "mpi": lambda: importlib.import_module("mpi4py.futures").MPIPoolExecutor(2),
}


def count_primes(start, stop):
    """The number of primes from `start` up to, but not including, `stop`."""
    return sum(all(n % divisor for divisor in range(2, int(n ** 0.5) + 1)) for n in range(max(2, start), stop))


def program(executor):
    """Uses nothing but what concurrent.futures defines for all executors."""
    print("by thousands:", *executor.map(count_primes, range(0, 10000, 1000), range(1000, 11000, 1000)))
    futures = [executor.submit(count_primes, 10 ** digits // 10, 10 ** digits) for digits in (4, 3, 2, 1)]
    print("in all:", sum(future.result() for future in as_completed(futures)))


if __name__ == "__main__":
    with EXECUTORS[sys.argv[1] if sys.argv[1:] else "minscoop"]() as executor:
        program(executor)
