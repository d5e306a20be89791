"""The privacy statement: what a ledger's run costs, as (lower, estimate, upper), and under which assumptions.

Public names: `price` a ledger, `state` a mechanism, `epsilon_by_step` for a plot, `calibrate` for the noise multiplier.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from samelaw.accounting import pld, prv, rdp
from samelaw.accounting.calibration import calibrate
from samelaw.accounting.engines import evaluate, exact_interval
from samelaw.accounting.interval import Interval, Unavailable
from samelaw.accounting.mechanism import Priced, SampledGaussian, mechanism_of
from samelaw.contract.errors import InputError
from samelaw.contract.figures import rounded_down, rounded_up
from samelaw.contract.ledger import Spent
from samelaw.contract.spec import PrivacySpec

__all__ = ["EpsilonAtStep", "PrivacyStatement", "calibrate", "epsilon_by_step", "price", "state"]

SCHEMA = "samelaw.statement/1"
CURVE_CELLS = 1 << 16

ASSUMPTIONS = (
    "Neighbouring data sets differ in one example, present in one and absent from the other (add/remove).",
    "Every example joined every batch independently with probability sampling_rate, by secret draws.",
    "One example's contribution to a step has joint L2 norm at most clip_norm (claim S1 tests it).",
    "The noise of every step is Gaussian, independent of all else and secret: the generator cannot be told from random "
    "words, and the key was never shown.",
    "The sampling rate, the expected batch size, the learning rates and the number of steps were chosen without "
    "looking at the data.",
    "Whoever sees the result may have seen the model after every step, but not the batches, the ledger or the key.",
)
NOT_INCLUDED = (
    "The noise generator's own distance from the normal law (docs/noise.md gives it per draw) and the rounding of "
    "weights to float32: no term for them is in delta.",
    "Anything learned from the data outside the ledger: vocabularies, hyper-parameters, other runs, evaluation scores.",
    "Several examples of one person: epsilon speaks of one example.",
)


NO_BOUND = "The second opinion is no bound at this delta and number of steps: rounding in float64 could matter."


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
        delta: as declared by the law of the run.
        engine, note, reason: which accountant gave the interval, what limits it, and why that one was chosen.
        second_opinion: epsilon by dp_accounting's pessimistic PLD; None when it has no answer.
        second_engine: its name and version, or why there is no answer.
        renyi: the upper bound from Renyi DP.
        mechanism: what was priced.
        adjacency: "add_remove".
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
    renyi: float
    mechanism: SampledGaussian
    adjacency: str = "add_remove"
    assumptions: tuple[str, ...] = ASSUMPTIONS
    not_included: tuple[str, ...] = NOT_INCLUDED
    caveats: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        record = asdict(self)
        return {"schema": SCHEMA, **{k: list(v) if isinstance(v, tuple) else v for k, v in record.items()}}

    def __str__(self) -> str:
        return (
            f"epsilon in [{rounded_down(self.lower, 4)}, {rounded_up(self.upper, 4)}] (estimate {self.estimate:.4g}) "
            f"at delta {rounded_up(self.delta, 6)}, add/remove, {self.mechanism.steps} steps, by {self.engine}"
        )


def price(account: Spent, *, delta: float | None = None) -> PrivacyStatement:
    """Price what a verified ledger says was run (`contract.ledger.spent`).

    Args:
        account: the resolved ledger.
        delta: where to quote epsilon; the law's own delta by default.

    Raises:
        PrivacyError: it cannot be priced soundly; see `mechanism_of`.
    """
    priced = mechanism_of(account)
    return state(priced.mechanism, priced.delta if delta is None else delta, caveats=_caveats(priced))


def state(mechanism: SampledGaussian, delta: float, *, caveats: tuple[str, ...] = ()) -> PrivacyStatement:
    """The statement for a mechanism, whether it was run or is only planned."""
    answer = evaluate(mechanism, delta)
    interval, second = answer.interval, answer.second_opinion
    missing = isinstance(second, Unavailable)
    return PrivacyStatement(
        lower=interval.lower,
        estimate=interval.estimate,
        upper=interval.upper,
        delta=delta,
        engine=interval.engine,
        note=interval.note,
        reason=answer.reason,
        second_opinion=None if isinstance(second, Unavailable) else second,
        second_engine=f"{second.engine}: {second.reason}" if isinstance(second, Unavailable) else pld.engine(),
        renyi=answer.renyi,
        mechanism=mechanism,
        caveats=caveats
        + (
            () if missing or delta >= pld.SMALLEST_DELTA else (f"The second opinion is no bound below delta {1e-8:g}.",)
        ),
    )


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
