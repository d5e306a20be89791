"""Is the distribution function the normal one? Kolmogorov-Smirnov for the middle, Anderson-Darling for the tails."""

from __future__ import annotations

import math
from functools import cache, partial

import numpy as np
from scipy import special

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
from samelaw.equivalence.laws.moments import normal_quantile

_AD_TAIL_FROM = 3.8
_AD_TERMS = 12
_AD_GRID = 401
_NODES, _WEIGHTS = np.polynomial.hermite.hermgauss(256)

_DISTANCE = "distance of distribution functions"
_STD = "relative error of the std"


def measure_kolmogorov_smirnov(samples: Samples, *, name: str = "Kolmogorov-Smirnov") -> Measured:
    """See `kolmogorov_smirnov`."""
    n = samples.size
    if n == 0:
        return too_few(name, _DISTANCE)
    u = special.ndtr(np.sort(samples))
    grid = np.arange(n + 1) / n
    distance = float(max((grid[1:] - u).max(), (u - grid[:-1]).max()))

    p_value = 2 * math.exp(-2 * n * distance**2)
    return measured(name, n, p_value, distance, _DISTANCE, partial(_distance_limits, n), finite=is_finite(samples))


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

    Raises:
        InputError: a rate is not in (0, 0.5].

    Source: Massart, "The tight constant in the Dvoretzky-Kiefer-Wolfowitz inequality" (1990).
    """
    return measure_kolmogorov_smirnov(samples, name=name).at(false_alarm, false_pass)


def measure_anderson_darling(samples: Samples, *, name: str = "Anderson-Darling") -> Measured:
    """See `anderson_darling`."""
    n = samples.size
    if n < 100:  # the limiting law is good to 1 % from n = 8 on in the body; 100 leaves room for the far tail
        return too_few(name, _STD, samples)
    ordered = np.sort(samples)
    weights = 2 * np.arange(n) + 1.0
    statistic = -n - float(weights @ (special.log_ndtr(ordered) + special.log_ndtr(-ordered[::-1]))) / n

    finite = is_finite(samples) and math.isfinite(statistic)
    p_value = anderson_darling_tail(statistic) if finite else 0.0
    return measured(name, n, p_value, statistic, _STD, partial(_square_limits, n), finite=finite)


def anderson_darling(
    samples: Samples,
    *,
    false_alarm: float = FALSE_ALARM,
    false_pass: float = FALSE_PASS,
    name: str = "Anderson-Darling",
) -> TestResult:
    """Anderson-Darling statistic against the normal law with known mean and std, strong where tails differ.

    The detectable gap is that of a std too large or too small, from the mean and variance of A^2 under it.

    Raises:
        InputError: a rate is not in (0, 0.5].

    Source: Anderson and Darling (1952, 1954), case of a known law.
    """
    return measure_anderson_darling(samples, name=name).at(false_alarm, false_pass)


def anderson_darling_tail(x: float) -> float:
    """P(A^2 > x) in the limit of many samples; from x = 3.8 on, where it is 1 %, an upper bound within a tenth of it.

    A^2 is distributed as the sum of chi2_j / (j (j + 1)), whose upper tail is sqrt(3) erfc(sqrt(x)) (1 + O(1/x))
    (Zolotarev); the factor 1.1 covers the rest from x = 3.8 on (test_laws.py inverts the characteristic function).
    Below, Anderson and Darling's series (1954); its integrals are over exp(-v^2), so Gauss-Hermite sums give them.
    """
    if x >= _AD_TAIL_FROM:
        return min(_series_tail(_AD_TAIL_FROM), 1.1 * math.sqrt(3) * math.erfc(math.sqrt(x)))
    return _series_tail(x)


def _series_tail(x: float) -> float:
    if x <= 0.02:  # P(A^2 < 0.02) < 1e-20
        return 1.0
    j = np.arange(_AD_TERMS)[:, None]
    odd = (4 * j + 1) * math.pi
    signs = np.where(j % 2 == 0, 1.0, -1.0)
    binomial = signs * special.gamma(j + 0.5) / (math.sqrt(math.pi) * special.gamma(j + 1.0))
    w = math.sqrt(8 * x) / odd * _NODES[None, :]
    # The integral over the half line is half the sum over all nodes; dw = sqrt(8 x) / odd dv.
    inner = (np.exp(x / (8 * (w**2 + 1))) * _WEIGHTS).sum(axis=1, keepdims=True) / 2 * math.sqrt(8 * x) / odd
    below = math.sqrt(2 * math.pi) / x * float((binomial * (4 * j + 1) * np.exp(-(odd**2) / (8 * x)) * inner).sum())
    return min(1.0, max(0.0, 1 - below))


@cache
def _anderson_darling_limits(n: int, false_alarm: float, false_pass: float) -> tuple[float, float]:
    """Threshold of A^2, and the relative error of the std that exceeds it but for a probability of false_pass."""
    threshold = solve(lambda x: math.log(anderson_darling_tail(x) / false_alarm), 0.1, 700.0)
    quantile = normal_quantile(false_pass)

    def excess(log_gap: float, sign: int) -> float:
        mean, variance = _anderson_darling_moments(n, 1 + sign * math.exp(log_gap))
        return mean - quantile * math.sqrt(variance) - threshold

    if min(excess(math.log(0.5), sign) for sign in (-1, 1)) <= 0:
        return threshold, math.inf
    return threshold, max(math.exp(solve(partial(excess, sign=sign), -30.0, math.log(0.5))) for sign in (-1, 1))


def _anderson_darling_moments(n: int, std: float) -> tuple[float, float]:
    """Mean of A^2, and about its variance, for n normals of this std.

    With F their distribution function, u the standard normal one and w = 1/(u (1 - u)), A^2 is the integral over u of
    w (B + sqrt(n) (F - u))^2 for an empirical process B of covariance K = F(min) - F F: mean = integral of w F (1 - F)
    + n w (F - u)^2, variance = that of the part linear in B and that of the part quadratic in it (as for Gaussian B).
    """
    x = np.linspace(-8, 8, _AD_GRID)
    low, high = special.ndtr(x / std), special.ndtr(-x / std)
    weight = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * (x[1] - x[0]) / (special.ndtr(x) * special.ndtr(-x))
    covariance = np.minimum.outer(low, low) * np.minimum.outer(high, high)
    shift = low - special.ndtr(x)
    linear = weight * shift
    mean = float((weight * low * high).sum() + n * (weight * shift**2).sum())
    variance = 4 * n * float(linear @ covariance @ linear) + 2 * float(weight @ covariance**2 @ weight)
    return mean, variance


def _distance_limits(n: int, false_alarm: float, false_pass: float) -> Limits:
    threshold = math.sqrt(math.log(2 / false_alarm) / (2 * n))
    detectable = threshold + math.sqrt(math.log(1 / false_pass) / (2 * n))
    return Limits(threshold, detectable if detectable < 1 else None, 1 - false_pass)


def _square_limits(n: int, false_alarm: float, false_pass: float) -> Limits:
    threshold, detectable = _anderson_darling_limits(n, false_alarm, false_pass)
    # So few samples that only larger gaps are seen are too few for the normal approximation behind `detectable`.
    return Limits(threshold, detectable if detectable < 0.2 else None, 1 - false_pass)
