"""Dominating pairs: two one-dimensional laws whose likelihood ratio is at least as telling as one release of a run.

Everything a step can leak about one unit of privacy is in a pair (P, Q): for every alpha > 0 and every event A,
M(D)(A) - alpha M(D')(A) is at most the largest P(A) - alpha Q(A). Pairs compose as products. docs/accounting.md proves
the domination of each pair below from the Neyman-Pearson lemma.

Source: Zhu, Dong and Wang, arXiv 2106.08567 (dominating pairs compose); Balle, Barthe and Gaboardi,
    arXiv 1807.01647 (sampling without replacement); Kairouz, Oh and Viswanath, arXiv 1311.0776 (an (epsilon, delta)
    guarantee).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from samelaw.contract.errors import InputError, PrivacyError

LARGEST_GROUP = 64
"""More examples to a unit than this would need more terms than the moments are tested for."""


@dataclass(frozen=True)
class Mixture:
    """Sum of weights[j] N(means[j], sigma^2), in units of the clip norm; one of the means is 0."""

    weights: tuple[float, ...]
    means: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.weights) == len(self.means)
        assert abs(sum(self.weights) - 1) < 1e-11

    @property
    def reach(self) -> float:
        """The largest distance of a mean from 0."""
        return max(map(abs, self.means))


@dataclass(frozen=True)
class MixturePair:
    """(P, Q), two mixtures of normals of one std sigma.

    Attributes:
        upper, lower: P and Q.
        sigma: > 0.
        symmetric: whether the pair stands for the larger of (P, Q) and (Q, P) at every alpha, as a pair of its own:
            its losses above 0 are those of (P, Q), its losses below 0 mirror them, and the rest is an atom at 0.
    """

    upper: Mixture
    lower: Mixture
    sigma: float
    symmetric: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise InputError(f"noise multiplier must be finite and > 0, got {self.sigma!r}")


@dataclass(frozen=True)
class GaussianPair:
    """N(mu, 1) against N(0, 1): full batches, or a release by the Gaussian mechanism."""

    mu: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mu) and self.mu > 0):
            raise InputError(f"mu must be finite and > 0, got {self.mu!r}")


@dataclass(frozen=True)
class GuaranteePair:
    """Any mechanism of which only (epsilon, delta) is known."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise InputError(f"epsilon of a guarantee must be finite and >= 0, got {self.epsilon!r}")
        if not 0 <= self.delta < 1:
            raise InputError(f"delta of a guarantee must be in [0, 1), got {self.delta!r}")


Pair = MixturePair | GaussianPair | GuaranteePair


def poisson_add_remove(sampling_rate: float, sigma: float, group: int = 1) -> tuple[Pair, Pair]:
    """Removal and addition of a unit of `group` examples under Poisson sampling.

    j of the examples are drawn with probability Binomial(group, q)(j), and move the sum by at most j clip norms.
    """
    if sampling_rate == 1:
        return GaussianPair(group / sigma), GaussianPair(group / sigma)
    present, absent = Mixture(*_binomial(group, sampling_rate)), Mixture((1.0,), (0.0,))
    return MixturePair(present, absent, sigma), MixturePair(absent, present, sigma)


def poisson_replace_one(sampling_rate: float, sigma: float, group: int = 1) -> tuple[Pair, ...]:
    """A unit of `group` examples replaced by another; one pair, since the relation is symmetric."""
    if sampling_rate == 1:
        return (GaussianPair(2 * group / sigma),)
    weights, means = _binomial(group, sampling_rate)
    return (MixturePair(Mixture(weights, means), Mixture(weights, tuple(-m for m in means)), sigma),)


def fixed_size(rate: float, sigma: float, *, symmetric: bool) -> tuple[Pair, ...]:
    """Batches of a fixed size drawn without replacement; `rate` is batch size / number of examples.

    An example that joins takes another one's place, so the sum moves by two clip norms even where a record is removed.
    `symmetric` for relations that keep the number of examples (replace-one, zero-out).
    """
    if rate == 1:
        return (GaussianPair(2 / sigma),)
    present, absent = Mixture((1 - rate, rate), (0.0, 2.0)), Mixture((1.0,), (0.0,))
    if symmetric:
        return (MixturePair(present, absent, sigma, symmetric=True),)
    return MixturePair(present, absent, sigma), MixturePair(absent, present, sigma)


def _binomial(group: int, q: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Probabilities and means 0 ... group, the probabilities of 1 ... group rounded up."""
    if not 1 <= group <= LARGEST_GROUP:
        raise PrivacyError(
            f"a unit of privacy may have 1 to {LARGEST_GROUP} examples, got {group}: beyond that epsilon is not "
            "priced; bound how many examples each unit gives"
        )
    if group == 1:
        return (1 - q, q), (0.0, 1.0)
    j = np.arange(1, group + 1)
    log_choose = special.gammaln(group + 1) - special.gammaln(j + 1) - special.gammaln(group - j + 1)
    # The logarithms are good to 1e-13; a little more weight on every shift can only raise the price.
    weights = np.exp(log_choose + j * math.log(q) + (group - j) * math.log1p(-q)) * (1 + 1e-12)
    absent = max(0.0, 1.0 - math.fsum(weights))
    return (absent, *map(float, weights)), (0.0, *map(float, j))
