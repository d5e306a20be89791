"""Lower bounds on epsilon from the scores of canaries that were in a run and of canaries that were not.

Each bound holds with its confidence under assumptions of its own, and they are not the same. `one_run` has its own
module.

| bound | what is assumed of the scores | what it bounds |
|---|---|---|
| `gaussian` | independent; Gaussian, both groups with one variance | mu of a Gaussian mechanism |
| `gdp_clopper_pearson` | independent; a Gaussian mechanism's trade-off curve | mu of a Gaussian mechanism |
| `clopper_pearson` | independent | epsilon at delta, of any mechanism |
| `one_run` | nothing: the coins were fair and independent | epsilon at delta, of any mechanism |

A bound of 0 says nothing. For `gaussian` and `one_run` a larger score must speak for "in"; the others find the side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float64, Int64
from scipy import optimize, special

from samelaw.accounting.closed_forms import gaussian_log_delta, solve_epsilon
from samelaw.contract.errors import InputError

FEWEST = 8
"""Scores that a group needs before anything is said of it."""
_CANDIDATES = 400
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(256)

_Worth: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Upper bounds on the false-positive and false-negative rates -> the lower bound that they give."""


@dataclass(frozen=True)
class Halves:
    """Scores split into those that choose a threshold and those that are counted against it.

    Attributes:
        choose_in, choose_out: scores of included and of left-out canaries, to choose with.
        count_in, count_out: the others, which the choice has not seen.
    """

    choose_in: Float64[np.ndarray, "_"]
    choose_out: Float64[np.ndarray, "_"]
    count_in: Float64[np.ndarray, "_"]
    count_out: Float64[np.ndarray, "_"]

    def __post_init__(self) -> None:
        for name in ("choose_in", "choose_out", "count_in", "count_out"):
            check_scores(name, getattr(self, name), "Halves", infinite=True)

    @classmethod
    def of(cls, inside: Float64[np.ndarray, "_"], outside: Float64[np.ndarray, "_"]) -> Halves:
        """The first half of each group chooses. Which scores come first must not depend on the scores."""
        a, b = inside.size // 2, outside.size // 2
        return cls(inside[:a], outside[:b], inside[a:], outside[b:])


def gaussian_mu(inside: Float64[np.ndarray, "_"], outside: Float64[np.ndarray, "_"], *, confidence: float) -> float:
    """A lower bound on (mean inside - mean outside) / std of two Gaussian groups with one unknown variance.

    The two-sample t statistic has a noncentral t law whose noncentrality is mu / sqrt(1/n + 1/m): the bound is exact.

    Returns:
        The bound; it may be negative. Infinite when all scores of both groups are the same within their group.

    Guarantees:
        B1  For Gaussian scores, P(bound > mu) = 1 - confidence.

    Raises:
        InputError: fewer than FEWEST scores in a group; a score is not finite.
    """
    for name, scores in (("inside", inside), ("outside", outside)):
        check_scores(name, scores, "gaussian_mu", infinite=False)
    check_confidence(confidence, "gaussian_mu")
    n, m = inside.size, outside.size
    freedom = n + m - 2
    pooled = (np.var(inside) * n + np.var(outside) * m) / freedom
    gap, spread = float(np.mean(inside) - np.mean(outside)), math.sqrt(1 / n + 1 / m)
    if pooled == 0:
        return math.copysign(math.inf, gap) if gap else 0.0
    statistic = gap / (math.sqrt(pooled) * spread)

    law = _NoncentralT(freedom)
    # P(T <= statistic) falls from 1 to 0 as the noncentrality grows. The statistic's own error is that of a standard
    # normal plus the relative error of the std, so these ends bracket the root for every confidence in use.
    reach = 12.0 + 12.0 * abs(statistic) / math.sqrt(freedom)

    def excess(noncentrality: float) -> float:
        return law.cdf(statistic, noncentrality) - confidence

    root: Any = optimize.brentq(excess, statistic - reach, statistic + reach, xtol=1e-10)
    return float(root) * spread


