"""What an attack found: the claim, each bound, and the conclusion, as a person or a program reads them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

SCHEMA = "samelaw.attack/1"
THREAT_MODEL = (
    "The reviewer starts the run, chooses the canaries and their gradients, sees the initial and the released weights "
    "and nothing in between, and holds no key. A canary is one example in rows of its own, which is the worst case "
    "for one example of a table; the dense parameters are not attacked."
)


class Outcome(StrEnum):
    """What is concluded; the exit status follows it."""

    NOT_REFUTED = "NOT REFUTED"
    REFUTED = "REFUTED"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class Claim:
    """The epsilon that is attacked, as an accountant priced the run's ledger.

    Attributes:
        lower, upper: the accountant's interval at `delta`.
        delta: in [0, 1).
        engine: who computed it.
        sampling_rate, noise_multiplier, steps: the mechanism that was priced.
    """

    lower: float
    upper: float
    delta: float
    engine: str
    sampling_rate: float
    noise_multiplier: float
    steps: int

    @property
    def mu(self) -> float | None:
        """sqrt(T) / sigma, for full batches: the run is then one Gaussian mechanism."""
        return math.sqrt(self.steps) / self.noise_multiplier if self.sampling_rate == 1 else None


@dataclass(frozen=True)
class Bound:
    """One lower bound on epsilon at the claim's delta.

    Attributes:
        method: "gaussian", "gdp-clopper-pearson", "clopper-pearson" or "one-run".
        epsilon: the bound at the reported confidence; None when the method was not assessed.
        strict: the bound at the confidence that a refutation needs.
        mu: the bound on mu that epsilon was computed from, where the method bounds mu.
        assumes: what it needs to be true, besides fair coins.
        note: why it was not assessed, or what it was computed from.
    """

    method: str
    epsilon: float | None
    strict: float | None
    mu: float | None
    assumes: str
    note: str


@dataclass(frozen=True)
class AttackResult:
    """An attack on one run.

    Attributes:
        confidence: all reported bounds hold together with this probability, if what they assume is true.
        false_alarm: probability at most which a run with the claimed epsilon is called REFUTED.
        ceiling: the largest epsilon that Clopper-Pearson could show with so many canaries, were every score certain.
        detectable_noise: at q = 1, the share of the declared noise at which a correct run would be refuted with
            probability 0.99; None elsewhere.
        unchanged: included and left-out canaries whose row kept its initial bits.
    """

    outcome: Outcome
    reason: str
    claim: Claim
    bounds: tuple[Bound, ...]
    canaries: int
    included: int
    confidence: float
    false_alarm: float
    ceiling: float
    detectable_noise: float | None
    unchanged: tuple[int, int]

    @property
    def best(self) -> Bound | None:
        """The bound with the largest epsilon."""
        assessed = [bound for bound in self.bounds if bound.epsilon is not None]
        return max(assessed, key=lambda bound: bound.epsilon or 0.0, default=None)

    @property
    def tightness(self) -> float | None:
        """The best bound as a share of the claimed upper epsilon."""
        best = self.best
        return None if best is None or best.epsilon is None else best.epsilon / self.claim.upper

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values; an infinite bound is the text "inf"."""
        record = asdict(self)
        record["outcome"] = str(self.outcome)
        record["claim"]["mu"] = self.claim.mu
        record["unchanged"] = {"included": self.unchanged[0], "left_out": self.unchanged[1]}
        record["best"] = None if self.best is None else self.best.method
        record["tightness"] = self.tightness
        return _finite({"schema": SCHEMA, **record})


def _finite(value: Any) -> Any:
    """JSON has no infinity: text in its place."""
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
