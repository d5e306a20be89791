"""Is the std 1 and the mean 0? Against known values, with nothing estimated: the tests that see the main bugs."""

from __future__ import annotations

import math
from functools import cache, partial

import numpy as np
from scipy import special, stats

from samelaw.contract.evidence import TestResult, Verdict
from samelaw.equivalence.laws.measured import (
    FALSE_ALARM,
    FALSE_PASS,
    Limits,
    Measured,
    Samples,
    check_margin,
    is_finite,
    measured,
    too_few,
)

_STD = "relative error of the std"
_MEAN = "mean, in stds"


@cache
def std_limits(samples: int, tail: float) -> tuple[float, float]:
    """Between what the std of `samples` standard normals lies, but for a probability of `tail` on each side."""
    low, high = stats.chi2.ppf(tail, samples), stats.chi2.isf(tail, samples)
    return math.sqrt(float(low) / samples), math.sqrt(float(high) / samples)


def measure_scale(samples: Samples, *, margin: float, name: str = "scale") -> Measured:
    """See `scale`."""
    check_margin(margin, f"the test {name!r}")
    n = samples.size
    if n == 0:
        return too_few(name, _STD)
    square = float(np.dot(samples, samples))
    found = math.sqrt(square / n)
    p_value = 2 * min(float(special.chdtr(n, square)), float(special.chdtrc(n, square)))

    return measured(
        name, n, p_value, abs(found - 1), _STD, partial(_scale_limits, n, found, margin), finite=math.isfinite(square)
    )


def scale(
    samples: Samples,
    *,
    margin: float,
    false_alarm: float = FALSE_ALARM,
    false_pass: float = FALSE_PASS,
    name: str = "scale",
) -> TestResult:
    """Is the standard deviation 1? Exact chi-square test, and two one-sided tests for equivalence.

    REFUTED if the sum of squares is outside its two-sided chi-square interval. EQUIVALENT if |ln std| < `margin`
    is concluded: a std at or outside the margin would be called equivalent with probability <= false_pass. NOT
    REFUTED in between: too few samples to conclude.

    Raises:
        InputError: a rate is not in (0, 0.5], or the margin not > 0.

    Source: two one-sided tests, Schuirmann (1987).
    """
    return measure_scale(samples, margin=margin, name=name).at(false_alarm, false_pass)


def measure_mean(samples: Samples, *, name: str = "mean") -> Measured:
    """See `mean`."""
    n = samples.size
    if n == 0:
        return too_few(name, _MEAN)
    found = float(samples.mean())

    return measured(
        name,
        n,
        two_sided(found * math.sqrt(n)),
        abs(found),
        _MEAN,
        partial(_mean_limits, n),
        finite=math.isfinite(found),
    )


def mean(
    samples: Samples, *, false_alarm: float = FALSE_ALARM, false_pass: float = FALSE_PASS, name: str = "mean"
) -> TestResult:
    """Is the mean 0? z-test with the known standard deviation 1.

    Raises:
        InputError: a rate is not in (0, 0.5].
    """
    return measure_mean(samples, name=name).at(false_alarm, false_pass)


def measure_projection(
    samples: Samples, direction: Samples, *, name: str = "projection", gap: str = "multiple of the direction"
) -> Measured:
    """See `projection`."""
    length = float(np.linalg.norm(direction))
    if not length > 0:
        return too_few(name, gap, samples, direction)
    found = float(samples @ direction)

    return measured(
        name,
        samples.size,
        two_sided(found / length),
        abs(found) / length**2,
        gap,
        partial(_projection_limits, length),
        finite=is_finite(samples),
    )


def projection(
    samples: Samples,
    direction: Samples,
    *,
    false_alarm: float = FALSE_ALARM,
    false_pass: float = FALSE_PASS,
    name: str = "projection",
    gap: str = "multiple of the direction",
) -> TestResult:
    """Do the samples hold a multiple of something that was known before they were drawn? Exact z-test along it.

    Raises:
        InputError: a rate is not in (0, 0.5].
    """
    return measure_projection(samples, direction, name=name, gap=gap).at(false_alarm, false_pass)


@cache
def normal_quantile(tail: float) -> float:
    """What a standard normal exceeds with probability `tail`."""
    return float(stats.norm.isf(tail))


def two_sided(z: float) -> float:
    """Probability that a standard normal is at least as far from 0 as z."""
    return 2 * float(special.ndtr(-abs(z)))


def _scale_limits(n: int, found: float, margin: float, false_alarm: float, false_pass: float) -> Limits:
    low, high = std_limits(n, false_alarm / 2)
    # What the found std of a correct trainer stays between, but for a probability of false_pass on each side.
    lower, upper = std_limits(n, false_pass)
    # A std of 1 + r is noticed if (1 + r) times even the lower end exceeds `high`; 1 - r likewise below `low`.
    detectable = max(high / lower - 1, 1 - low / upper)
    # Were the std exp(margin), `found` would be below exp(margin) * lower with probability false_pass only; were
    # it exp(-margin), above exp(-margin) * upper.
    concluded = math.exp(-margin) * upper < found < math.exp(margin) * lower
    note = f"std is {found:.5f} of the law's; " + (
        f"equivalence within {margin:.2%} concluded (wrongly with probability <= {false_pass:g})"
        if concluded
        else f"{n} samples cannot conclude equivalence within {margin:.2%}"
    )
    threshold = high - 1 if found >= 1 else 1 - low
    passed = Verdict.EQUIVALENT if concluded else Verdict.NOT_REFUTED
    return Limits(threshold, detectable, 1 - false_pass, passed, note)


def _mean_limits(n: int, false_alarm: float, false_pass: float) -> Limits:
    quantile, beyond = normal_quantile(false_alarm / 2), normal_quantile(false_pass)
    return Limits(quantile / math.sqrt(n), (quantile + beyond) / math.sqrt(n), 1 - false_pass)


def _projection_limits(length: float, false_alarm: float, false_pass: float) -> Limits:
    quantile, beyond = normal_quantile(false_alarm / 2), normal_quantile(false_pass)
    return Limits(quantile / length, (quantile + beyond) / length, 1 - false_pass)