class _NoncentralT:
    """P((Z + noncentrality) / sqrt(V / freedom) <= t), integrated over V ~ chi-square.

    scipy's own function is as exact where it converges, but returns NaN for some arguments in the tails.
    """

    def __init__(self, freedom: int) -> None:
        # Beyond these ends lies a mass of 1e-15; 256 Gauss-Legendre nodes are exact to that on so smooth an integrand.
        low, high = (2 * float(special.gammaincinv(freedom / 2, p)) for p in (5e-16, 1.0 - 5e-16))
        v = low + (high - low) * (_NODES + 1) / 2
        log_density = (freedom / 2 - 1) * np.log(v) - v / 2
        mass = _WEIGHTS * np.exp(log_density - np.max(log_density))
        self._mass, self._root = mass / np.sum(mass), np.sqrt(v / freedom)

    def cdf(self, t: float, noncentrality: float) -> float:
        return float(np.sum(self._mass * special.ndtr(t * self._root - noncentrality)))


def epsilon_of_mu(mu: float, delta: float) -> float:
    """Epsilon at delta of the Gaussian mechanism with sensitivity mu in units of its std, rounded down; 0 for mu <= 0.

    Source: Balle and Wang, arXiv 1805.06530, Theorem 8.
    """
    check_delta(delta, "epsilon_of_mu")
    if not mu > 0:
        return 0.0
    if mu > 1e6:
        return math.inf
    return solve_epsilon(lambda epsilon: gaussian_log_delta(epsilon, mu), delta)[0]


def clopper_pearson(halves: Halves, *, delta: float, confidence: float) -> float:
    """A lower bound on epsilon from how often a threshold takes one group for the other.

    (epsilon, delta)-privacy forces P(in > t) <= e^eps P(out > t) + delta, the same for the events below t, and the
    same with the groups exchanged. Both error rates are bounded from above by Clopper and Pearson's exact interval, at
    half the error each. The threshold and the side of it that speaks for "in" come from the other half.

    Guarantees:
        B2  For independent scores of an (epsilon, delta)-private mechanism, P(bound > epsilon) <= 1 - confidence.
    """
    check_delta(delta, "clopper_pearson")
    threshold, sign = _choice(halves, confidence, lambda fp, fn: _epsilon_of_rates(fp, fn, delta))
    false_positive, false_negative = _rates(halves.count_in, halves.count_out, threshold, sign, confidence)
    return float(_epsilon_of_rates(false_positive, false_negative, delta)[0])


def gdp_clopper_pearson(halves: Halves, *, confidence: float) -> float:
    """A lower bound on mu of a mechanism whose trade-off curve is Gaussian: one point of the curve is enough.

    Guarantees:
        B3  For independent scores of a mu-GDP mechanism, P(bound > mu) <= 1 - confidence. Epsilon computed from it
            bounds the epsilon of a *Gaussian* mechanism: of another one that is mu-GDP, epsilon may be smaller.

    Source: Nasr et al., "Tight auditing of differentially private machine learning", arXiv 2302.07956, for the idea of
        auditing mu; the split is ours.
    """
    threshold, sign = _choice(halves, confidence, _mu_of_rates)
    return float(_mu_of_rates(*_rates(halves.count_in, halves.count_out, threshold, sign, confidence))[0])


def largest_epsilon(counted: int, *, delta: float, confidence: float) -> float:
    """What `clopper_pearson` says at most with this many scores of each group to count: no error at all."""
    check_confidence(confidence, "largest_epsilon")
    if counted < 1:
        return 0.0
    none = upper_rates(np.zeros(1, dtype=np.int64), counted, (1 - confidence) / 2)
    return float(_epsilon_of_rates(none, none, delta)[0])


def upper_rates(errors: Int64[np.ndarray, "_"], trials: int, level: float) -> Float64[np.ndarray, "_"]:
    """Clopper and Pearson's upper ends: each is below the true rate with probability at most `level`."""
    counts = errors.astype(np.float64)
    with np.errstate(invalid="ignore"):
        upper = special.betainccinv(counts + 1, trials - counts, level)
    return np.where(counts >= trials, 1.0, upper)


def check_confidence(confidence: float, place: str) -> None:
    if not 0.5 <= confidence < 1:
        raise InputError(f"confidence must be in [0.5, 1), got {confidence!r} in {place}; 0.95 is usual")


def check_delta(delta: float, place: str) -> None:
    if not 0 <= delta < 1:
        raise InputError(f"delta must be in [0, 1), got {delta!r} in {place}")


