"""Reading: the value of each bag. docs/arithmetic.md, Reading."""

from __future__ import annotations

import numpy as np
from numba import float32, int64, prange

from samelaw.fast.cpu.compiled import kernel
from samelaw.fast.cpu.settle import prefetch_row

_AHEAD = 16  # ids between the prefetch of a row and its use


@kernel(parallel=True)
def pool_bags(weights, ids, offsets, bag_weights, mean, out, chunk):
    """out[bag] = the sum of its rows in order; times a weight each if there are any; over the count if `mean`."""
    dim, bags = int64(weights.shape[1]), int64(offsets.shape[0] - 1)
    weighted = bag_weights.shape[0] > 0
    for part in prange((bags + chunk - 1) // chunk):
        for bag in range(part * chunk, min((part + 1) * chunk, bags)):
            value = out[bag]
            value[:] = float32(0)
            for i in range(offsets[bag], offsets[bag + 1]):
                if i + _AHEAD < ids.shape[0]:
                    prefetch_row(weights, ids[i + _AHEAD], dim)
                row = weights[ids[i]]
                if weighted:
                    factor = bag_weights[i]
                    for j in range(dim):
                        value[j] = value[j] + factor * row[j]
                else:
                    for j in range(dim):
                        value[j] = value[j] + row[j]
            count = offsets[bag + 1] - offsets[bag]
            if mean and count > 1:
                divisor = float32(count)
                for j in range(dim):
                    value[j] = value[j] / divisor


@kernel()
def inspect_call(ids, offsets, example_of_bag):
    """(first bad bag, smallest id, largest id, largest example).

    A bag is bad if its offsets fall, or if its example is negative or below the one before. -2 stands for offsets
    that do not run from 0 to the number of ids in bags + 1 entries, -1 for a call without fault.
    """
    bags, count = example_of_bag.shape[0], ids.shape[0]
    smallest, largest = np.int64(0), np.int64(-1)
    if count > 0:
        smallest, largest = ids[0], ids[0]
        for i in range(count):
            smallest, largest = min(smallest, ids[i]), max(largest, ids[i])
    if offsets.shape[0] != bags + 1 or offsets[0] != 0 or offsets[bags] != count:
        return np.int64(-2), smallest, largest, np.int64(-1)
    before = np.int64(0)
    for bag in range(bags):
        if offsets[bag] > offsets[bag + 1] or example_of_bag[bag] < before:
            return np.int64(bag), smallest, largest, np.int64(-1)
        before = example_of_bag[bag]
    return np.int64(-1), smallest, largest, before if bags > 0 else np.int64(-1)
