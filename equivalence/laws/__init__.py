"""Tests of law: is this noise what it is said to be, and what would have been noticed if it were not?

Every test takes samples that a correct trainer makes independent standard normal (the known scale has been divided
out: nothing is ever estimated from the samples that are tested), and both of its error rates:

    false_alarm   the probability of rejecting a correct trainer,
    false_pass    the probability of missing a gap of the size that the result names as `detectable`.

A result says "not refuted; a gap of `detectable` would have been, with probability 1 - false_pass". Only `scale`
can say more: it concludes equivalence within a stated margin. Samples that are not finite are always refuted.

Every test comes in two forms: `scale(samples, ..., false_alarm=...)` gives a verdict; `measure_scale(samples, ...)`
gives a `Measured`, whose p-value is known and whose verdict waits for its share of a budget that many tests have in
common (budget.py: Holm's step-down).

docs/report.md explains each in words; docs/power.md states what was measured of them.
"""

from __future__ import annotations

from samelaw.equivalence.laws.dependence import (
    correlation,
    count_equal_rows,
    duplicates,
    measure_correlation,
    measure_duplicates,
    measure_unchanged,
    unchanged,
    unchanged_rows,
)
from samelaw.equivalence.laws.measured import FALSE_ALARM, FALSE_PASS, Limits, Measured, check_margin, check_rate
from samelaw.equivalence.laws.moments import (
    mean,
    measure_mean,
    measure_projection,
    measure_scale,
    projection,
    scale,
    std_limits,
)
from samelaw.equivalence.laws.shape import (
    anderson_darling,
    anderson_darling_tail,
    kolmogorov_smirnov,
    measure_anderson_darling,
    measure_kolmogorov_smirnov,
)
from samelaw.equivalence.laws.tails import largest, measure_largest, measure_tail_count, tail_count

__all__ = [
    "FALSE_ALARM",
    "FALSE_PASS",
    "Limits",
    "Measured",
    "anderson_darling",
    "anderson_darling_tail",
    "check_margin",
    "check_rate",
    "correlation",
    "count_equal_rows",
    "duplicates",
    "kolmogorov_smirnov",
    "largest",
    "mean",
    "measure_anderson_darling",
    "measure_correlation",
    "measure_duplicates",
    "measure_kolmogorov_smirnov",
    "measure_largest",
    "measure_mean",
    "measure_projection",
    "measure_scale",
    "measure_tail_count",
    "measure_unchanged",
    "projection",
    "scale",
    "share",
    "std_limits",
    "tail_count",
    "unchanged",
    "unchanged_rows",
]


def share(false_alarm: float, tests: int) -> float:
    """What each of `tests` tests may spend so that one or more false alarms have probability <= false_alarm."""
    return false_alarm / max(1, tests)
