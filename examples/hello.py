"""python minscoop.py -n 2 examples/hello.py

The smallest program: `map` runs a function on the workers and returns the results in order.
"""
from minscoop import futures


def hello(value):
    return f"Hello World from Future #{value}"


if __name__ == "__main__":
    for line in futures.map(hello, range(16)):
        print(line)
