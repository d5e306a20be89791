"""Was a draw used twice? In part (correlation), whole (repeated vectors), or was none used at all (unchanged rows)."""

from __future__ import annotations

import math
from functools import cache, partial

import numpy as np
from jaxtyping import Float64
from scipy import special, stats

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
    too_few,
)
from samelaw.equivalence.laws.moments import normal_quantile

NORMAL_COINCIDENCE = 1 / (2 * math.sqrt(math.pi))  # density at 0 of the difference of two standard normals

_FARTHEST_CELL = 2.0**62  # what lies beyond shares a cell: an integer holds no more

_R = "correlation coefficient"
_EQUAL = "rows equal to another row"
_SAME = "rows left exactly as they were"


def measure_correlation(
    first: Samples, second: Float64[np.ndarray, "others"], *, name: str = "correlation"
) -> Measured:
    """See `correlation`."""
    n = first.size
    if second.size != n:
        raise InputError(
            f"first and second must hold the same number of values, got {n} and {second.size} in the test {name!r}: "
            "value i of one is paired with value i of the other"
        )
    if n < 32:
        return too_few(name, _R, first, second)
    finite = is_finite(first) and is_finite(second)
    with np.errstate(invalid="ignore", divide="ignore"):  # a constant column: no r, and no noise
        found = float(np.corrcoef(first, second)[0, 1]) if finite else math.nan

    # r^2 of independent normals is Beta(1/2, (n - 2)/2).
    p_value = float(special.betaincc(0.5, (n - 2) / 2, min(1.0, found**2)))
    return measured(
        name, n, p_value, abs(found), _R, partial(_correlation_limits, n, found), finite=math.isfinite(found)
    )


def correlation(
    first: Samples,
    second: Float64[np.ndarray, "others"],
    *,
    false_alarm: float = FALSE_ALARM,
    false_pass: float = FALSE_PASS,
    name: str = "correlation",
) -> TestResult:
    """Are pairs (first[i], second[i]) uncorrelated? Pearson's r against its exact law, power by Fisher's z.

    Raises:
        InputError: a rate is not in (0, 0.5], or the two differ in length.

    Source: Fisher (1915).
    """
    return measure_correlation(first, second, name=name).at(false_alarm, false_pass)


def measure_duplicates(
    rows: Float64[np.ndarray, "rows dim"], *, within: float = 0.0, name: str = "repeated rows"
) -> Measured:
    """See `duplicates`."""
    if not within >= 0:
        raise InputError(f"within must be >= 0, got {within!r} in the test {name!r}; 0 compares to the bit")
    n, dim = rows.shape
    if n < 2 or dim == 0:
        return too_few(name, _EQUAL, rows)
    coincidence = 2 * within * NORMAL_COINCIDENCE if within > 0 else 2.0**-20
    by_chance = max(0.5 * n * n * coincidence**dim, 1e-300)
    found = count_equal_rows(rows) if within == 0 else _count_close_rows(rows, within)
    finite = is_finite(rows)

    return measured(
        name,
        n,
        by_chance if found else 1.0,
        float(found),
        _EQUAL,
        partial(_sure_limits, by_chance, 1.0 if within == 0 else 0.999),
        finite=finite,
    )


def duplicates(
    rows: Float64[np.ndarray, "rows dim"],
    *,
    within: float = 0.0,
    false_alarm: float = FALSE_ALARM,
    false_pass: float = FALSE_PASS,
    name: str = "repeated rows",
) -> TestResult:
    """Do any two rows of standard normals agree in every coordinate, to within `within` (or to the bit, when 0)?

    Two independent normals differ by at most w with probability <= w / sqrt(pi); to the bit with probability below
    2^-20 (float32 values: no value has more). So n^2/2 pairs agree by chance with probability at most n^2/2 times that
    to the power `dim`; if this exceeds false_alarm the test is not assessed. A pair of equal rows is always found, a
    close one with probability 0.999: false_pass changes nothing here.

    Raises:
        InputError: a rate is not in (0, 0.5], or `within` is negative.
    """
    return measure_duplicates(rows, within=within, name=name).at(false_alarm, false_pass)


