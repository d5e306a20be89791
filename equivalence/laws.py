"""Tests of law: is this noise what it is said to be, and what would have been noticed if it were not?

Every test takes samples that a correct trainer makes independent standard normal (the known scale has been divided
out: nothing is ever estimated from the samples that are tested), and both of its error rates:

    false_alarm   the probability of rejecting a correct trainer,
    false_pass    the probability of missing a gap of the size that the result names as `detectable`.

A result says "not refuted; a gap of `detectable` would have been, with probability 1 - false_pass". Only `scale`
can say more: it concludes equivalence within a stated margin. Samples that are not finite are always refuted.

Many tests share one error budget by Bonferroni: whether *any* of m tests rejects is the same decision under
Holm, whose later steps only name further culprits.

Sources: two one-sided tests, Schuirmann (1987); Massart, "The tight constant in the Dvoretzky-Kiefer-Wolfowitz
inequality" (1990); Anderson and Darling (1952), case of a known law; Fisher (1915) for correlation.
docs/report.md explains each in words.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from jaxtyping import Float64
from scipy import optimize, special, stats

from samelaw.contract.evidence import TestResult, Verdict

FALSE_ALARM = 1e-9
FALSE_PASS = 1e-6
NORMAL_COINCIDENCE = 1 / (2 * math.sqrt(math.pi))  # density at 0 of the difference of two standard normals

# Functionals of h(u) = phi(x) x, u = Phi(x), the direction in which a change of scale moves the distribution function:
# the integral of h^2/(u(1-u)), and the variance of the integral of B h/(u(1-u)) over Brownian bridges B.
_AD_SCALE_SHIFT = 0.270070363
_AD_SCALE_SPREAD = 0.0429597565
_AD_NULL_VARIANCE = 2 * (math.pi**2 - 9) / 3

Samples = Float64[np.ndarray, "samples"]


@cache
def std_limits(samples: int, tail: float) -> tuple[float, float]:
    """Between what the std of `samples` standard normals lies, but for a probability of `tail` on each side."""
    low, high = stats.chi2.ppf(tail, samples), stats.chi2.isf(tail, samples)
    return math.sqrt(float(low) / samples), math.sqrt(float(high) / samples)


def share(false_alarm: float, tests: int) -> float:
    """What each of `tests` tests may spend so that one or more false alarms have probability <= false_alarm."""
    return false_alarm / max(1, tests)


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
    """
    n = samples.size
    if n == 0:
        return _not_assessed(name, false_alarm, "relative error of the std")
    found = math.sqrt(float(np.dot(samples, samples)) / n)
    low, high = std_limits(n, false_alarm / 2)
    # What the found std of a correct trainer stays between, but for a probability of false_pass on each side.
    lower, upper = std_limits(n, false_pass)
    # A std of 1 + r is noticed if (1 + r) times even the lower end exceeds `high`; 1 - r likewise below `low`.
    detectable = max(high / lower - 1, 1 - low / upper)
    # Were the std exp(margin), `found` would be below exp(margin) * lower with probability false_pass only; were it
    # exp(-margin), above exp(-margin) * upper.
    concluded = math.exp(-margin) * upper < found < math.exp(margin) * lower
    return _result(
        name,
        abs(found - 1),
        high - 1 if found >= 1 else 1 - low,
        samples,
        false_alarm,
        detectable,
        1 - false_pass,
        "relative error of the std",
        passed=Verdict.EQUIVALENT if concluded else Verdict.NOT_REFUTED,
        note=f"std is {found:.5f} of the law's; "
        + (
            f"equivalence within {margin:.2%} concluded (wrongly with probability <= {false_pass:g})"
            if concluded
            else f"{n} samples cannot conclude equivalence within {margin:.2%}"
        ),
    )