def check_scores(name: str, scores: Float64[np.ndarray, "_"], place: str, *, infinite: bool) -> None:
    if scores.ndim != 1 or scores.size < FEWEST:
        raise InputError(
            f"{name} must be a vector of at least {FEWEST} scores, got shape {scores.shape} in {place}: plant more "
            "canaries"
        )
    if np.isnan(scores).any() or (not infinite and np.isinf(scores).any()):
        raise InputError(f"{name} must hold {'numbers' if infinite else 'finite numbers'} only in {place}")


def _choice(halves: Halves, confidence: float, worth: _Worth) -> tuple[float, int]:
    """The threshold, and the side that speaks for "in" (+1: above it), that promise the largest bound.

    Candidates are scores of the choosing half, dense at both ends, where few are beyond. Each is judged with the
    counting half's confidence, so that a rate of zero seen in a few scores is not taken for zero.
    """
    check_confidence(confidence, "choosing a threshold")
    candidates = np.unique(np.concatenate([_ranks(halves.choose_in), _ranks(halves.choose_out)]))
    best, chosen = -math.inf, (float(candidates[0]), 1)
    for sign in (1, -1):
        found = worth(*_rates(halves.choose_in, halves.choose_out, candidates, sign, confidence))
        place = int(np.argmax(found))
        if found[place] > best:
            best, chosen = float(found[place]), (_midway(candidates, place), sign)
    return chosen


def _midway(candidates: Float64[np.ndarray, "_"], place: int) -> float:
    """Between a candidate and the next: it divides the choosing half in the same way and new scores with more room."""
    here, following = float(candidates[place]), float(candidates[min(place + 1, candidates.size - 1)])
    middle = here / 2 + following / 2
    return middle if math.isfinite(middle) else here


def _ranks(scores: Float64[np.ndarray, "_"]) -> Float64[np.ndarray, "_"]:
    """Some of the scores, by rank: evenly spread ones and geometrically spread ones from either end."""
    last = scores.size - 1
    from_end = np.unique(np.geomspace(1, scores.size, _CANDIDATES).astype(np.int64)) - 1
    even = np.linspace(0, last, _CANDIDATES).astype(np.int64)
    return np.sort(scores)[np.unique(np.concatenate([from_end, last - from_end, even]))]


def _rates(
    inside: Float64[np.ndarray, "_"],
    outside: Float64[np.ndarray, "_"],
    thresholds: Float64[np.ndarray, "_"] | float,
    sign: int,
    confidence: float,
) -> tuple[Float64[np.ndarray, "_"], Float64[np.ndarray, "_"]]:
    """Upper bounds on P(an out is taken for "in") and P(an in is taken for "out"), both at once with `confidence`."""
    t = np.atleast_1d(np.asarray(thresholds, dtype=np.float64))
    above_in, above_out = (s.size - np.searchsorted(np.sort(s), t, side="right") for s in (inside, outside))
    if sign > 0:
        false_positive, false_negative = above_out, inside.size - above_in
    else:
        false_positive, false_negative = outside.size - above_out, above_in
    level = (1 - confidence) / 2
    return upper_rates(false_positive, outside.size, level), upper_rates(false_negative, inside.size, level)


def _epsilon_of_rates(
    false_positive: Float64[np.ndarray, "_"], false_negative: Float64[np.ndarray, "_"], delta: float
) -> Float64[np.ndarray, "_"]:
    """The least epsilon >= 0 with 1 - fn <= e^eps fp + delta and 1 - fp <= e^eps fn + delta."""
    with np.errstate(divide="ignore", invalid="ignore"):
        one = np.log(np.maximum(1 - delta - false_negative, 0.0)) - np.log(false_positive)
        other = np.log(np.maximum(1 - delta - false_positive, 0.0)) - np.log(false_negative)
    return np.maximum(0.0, np.maximum(one, other))


def _mu_of_rates(
    false_positive: Float64[np.ndarray, "_"], false_negative: Float64[np.ndarray, "_"]
) -> Float64[np.ndarray, "_"]:
    """Phi^-1(1 - fp) - Phi^-1(fn), -inf where a rate may be 1."""
    return -special.ndtri(false_positive) - special.ndtri(false_negative)
