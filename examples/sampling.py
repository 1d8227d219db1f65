"""python minscoop.py -n 2 examples/sampling.py

emcee: its `pool=` accepts anything with a `map`, so this module, too. Here it fits a line to noisy points.
"""
import emcee
import numpy

from minscoop import futures

X = numpy.linspace(0, 10, 50)
Y = 2 * X + 1 + numpy.random.default_rng(1).normal(0, 0.5, len(X))


def log_probability(parameters):
    """How well a line explains the points. Workers have the points, too, since they import this file."""
    slope, intercept = parameters
    return -0.5 * numpy.sum(((Y - slope * X - intercept) / 0.5) ** 2)


if __name__ == "__main__":
    numpy.random.seed(1)  # seeds emcee's generator; the steps do not depend on the pool
    sampler = emcee.EnsembleSampler(16, 2, log_probability, pool=futures)
    sampler.run_mcmc(numpy.random.normal([2, 1], 0.1, (16, 2)), 300)
    chain = sampler.get_chain(discard=100, flat=True)
    (slope, intercept), (slope_error, intercept_error) = chain.mean(axis=0), chain.std(axis=0)
    print(f"slope {slope:.2f} +- {slope_error:.2f}, intercept {intercept:.1f} +- {intercept_error:.1f}")
