"""What a model reads from a table: one float32 vector per bag."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from samelaw.contract.trace import Lookup, Pooling


def read_bags(weights: Float32[np.ndarray, "rows dim"], lookup: Lookup) -> Float32[np.ndarray, "bags dim"]:
    """The pooled vector of every bag: rows are added in the order of their ids, each sum rounded to float32.

    Args:
        weights: the table, every row settled through the steps before this one.
        lookup: bags of row ids without padding; an empty bag reads zeros.

    Source: docs/arithmetic.md ("Reading").
    """
    vectors = np.zeros((lookup.bags, weights.shape[1]), dtype=np.float32)
    for bag in range(lookup.bags):
        start, end = int(lookup.offsets[bag]), int(lookup.offsets[bag + 1])
        value = np.zeros(weights.shape[1], dtype=np.float32)
        for position in range(start, end):
            row = weights[lookup.ids[position]]
            value = value + (row if lookup.weights is None else lookup.weights[position] * row)
        if lookup.pooling is Pooling.MEAN and end > start:
            value = value / np.float32(end - start)
        vectors[bag] = value
    return vectors
