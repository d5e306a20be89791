"""Do the tails hold as many samples as they should, and does the largest lie where it should? Exact tests."""

from __future__ import annotations

import math
from functools import cache, partial

import numpy as np
from scipy import special, stats

from samelaw.contract.entry import as_float
from samelaw.contract.errors import InputError
from samelaw.contract.evidence import TestResult
from samelaw.equivalence.laws.measured import (
    FALSE_ALARM,
    FALSE_PASS,
    Limits,
    Measured,
    Samples,
    is_finite,
    measured,
    solve,
    too_few,
)

_SHARE = "factor on the share"
_CUT = "cut of the tails, in stds"


def measure_tail_count(samples: Samples, beyond: float, *, name: str | None = None) -> Measured:
    """See `tail_count`."""
    name = name or f"samples beyond {beyond:g} std"
    if not as_float("beyond", beyond, f"the test {name!r}") > 0:
        raise InputError(
            f"beyond must be > 0, got {beyond!r} in the test {name!r}: both tails together start there, in stds"
        )
    n = samples.size
    if n == 0:
        return too_few(name, _SHARE)
    rate = 2 * float(special.ndtr(-beyond))
    count = int((np.abs(samples) > beyond).sum())
    expected = n * rate

    # P(X <= count) and P(X >= count) by the incomplete beta function, exact in the far tail too.
    below = 1.0 if count >= n else float(special.betaincc(count + 1, n - count, rate))
    above = 1.0 if count == 0 else float(special.betainc(count, n - count + 1, rate))
    p_value = 2 * min(below, above)
    return measured(
        name,
        n,
        p_value,
        abs(count - expected),
        _SHARE,
        partial(_count_limits, n, rate, count),
        finite=is_finite(samples),
    )


def tail_count(
    samples: Samples,
    beyond: float,
    *,
    false_alarm: float = FALSE_ALARM,
    false_pass: float = FALSE_PASS,
    name: str | None = None,
) -> TestResult:
    """Does the right share of samples lie further than `beyond` stds from 0? Exact two-sided binomial test.

    Raises:
        InputError: a rate is not in (0, 0.5], or `beyond` not > 0.
    """
    return measure_tail_count(samples, beyond, name=name).at(false_alarm, false_pass)


def measure_largest(samples: Samples, *, name: str = "largest sample") -> Measured:
    """See `largest`."""
    n = samples.size
    if n == 0:
        return too_few(name, _CUT)
    found = float(np.abs(samples).max())
    centre = _cut(math.log(0.5) / n)

    below = n * math.log1p(-2 * float(special.ndtr(-found))) if 0 < found < math.inf else -math.inf
    p_value = 2 * min(math.exp(below), -math.expm1(below))
    return measured(
        name, n, p_value, abs(found - centre), _CUT, partial(_largest_limits, n, found), finite=is_finite(samples)
    )


def largest(
    samples: Samples,
    *,
    false_alarm: float = FALSE_ALARM,
    false_pass: float = FALSE_PASS,
    name: str = "largest sample",
) -> TestResult:
    """Is the largest |sample| neither too large nor too small for so many draws? Exact.

    P(max |z| <= m) = (1 - 2 sf(m))^n. `detectable` is the largest cut of the tails that is always noticed: noise
    cut at or below it cannot pass, so false_pass changes nothing here. (The generator's own tail ends at 7.54, which
    10^13 draws could show.)

    Raises:
        InputError: a rate is not in (0, 0.5].
    """
    return measure_largest(samples, name=name).at(false_alarm, false_pass)


def _cut(log_below: float) -> float:
    """m with P(|z| <= m) = exp(log_below)."""
    return -float(special.ndtri(-math.expm1(log_below) / 2))


@cache
def _tail_limits(n: int, rate: float, false_alarm: float, false_pass: float) -> tuple[int, int, float | None]:
    """Fewest and most of n that may lie in a tail of this rate, and the factor on the rate that exceeds `most`."""
    least = int(stats.binom.ppf(false_alarm / 2, n, rate))  # P(count < least) <= false_alarm / 2
    most = int(stats.binom.isf(false_alarm / 2, n, rate))  # P(count > most) <= false_alarm / 2

    def missed(log_factor: float) -> float:
        return float(stats.binom.cdf(most, n, min(1.0, rate * math.exp(log_factor)))) - false_pass

    if most >= n:
        return least, most, None
    return least, most, math.exp(solve(missed, 0.0, -math.log(rate)))


def _count_limits(n: int, rate: float, count: int, false_alarm: float, false_pass: float) -> Limits:
    least, most, factor = _tail_limits(n, rate, false_alarm, false_pass)
    expected = n * rate
    without = "a missing tail would have been noticed" if least > 0 else "too few samples to miss a tail"
    note = f"{count} found, {expected:.1f} expected; {without}"
    return Limits(most - expected if count >= expected else expected - least, factor, 1 - false_pass, note=note)


def _largest_limits(n: int, found: float, false_alarm: float, false_pass: float) -> Limits:
    low, high = _cut(math.log(false_alarm / 2) / n), _cut(math.log1p(-false_alarm / 2) / n)
    centre = _cut(math.log(0.5) / n)
    note = f"largest is {found:.3f} std; allowed {low:.3f} to {high:.3f}"
    return Limits(high - centre if found >= centre else centre - low, low if low > 0 else None, 1.0, note=note)
