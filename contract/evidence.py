"""Claims, what was found about them, and how a run folder says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

EVIDENCE_SCHEMA = "samelaw.evidence/2"
MANIFEST_SCHEMA = "samelaw.manifest/1"


class Verdict(StrEnum):
    """What may be said of a claim. A pass never says more than its verdict."""

    EQUAL = "EQUAL"
    """Compared exactly and found the same, on everything that was compared."""
    EQUIVALENT = "EQUIVALENT"
    """The stated margin was concluded by a test of equivalence, at the stated error rate."""
    NOT_REFUTED = "NOT REFUTED"
    """Not rejected; a gap of `detectable` would have been."""
    REFUTED = "REFUTED"
    NOT_ASSESSED = "NOT ASSESSED"

    @property
    def holds(self) -> bool:
        return self is not Verdict.REFUTED


@dataclass(frozen=True)
class Disagreement:
    """The first place where a claim fails, for the person who has to find the bug."""

    where: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True)
class TestResult:
    """One statistical test inside a claim.

    Attributes:
        name: what was tested, in the report's words.
        verdict: what it says.
        statistic, threshold: rejected when statistic > threshold.
        samples: number of independent samples.
        false_alarm: probability of rejecting a correct trainer.
        detectable: smallest gap that would be rejected with probability `power`, in the unit named by `gap`.
        p_value: probability (or a bound on it) that a correct trainer gives a statistic at least as extreme; None for
            an exact comparison, or where too few samples were there.
        adjusted_p_value: the same for the whole suite, by Holm: the smallest false-alarm rate of all tests together at
            which this one is rejected. None until a budget has judged the suite.
    """

    __test__ = False  # not a pytest class

    name: str
    verdict: Verdict
    statistic: float
    threshold: float
    samples: int
    false_alarm: float
    detectable: float | None
    power: float | None
    gap: str
    note: str = ""
    p_value: float | None = None
    adjusted_p_value: float | None = None


@dataclass(frozen=True)
class Evidence:
    """What was found about one claim.

    Attributes:
        claim: its id, e.g. "E1".
        title: the claim in one sentence.
        verdict: the verdict.
        summary: one sentence with the numbers that matter.
        scope: what was compared (modes, workloads, counts).
        first_disagreement: set when refuted.
        tests: statistical tests, if any.
        numbers: further figures, JSON-able.
    """

    claim: str
    title: str
    verdict: Verdict
    summary: str
    scope: str
    first_disagreement: Disagreement | None = None
    tests: tuple[TestResult, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict[str, Any])
