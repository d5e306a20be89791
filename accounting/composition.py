"""Several mechanisms on the same data, priced together: phases of a run, several runs, and what else was learned.

Everything is composed as a product of dominating pairs, step by step, in each direction of adjacency: no epsilon is
added to another, and nothing is taken for independent that is not.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from samelaw.accounting.assumptions import Assumptions
from samelaw.accounting.contour import Composition, Parts, contour_interval
from samelaw.accounting.interval import Interval
from samelaw.accounting.mechanism import SampledGaussian
from samelaw.accounting.pairs import GaussianPair, GuaranteePair, Pair
from samelaw.contract.errors import InputError, PrivacyError

MOMENTS = "moments"


@dataclass(frozen=True)
class Spend:
    """What something outside the training steps cost: a vocabulary, a hyper-parameter search, a threshold.

    Attributes:
        what: a name for readers.
        epsilon, delta: its guarantee for the same adjacency and unit of privacy; or
        noise_multiplier: of a release by the Gaussian mechanism on all of the data, instead of them.
    """

    what: str
    epsilon: float | None = None
    delta: float = 0.0
    noise_multiplier: float | None = None

    def __post_init__(self) -> None:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise PrivacyError(
                f"{self.what!r} was derived from the data and its cost is not known (epsilon {self.epsilon!r}, noise "
                f"multiplier {self.noise_multiplier!r}; exactly one is needed): what cannot be priced is not left out. "
                "Derive it from public data, or by a mechanism whose cost you can state."
            )
        assert self.pair is not None  # its range is checked where the pair is made

    @property
    def pair(self) -> Pair:
        if self.noise_multiplier is not None:
            if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
                raise InputError(
                    f"noise_multiplier of {self.what!r} must be finite and > 0, got {self.noise_multiplier!r}"
                )
            return GaussianPair(1 / self.noise_multiplier)
        assert self.epsilon is not None
        return GuaranteePair(self.epsilon, self.delta)


@dataclass(frozen=True)
class Plan:
    """All that is priced together.

    Attributes:
        phases: stretches of steps, each with its own sampling rate and noise multiplier.
        assumptions: hold for all of them.
        spends: what else was learned from the same data.
    """

    phases: tuple[SampledGaussian, ...]
    assumptions: Assumptions = field(default_factory=Assumptions)
    spends: tuple[Spend, ...] = ()

    @property
    def simple(self) -> bool:
        """Whether this is one mechanism that every engine can price."""
        return len(self.phases) == 1 and self.assumptions.plain and not self.spends

    @property
    def summary(self) -> SampledGaussian:
        """One mechanism that costs at least as much as the phases: the largest rate, the least noise, all steps."""
        if not self.phases:
            raise InputError("a plan needs at least one phase, if only of 0 steps")
        return SampledGaussian(
            max(p.sampling_rate for p in self.phases),
            min(p.noise_multiplier for p in self.phases),
            sum(p.steps for p in self.phases),
        )

    def directions(self) -> list[Parts]:
        """The pairs to compose, for each direction of adjacency."""
        steps = [(self.assumptions.directions(phase), phase.steps) for phase in self.phases if phase.steps]
        others: list[tuple[Pair, int]] = [(spend.pair, 1) for spend in self.spends]
        count = max((len(pairs) for pairs, _ in steps), default=1)
        # A symmetric phase (full batches) has one pair for both directions.
        return [[(pairs[min(i, len(pairs) - 1)], n) for pairs, n in steps] + others for i in range(count)]

    def with_spends(self, *spends: Spend) -> Plan:
        return Plan(self.phases, self.assumptions, self.spends + spends)

    def to_json(self) -> dict[str, Any]:
        return {
            "phases": [asdict(p) for p in self.phases],
            "assumptions": self.assumptions.to_json(),
            "spends": [asdict(s) for s in self.spends],
        }


def together(*plans: Plan) -> Plan:
    """Several runs on the same data.

    Raises:
        PrivacyError: they are not priced for the same neighbours.
    """
    first = plans[0]
    for other in plans[1:]:
        if other.assumptions != first.assumptions:
            raise PrivacyError(
                f"runs with different assumptions do not compose: {first.assumptions} and {other.assumptions}. Price "
                "all of them for the same adjacency, sampler and unit of privacy."
            )
    return Plan(
        tuple(p for plan in plans for p in plan.phases),
        first.assumptions,
        tuple(s for plan in plans for s in plan.spends),
    )


def price_plan(plan: Plan, delta: float) -> Interval:
    """Epsilon of a plan at delta by the contour integral; by its moments alone where that takes too much work.

    Raises:
        InputError: delta is not in (0, 1).
        PrivacyError: no finite epsilon can be quoted at this delta.
    """
    if not 0 < delta < 1:
        raise InputError(f"delta must be in (0, 1), got {delta!r}")
    cut = sum(plan.assumptions.truncation(phase) for phase in plan.phases)
    directions = [parts for parts in plan.directions() if parts]
    if not directions:
        return Interval(0.0, 0.0, 0.0, "closed form", "nothing was spent")
    compositions = [Composition(parts) for parts in directions]
    certain = max(c.certain for c in compositions) + cut
    if certain >= delta:
        raise PrivacyError(
            f"delta {delta:g} is not above {certain:.3g}, which guarantees that may fail and batches that may be cut "
            "spend at every epsilon: no finite epsilon can be quoted. Raise delta, or the largest batch."
        )
    if cut == 0:
        found = contour_interval(directions, delta)
        return found if isinstance(found, Interval) else _by_moments(compositions, delta, found.reason)
    return _with_cut_batches(directions, delta, cut)


def moments_epsilon(plan: Plan, delta: float) -> float:
    """An upper bound on epsilon from moments alone, for batches that are not cut: quick, and some percent high."""
    compositions = [Composition(parts) for parts in plan.directions() if parts]
    if any(c.certain >= delta for c in compositions):
        return math.inf
    return max((c.chernoff((delta - c.certain) / (1 - c.certain))[0] for c in compositions), default=0.0)


def _by_moments(compositions: list[Composition], delta: float, reason: str) -> Interval:
    """The Chernoff bounds, and nothing below them."""
    bound = max(c.chernoff((delta - c.certain) / (1 - c.certain))[0] for c in compositions)
    if not math.isfinite(bound):
        raise PrivacyError(f"no accountant has a sound answer here: {reason}")
    return Interval(0.0, bound, bound, MOMENTS, f"moments alone, since {reason}")


def _with_cut_batches(directions: list[Parts], delta: float, cut: float) -> Interval:
    """Epsilon when the sampler as it ran is within `cut` of Poisson in total variation, for both neighbours.

    delta(eps) + (1 + e^eps) cut <= delta. The left side falls and then rises, so delta is tightened until it fits.
    """
    compositions = [Composition(parts) for parts in directions]
    certain = max(c.certain for c in compositions)

    def poisson(at: float) -> Interval:
        found = contour_interval(directions, at)
        return found if isinstance(found, Interval) else _by_moments(compositions, at, found.reason)

    remaining = delta - 2 * cut
    for _ in range(40):
        if remaining <= certain:
            break
        found = poisson(remaining)
        lost = (1 + math.exp(min(found.upper, 700.0))) * cut
        if remaining <= delta - lost:
            lower = poisson(delta + lost).lower if delta + lost < 0.5 else 0.0
            note = f"{found.note}; cut batches cost delta {cut:.2g} and as much times e^epsilon"
            return Interval(min(lower, found.lower), found.estimate, found.upper, found.engine, note)
        remaining = min(delta - lost, 0.999 * remaining)
    raise PrivacyError(
        f"a batch is cut with probability {cut:.3g} in this run, and e^epsilon times that exceeds delta {delta:g}: no "
        "finite epsilon can be quoted. Raise the largest batch."
    )
