"""Reading: the value of each bag. docs/arithmetic.md, Reading."""

from __future__ import annotations

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
