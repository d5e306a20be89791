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


@kernel()
def all_in_unit_interval(factors):
    """Whether every clip factor lies in 0..1; NaN does not."""
    sound = True
    for i in range(factors.shape[0]):
        sound &= (factors[i] >= 0.0) & (factors[i] <= 1.0)
    return sound


@inline
def add_contributions(entry, following, bag_of_entry, multiplicity, bags, gradients, factors, to_grid, x, total):
    """Add to `total` the integer contributions of one row's entries; `x` is scratch for one example's gradient."""
    offsets, example_of_bag, means = bags
    dim = int64(gradients.shape[1])
    while entry >= 0:
        bag = int64(bag_of_entry[entry])
        example = example_of_bag[bag]
        factor, m = factors[example], multiplicity[entry]
        scale = factor * to_grid
        gradient, count = gradients[bag], divisor(offsets, means, bag)
        entry = int64(following[entry])
        if entry < 0 or example_of_bag[bag_of_entry[entry]] != example:  # the usual case: one bag of the example
            if factor == 0.0:
                continue
            if count == 1.0:
                for j in range(dim):
                    total[j] = total[j] + int64((m * float64(gradient[j])) * scale)
            else:
                for j in range(dim):
                    total[j] = total[j] + int64((m * (float64(gradient[j]) / count)) * scale)
            continue
        for j in range(dim):
            x[j] = 0.0 + m * (float64(gradient[j]) / count)
        while entry >= 0 and example_of_bag[bag_of_entry[entry]] == example:
            bag, m = int64(bag_of_entry[entry]), multiplicity[entry]
            gradient, count = gradients[bag], divisor(offsets, means, bag)
            for j in range(dim):
                x[j] = x[j] + m * (float64(gradient[j]) / count)
            entry = int64(following[entry])
        if factor != 0.0:
            for j in range(dim):
                total[j] = total[j] + int64(x[j] * scale)


@kernel(parallel=True)
def sum_groups(sums, groups, first, following, bag_of_entry, multiplicity, bags, gradients, factors, to_grid, chunk):
    """sums[i] = the exact sum of the contributions to group groups[i]."""
    dim, count = int64(gradients.shape[1]), int64(groups.shape[0])
    for part in prange((count + chunk - 1) // chunk):
        x = np.empty(dim, np.float64)
        for i in range(part * chunk, min((part + 1) * chunk, count)):
            total, entry = sums[i], int64(first[groups[i]])
            total[:] = 0
            add_contributions(entry, following, bag_of_entry, multiplicity, bags, gradients, factors, to_grid, x, total)


@kernel(parallel=True)
def update_groups(
    weights,
    count,
    group_row,
    first,
    following,
    bag_of_entry,
    multiplicity,
    bags,
    gradients,
    factors,
    to_grid,
    unit,
    rate,
    chunk,
):
    """w = fl32(w - fl32(rate * G)) on every touched row, G = fl32(sum) * unit."""
    dim = int64(gradients.shape[1])
    for part in prange((count + chunk - 1) // chunk):
        x, total = np.empty(dim, np.float64), np.empty(dim, np.int64)
        for group in range(part * chunk, min((part + 1) * chunk, count)):
            if group + _AHEAD < count:
                prefetch_row(weights, group_row[group + _AHEAD], dim)
            row, entry = weights[group_row[group]], int64(first[group])
            if following[entry] < 0:  # one bag touches the row: no sum to keep
                offsets, example_of_bag, means = bags
                bag, m = int64(bag_of_entry[entry]), multiplicity[entry]
                factor, gradient = factors[example_of_bag[bag]], gradients[bag]
                if factor != 0.0 and divisor(offsets, means, bag) == 1.0:
                    scale = factor * to_grid
                    for j in range(dim):
                        contribution = int64((m * float64(gradient[j])) * scale)
                        row[j] = row[j] - rate * float32(float64(float32(contribution)) * unit)
                    continue
            total[:] = 0
            add_contributions(entry, following, bag_of_entry, multiplicity, bags, gradients, factors, to_grid, x, total)
            for j in range(dim):
                row[j] = row[j] - rate * float32(float64(float32(total[j])) * unit)
