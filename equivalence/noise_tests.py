"""Every test of law that claim L1 runs on the noise of a run, measured.

Touched and idle rows are always apart: an off-by-one shows only on the touched ones, a forgotten settlement at release
only on the idle ones. Correlations are tested over every field of an address: step (a row's spans), row, dimension,
table, and restart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from samelaw.contract.spec import PrivacySpec
from samelaw.equivalence import laws
from samelaw.equivalence.laws import Measured
from samelaw.equivalence.received import (
    Received,
    all_rows,
    changes,
    flat,
    in_order,
    octaves,
    over_restart,
    pairs_of_dims,
    pairs_of_rows,
    pairs_of_spans,
    pairs_of_tables,
    pairs_over_restart,
    updates,
)
from samelaw.equivalence.spans import Noise

CLOSE = 1e-4  # rows of standardised noise closer than this in every coordinate are copies


def measure_noise(
    received: Received, spec: PrivacySpec, *, margin: float, restarts: Sequence[int] = ()
) -> list[Measured]:
    """All tests of a run's noise, in the order of the report.

    Args:
        margin: what the equivalence tests of scale are to conclude, in ln std.
        restarts: steps at which the run was taken up from a checkpoint.
    """
    found: list[Measured] = []
    ordered = in_order(received)
    for kind, tables in received.kinds().items():
        found += _of_kind(kind, tables, spec, margin)
        for name, noise in tables.items():
            found.append(
                laws.measure_scale(noise.samples.ravel(), margin=margin, name=f"scale, {kind} of table {name}")
            )
        found += _of_consecutive(kind, ordered, [(low, high) for low, high, _ in octaves(tables, spec)])
        for restart in restarts:
            found.append(
                laws.measure_scale(
                    over_restart(tables, restart),
                    margin=margin,
                    name=f"scale, {kind} that owed across the restart at step {restart}",
                )
            )
            pairs = pairs_of_spans(ordered, 1, idle=kind == "idle rows", across=restart)
            found.append(
                laws.measure_correlation(
                    *pairs, name=f"correlation, before and after the restart at step {restart}, {kind}"
                )
            )
    for restart in restarts:
        found += _replayed(received, restart)
    for dim, rows in all_rows(received).items():
        found.append(laws.measure_duplicates(rows, within=CLOSE, name=f"repeated noise, dimension {dim}"))
    return found + _of_dense(received.dense, margin)


def _of_kind(kind: str, tables: Mapping[str, Noise], spec: PrivacySpec, margin: float) -> list[Measured]:
    """The law of touched, or of idle, noise."""
    z = flat(tables.values())
    found = [
        laws.measure_scale(z, margin=margin, name=f"scale, {kind}"),
        laws.measure_mean(z, name=f"mean, {kind}"),
        laws.measure_kolmogorov_smirnov(z, name=f"Kolmogorov-Smirnov, {kind}"),
        laws.measure_anderson_darling(z, name=f"Anderson-Darling, {kind}"),
        *(laws.measure_tail_count(z, x, name=f"share beyond {x:g} std, {kind}") for x in (3.0, 4.0, 5.0)),
        laws.measure_largest(z, name=f"largest, {kind}"),
    ]
    for lag in (1, 8, 16):  # neighbours; the two halves of one pair of normals; neighbouring blocks
        pairs = pairs_of_dims(tables, lag)
        found.append(laws.measure_correlation(*pairs, name=f"correlation, dimensions {lag} apart, {kind}"))
    found += [
        laws.measure_projection(
            z,
            updates(tables.values(), spec),
            name=f"noise against the update before it, {kind}",
            gap="relative error of the update",
        ),
        laws.measure_correlation(*pairs_of_rows(tables), name=f"correlation, neighbouring rows, {kind}"),
        laws.measure_correlation(*pairs_of_tables(tables), name=f"correlation, tables, {kind}"),
    ]
    for low, high, chosen in octaves(tables, spec):
        name = f"scale, {kind} that owed {_steps(low, high)}"
        found.append(laws.measure_scale(chosen, margin=margin, name=name))
    for dim, (before, after, std) in changes(tables, spec).items():
        name = f"rows left as they were, {kind}, dimension {dim}"
        found.append(laws.measure_unchanged(before, after, std, name=name))
    return found


def _of_consecutive(kind: str, ordered: Mapping[str, Noise], owed: Sequence[tuple[int, int]]) -> list[Measured]:
    """The joint law of a row's consecutive reads: what two spans received has no covariance, whatever they owed.

    With the scale by steps owed, this is all there is to the joint law of a Gaussian path: the covariance of two reads
    is the variance of the steps that both have paid.
    """
    idle = kind == "idle rows"
    found = [
        laws.measure_correlation(
            *pairs_of_spans(ordered, lag, idle=idle), name=f"correlation, a row's spans {lag} apart, {kind}"
        )
        for lag in (1, 2)
    ]
    for low, high in owed:
        pairs = pairs_of_spans(ordered, 1, idle=idle, owed=(low, high))
        name = f"correlation, a row's consecutive spans, the later owing {_steps(low, high)}, {kind}"
        found.append(laws.measure_correlation(*pairs, name=name))
    return found


def _replayed(received: Received, restart: int) -> list[Measured]:
    """Draws that a generator would repeat if it started again at the restart.

    The first draw after a checkpoint at step R belongs to the read of step R, the first of the run to that of step 1:
    a stream of random numbers repeats itself R - 1 steps later, a counter of steps R steps later.
    """
    found: list[Measured] = []
    for offset in (restart - 1, restart):
        for same_row, place in ((True, "row by row"), (False, "draw by draw")):
            if offset > 0:
                pairs = pairs_over_restart(received, offset, same_row=same_row)
                name = f"correlation, {offset} steps apart over the restart, {place}, touched rows"
                found.append(laws.measure_correlation(*pairs, name=name))
    return found


def _of_dense(dense: Mapping[str, np.ndarray], margin: float) -> list[Measured]:
    """Each dense parameter's total noise."""
    if not dense:
        return []
    z = np.concatenate(list(dense.values()))
    found = [
        laws.measure_scale(z, margin=margin, name="scale, dense parameters"),
        laws.measure_mean(z, name="mean, dense parameters"),
        laws.measure_anderson_darling(z, name="Anderson-Darling, dense parameters"),
        laws.measure_correlation(z[:-1], z[1:], name="correlation, neighbouring values, dense parameters"),
    ]
    names = list(dense)
    pairs = [(dense[a], dense[b]) for a, b in pairwise(names)]
    first = [a[: min(a.size, b.size)] for a, b in pairs]
    second = [b[: min(a.size, b.size)] for a, b in pairs]
    if pairs:
        joined = np.concatenate(first), np.concatenate(second)
        found.append(laws.measure_correlation(*joined, name="correlation, dense parameters"))
    for name, noise in dense.items():
        found.append(laws.measure_scale(noise, margin=margin, name=f"scale, dense parameter {name}"))
    return found


def _steps(low: int, high: int) -> str:
    return f"{low} step{'s' * (low > 1)}" if low == high else f"{low} to {high} steps"
