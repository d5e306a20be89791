"""Clipped contributions on the integer grid, added per row, and the step that they make. docs/arithmetic.md.

Each row's entries are linked into a list, so one thread owns a row: no atomics, no sort, and a row that was touched
once costs one pass over its columns.
"""

from __future__ import annotations

import numpy as np
from numba import float32, float64, int64, prange

from samelaw.fast.cpu.clipping import divisor
from samelaw.fast.cpu.compiled import inline, kernel
from samelaw.fast.cpu.settle import prefetch_row

_AHEAD = 8  # groups between the prefetch of a row and its update


@inline
def add_contributions(
    entry, following, bag_of_entry, multiplicity, example_of_bag, offsets, means, gradients, factors, to_grid, x, total
):
    """Add to `total` the integer contributions of one row's entries; `x` is scratch, one example's gradient."""
    dim = int64(gradients.shape[1])
    while entry >= 0:
        example = example_of_bag[bag_of_entry[entry]]
        factor = factors[example]
        opened = False
        while entry >= 0 and example_of_bag[bag_of_entry[entry]] == example:
            bag, m = bag_of_entry[entry], multiplicity[entry]
            count = divisor(offsets, means, bag)
            gradient = gradients[bag]
            if not opened:
                x[:] = 0.0
                opened = True
            if count == 1.0:
                for j in range(dim):
                    x[j] = x[j] + m * float64(gradient[j])
            else:
                for j in range(dim):
                    x[j] = x[j] + m * (float64(gradient[j]) / count)
            entry = following[entry]
        if factor != 0.0:
            scale = factor * to_grid
            for j in range(dim):
                total[j] = total[j] + int64(x[j] * scale)


@kernel(parallel=True)
def sum_groups(
    sums, groups, first, following, bag_of_entry, multiplicity, example_of_bag, offsets, means, gradients, factors,
    to_grid, chunk,
):  # fmt: skip
    """sums[i] = the exact sum of the contributions to group groups[i]."""
    dim, count = int64(gradients.shape[1]), int64(groups.shape[0])
    for part in prange((count + chunk - 1) // chunk):
        x = np.empty(dim, np.float64)
        for i in range(part * chunk, min((part + 1) * chunk, count)):
            total = sums[i]
            total[:] = 0
            add_contributions(
                first[groups[i]], following, bag_of_entry, multiplicity, example_of_bag, offsets, means, gradients,
                factors, to_grid, x, total,
            )  # fmt: skip


@kernel(parallel=True)
def update_groups(
    weights, count, group_row, first, following, bag_of_entry, multiplicity, example_of_bag, offsets, means,
    gradients, factors, to_grid, unit, rate, chunk,
):  # fmt: skip
    """w = fl32(w - fl32(rate * G)) on every touched row, G = fl32(sum) * unit."""
    dim = int64(gradients.shape[1])
    for part in prange((count + chunk - 1) // chunk):
        x, total = np.empty(dim, np.float64), np.empty(dim, np.int64)
        for group in range(part * chunk, min((part + 1) * chunk, count)):
            if group + _AHEAD < count:
                prefetch_row(weights, group_row[group + _AHEAD], dim)
            total[:] = 0
            add_contributions(
                first[group], following, bag_of_entry, multiplicity, example_of_bag, offsets, means, gradients,
                factors, to_grid, x, total,
            )  # fmt: skip
            row = weights[group_row[group]]
            for j in range(dim):
                gradient = float32(float64(float32(total[j])) * unit)
                row[j] = row[j] - rate * gradient