def mean(
    samples: Samples, *, false_alarm: float = FALSE_ALARM, false_pass: float = FALSE_PASS, name: str = "mean"
) -> TestResult:
    """Is the mean 0? z-test with the known standard deviation 1."""
    n = samples.size
    if n == 0:
        return _not_assessed(name, false_alarm, "mean, in stds")
    quantile = float(stats.norm.isf(false_alarm / 2))
    detectable = (quantile + float(stats.norm.isf(false_pass))) / math.sqrt(n)
    return _result(
        name,
        abs(float(samples.mean())),
        quantile / math.sqrt(n),
        samples,
        false_alarm,
        detectable,
        1 - false_pass,
        "mean, in stds",
    )


def kolmogorov_smirnov(
    samples: Samples,
    *,
    false_alarm: float = FALSE_ALARM,
    false_pass: float = FALSE_PASS,
    name: str = "Kolmogorov-Smirnov",
) -> TestResult:
    """Largest distance of the empirical distribution from the normal one, known mean and std.

    The threshold is Massart's bound, P(D > x) <= 2 exp(-2 n x^2), which holds for every n and is tight at small
    rates. A law at distance d is noticed at the point where d is attained, by Hoeffding's bound there.
    """
    n = samples.size
    if n == 0:
        return _not_assessed(name, false_alarm, "distance of distribution functions")
    u = special.ndtr(np.sort(samples))
    grid = np.arange(n + 1) / n
    distance = float(max((grid[1:] - u).max(), (u - grid[:-1]).max()))
    threshold = math.sqrt(math.log(2 / false_alarm) / (2 * n))
    detectable = threshold + math.sqrt(math.log(1 / false_pass) / (2 * n))
    return _result(
        name,
        distance,
        threshold,
        samples,
        false_alarm,
        detectable if detectable < 1 else None,
        1 - false_pass,
        "distance of distribution functions",
    )


def anderson_darling(
    samples: Samples,
    *,
    false_alarm: float = FALSE_ALARM,
    false_pass: float = FALSE_PASS,
    name: str = "Anderson-Darling",
) -> TestResult:
    """Anderson-Darling statistic against the normal law with known mean and std, strong where tails differ.

    A^2 is distributed as the sum of chi2_j / (j (j + 1)), whose upper tail is sqrt(3) erfc(sqrt(x)) (1 + O(1/x))
    (Zolotarev); the factor 1.1 covers the rest from x = 3.8 on (test_laws.py inverts the characteristic function).
    The detectable gap is that of a wrong std, from the mean and variance of A^2 under it.
    """
    gap = "relative error of the std"
    n = samples.size
    if n < 100:  # the limiting law is good to 1 % from n = 8 on in the body; 100 leaves room for the far tail
        return _not_assessed(name, false_alarm, gap)
    if not false_alarm <= 0.01:
        raise ValueError(f"false_alarm must be <= 0.01 in anderson_darling, got {false_alarm}")
    ordered = np.sort(samples)
    weights = 2 * np.arange(n) + 1.0
    statistic = -n - float(weights @ (special.log_ndtr(ordered) + special.log_ndtr(-ordered[::-1]))) / n
    threshold, detectable = _anderson_darling_limits(n, false_alarm, false_pass)
    # The expansion behind margin_at is linear in the gap: beyond a fifth it says nothing reliable.
    return _result(
        name,
        statistic,
        threshold,
        samples,
        false_alarm,
        detectable if detectable < 0.2 else None,
        1 - false_pass,
        gap,
    )


