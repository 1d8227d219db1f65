"""python minscoop.py -n 2 examples/onemax.py

DEAP: with our `map` registered, its algorithms evaluate in the pool. Rows of bits evolve towards all ones.
"""
import random

from deap import algorithms, base, tools

from minscoop import futures

BITS = 30


class Fitness(base.Fitness):
    weights = (1,)


class Row(list):
    """Bits. Defined here, not under the guard below, since workers need it, too; DEAP's `creator` would also do."""

    def __init__(self, bits):
        super().__init__(bits)
        self.fitness = Fitness()


def ones(row):
    return sum(row),


def make_rows(number):
    return [Row(random.choices((0, 1), k=BITS)) for _ in range(number)]


def evolve(rows, generations, mapping):
    """Run DEAP's simplest algorithm for so many generations; `mapping` is the map by which it evaluates rows."""
    toolbox = base.Toolbox()
    toolbox.register("map", mapping)
    toolbox.register("evaluate", ones)
    toolbox.register("select", tools.selTournament, tournsize=3)
    toolbox.register("mate", tools.cxTwoPoint)
    toolbox.register("mutate", tools.mutFlipBit, indpb=1 / BITS)
    return algorithms.eaSimple(rows, toolbox, 0.6, 0.3, generations, verbose=False)[0]


if __name__ == "__main__":
    random.seed(1)
    best = max(evolve(make_rows(60), 30, futures.map), key=sum)
    print("best:", "".join(map(str, best)), "with", sum(best), "ones")
