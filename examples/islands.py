"""python minscoop.py -n 2 examples/islands.py

DEAP's islands: populations evolve apart, each in a task; after each round, the best migrate around a ring.
"""
import random

from deap import tools
from onemax import BITS, evolve, make_rows

from minscoop import futures

ISLANDS, ROUNDS, MIGRANTS = 4, 5, 2


def live(rows, seed):
    """Six generations on one island. It has a seed of its own, so that the result does not depend on the pool."""
    random.seed(seed)
    return evolve(rows, 6, map)


if __name__ == "__main__":
    random.seed(1)
    islands = [make_rows(15) for _ in range(ISLANDS)]
    for number in range(ROUNDS):
        seeds = range(number * ISLANDS, (number + 1) * ISLANDS)
        islands = list(futures.map(live, islands, seeds))
        tools.migRing(islands, MIGRANTS, tools.selBest)
        print(f"round {number}: the best have", *(max(map(sum, rows)) for rows in islands), "ones")
    assert max(map(sum, sum(islands, []))) == BITS
