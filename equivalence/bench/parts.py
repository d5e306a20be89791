"""Tests that a heap of samples hides from: the one row or column whose noise is off, and noise on a coarse grid."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from samelaw.contract.evidence import TestResult, Verdict
from samelaw.equivalence.laws import FALSE_PASS

CELL = 2.0**-19
"""Two values of noise in one cell of this many std count as the same. Rounding a weight below 0.5 to float32 moves the
noise of the bench's single step (std 0.026 or more) by at most 6e-7 std, so that values of one grid point share a cell
or a pair of neighbouring ones."""
MOST_VALUES = 1 << 14


def worst_part(parts: np.ndarray, *, part: str, name: str, false_alarm: float) -> TestResult:
    """Is the scale off in any one of many parts of the noise?

    Args:
        parts: (parts, samples), standard normal for a correct trainer.
        part: what a part is, in the report's words: "row".
        name: of the test.
        false_alarm: over all parts together, by Bonferroni.

    Guarantees:
        Exact: the sum of squares of a part is chi-square distributed with as many degrees of freedom as samples.
    """
    gap = f"relative error of the std of one {part}"
    count, samples = parts.shape
    if not count or not samples:
        return _none(name, false_alarm, gap)
    if not np.isfinite(parts).all():
        return _refused(name, parts.size, false_alarm, gap)
    tail = false_alarm / (2 * count)
    std = np.sqrt((parts**2).mean(axis=1))
    below, above = stats.chi2.cdf(samples * std**2, samples), stats.chi2.sf(samples * std**2, samples)
    worst = int(np.argmin(np.minimum(below, above)))
    low, high = float(stats.chi2.ppf(tail, samples)), float(stats.chi2.isf(tail, samples))
    found = float(std[worst])
    is_low = below[worst] < above[worst]
    threshold = 1 - math.sqrt(low / samples) if is_low else math.sqrt(high / samples) - 1
    statistic = 1 - found if is_low else found - 1
    p_value = min(1.0, 2 * count * float(min(below[worst], above[worst])))
    smaller = 1 - math.sqrt(low / float(stats.chi2.isf(FALSE_PASS, samples)))
    larger = math.sqrt(high / float(stats.chi2.ppf(FALSE_PASS, samples))) - 1
    return TestResult(
        name,
        Verdict.REFUTED if statistic > threshold else Verdict.NOT_REFUTED,
        statistic,
        threshold,
        parts.size,
        false_alarm,
        max(smaller, larger),
        1 - FALSE_PASS,
        gap,
        f"number {worst} of {count}, std {found:.3g} of the law's",
        p_value,
    )


def coarse(samples: np.ndarray, *, name: str, false_alarm: float) -> TestResult:
    """Does the noise come from a grid, as after a cast to half precision?

    Counts the samples that fall into a cell of width CELL that another one has taken.

    Guarantees:
        For a correct trainer each sample meets one of n taken cells with probability <= n CELL phi(0), whatever the
        others are, so the count is at most Binomial(n, n CELL phi(0)) in law.
    """
    gap = "values of noise that had been drawn before"
    z = samples[:MOST_VALUES]
    if not z.size:
        return _none(name, false_alarm, gap)
    if not np.isfinite(z).all():
        return _refused(name, z.size, false_alarm, gap)
    z = z[z != 0]  # what got no noise at all is for B4 and B5 to name
    chance = min(1.0, z.size * CELL * float(stats.norm.pdf(0)))
    found = z.size - np.unique(np.floor(z / CELL)).size
    threshold = int(stats.binom.isf(false_alarm, z.size, chance))
    return TestResult(
        name,
        Verdict.REFUTED if found > threshold else Verdict.NOT_REFUTED,
        float(found),
        float(threshold),
        z.size,
        false_alarm,
        float(threshold + 1),
        1 - FALSE_PASS,
        gap,
        f"noise of {max(0, z.size - threshold - 1) // 2:,} different values or fewer is sure to be refused",
        min(1.0, float(stats.binom.sf(found - 1, z.size, chance))),
    )


def _none(name: str, false_alarm: float, gap: str) -> TestResult:
    return TestResult(name, Verdict.NOT_ASSESSED, 0.0, 0.0, 0, false_alarm, None, 0.0, gap, "no samples")


def _refused(name: str, samples: int, false_alarm: float, gap: str) -> TestResult:
    return TestResult(
        name, Verdict.REFUTED, math.nan, 0.0, samples, false_alarm, None, 0.0, gap, "some samples are not finite", 0.0
    )
