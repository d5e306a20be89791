"""Numbers for people: a promise is never rounded to a better one."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal


def rounded_up(value: float, digits: int = 3) -> str:
    """The smallest number of so many significant digits that is >= value, as text: for upper bounds, and for deltas.

    Args:
        value: may be infinite or NaN, which stay what they are.
    """
    return _text(value, Context(prec=digits, rounding=ROUND_CEILING))


def rounded_down(value: float, digits: int = 3) -> str:
    """The largest number of so many significant digits that is <= value, as text: for lower bounds."""
    return _text(value, Context(prec=digits, rounding=ROUND_FLOOR))


def _text(value: float, context: Context) -> str:
    # The shortest decimal that reads back as this float: 1e-05 is meant as 1e-05, not as what lies a hair above it.
    number = context.create_decimal(Decimal(repr(float(value))))
    if not number.is_finite() or number == 0:
        return f"{float(number):g}"
    number = number.normalize()
    if -4 <= number.adjusted() < 6:
        return f"{number:f}"
    mantissa, exponent = f"{number:e}".split("e")
    return f"{mantissa}e{int(exponent):+03d}"
