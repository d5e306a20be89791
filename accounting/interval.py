"""What an accountant answers: a bracket of epsilon, or the reason why it cannot give one."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """lower <= true epsilon <= upper at the delta asked for, to the best knowledge of the engine named.

    Attributes:
        engine: which accountant, with its version.
        note: what limits the answer, for the reader.
    """

    lower: float
    estimate: float
    upper: float
    engine: str
    note: str = ""

    def __post_init__(self) -> None:
        assert 0 <= self.lower <= self.estimate <= self.upper, self
        assert math.isfinite(self.lower), self


@dataclass(frozen=True)
class Unavailable:
    """An engine that has no sound answer here, and why."""

    engine: str
    reason: str
