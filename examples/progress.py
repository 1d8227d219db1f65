"""python minscoop.py -n 2 examples/progress.py

tqdm: a progress bar around `map`, `map_as_completed` or `as_completed`, as around any other iterator.
"""
import sys
import time

from tqdm import tqdm

from minscoop import futures


def work(seconds):
    time.sleep(seconds)
    return seconds


if __name__ == "__main__":
    times = [0.02, 0.01, 0.03] * 10
    total = sum(tqdm(futures.map(work, times), "map", len(times), file=sys.stdout))
    for result in tqdm(futures.map_as_completed(work, times), "map_as_completed", len(times), file=sys.stdout):
        total += result
    submitted = [futures.submit(work, seconds) for seconds in times]
    for future in tqdm(futures.as_completed(submitted), "as_completed", len(times), file=sys.stdout):
        total += future.result()
    print(f"{total:.2f} s of work")
