"""python minscoop.py -n 2 examples/minimize.py

SciPy: functions with a `workers=` parameter accept our `map`. Here, each generation of differential evolution is
evaluated in the pool.
"""
from scipy.optimize import differential_evolution

from minscoop import futures


def valley(point):
    """Rosenbrock's function, whose minimum is at (1, 1). It stands in for something slow."""
    x, y = point
    return (1 - x) ** 2 + 100 * (y - x * x) ** 2


if __name__ == "__main__":
    found = differential_evolution(valley, [(-2, 2), (-2, 2)], popsize=8, seed=1,
                                   workers=futures.map, updating="deferred")  # a generation is one map
    print(f"lowest at ({found.x[0]:.3f}, {found.x[1]:.3f}), after {found.nfev} evaluations")
