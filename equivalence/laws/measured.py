"""What a test found in its samples, before anybody says how much of the error budget it may spend.

A suite of tests shares one budget, so no test can be judged before all are known. A test therefore comes in two
halves: it *measures* (a statistic and an exact or conservative p-value; the samples may then be dropped), and is
*judged* at its share of the budget (threshold, detectable gap, verdict).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy import optimize

from samelaw.contract.entry import as_float
from samelaw.contract.errors import InputError
from samelaw.contract.evidence import TestResult, Verdict

FALSE_ALARM = 1e-9
FALSE_PASS = 1e-6
LARGEST_RATE = 0.5

Samples = Float64[np.ndarray, "samples"]


@dataclass(frozen=True)
class Limits:
    """What a test allows at given error rates.

    Attributes:
        threshold: the statistic is refuted above it.
        detectable: smallest gap that is refuted with probability `power`; None where there is none.
        passed: the verdict below the threshold.
    """

    threshold: float
    detectable: float | None
    power: float
    passed: Verdict = Verdict.NOT_REFUTED
    note: str = ""


@dataclass(frozen=True)
class Measured:
    """One test, measured and not yet judged.

    Attributes:
        name: what was tested, in the report's words.
        samples: number of independent samples; 0 when there were too few to assess.
        p_value: probability, for a correct trainer, of a statistic at least as extreme (or a bound on it); 0 for
            samples that are not finite; None when there were too few.
        statistic: what was found.
        gap: the unit of `detectable`.
        limits: (false_alarm, false_pass) -> Limits, or None when the test cannot be held at that false-alarm rate.
    """

    name: str
    samples: int
    p_value: float | None
    statistic: float
    gap: str
    limits: Callable[[float, float], Limits | None]

    def at(self, false_alarm: float, false_pass: float = FALSE_PASS) -> TestResult:
        """The verdict at these error rates.

        Raises:
            InputError: a rate is not in (0, 0.5].
        """
        check_rate("false_alarm", false_alarm, f"the test {self.name!r}")
        check_rate("false_pass", false_pass, f"the test {self.name!r}")
        finite = math.isfinite(self.statistic)
        limits = None if self.p_value is None else self.limits(false_alarm, false_pass)
        if not finite:  # refuted, also where finite samples could not be assessed at this rate
            limits = limits or Limits(0.0, None, 1.0)
        if limits is None or self.p_value is None:
            return TestResult(
                self.name, Verdict.NOT_ASSESSED, 0.0, 0.0, 0, false_alarm, None, None, self.gap, "too few samples"
            )
        verdict = limits.passed if finite and self.statistic <= limits.threshold else Verdict.REFUTED
        note = limits.note if finite else "some samples are not finite"
        return TestResult(
            self.name,
            verdict,
            self.statistic,
            limits.threshold,
            self.samples,
            false_alarm,
            limits.detectable,
            limits.power,
            self.gap,
            note,
            self.p_value,
        )


def measured(
    name: str,
    samples: int,
    p_value: float,
    statistic: float,
    gap: str,
    limits: Callable[[float, float], Limits | None],
    *,
    finite: bool,
) -> Measured:
    """A finding; what is not finite has p-value 0 and refutes at every rate."""
    if not finite or math.isnan(p_value):
        return Measured(name, samples, 0.0, math.nan, gap, limits)
    return Measured(name, samples, min(1.0, float(p_value)), float(statistic), gap, limits)


def too_few(name: str, gap: str, *samples: np.ndarray) -> Measured:
    """Nothing to judge by; but a sample that is not finite is one too many."""
    if not all(is_finite(part) for part in samples):
        return Measured(name, max(part.size for part in samples), 0.0, math.nan, gap, _no_limits)
    return Measured(name, 0, None, 0.0, gap, _no_limits)


def _no_limits(false_alarm: float, false_pass: float) -> Limits | None:
    return None


def is_finite(samples: np.ndarray) -> bool:
    return bool(np.isfinite(samples).all())


def check_rate(name: str, value: float, place: str) -> None:
    """An error rate is a probability that somebody could mean.

    Raises:
        InputError: it is not in (0, 0.5].
    """
    rate = as_float(name, value, place)
    if not 0 < rate <= LARGEST_RATE:
        raise InputError(
            f"{name} must be in (0, {LARGEST_RATE:g}], got {value!r} in {place}: it is the probability of a "
            f"wrong verdict. The defaults are false_alarm={FALSE_ALARM:g} and false_pass={FALSE_PASS:g}"
        )


def check_margin(value: float, place: str) -> None:
    """A margin on ln std.

    Raises:
        InputError: it is not finite and > 0.
    """
    margin = as_float("margin", value, place)
    if not (math.isfinite(margin) and margin > 0):
        raise InputError(
            f"margin must be finite and > 0, got {value!r} in {place}: equivalence is concluded within it, and no "
            "number of samples concludes equality. Give the relative error of the std that may be tolerated"
        )


def solve(f: Callable[[float], float], low: float, high: float) -> float:
    """Root of a monotone function whose signs differ at the ends."""
    return float(optimize.brentq(f, low, high, xtol=1e-12))  # pyright: ignore[reportArgumentType]