def tail_count(
    samples: Samples,
    beyond: float,
    *,
    false_alarm: float = FALSE_ALARM,
    false_pass: float = FALSE_PASS,
    name: str | None = None,
) -> TestResult:
    """Does the right share of samples lie further than `beyond` stds from 0? Exact two-sided binomial test."""
    name = name or f"samples beyond {beyond:g} std"
    gap = "factor on the share"
    n = samples.size
    if n == 0:
        return _not_assessed(name, false_alarm, gap)
    rate = 2 * float(stats.norm.sf(beyond))
    least, most, factor = _tail_limits(n, rate, false_alarm, false_pass)
    count = int((np.abs(samples) > beyond).sum())
    expected = n * rate
    without = "a missing tail would have been noticed" if least > 0 else "too few samples to miss a tail"
    return _result(
        name,
        abs(count - expected),
        most - expected if count >= expected else expected - least,
        samples,
        false_alarm,
        factor,
        1 - false_pass,
        gap,
        note=f"{count} found, {expected:.1f} expected; {without}",
    )


def largest(
    samples: Samples,
    *,
    false_alarm: float = FALSE_ALARM,
    name: str = "largest sample",
) -> TestResult:
    """Is the largest |sample| neither too large nor too small for so many draws? Exact.

    P(max |z| <= m) = (1 - 2 sf(m))^n. `detectable` is the largest cut of the tails that is always noticed: noise
    cut at or below it cannot pass. (The generator's own tail ends at 7.54, which 10^13 draws could show.)
    """
    n = samples.size
    gap = "cut of the tails, in stds"
    if n == 0:
        return _not_assessed(name, false_alarm, gap)
    low = float(stats.norm.isf(-math.expm1(math.log(false_alarm / 2) / n) / 2))
    high = float(stats.norm.isf(-math.expm1(math.log1p(-false_alarm / 2) / n) / 2))
    found = float(np.abs(samples).max())
    centre = float(stats.norm.isf(-math.expm1(math.log(0.5) / n) / 2))
    return _result(
        name,
        abs(found - centre),
        high - centre if found >= centre else centre - low,
        samples,
        false_alarm,
        low if low > 0 else None,
        1.0,
        gap,
        note=f"largest is {found:.3f} std; allowed {low:.3f} to {high:.3f}",
    )


