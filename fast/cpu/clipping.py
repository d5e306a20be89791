"""Squared norms of per-example gradients, without ever forming one. docs/arithmetic.md, Clipping."""

from __future__ import annotations

import numpy as np
from numba import float64, int64, prange

from samelaw.fast.cpu.bags import own_overlap, shared_overlap
from samelaw.fast.cpu.blocks import mean_product_lanes, product_lanes
from samelaw.fast.cpu.compiled import inline, kernel

_EIGHT = 8


@inline
def dot(gradients, p, p_count, q, q_count, mean, lanes):
    """Float64 dot product of two bags' gradients in the fixed order of eight lanes and one tree.

    With `mean`, each gradient is divided by its bag's count first (a count of 1 changes nothing).
    """
    dim = int64(gradients.shape[1])
    whole = dim - dim % _EIGHT
    if mean:
        mean_product_lanes(gradients, p * dim, q * dim, dim // _EIGHT, lanes, p_count, q_count)
    else:
        product_lanes(gradients, p * dim, q * dim, dim // _EIGHT, lanes)
    for j in range(whole, dim):
        d, e = float64(gradients[p, j]), float64(gradients[q, j])
        if mean:
            d, e = d / p_count, e / q_count
        lanes[j - whole] = lanes[j - whole] + d * e
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))


@inline
def divisor(offsets, means, bag):
    """What a bag's gradient is divided by: its count for mean pooling, 1 for a sum or an empty bag."""
    count = offsets[bag + 1] - offsets[bag]
    return float64(count) if means[bag] and count > 0 else 1.0


@kernel()
def first_bags(example_of_bag, order, first):
    """first[b] = where example b's bags begin in the order of the examples; first[examples] = the number of bags."""
    bags, examples = example_of_bag.shape[0], first.shape[0] - 1
    example = 0
    for k in range(bags):
        bag = order[k] if order.shape[0] > 0 else int64(k)
        while example <= example_of_bag[bag]:
            first[example] = k
            example += 1
    while example <= examples:
        first[example] = bags
        example += 1


@kernel(parallel=True)
def continue_norms(norms, gradients, offsets, means, order, first, rows, multiplicity, distinct, margin, chunk):
    """Add one table's share to each example's squared norm, in place, pair of bags by pair of bags."""
    examples = int64(norms.shape[0])
    for part in prange((examples + chunk - 1) // chunk):
        lanes = np.empty(_EIGHT, np.float64)
        for example in range(part * chunk, min((part + 1) * chunk, examples)):
            n = norms[example]
            for i in range(first[example], first[example + 1]):
                p = order[i] if order.shape[0] > 0 else int64(i)
                p_divisor = divisor(offsets, means, p)
                mean = means[p]
                own = own_overlap(multiplicity, offsets[p], distinct[p])
                square = dot(gradients, p, p_divisor, p, p_divisor, mean, lanes)
                if own != 0.0:
                    n = n + own * square
                for k in range(i + 1, first[example + 1]):
                    q = order[k] if order.shape[0] > 0 else int64(k)
                    overlap = shared_overlap(rows, multiplicity, offsets[p], distinct[p], offsets[q], distinct[q])
                    if overlap != 0.0:
                        either = mean or means[q]
                        product = dot(gradients, p, p_divisor, q, divisor(offsets, means, q), either, lanes)
                        n = n + (2.0 * overlap) * product
                n = n + margin * (own * square)
            norms[example] = n
