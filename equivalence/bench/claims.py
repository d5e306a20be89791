"""The claims of the bench, each with what has been found about it so far; one error budget makes them Evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from samelaw.contract.evidence import Disagreement, Evidence, TestResult, Verdict
from samelaw.equivalence.budget import Budget, Waiting

TITLES = {
    "B1": "Every input that the trainer declares is accepted: no crash, no hang, finite weights.",
    "B2": "The weights move by -lr/B times the sum of the examples' gradients, each clipped jointly, B a constant.",
    "B3": "Adding one example moves the sum by at most the clip norm, over all tables and dense parameters together.",
    "B4": "The noise of rows that were read has the declared law.",
    "B5": "The noise of rows that were never read has the declared law.",
    "B6": "The noise of the dense parameters has the declared law.",
    "B7": "An empty batch adds the noise of a step to every row and parameter.",
    "B8": "Noise is never used twice: not across rows, columns, tables, parameters or runs.",
    "B9": "A padding row is a constant: it gets neither gradient nor noise.",
    "B10": "The weights after every step could be published: each step's noise has its law, apart from the others'.",
    "E1": "With the bench's key, the released tables have the bits of the reference.",
}
_EXACT_GAPS = {
    "B2": "0.0002 C an example, in one coordinate",
    "B3": "0.0003 C beyond the bound in one step, 0.012 C in six, in the inputs tried",
    "B9": "one bit",
    "E1": "one bit of a table",
}
MARGIN = 0.1
"""Scale of the noise within which equivalence is concluded: 8 runs of the default size conclude it."""

Planned = Callable[[float], TestResult]
"""A test that waits for its share of the budget."""


@dataclass
class Draft:
    """A claim under way.

    Attributes:
        claim: its id, out of TITLES.
        scope: what is looked at.
        found: one sentence for a claim that holds; the tests' figures are added to it.
        planned: tests of law.
        wrong: the first exact disagreement.
        open: why nothing can be said; the claim is then NOT ASSESSED.
        exact: what was compared exactly and held, for a claim without tests of law.
        numbers: further figures.
    """

    claim: str
    scope: str
    found: str = ""
    planned: list[Planned] = field(default_factory=list[Planned])
    wrong: Disagreement | None = None
    open: str = ""
    exact: bool = False
    numbers: dict[str, Any] = field(default_factory=dict[str, Any])

    def plan(self, test: Callable[..., TestResult], *samples: Any, **options: Any) -> None:
        """Add a test of laws.py."""
        self.planned.append(lambda each: test(*samples, false_alarm=each, **options))

    def fail(self, where: str, expected: str, found: str) -> None:
        """Note a disagreement; the first one stays."""
        self.wrong = self.wrong or Disagreement(where, expected, found)


def judged(drafts: Sequence[Draft], false_alarm: float) -> list[Evidence]:
    """Evidence of every claim; together their tests reject a correct trainer with probability <= false_alarm."""
    return Budget(false_alarm).conclude([Waiting(len(draft.planned), partial(_evidence, draft)) for draft in drafts])


def _evidence(draft: Draft, share: float) -> Evidence:
    tests = [test(share) for test in draft.planned]
    refuted = [test for test in tests if test.verdict is Verdict.REFUTED]
    wrong = draft.wrong or (_as_disagreement(refuted[0]) if refuted else None)
    if wrong is not None:
        verdict, summary = Verdict.REFUTED, f"{wrong}."
        if refuted:
            summary += f" {len(refuted)} of {len(tests)} tests refuse, first: {refuted[0].name}."
    elif draft.open:
        verdict, summary = Verdict.NOT_ASSESSED, draft.open
    elif tests and any(test.verdict is not Verdict.NOT_ASSESSED for test in tests):
        scales = [test for test in tests if test.name.startswith("scale")]
        sure = bool(scales) and all(test.verdict is Verdict.EQUIVALENT for test in scales)
        verdict = Verdict.EQUIVALENT if sure else Verdict.NOT_REFUTED
        summary = f"{draft.found} {_figures(tests)}".strip()
    elif draft.exact:
        verdict, summary = Verdict.EQUAL, draft.found
    else:
        verdict, summary = Verdict.NOT_ASSESSED, draft.found or "There was nothing to judge by."
    gap = _EXACT_GAPS.get(draft.claim, "–") if draft.exact and not tests else _smallest_gap(tests)
    numbers = draft.numbers if verdict is Verdict.NOT_ASSESSED else {**draft.numbers, "smallest_gap": gap}
    return Evidence(draft.claim, TITLES[draft.claim], verdict, summary, draft.scope, wrong, tuple(tests), numbers)


def _as_disagreement(test: TestResult) -> Disagreement:
    note = f" ({test.note})" if test.note else ""
    return Disagreement(test.name, f"at most {test.threshold:.4g}, {test.gap}", f"{test.statistic:.4g}{note}")


def _figures(tests: Sequence[TestResult]) -> str:
    """The leading test in words: what was found, and the gap that would have been noticed."""
    lead = _lead(tests)
    return (
        f"None of {len(tests)} tests refuses. {lead.name}: {lead.statistic:.2g} ({lead.gap}); {_smallest_gap(tests)}."
    )


def _smallest_gap(tests: Sequence[TestResult]) -> str:
    if not any(test.verdict is not Verdict.NOT_ASSESSED for test in tests):
        return "–"
    lead = _lead(tests)
    if lead.detectable is None:
        return "–"
    # Other tests of one part (Anderson-Darling) have wider gaps in the same unit, but scale sees that part better.
    scale = lead.name.startswith("scale")
    alike = [t for t in tests if t.gap == lead.gap and t.name.startswith("scale") == scale]
    alike = [t for t in alike if t.verdict is not Verdict.NOT_ASSESSED]
    if any(test.detectable is None for test in alike):
        return "–"
    widest = max(alike, key=lambda test: test.detectable or 0.0)
    where = "" if widest is lead else f"; {widest.detectable:.2g} in {widest.name.removeprefix('scale, ')}"
    return f"{lead.detectable:.2g} ({lead.gap}{where}) would have been seen"


def _lead(tests: Sequence[TestResult]) -> TestResult:
    """The first test of scale, or the first of all, among those that had samples."""
    assessed = [test for test in tests if test.verdict is not Verdict.NOT_ASSESSED]
    return next((test for test in assessed if test.name.startswith("scale")), assessed[0])


def verdict_line(evidence: Evidence) -> str:
    """One line for a terminal."""
    return f"{evidence.claim:<4} {str(evidence.verdict).lower():<13} {evidence.summary}"


def counts(evidence: Sequence[Evidence]) -> Mapping[str, int]:
    """How many claims came to each verdict."""
    return {str(v): sum(e.verdict is v for e in evidence) for v in Verdict}
