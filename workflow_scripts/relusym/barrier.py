"""Equation (4): the barrier on the line between two nets."""


def absolute_barrier(first: float, second: float, halfway: float) -> float:
    """Equation (4) without its denominator: ½(ζ(θ₁) + ζ(θ₂)) − ζ(½(θ₁ + θ₂))."""
    return (first + second) / 2 - halfway


def barrier(first: float, second: float, halfway: float) -> float:
    """Equation (4): the share of the endpoints' mean performance ζ that the halfway net lacks.

    Raises:
        ZeroDivisionError: both endpoints are at zero.
    """
    return absolute_barrier(first, second, halfway) / ((first + second) / 2)
