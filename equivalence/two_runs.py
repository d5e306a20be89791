"""Claim K1: two runs share no noise."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from samelaw.contract.evidence import Disagreement, Evidence, Verdict
from samelaw.contract.run import Transcript
from samelaw.contract.spec import PrivacySpec
from samelaw.equivalence import laws
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
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    rows = 0
    one, other = receive(first, spec, {}), receive(second, spec, {})
    for name in one.spans:
        for a, b in ((one.touched[name], other.touched[name]), (one.idle[name], other.idle[name])):
            if a.samples.shape[1:] != b.samples.shape[1:]:
                continue
            _, left, right = np.intersect1d(_owed(a.spans), _owed(b.spans), return_indices=True)
            pairs.append((a.samples[left], b.samples[right]))
            rows += left.size
    scope = scope or f"{rows} spans that a row owed in both runs"
    if not rows:
        return Evidence("K1", K1, Verdict.NOT_ASSESSED, "No row owed the same steps in both runs.", scope)
    x = np.concatenate([p[0].ravel() for p in pairs])
    y = np.concatenate([p[1].ravel() for p in pairs])
    each = laws.share(false_alarm, 1 + len(pairs))
    tests = [laws.correlation(x, y, false_alarm=each, false_pass=false_pass, name="correlation of two runs")]
    for a, b in pairs:
        if len(a):
            both = np.concatenate([a, b])
            tests.append(laws.duplicates(both, within=CLOSE, false_alarm=each, name="noise that both runs hold"))
    refuted = [test for test in tests if test.verdict is Verdict.REFUTED]
    numbers = {"spans": rows, "samples": int(x.size)}
    if refuted:
        test = refuted[0]
        wrong = Disagreement(test.name, f"at most {test.threshold:.6g} ({test.gap})", f"{test.statistic:.6g}")
        summary = f"The runs share noise: {wrong}."
        return Evidence("K1", K1, Verdict.REFUTED, summary, scope, wrong, tuple(tests), numbers)
    summary = f"{x.size:,} pairs of samples are uncorrelated ({tests[0].note}), and none repeats another."
    return Evidence("K1", K1, Verdict.NOT_REFUTED, summary, scope, None, tuple(tests), numbers)


def _owed(spans: Spans) -> Int64[np.ndarray, "n"]:
    """One number for each (row, since, until)."""
    steps = 1 + int(spans.until.max(initial=0))
    return (spans.row * steps + spans.since) * steps + spans.until
