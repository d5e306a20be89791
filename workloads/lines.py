"""Bad lines: refused with their place, or skipped and counted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from samelaw.contract.errors import DataError

Parsed = TypeVar("Parsed")

_SHOWN = 60
_DECIMAL = re.compile(r"-?[0-9]{1,18}")


class BadLine(Exception):
    """A line does not meet a requirement. Carries the requirement and the value; the reader adds the place."""

    def __init__(self, requirement: str, value: object) -> None:
        shown = repr(value)
        shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "…"
        super().__init__(f"{requirement}, got {shown}")


@dataclass
class LineReader:
    """Applies a parser to each line, and decides what a bad line means.

    Attributes:
        skip: skip and count bad lines instead of raising.
        skipped: lines skipped so far, by file.
    """

    skip: bool = False
    skipped: dict[str, int] = field(default_factory=dict[str, int])

    def read(self, text: str, *, where: str, first_line: int, parse: Callable[[str], Parsed]) -> Iterator[Parsed]:
        """Yield parse(line) for every line of `text`, whose first line has the number `first_line`."""
        lines = text.split("\n")  # not splitlines: it also splits at characters that occur inside titles
        if lines[-1] == "":
            lines.pop()
        for number, line in enumerate(lines, start=first_line):
            try:
                parsed = parse(line.removesuffix("\r"))
            except BadLine as bad:
                self.bad(str(bad), where=where, line=number)
            else:
                yield parsed

    def bad(self, problem: str, *, where: str, line: int) -> None:
        """Count one bad line, or refuse it.

        Raises:
            DataError: bad lines are not to be skipped.
        """
        if not self.skip:
            raise DataError(
                f"{where}, line {line}: {problem}. Correct the line, or pass skip_bad_lines (--skip-bad-lines) to "
                f"leave such lines out and count them"
            )
        self.skipped[where] = self.skipped.get(where, 0) + 1


def integer(text: str, name: str, low: int, high: int) -> int:
    """A decimal integer in low..high, or BadLine."""
    if not _DECIMAL.fullmatch(text):  # int() alone would take "1_0", " 1 " and digits of other scripts
        raise BadLine(f"{name} must be an integer", text)
    value = int(text)
    if not low <= value <= high:
        raise BadLine(f"{name} must be in {low}..{high}", value)
    return value


def columns(line: str, separator: str, count: int) -> list[str]:
    """The columns of a line, or BadLine."""
    parts = line.split(separator)
    if len(parts) != count:
        raise BadLine(f"a line must have {count} columns", f"{len(parts)}: {line}")
    return parts


def body(text: str, *, header: str, where: str) -> str:
    """What follows the header line.

    Raises:
        DataError: the first line is not that header.
    """
    first, _, rest = text.partition("\n")
    if first.rstrip("\r") != header:
        raise DataError(
            f"{where}, line 1: the header must be {header!r}, got {first[:_SHOWN]!r}. Is this the right file?"
        )
    return rest
