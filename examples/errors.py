"""python minscoop.py -q -n 2 examples/errors.py

An exception in a task is raised where its result is asked for; a worker's death costs only time. (Without -q, a
message says which worker died, and how.)
"""
import os
import sys
import tempfile

from minscoop import WorkerLost, futures


def divide(dividend, divisor):
    return dividend / divisor


def die_once(path):
    """Kill the first worker that runs this; the second returns."""
    if not os.path.exists(path):
        open(path, "w").close()
        os._exit(9)
    return "alive"


if __name__ == "__main__":
    try:
        futures.submit(divide, 1, 0).result()
    except ZeroDivisionError as error:
        print("raised here, too:", error)
        print(error.__cause__)  # the traceback in the worker
    print("as a value:", repr(futures.submit(divide, 2, 0).exception()))

    with tempfile.TemporaryDirectory() as directory:
        print(futures.submit(die_once, os.path.join(directory, "mark")).result())  # the call runs again elsewhere
    try:
        futures.submit(sys.exit, 3).result()  # ends the task, not the worker
    except SystemExit as error:
        print("exit code", error.code)
    try:
        futures.submit(os._exit, 9).result()
    except WorkerLost as error:  # the call killed three workers: see --retries
        print(str(error).partition(":")[0])
