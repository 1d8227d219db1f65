"""python minscoop.py -n 2 examples/sampling.py

emcee: what takes `pool=` takes anything with a `map`, this module too. Fits a line to noisy points.
"""
import emcee
import numpy

from minscoop import futures

X = numpy.linspace(0, 10, 50)
Y = 2 * X + 1 + numpy.random.default_rng(1).normal(0, 0.5, len(X))


def log_probability(parameters):
    """How well a line explains the points. Workers have them, since they import this file."""
    slope, intercept = parameters
    return -0.5 * numpy.sum(((Y - slope * X - intercept) / 0.5) ** 2)


if __name__ == "__main__":
    numpy.random.seed(1)  # emcee's generator begins with it; the steps do not depend on the pool
    sampler = emcee.EnsembleSampler(16, 2, log_probability, pool=futures)
    sampler.run_mcmc(numpy.random.normal([2, 1], 0.1, (16, 2)), 300)
    (slope, intercept), (off, shift) = [f(sampler.get_chain(discard=100, flat=True), axis=0)
                                        for f in (numpy.mean, numpy.std)]
    print(f"slope {slope:.2f} +- {off:.2f}, intercept {intercept:.1f} +- {shift:.1f}")
