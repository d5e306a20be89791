"""Claims S1 and M1: what one example can contribute, and whether two models differentiate alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np

from samelaw.contract.evidence import Disagreement, Evidence, Verdict
from samelaw.contract.trace import Batch, GradientSums

S1 = "One example moves the gradient sum by at most the clip norm, over all tables and dense parameters together."
M1 = "The NumPy model and the torch model have the same per-example gradients in float64."

DENSE_MARGIN = 2.0**-20
"""Allowed relative excess of the joint norm. An entry of one example's clipped dense gradient carries at most a few
float32 roundings, each 2^-24; the clip factor keeps 2^-20 in hand for them (docs/arithmetic.md). Tables: none."""

CANCELLATION = 2.0**10
"""How much larger than a gradient the terms that cancel in it may be; the models sum them in different orders."""


def sensitivity(
    gradient_sums: Callable[[Batch], GradientSums],
    examples: Iterable[Batch],
    *,
    clip_norm: float,
    scope: str = "",
) -> Evidence:
    """S1: the exact norm of the clipped contribution of each example, taken alone.

    Args:
        gradient_sums: a trainer's probe; changes nothing.
        examples: batches of one example each.
        clip_norm: C.

    Returns:
        NOT REFUTED if no example exceeds C: in integers for the tables, within DENSE_MARGIN for the joint norm. The
        summary says how many examples were clipped at all; a check in which none was is NOT ASSESSED.
    """
    tested, clipped, largest, largest_tables = 0, 0, 0.0, 0.0
    limit = Fraction(clip_norm) ** 2
    wrong: Disagreement | None = None
    for batch in examples:
        if len(batch) != 1:
            raise ValueError(f"sensitivity takes batches of one example, got one of {len(batch)}")
        found = gradient_sums(batch)
        tables = sum((_square_sum(sums) for sums in found.sums.values()), 0)
        tables_square = Fraction(tables) * Fraction(2) ** (2 * found.exponent)
        dense = math.fsum(float(np.square(d.astype(np.float64)).sum()) for d in found.dense.values())
        ratio = math.sqrt(float(tables_square) + dense) / clip_norm
        within = tables_square <= limit and ratio <= 1 + DENSE_MARGIN  # a NaN is not within
        if not within and wrong is None:
            wrong = Disagreement(
                f"probe {tested} (norms of its parts: "
                + ", ".join(f"{n}: {_norm(s, found.exponent):.6g}" for n, s in sorted(found.sums.items()))
                + f", dense: {math.sqrt(dense):.6g})",
                f"joint norm at most {clip_norm:.9g}",
                f"{ratio * clip_norm:.9g}, {ratio:.6g} times the clip norm",
            )
        tested += 1
        largest = ratio if not ratio <= largest else largest
        largest_tables = max(largest_tables, math.sqrt(float(tables_square)) / clip_norm)
        factors = found.factors if found.factors is not None else np.empty(0)
        clipped += int((factors < 1).sum())
    numbers = {
        "examples": tested,
        "clipped": clipped,
        "largest_share_of_clip_norm": largest,
        "largest_share_tables_alone": largest_tables,
        "dense_margin": DENSE_MARGIN,
    }
    scope = scope or f"{tested} examples, each alone"
    said = f"{tested} examples, {clipped} of them clipped; the largest contribution is {largest:.9f} of the clip norm"
    if wrong is not None:
        return Evidence(
            "S1", S1, Verdict.REFUTED, f"An example exceeds the clip norm: {wrong}.", scope, wrong, (), numbers
        )
    if tested == 0 or clipped == 0:
        summary = f"Nothing was shown: {said}. Only examples that need clipping can show that clipping works."
        return Evidence("S1", S1, Verdict.NOT_ASSESSED, summary, scope, None, (), numbers)
    return Evidence("S1", S1, Verdict.NOT_REFUTED, f"{said}.", scope, None, (), numbers)


def same_gradients(
    expected: Sequence[Mapping[str, np.ndarray]],
    found: Sequence[Mapping[str, np.ndarray]],
    *,
    operations: int,
    scope: str = "",
) -> Evidence:
    """M1: per-example gradients of two models, parameter by parameter.

    Args:
        expected, found: one mapping per example, parameter name -> float64 gradient.
        operations: k, roundings on the longest way from an input to a gradient: the sum of the fan-ins of all layers
            passed forwards and backwards.

    Returns:
        EQUIVALENT if no entry differs by more than 2 gamma_k * CANCELLATION times the largest entry of its example's
        gradient, gamma_k = k u / (1 - k u), u = 2^-53 (each model's own rounding error is at most gamma_k times the
        sum of the magnitudes of the terms that it adds; Higham, Accuracy and Stability, section 3.1).
    """
    gamma = operations * 2.0**-53 / (1 - operations * 2.0**-53)
    tolerance = 2 * gamma * CANCELLATION
    worst, entries = 0.0, 0
    wrong: Disagreement | None = None
    if len(expected) != len(found):
        wrong = Disagreement("examples", str(len(expected)), str(len(found)))
    for i, (one, other) in enumerate(zip(expected, found, strict=False)):
        if wrong is None and one.keys() != other.keys():
            wrong = Disagreement(f"example {i}, parameters", ", ".join(sorted(one)), ", ".join(sorted(other)))
        unit = max((float(np.abs(g).max(initial=0.0)) for g in one.values()), default=0.0) or 1.0
        for name in sorted(one.keys() & other.keys()):
            if one[name].shape != other[name].shape:
                wrong = wrong or Disagreement(f"example {i}, {name!r}", str(one[name].shape), str(other[name].shape))
                continue
            gap = np.abs(one[name] - other[name]) / unit
            entries += gap.size
            beyond = np.argwhere(~(gap <= tolerance))
            if len(beyond) and wrong is None:
                at = tuple(int(k) for k in beyond[0])
                wrong = Disagreement(
                    f"example {i}, gradient of {name!r} at {list(at)}", f"{one[name][at]!s}", f"{other[name][at]!s}"
                )
            worst = max(worst, float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0)))
    numbers = {"examples": len(expected), "entries": entries, "largest_relative_gap": worst, "tolerance": tolerance}
    scope = scope or f"{len(expected)} examples, {entries} gradient entries"
    if wrong is not None:
        return Evidence("M1", M1, Verdict.REFUTED, f"The gradients differ: {wrong}.", scope, wrong, (), numbers)
    if entries == 0:
        return Evidence("M1", M1, Verdict.NOT_ASSESSED, "No gradient was compared.", scope, None, (), numbers)
    summary = (
        f"{entries:,} entries differ by at most {worst:.3g} of their example's largest; {tolerance:.3g} is what "
        "rounding may explain, and any larger gap would have been seen."
    )
    return Evidence("M1", M1, Verdict.EQUIVALENT, summary, scope, None, (), numbers)


def _square_sum(sums: np.ndarray) -> int:
    """Exact sum of squares of integers: Python's integers cannot overflow."""
    values = [int(v) for v in sums.ravel().tolist()]
    return sum(v * v for v in values)


def _norm(sums: np.ndarray, exponent: int) -> float:
    return math.sqrt(_square_sum(sums)) * 2.0**exponent
