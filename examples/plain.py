"""PYTHONPATH=. python examples/plain.py

An Executor in a plain program, without the launcher, used like any executor of `concurrent.futures`.
"""
from concurrent.futures import as_completed
from itertools import repeat

import minscoop


def collatz(start):
    """The number of Collatz steps from a number down to 1."""
    steps = 0
    while start != 1:
        start = start // 2 if start % 2 == 0 else 3 * start + 1
        steps += 1
    return steps


if __name__ == "__main__":
    with minscoop.Executor(max_workers=2) as executor:
        print("sum of squares:", sum(executor.map(pow, range(100), repeat(2))))
        futures = {executor.submit(collatz, start): start for start in (27, 97, 871, 6171)}
        for future in as_completed(futures):  # in the order in which they finish
            print(f"from {futures[future]}: {future.result()} steps")
