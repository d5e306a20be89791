"""Claim S2: what removing one example from a batch changes, in exact integers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from fractions import Fraction

import numpy as np

from samelaw.contract.evidence import Disagreement, Evidence, Verdict
from samelaw.contract.trace import Batch, FeatureBags, GradientSums

S2 = "Removing one example from a batch moves the integer sums of all tables together by at most the clip norm."


def neighbours(
    gradient_sums: Callable[[Batch], GradientSums], batches: Iterable[Batch], *, clip_norm: float, scope: str = ""
) -> Evidence:
    """S2: for every example of every batch, the sums with it and without it.

    S1 takes each example alone, and so cannot see a clip factor that depends on the rest of the batch.

    Args:
        gradient_sums: the probe of a trainer whose model gives each example a gradient that does not depend on the
            others in any bit (a linear readout): then the difference is one contribution, without any rounding.
        batches: of two examples or more.
        clip_norm: C.

    Returns:
        NOT REFUTED if no difference exceeds C; NOT ASSESSED if no example was clipped.
    """
    limit = Fraction(clip_norm) ** 2
    tested, clipped, largest = 0, 0, Fraction(0)
    wrong: Disagreement | None = None
    for number, batch in enumerate(batches):
        whole = gradient_sums(batch)
        factors = whole.factors if whole.factors is not None else np.ones(len(batch))
        for i in range(len(batch)):
            moved = distance(whole, gradient_sums(without(batch, i)))
            tested += 1
            clipped += int(factors[i] < 1)
            largest = max(largest, moved)
            if moved > limit and wrong is None:
                wrong = Disagreement(
                    f"batch {number} of {len(batch)} examples, example {i} removed",
                    f"sums at most {clip_norm:.9g} apart",
                    f"{math.sqrt(float(moved)):.9g}",
                )
    ratio = math.sqrt(float(largest)) / clip_norm
    numbers = {"pairs": tested, "clipped": clipped, "largest_share_of_clip_norm": ratio}
    scope = scope or f"{tested} pairs of neighbouring batches"
    if wrong is not None:
        return Evidence("S2", S2, Verdict.REFUTED, f"Neighbours are too far apart: {wrong}.", scope, wrong, (), numbers)
    if not clipped:
        return Evidence("S2", S2, Verdict.NOT_ASSESSED, "No example was clipped.", scope, None, (), numbers)
    summary = f"{tested} pairs, {clipped} with a clipped example; the sums differ by at most {ratio:.9f} of C."
    return Evidence("S2", S2, Verdict.NOT_REFUTED, summary, scope, None, (), numbers)


def distance(one: GradientSums, other: GradientSums) -> Fraction:
    """Squared L2 distance of the tables' sums, exactly."""
    square = 0
    for name in one.sums.keys() | other.sums.keys():
        rows: dict[int, list[int]] = {}
        for sign, sums in ((1, one), (-1, other)):
            if name in sums.sums:
                for row, values in zip(sums.rows[name].tolist(), sums.sums[name].tolist(), strict=True):
                    before = rows.get(row, [0] * len(values))
                    rows[row] = [a + sign * b for a, b in zip(before, values, strict=True)]
        square += sum(v * v for values in rows.values() for v in values)
    return Fraction(square) * Fraction(2) ** (2 * one.exponent)


def without(batch: Batch, i: int) -> Batch:
    """The batch without example i."""
    kept = np.delete(np.arange(len(batch)), i)
    features: list[FeatureBags] = []
    for bags in batch.features:
        start, end = int(bags.offsets[i]), int(bags.offsets[i + 1])
        lengths = np.delete(np.diff(bags.offsets), i)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        features.append(FeatureBags(np.delete(bags.ids, np.s_[start:end]), offsets))
    return Batch(batch.dense[kept], tuple(features), batch.labels[kept], batch.indices[kept])
