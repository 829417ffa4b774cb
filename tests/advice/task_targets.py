"""A function that trials run in other processes."""


def square(x):
    return float(x) ** 2
