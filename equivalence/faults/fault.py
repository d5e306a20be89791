"""What a seeded fault is, and how it takes hold of the seam that it patches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from samelaw.contract.errors import SamelawError
from samelaw.contract.spec import Mode

Trainer = Any
Table = Any
Price = Callable[[Any], Any]
"""accounting.statement.price: a resolved ledger in, a statement out."""

WITH_KEY = "L1 with key"
"""The half of L1 that recomputes noise from the key. "L1" alone means its tests of law, which need no key."""


class FaultError(SamelawError):
    """A fault could not be planted: the seam that it patches is gone."""


class Kind(StrEnum):
    """What part of a trainer a fault is in."""

    SETTLEMENT = "settlement"
    NOISE = "noise"
    SCALING = "scaling"
    CLIPPING = "clipping"
    SAMPLING = "sampling"
    LEDGER = "ledger"
    ACCOUNTING = "accounting"
    RESUME = "resume"


class Scenario(StrEnum):
    """The run in which a fault shows; cli/bench_runs.py makes them."""

    EDGE = "edge cases"
    """equivalence.scenarios.edge_cases: empty batches, repeated rows, a changing rate, a resume in the middle."""
    FALLING = "a rate that falls"
    """The edge cases under a learning rate that falls to 1/4096: what noise is lost beside larger noise or weights."""
    SAMPLED = "own sampler"
    """A run on batches that the trainer draws itself, and a few thousand draws ahead: sampler, ledger and price."""
    WIDE = "a million idle values"
    """Two empty batches on a large table, judged without the key: what the law alone can tell of the scale."""
    TWO_RUNS = "two runs"
    """The edge cases twice, with different data and different keys."""


@dataclass(frozen=True)
class Fault:
    """One bug.

    Attributes:
        name: as `samelaw faults --only` takes it.
        kind: what part of a trainer it is in.
        sentence: what is wrong.
        caught_by: mode -> the claims that must be refuted in that mode; the modes in which it is a bug.
        apply: plants it in a trainer, before its first step (and again in a trainer that resumes).
        seen: where it has been met in the wild; empty if it has not, to our knowledge.
        scenario: the run in which it shows.
        pricing: for a bug of the accountant, what it makes of the function that prices a ledger.
    """

    name: str
    kind: Kind
    sentence: str
    caught_by: Mapping[Mode, tuple[str, ...]]
    apply: Callable[[Trainer], None]
    seen: str = ""
    scenario: Scenario = Scenario.EDGE
    pricing: Callable[[Price], Price] | None = field(default=None)

    @property
    def modes(self) -> tuple[Mode, ...]:
        return tuple(self.caught_by)

    @property
    def in_verify(self) -> bool:
        """Whether `samelaw verify --fault` can show it: a bug of the trainer that the claims made there refute."""
        named = {claim for claims in self.caught_by.values() for claim in claims}
        return self.scenario is Scenario.EDGE and self.pricing is None and bool(named & _VERIFIED)


_VERIFIED = {"E1", "E2", "L1", WITH_KEY, "S1", "R1"}


def seam(owner: Any, name: str) -> Any:
    """The attribute that a fault is about to replace.

    Raises:
        FaultError: there is no such attribute: the code has moved, and the fault would do nothing.
    """
    if not hasattr(owner, name):
        raise FaultError(
            f"{type(owner).__name__} has no attribute {name!r}, which a fault patches; the fault would do nothing. "
            "Point it at the code that took its place (equivalence/faults)"
        )
    return getattr(owner, name)


def patch(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    """Replace a method of one object by wrap(method).

    Raises:
        FaultError: there is no such method.
    """
    before = seam(owner, name)
    if not callable(before):
        raise FaultError(f"{type(owner).__name__}.{name} is no method, and a fault patches it as one")
    setattr(owner, name, wrap(before))


def tables_of(trainer: Trainer) -> list[Table]:
    """The tables of a trainer.

    Raises:
        FaultError: it has none, so that a fault in the tables would do nothing.
    """
    tables = list(seam(trainer, "tables").values())
    if not tables:
        raise FaultError("the trainer has no tables, and the fault is in the tables")
    return tables


def everywhere(claims: str) -> dict[Mode, tuple[str, ...]]:
    """The same claims, named in a string, in every mode."""
    return dict.fromkeys(Mode, tuple(part.strip() for part in claims.split(",")))


def by_mode(
    replay: str | None = None, bridge: str | None = None, aggregate: str | None = None
) -> dict[Mode, tuple[str, ...]]:
    """Claims a mode, named in strings; None where the fault is no bug."""
    given = {Mode.REPLAY: replay, Mode.BRIDGE: bridge, Mode.AGGREGATE: aggregate}
    return {
        mode: tuple(part.strip() for part in claims.split(",")) for mode, claims in given.items() if claims is not None
    }
