"""Claim K1: two runs share no noise."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int64

from samelaw.contract.evidence import Disagreement, Evidence, TestResult, Verdict
from samelaw.contract.run import Transcript
from samelaw.contract.spec import PrivacySpec
from samelaw.equivalence import laws
from samelaw.equivalence.budget import Waiting
from samelaw.equivalence.received import receive
from samelaw.equivalence.spans import Spans

K1 = "Two runs on different data share no noise: the difference of what they publish keeps the noise of both."
CLOSE = 1e-4  # as in L1: rows of standardised noise closer than this in every coordinate are copies


def unrelated(
    first: Transcript,
    second: Transcript,
    spec: PrivacySpec,
    *,
    false_alarm: float = laws.FALSE_ALARM,
    false_pass: float = laws.FALSE_PASS,
    scope: str = "",
) -> Evidence:
    """K1: the noise of one row over the same steps, in one run and in the other.

    Whoever holds two models that were trained with the same noise subtracts one from the other, and no noise is left.
    No test of one run alone can see it.

    Args:
        first, second: transcripts of two runs of one law on tables of the same shapes, each with a key of its own.
        spec: the law of both.

    Returns:
        NOT REFUTED if the runs' noise is uncorrelated and no row of one repeats a row of the other; NOT ASSESSED if
        no row owed noise for the same steps in both.
    """
    found = measure_unrelated(first, second, spec, false_pass=false_pass, scope=scope)
    return found if isinstance(found, Evidence) else found.conclude(laws.share(false_alarm, found.tests))


def measure_unrelated(
    first: Transcript,
    second: Transcript,
    spec: PrivacySpec,
    *,
    padding: Mapping[str, int] | None = None,
    false_pass: float = laws.FALSE_PASS,
    scope: str = "",
) -> Evidence | Waiting:
    """K1, measured and not yet judged: its tests wait for their share of a suite's budget. See `unrelated`."""
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    rows = 0
    one, other = receive(first, spec, padding or {}), receive(second, spec, padding or {})
    for name in one.spans:
        for a, b in ((one.touched[name], other.touched[name]), (one.idle[name], other.idle[name])):
            if a.samples.shape[1:] != b.samples.shape[1:]:
                continue
            steps = 1 + int(max(a.spans.until.max(initial=0), b.spans.until.max(initial=0)))
            _, left, right = np.intersect1d(_owed(a.spans, steps), _owed(b.spans, steps), return_indices=True)
            pairs.append((a.samples[left], b.samples[right]))
            rows += left.size
    scope = scope or f"{rows} spans that a row owed in both runs"
    if not rows:
        return Evidence("K1", K1, Verdict.NOT_ASSESSED, "No row owed the same steps in both runs.", scope)
    x = np.concatenate([p[0].ravel() for p in pairs])
    y = np.concatenate([p[1].ravel() for p in pairs])
    measured = [laws.measure_correlation(x, y, name="correlation of two runs")]
    for a, b in pairs:
        if len(a):
            both = np.concatenate([a, b])
            measured.append(laws.measure_duplicates(both, within=CLOSE, name="noise that both runs hold"))
    asked = sum(test.p_value is not None for test in measured)
    numbers = {"spans": rows, "samples": int(x.size)}
    return Waiting(asked, lambda each: _judged([test.at(each, false_pass) for test in measured], numbers, scope))


def _judged(tests: list[TestResult], numbers: dict[str, int], scope: str) -> Evidence:
    refuted = [test for test in tests if test.verdict is Verdict.REFUTED]
    if refuted:
        test = refuted[0]
        wrong = Disagreement(test.name, f"at most {test.threshold:.6g} ({test.gap})", f"{test.statistic:.6g}")
        summary = f"The runs share noise: {wrong}."
        return Evidence("K1", K1, Verdict.REFUTED, summary, scope, wrong, tuple(tests), numbers)
    summary = f"{numbers['samples']:,} pairs of samples are uncorrelated ({tests[0].note}), and none repeats another."
    return Evidence("K1", K1, Verdict.NOT_REFUTED, summary, scope, None, tuple(tests), numbers)


def _owed(spans: Spans, steps: int) -> Int64[np.ndarray, "n"]:
    """One number for each (row, since, until), where no `until` reaches `steps`; the same numbers in both runs."""
    return (spans.row * steps + spans.since) * steps + spans.until
