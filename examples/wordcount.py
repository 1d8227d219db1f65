"""python minscoop.py -n 2 examples/wordcount.py

`map_reduce` over real text: the words in the sources of Python's standard library, counted in the pool and, for
comparison, serially.
"""
import re
import sysconfig
import time
from collections import Counter
from pathlib import Path

from minscoop import futures


def count(path):
    """How often each word occurs in a file, in lower case."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return Counter(re.findall(r"[a-z]+", text.lower()))


def add(total, more):
    """Add the second count to the first: in place, since nothing else uses it."""
    total.update(more)
    return total


def count_serially(paths):
    """How often each word occurs in all files, counted in this process."""
    total = Counter()
    for path in paths:
        add(total, count(path))
    return total


def timed(fn, *args):
    """The result of a call, and the seconds that it took."""
    start = time.perf_counter()
    return fn(*args), time.perf_counter() - start


if __name__ == "__main__":
    library = Path(sysconfig.get_path("stdlib"))
    paths = sorted(path for pattern in ("*.py", "*/*.py") for path in library.glob(pattern)
                   if path.parent.name != "site-packages")
    serial, serial_seconds = timed(count_serially, paths)
    pooled, pooled_seconds = timed(futures.map_reduce, count, add, paths)  # workers add up their counts
    assert pooled == serial
    print(f"{sum(pooled.values())} words in {len(paths)} files")
    print(f"serial {serial_seconds:.2f} s, pool {pooled_seconds:.2f} s")
    for word, times in pooled.most_common(10):
        print(f"{times:8} {word}")
