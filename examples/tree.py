"""python minscoop.py -n 2 examples/tree.py

Tasks that create tasks: the eight queens, where each queen placed is a task that maps over the next row.
"""
from minscoop import futures

SIZE = 8
SOLUTIONS = 92  # known since 1850


def safe(queens, column):
    """Whether none of the queens so far attacks this column of the next row."""
    row = len(queens)
    return all(column != other and abs(column - other) != row - other_row
               for other_row, other in enumerate(queens))


def solutions(queens):
    """The number of ways to complete a board. queens: the columns of those placed so far, row by row."""
    if len(queens) == SIZE:
        return 1
    boards = [queens + (column,) for column in range(SIZE) if safe(queens, column)]
    return sum(futures.map(solutions, boards))


if __name__ == "__main__":
    found = solutions(())
    print(f"{SIZE} queens: {found} solutions")
    assert found == SOLUTIONS