def correlation(
    first: Samples,
    second: Samples,
    *,
    false_alarm: float = FALSE_ALARM,
    false_pass: float = FALSE_PASS,
    name: str = "correlation",
) -> TestResult:
    """Are pairs (first[i], second[i]) uncorrelated? Pearson's r against its exact law, power by Fisher's z."""
    n = first.size
    gap = "correlation coefficient"
    if n < 32:
        return _not_assessed(name, false_alarm, gap)
    found = float(np.corrcoef(first, second)[0, 1])
    threshold = math.sqrt(float(stats.beta.isf(false_alarm, 0.5, (n - 2) / 2)))
    detectable = math.tanh(math.atanh(threshold) + float(stats.norm.isf(false_pass)) / math.sqrt(n - 3))
    return _result(
        name,
        abs(found),
        threshold,
        np.concatenate([first, second]),
        false_alarm,
        detectable,
        1 - false_pass,
        gap,
        note=f"r = {found:+.5f}",
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
    """Do the samples hold a multiple of something that was known before they were drawn? Exact z-test along it."""
    length = float(np.linalg.norm(direction))
    if not length > 0:
        return _not_assessed(name, false_alarm, gap)
    quantile = float(stats.norm.isf(false_alarm / 2))
    return _result(
        name,
        abs(float(samples @ direction)) / length**2,
        quantile / length,
        samples,
        false_alarm,
        (quantile + float(stats.norm.isf(false_pass))) / length,
        1 - false_pass,
        gap,
    )


def duplicates(
    rows: Float64[np.ndarray, "rows dim"],
    *,
    within: float = 0.0,
    false_alarm: float = FALSE_ALARM,
    name: str = "repeated rows",
) -> TestResult:
    """Do any two rows of standard normals agree in every coordinate, to within `within` (or to the bit, when 0)?

    Two independent normals differ by at most w with probability <= w / sqrt(pi); to the bit with probability below
    2^-20 (float32 values: no value has more). So n^2/2 pairs agree by chance with probability at most n^2/2 times that
    to the power `dim`; if this exceeds false_alarm the test is not assessed.
    """
    n, dim = rows.shape
    gap = "rows equal to another row"
    coincidence = 2 * within * NORMAL_COINCIDENCE if within > 0 else 2.0**-20
    by_chance = 0.5 * n * n * coincidence**dim
    if n < 2 or dim == 0 or by_chance > false_alarm:
        return _not_assessed(name, false_alarm, gap)
    found = count_equal_rows(rows) if within == 0 else _count_close_rows(rows, within)
    power = 1.0 if within == 0 else 0.999
    return _result(name, float(found), 0.0, rows, max(by_chance, 1e-300), 1.0, power, gap)


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
        cells = np.floor(kept[:, :16] / (128 * within) + shift).astype(np.int64).astype(np.uint64)
        keys = (cells * rng.integers(1, 2**63, cells.shape[1], dtype=np.uint64)).sum(axis=1, dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        first, second = order[:-1], order[1:]
        same = keys[first] == keys[second]
        first, second = first[same], second[same]
        agree = (np.abs(kept[first] - kept[second]) <= within).all(axis=1)
        close[first[agree]] = close[second[agree]] = True
    return int(close.sum())


def _result(
    name: str,
    statistic: float,
    threshold: float,
    samples: np.ndarray,
    false_alarm: float,
    detectable: float | None,
    power: float,
    gap: str,
    *,
    passed: Verdict = Verdict.NOT_REFUTED,
    note: str = "",
) -> TestResult:
    """A verdict from a statistic; anything that is not finite refutes."""
    finite = bool(np.isfinite(samples).all())
    verdict = passed if finite and statistic <= threshold else Verdict.REFUTED
    if not finite:
        note = "some samples are not finite" + (note and f"; {note}")
    return TestResult(name, verdict, statistic, threshold, len(samples), false_alarm, detectable, power, gap, note)


def _not_assessed(name: str, false_alarm: float, gap: str) -> TestResult:
    return TestResult(name, Verdict.NOT_ASSESSED, 0.0, 0.0, 0, false_alarm, None, None, gap, "too few samples")


def _solve(f: Callable[[float], float], low: float, high: float) -> float:
    """Root of a monotone function whose signs differ at the ends."""
    return float(optimize.brentq(f, low, high, xtol=1e-12))  # pyright: ignore[reportArgumentType]


@cache
def _anderson_darling_limits(n: int, false_alarm: float, false_pass: float) -> tuple[float, float]:
    """Threshold of A^2, and the relative error of the std that exceeds it but for a probability of false_pass."""
    threshold = _solve(lambda x: math.log(1.1 * math.sqrt(3) * math.erfc(math.sqrt(x)) / false_alarm), 3.0, 700.0)
    quantile = float(stats.norm.isf(false_pass))

    def excess(log_gap: float) -> float:
        shift = n * math.exp(2 * log_gap)
        spread = _AD_NULL_VARIANCE + 4 * _AD_SCALE_SPREAD * shift
        return 1 + _AD_SCALE_SHIFT * shift - quantile * math.sqrt(spread) - threshold

    return threshold, math.exp(_solve(excess, -30.0, 10.0))


@cache
def _tail_limits(n: int, rate: float, false_alarm: float, false_pass: float) -> tuple[int, int, float | None]:
    """Fewest and most of n that may lie in a tail of this rate, and the factor on the rate that exceeds `most`."""
    least = int(stats.binom.ppf(false_alarm / 2, n, rate))  # P(count < least) <= false_alarm / 2
    most = int(stats.binom.isf(false_alarm / 2, n, rate))  # P(count > most) <= false_alarm / 2

    def missed(log_factor: float) -> float:
        return float(stats.binom.cdf(most, n, min(1.0, rate * math.exp(log_factor)))) - false_pass

    if most >= n:
        return least, most, None
    return least, most, math.exp(_solve(missed, 0.0, -math.log(rate)))
