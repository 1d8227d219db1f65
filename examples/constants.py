"""python minscoop.py -n 2 examples/constants.py

Shared constants: set once, by the program or by a task, and read by name in every task. Functions can be shared, too.
"""
import minscoop


def convert(amount):
    """An amount in another currency. Neither the rate nor the rounding rule is an argument."""
    rate = minscoop.get_const("rate")
    rounded = minscoop.get_const("rounded")
    return rounded(amount * rate)


if __name__ == "__main__":
    minscoop.set_const(rate=1.25, rounded=lambda value: round(value, 1))
    converted = list(minscoop.map(convert, [1, 2.5, 10]))
    print(converted)
    assert converted == [1.2, 3.1, 12.5]
    try:
        minscoop.set_const(rate=2.0)
    except TypeError as error:
        print("TypeError:", error)
    print("not set:", minscoop.get_const("discount", timeout=0.1))