def measure_unchanged(
    before: np.ndarray, after: np.ndarray, std: Float64[np.ndarray, "rows"], *, name: str = "unchanged rows"
) -> Measured:
    """See `unchanged`."""
    n = len(before)
    if before.shape != after.shape or std.shape != (n,) or not (std > 0).all():
        raise InputError(
            f"before and after must have one shape, and std one value > 0 for each row, got {before.shape}, "
            f"{after.shape} and {std.shape} in the test {name!r}: leave out rows that owe no noise"
        )
    if before.size == 0:
        return too_few(name, _SAME)
    found = int(unchanged_rows(before, after).sum())
    # A value stays where it was only if its noise is within one spacing: an interval 2 ulp wide, density 1/(std sqrt
    # (2 pi)) at most.
    one = np.minimum(1.0, 2 * np.spacing(np.abs(before)).astype(np.float64) / (std[:, None] * math.sqrt(2 * math.pi)))
    by_chance = max(float(np.exp(np.log(one).sum(axis=1)).sum()), 1e-300)

    finite = is_finite(before) and is_finite(after)
    return measured(
        name,
        n,
        min(1.0, by_chance) if found else 1.0,
        float(found),
        _SAME,
        partial(_sure_limits, by_chance, 1.0),
        finite=finite,
    )


def unchanged(
    before: np.ndarray,
    after: np.ndarray,
    std: Float64[np.ndarray, "rows"],
    *,
    false_alarm: float = FALSE_ALARM,
    false_pass: float = FALSE_PASS,
    name: str = "unchanged rows",
) -> TestResult:
    """Did any row that was owed noise of a known std keep every bit that it had?

    One such row refutes, if the bound on its probability is within false_alarm; else the test is not assessed. An
    unchanged row is always found: false_pass changes nothing here.

    Args:
        before, after: weights at both ends, (rows, dim) float32.
        std: noise owed to each row, > 0.

    Raises:
        InputError: a rate is not in (0, 0.5], or the shapes disagree.
    """
    return measure_unchanged(before, after, std, name=name).at(false_alarm, false_pass)


def count_equal_rows(rows: np.ndarray) -> int:
    """Number of rows that equal an earlier row to the bit (hashed as bytes)."""
    seen = np.ascontiguousarray(rows)
    keys = seen.view(np.dtype((np.void, seen.dtype.itemsize * seen.shape[1]))).ravel()
    return int(len(keys) - len(set(keys.tolist())))


def unchanged_rows(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Mask of the rows whose every bit is the same before and after."""
    width = np.dtype(f"u{before.dtype.itemsize}")
    return (np.ascontiguousarray(before).view(width) == np.ascontiguousarray(after).view(width)).all(axis=1)


def _count_close_rows(rows: np.ndarray, within: float) -> int:
    """Number of rows with another row that agrees to `within` in every coordinate.

    Rows are hashed by the cell of a randomly shifted grid, 128 `within` wide, that holds their first 16 coordinates,
    and compared with their neighbour in the same cell. A close pair shares a cell with probability (1 - 1/128)^16 =
    0.88 at least, so four shifts miss it with probability 2e-4; the cost is linear however many copies there are.
    """
    kept = rows[np.isfinite(rows).all(axis=1)]
    rng = np.random.default_rng(0)
    close = np.zeros(len(kept), dtype=bool)
    for _ in range(4):
        shift = rng.uniform(0, 1, min(16, kept.shape[1]))
        cells = np.floor(kept[:, :16] / (128 * within) + shift)
        cells = np.clip(cells, -_FARTHEST_CELL, _FARTHEST_CELL).astype(np.int64).astype(np.uint64)
        keys = (cells * rng.integers(1, 2**63, cells.shape[1], dtype=np.uint64)).sum(axis=1, dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        first, second = order[:-1], order[1:]
        same = keys[first] == keys[second]
        first, second = first[same], second[same]
        agree = (np.abs(kept[first] - kept[second]) <= within).all(axis=1)
        close[first[agree]] = close[second[agree]] = True
    return int(close.sum())


@cache
def _r_threshold(n: int, false_alarm: float) -> float:
    """What |r| of n independent pairs exceeds with this probability."""
    return math.sqrt(float(stats.beta.isf(false_alarm, 0.5, (n - 2) / 2)))


def _correlation_limits(n: int, found: float, false_alarm: float, false_pass: float) -> Limits:
    threshold = _r_threshold(n, false_alarm)
    detectable = math.tanh(math.atanh(threshold) + normal_quantile(false_pass) / math.sqrt(n - 3))
    return Limits(threshold, detectable, 1 - false_pass, note=f"r = {found:+.5f}")


def _sure_limits(by_chance: float, power: float, false_alarm: float, false_pass: float) -> Limits | None:
    if not by_chance <= false_alarm:
        return None
    return Limits(0.0, 1.0, power, note=f"by chance with probability {by_chance:.1e}")
