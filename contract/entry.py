"""Numbers as they come in: what NumPy, torch or a file hands over becomes a Python number, or an error."""

from __future__ import annotations

import operator
from typing import Any

from samelaw.contract.errors import InputError


def as_float(name: str, value: Any, place: str) -> float:
    """A real number as a Python float, which JSON and every digest can take.

    Raises:
        InputError: it is none. Text is none either, even where it could be read as a number.
    """
    try:
        if isinstance(value, str | bytes):
            raise TypeError("text")
        return float(value)
    except (TypeError, ValueError) as cause:
        raise InputError(f"{name} must be a number, got {value!r} in {place}") from cause


def as_count(name: str, value: Any, place: str, *, least: int) -> int:
    """A whole number >= `least` as a Python int.

    Raises:
        InputError: it is none; True and 8.0 are none.
    """
    try:
        count = operator.index(value)
    except TypeError as cause:
        raise InputError(f"{name} must be a whole number >= {least}, got {value!r} in {place}") from cause
    if isinstance(value, bool) or count < least:
        raise InputError(f"{name} must be a whole number >= {least}, got {value!r} in {place}")
    return count
