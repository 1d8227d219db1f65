"""python minscoop.py -n 2 examples/submit.py

`submit` returns a Future at once: ask it for its result, or take several as they finish.
"""
from minscoop import futures


def power(exponent, base=2):
    return base ** exponent


if __name__ == "__main__":
    future = futures.submit(power, 10, base=3)
    print("3 ** 10 =", future.result())  # waits for it

    exponents = {futures.submit(power, exponent): exponent for exponent in (1, 10, 100)}
    for future in futures.as_completed(exponents):  # in the order in which they finish
        print(f"2 ** {exponents[future]} = {future.result()}")

    done, not_done = futures.wait([futures.submit(power, i) for i in range(8)], timeout=60)
    print(sorted(future.result() for future in done), len(not_done))
