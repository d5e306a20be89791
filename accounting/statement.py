"""The privacy statement: what a ledger's run costs, as (lower, estimate, upper), and under which assumptions.

Public names: `price` a ledger, `state` a mechanism, `epsilon_by_step` for a plot, `calibrate` for the noise multiplier.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from samelaw.accounting import generator, pld, prv, rdp
from samelaw.accounting.assumptions import Assumptions, Sampler
from samelaw.accounting.calibration import calibrate
from samelaw.accounting.composition import Plan, Spend, price_plan, together
from samelaw.accounting.engines import evaluate, exact_interval
from samelaw.accounting.interval import Interval, Unavailable
from samelaw.accounting.mechanism import Priced, SampledGaussian, mechanism_of
from samelaw.contract.errors import InputError, PrivacyError
from samelaw.contract.figures import rounded_down, rounded_up
from samelaw.contract.ledger import Spent
from samelaw.contract.spec import PrivacySpec

__all__ = [
    "EpsilonAtStep",
    "PrivacyStatement",
    "calibrate",
    "epsilon_by_step",
    "plan_of",
    "price",
    "price_together",
    "state",
    "state_plan",
]

SCHEMA = "samelaw.statement/3"
CURVE_CELLS = 1 << 16

ALWAYS_ASSUMED = (
    "One example's contribution to a step has joint L2 norm at most clip_norm (claim S1 tests it).",
    "The noise of every step is Gaussian, independent of all else and secret: the generator cannot be told from random "
    "words, and the key was never shown.",
    generator.ASSUMPTION,
    "The sampling rate, the expected batch size, the clip norms, the learning rates and the number of steps were "
    "chosen without looking at the data.",
)
NOT_INCLUDED = (
    "The density error of the noise generator, and the rounding of weights to float32: generator_delta covers the cut "
    "tail alone.",
    "Anything learned from the data outside the ledger: vocabularies, hyper-parameters, other runs, evaluation scores.",
)
ONE_EXAMPLE = "Several examples of one person: epsilon speaks of one example."


class EpsilonAtStep(NamedTuple):
    """Epsilon after the first `step` steps."""

    step: int
    lower: float
    estimate: float
    upper: float


@dataclass(frozen=True)
class PrivacyStatement:
    """What may be said about the privacy of a run.

    Attributes:
        lower, estimate, upper: epsilon at delta; `upper` is the promise.
        delta: at which epsilon was computed for noise that is exactly normal: as declared by the law of the run. The
            promise is (upper, total_delta).
        engine, note, reason: which accountant gave the interval, what limits it, and why that one was chosen.
        second_opinion: epsilon by dp_accounting's pessimistic PLD; None when it has no answer.
        second_engine: its name and version, or why there is no answer.
        renyi: the upper bound from Renyi DP.
        mechanism: what was priced; where steps differ, the largest rate and the least noise of any.
        plan: all that was priced together: phases, assumptions as values, other spending.
        adjacency: of the plan's assumptions.
        generator_delta: what the noise generator's cut tail may add to delta; None where no run is spoken of.
        generator: that in words.
        assumptions: what the promise rests on.
        not_included: what it does not cover.
        caveats: facts of this run that a reader must know.
    """

    lower: float
    estimate: float
    upper: float
    delta: float
    engine: str
    note: str
    reason: str
    second_opinion: float | None
    second_engine: str
    renyi: float | None
    mechanism: SampledGaussian
    plan: Plan
    generator_delta: float | None = None
    generator: str = "no run: nothing was drawn"
    adjacency: str = "add_remove"
    assumptions: tuple[str, ...] = ()
    not_included: tuple[str, ...] = NOT_INCLUDED
    caveats: tuple[str, ...] = ()

    @property
    def total_delta(self) -> float:
        """delta and generator_delta, added and rounded up: the delta to quote beside `upper`."""
        if not self.generator_delta:
            return self.delta
        return min(1.0, math.nextafter(self.delta + self.generator_delta, 1.0))

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        record = asdict(self) | {"total_delta": self.total_delta, "plan": self.plan.to_json()}
        return {"schema": SCHEMA, **{k: list(v) if isinstance(v, tuple) else v for k, v in record.items()}}

    def __str__(self) -> str:
        return (
            f"epsilon in [{rounded_down(self.lower, 4)}, {rounded_up(self.upper, 4)}] (estimate {self.estimate:.4g}) "
            f"at delta {rounded_up(self.total_delta, 6)}"
            + (
                f" = {self.delta:.6g} + {rounded_up(self.generator_delta, 2)} (generator)"
                if self.generator_delta
                else ""
            )
            + f", {self.adjacency.replace('_', '/')}, {self.mechanism.steps} steps, by {self.engine}"
        )


def price(account: Spent, *, delta: float | None = None, assumptions: Assumptions | None = None) -> PrivacyStatement:
    """Price what a verified ledger says was run (`contract.ledger.spent`).

    Args:
        account: the resolved ledger.
        delta: where to quote epsilon; the law's own delta by default.
        assumptions: other neighbours or another unit of privacy than the law's one example, added or removed.

    Raises:
        PrivacyError: it cannot be priced soundly; see `mechanism_of` and `Assumptions`.
    """
    return price_together([account], delta=delta, assumptions=assumptions)


def price_together(
    accounts: Sequence[Spent],
    *,
    delta: float | None = None,
    assumptions: Assumptions | None = None,
    spends: tuple[Spend, ...] = (),
) -> PrivacyStatement:
    """Price runs on the same data, and what else was learned from it, as one.

    Raises:
        InputError: the runs declare different deltas, and none is given.
        PrivacyError: as `price`; or the runs are not priced for the same neighbours.
    """
    runs = [mechanism_of(account) for account in accounts]
    deltas = sorted({p.delta for p in runs})
    if delta is None and len(deltas) > 1:
        raise InputError(f"the runs declare different deltas, {deltas}: choose one with --delta")
    plan = together(*(plan_of(p, assumptions) for p in runs)).with_spends(*spends)
    caveats = tuple(dict.fromkeys(c for p in runs for c in _caveats(p)))
    found = state_plan(plan, deltas[0] if delta is None else delta, caveats=caveats)
    drawn = [
        generator.Drawn(Plan(p.phases).summary, p.mode, generator.Coordinates(p.table_coordinates, p.dense_coordinates))
        for p in runs
    ]
    cut = generator.cut_tail(drawn, plan.assumptions, epsilon=found.upper, delta=found.delta)
    return replace(found, generator_delta=cut.delta, generator=cut.words)


def plan_of(priced: Priced, assumptions: Assumptions | None = None) -> Plan:
    """The plan that a ledger tells of.

    Raises:
        PrivacyError: something was learned from the data and its cost is not known; or the sampler asked for is not
            the one that ran.
    """
    assumed = assumptions or Assumptions()
    if assumed.sampler is not Sampler.POISSON:
        raise PrivacyError(
            "the ledger says that every batch was drawn by keyed Poisson sampling; it is not priced as "
            f"{assumed.sampler}"
        )
    return Plan(priced.phases, assumed, tuple(_spend(data) for data in priced.spends))


def state(mechanism: SampledGaussian, delta: float, *, caveats: tuple[str, ...] = ()) -> PrivacyStatement:
    """The statement for a mechanism, whether it was run or is only planned."""
    return state_plan(Plan((mechanism,)), delta, caveats=caveats)


def state_plan(plan: Plan, delta: float, *, caveats: tuple[str, ...] = ()) -> PrivacyStatement:
    """The statement for everything in a plan together."""
    second: float | Unavailable
    if plan.simple:
        answer = evaluate(plan.phases[0], delta)
        interval, reason, second, renyi = answer.interval, answer.reason, answer.second_opinion, answer.renyi
    else:
        interval, reason, renyi = price_plan(plan, delta), "only the moments of its pairs can be composed", None
        second = Unavailable("none", "no other accountant here prices this adjacency, unit or composition")
    unit = () if plan.assumptions.examples_per_unit > 1 else (ONE_EXAMPLE,)
    return PrivacyStatement(
        lower=interval.lower,
        estimate=interval.estimate,
        upper=interval.upper,
        delta=delta,
        engine=interval.engine,
        note=interval.note,
        reason=reason,
        second_opinion=None if isinstance(second, Unavailable) else second,
        second_engine=f"{second.engine}: {second.reason}" if isinstance(second, Unavailable) else pld.engine(),
        renyi=renyi,
        mechanism=plan.summary,
        plan=plan,
        adjacency=str(plan.assumptions.adjacency),
        assumptions=plan.assumptions.words() + ALWAYS_ASSUMED,
        not_included=NOT_INCLUDED + unit,
        caveats=caveats,
    )


def _spend(data: Mapping[str, Any]) -> Spend:
    """A "spend" entry of a ledger."""
    try:
        return Spend(
            str(data["what"]),
            None if data.get("epsilon") is None else float(data["epsilon"]),
            float(data.get("delta", 0.0)),
            None if data.get("noise_multiplier") is None else float(data["noise_multiplier"]),
        )
    except (KeyError, TypeError, ValueError) as cause:
        raise PrivacyError(f"a 'spend' entry of the ledger cannot be priced: {cause}") from cause


def epsilon_by_step(
    source: PrivacySpec | Spent | SampledGaussian, *, delta: float | None = None, points: int = 12
) -> list[EpsilonAtStep]:
    """Epsilon after some of the steps, for a plot: cheap, so wider than the statement's interval.

    Args:
        source: a ledger, a law that has not been run, or a mechanism (which needs `delta`).
        points: how many steps, spread with the square of their rank; the first and the last are among them.
    """
    mechanism, delta = _mechanism_and_delta(source, delta)
    if mechanism.steps == 0:
        return []
    chosen = np.unique(np.rint(1 + (mechanism.steps - 1) * np.linspace(0, 1, points) ** 2).astype(np.int64))
    renyi = rdp.rdp_epsilon(mechanism, delta)
    composer = None
    if mechanism.sampling_rate < 1 and mechanism.steps > 1:
        made = prv.prv_composer(mechanism, delta, scale=4 * renyi, cells=CURVE_CELLS)
        composer = None if isinstance(made, Unavailable) else made
    curve: list[EpsilonAtStep] = []
    for step in map(int, chosen):
        found = _quickly(mechanism.through(step), delta, composer)
        curve.append(EpsilonAtStep(step, found.lower, found.estimate, found.upper))
    return curve


def _quickly(mechanism: SampledGaussian, delta: float, composer: prv.PrvComposer | None) -> Interval:
    exact = exact_interval(mechanism, delta)
    if exact is not None:
        return exact[0]
    found = None if composer is None else composer.interval(mechanism.steps)
    bound = rdp.rdp_interval(mechanism, delta)
    if not isinstance(found, Interval) or bound.upper < found.lower:
        return bound
    upper = min(found.upper, bound.upper)
    return Interval(found.lower, min(found.estimate, upper), upper, found.engine)


def _mechanism_and_delta(
    source: PrivacySpec | Spent | SampledGaussian, delta: float | None
) -> tuple[SampledGaussian, float]:
    if isinstance(source, Spent):
        priced = mechanism_of(source)
        return priced.mechanism, priced.delta if delta is None else delta
    if isinstance(source, PrivacySpec):
        mechanism = SampledGaussian(source.sampling_rate, source.noise_multiplier, source.schedule.steps)
        return mechanism, source.delta if delta is None else delta
    if delta is None:
        raise InputError("delta must be given to price a mechanism that comes without a law")
    return source, delta


def _caveats(priced: Priced) -> tuple[str, ...]:
    """What a reader of this run's statement must know."""
    found: list[str] = []
    if priced.key_origin == "seed":
        found.append(
            "The noise key was made from a fixed seed: whoever guesses the seed can strip the noise, so this epsilon "
            "is that of the mechanism and not a promise about these weights."
        )
    if priced.delta * priced.examples >= 1:
        found.append(
            f"delta is {priced.delta:g} and there are {priced.examples} examples: publishing a random example outright "
            "would meet it. Choose delta well below 1 / examples."
        )
    if priced.resumes:
        often = "once" if priced.resumes == 1 else f"{priced.resumes} times"
        found.append(
            f"The run was resumed {often}; steps that were run again are charged once, since the ledger shows that "
            "they were the same steps."
        )
    return tuple(found)
