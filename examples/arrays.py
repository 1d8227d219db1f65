"""python minscoop.py -n 2 examples/arrays.py

NumPy arrays as arguments, results and constants: within a host they travel through shared memory, copied once.
"""
import numpy

import minscoop

SIZE, PARTS = 600, 4


def multiply(rows):
    """These rows of A, times B. B is large and the same in all calls: a constant, once in each host's memory."""
    return rows @ minscoop.get_const("B")


if __name__ == "__main__":
    rng = numpy.random.default_rng(1)
    A, B = rng.random((SIZE, SIZE)), rng.random((SIZE, SIZE))
    minscoop.set_const(B=B)
    product = numpy.vstack(list(minscoop.map(multiply, numpy.array_split(A, PARTS))))
    print(product.shape, product.dtype, numpy.allclose(product, A @ B))
