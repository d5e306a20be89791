"""Cases of reads, norms, sums and updates."""

from __future__ import annotations

import numpy as np
import torch
from gpu_making import a_lookup, as_call, assert_same_bits, case, moved, on

from samelaw.contract.trace import Lookup, Pooling
from samelaw.fast.gpu import GpuKernels
from samelaw.fast.kernels import LookupCall
from samelaw.reference import clipping, reading


def lookups_to_try(rng: np.random.Generator) -> list[list[Lookup]]:
    """One table's calls: each pooling, weights, all of them together; some examples and bags without anything."""
    kinds = [(Pooling.SUM, False), (Pooling.MEAN, False), (Pooling.SUM, True)]
    sizes = {"examples": 9, "bags": 3, "length": 5, "rows": 7}
    single = [[a_lookup(rng, pooling=p, weighted=w, **sizes)] for p, w in kinds]
    return [*single, [calls[0] for calls in single], [single[0][0], single[0][0]]]


@case
def pooled_reads(kernels: GpuKernels) -> None:
    rng = np.random.default_rng(31)
    for dim in (1, 16, 21, 130):
        weights = rng.standard_normal((7, dim)).astype(np.float32)
        weights[0] = -0.0  # a bag starts from +0, so a bag of this row alone reads +0
        weights[1] = 3e-42
        for calls in lookups_to_try(rng)[:3]:
            found = kernels.pool(moved(kernels, weights), as_call(kernels, calls[0]))
            assert_same_bits(found, reading.read_bags(weights, calls[0]))
    nothing = LookupCall(on(kernels, []), on(kernels, [0]), on(kernels, []))
    assert kernels.pool(torch.ones((3, 4), device=kernels.device), nothing).shape == (0, 4)


def gradients_against_the_reference(
    kernels: GpuKernels, lookups: list[Lookup], pooled: list[np.ndarray], *, examples: int, clip_norm: float
) -> None:
    """Norms, sums and update from the same gradients."""
    rng = np.random.default_rng(37)
    exponent = int(np.ceil(np.log2(clip_norm))) - 32
    start = np.abs(rng.standard_normal(examples))
    calls = [as_call(kernels, lookup) for lookup in lookups]
    gradients = [moved(kernels, gradient) for gradient in pooled]
    expected = clipping.square_norms(lookups, pooled, start, ["t"])
    assert_same_bits(kernels.square_norms(calls, gradients, moved(kernels, start)), expected)

    factors = clipping.clip_factors(expected, clip_norm)
    sums = clipping.gradient_sums(lookups, pooled, factors, exponent, ["t"])
    rows, totals = kernels.gradient_sums(calls, gradients, moved(kernels, factors), exponent)
    assert_same_bits(rows, sums.rows["t"])
    assert_same_bits(totals, sums.sums["t"])

    rate = np.float32(0.37)
    weights = rng.standard_normal((7, pooled[0].shape[1])).astype(np.float32)
    updated = weights.copy()
    gradient = np.ldexp(sums.sums["t"].astype(np.float32), exponent)
    updated[sums.rows["t"]] = updated[sums.rows["t"]] - rate * gradient
    found = moved(kernels, weights)
    kernels.update(found, calls, gradients, moved(kernels, factors), exponent, float(rate))
    assert_same_bits(found, updated)


@case
def norms_sums_and_updates(kernels: GpuKernels) -> None:
    rng = np.random.default_rng(41)
    for dim, lookups in zip((21, 8, 1, 17, 3), lookups_to_try(rng), strict=True):
        pooled = [rng.standard_normal((lookup.bags, dim)).astype(np.float32) for lookup in lookups]
        gradients_against_the_reference(kernels, lookups, pooled, examples=9, clip_norm=2.0)


@case
def norms_and_sums_of_wide_rows(kernels: GpuKernels) -> None:
    """More columns than one program takes."""
    rng = np.random.default_rng(43)
    lookups = lookups_to_try(rng)[1]
    pooled = [rng.standard_normal((lookup.bags, 139)).astype(np.float32) for lookup in lookups]
    gradients_against_the_reference(kernels, lookups, pooled, examples=9, clip_norm=1.0)


@case
def gradients_that_are_not_finite_contribute_nothing(kernels: GpuKernels) -> None:
    rng = np.random.default_rng(47)
    lookups = lookups_to_try(rng)[3]
    pooled = [rng.standard_normal((lookup.bags, 5)).astype(np.float32) for lookup in lookups]
    pooled[0][0, 2] = np.inf
    pooled[1][-1] = np.nan
    pooled[2][1] = 3e38
    gradients_against_the_reference(kernels, lookups, pooled, examples=9, clip_norm=1.0)


@case
def tiny_and_large_clip_norms(kernels: GpuKernels) -> None:
    rng = np.random.default_rng(53)
    lookups = lookups_to_try(rng)[0]
    pooled = [rng.standard_normal((lookup.bags, 5)).astype(np.float32) for lookup in lookups]
    for clip_norm in (1e-40, 1e-9, 1e9, 1e30):
        gradients_against_the_reference(kernels, lookups, pooled, examples=9, clip_norm=clip_norm)


@case
def one_row_in_every_bag(kernels: GpuKernels) -> None:
    """Every contribution meets in one sum: the case where an order of additions would show."""
    rng = np.random.default_rng(59)
    count = 70
    offsets = np.arange(count + 1) * 3
    lookup = Lookup("t", np.zeros(3 * count, np.int64), offsets, np.arange(count))
    pooled = [(rng.standard_normal((count, 4)) * 10.0 ** rng.integers(-8, 9, (count, 1))).astype(np.float32)]
    gradients_against_the_reference(kernels, [lookup], pooled, examples=count, clip_norm=2.0)


@case
def no_calls_and_no_ids(kernels: GpuKernels) -> None:
    start = on(kernels, [0.5, 0.0], torch.float64)
    assert_same_bits(kernels.square_norms([], [], start), start)
    rows, sums = kernels.gradient_sums([], [], start, -32)
    assert rows.shape == (0,)
    assert sums.shape[0] == 0
    empty = LookupCall(on(kernels, []), on(kernels, [0, 0, 0]), on(kernels, [0, 1]), Pooling.MEAN)
    gradient = torch.ones((2, 6), dtype=torch.float32, device=kernels.device)
    assert_same_bits(kernels.square_norms([empty], [gradient], start), start)
    rows, sums = kernels.gradient_sums([empty], [gradient], start, -32)
    assert sums.shape == (0, 6)
    weights = torch.ones((3, 6), dtype=torch.float32, device=kernels.device)
    kernels.update(weights, [empty], [gradient], start, -32, 0.5)
    assert (weights == 1).all()
