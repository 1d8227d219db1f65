"""python minscoop.py -n 2 examples/pi.py

Monte Carlo: independent tasks, each with its own random generator and seed.
"""
import random
import sys
from itertools import repeat

from minscoop import futures

TASKS = 64


def hits(seed, tries):
    """How many of `tries` random points in the unit square lie in the quarter circle."""
    rng = random.Random(seed)
    return sum(rng.random() ** 2 + rng.random() ** 2 < 1 for _ in range(tries))


def estimate(tries):
    """Estimate pi from `tries` points in all. The seeds are fixed, so the result does not depend on the pool."""
    each = max(1, tries // TASKS)
    return 4 * sum(futures.map(hits, range(TASKS), repeat(each))) / (TASKS * each)


if __name__ == "__main__":
    print("pi is about", estimate(int(sys.argv[1]) if len(sys.argv) > 1 else 4_000_000))
