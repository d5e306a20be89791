"""The model of a run plan in plain NumPy: a gradient oracle whose every operation is one float32 or exact."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64

from samelaw.contract.oracle import ExampleGradients, Reader
from samelaw.contract.trace import Batch
from samelaw.equivalence.run_plans import DENSE, RunPlan

SMALLEST_NORMAL = np.float32(2.0**-126)


class ReadoutOracle:
    """`contract.oracle.GradientOracle` of a plan's model.

    The dense sum is that of docs/arithmetic.md for a Linear layer called once: float32, numbers of at most 2^-126 taken
    as zero. A float32 sum depends on its order from the third addend on; `dense_order_matters` says whether one did.
    """

    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan
        self.dense_order_matters = False
        self._dense = plan.initial_dense()
        self._inputs = np.zeros((0, plan.dense_width), dtype=np.float32)

    @property
    def dense(self) -> dict[str, np.ndarray]:
        return self._dense

    def gradients(self, batch: Batch, read: Reader) -> ExampleGradients:
        """fl32(v + fl32(curvature * p)) for every bag; the dense input for the dense parameter."""
        lookups = self.plan.lookups(batch)
        curvature = np.float32(self.plan.curvature)
        reads = [read(lookup) for lookup in lookups]
        slopes = [self.plan.slopes(f, batch.indices) for f in range(len(lookups))]
        pooled = [v + curvature * p for v, p in zip(slopes, reads, strict=True)]
        self._inputs = batch.dense
        value = np.zeros(len(batch), dtype=np.float32)
        for gradient, p in zip(pooled, reads, strict=True):
            value = value + (gradient * p).sum(axis=1, dtype=np.float32)
        squares = (batch.dense.astype(np.float64) ** 2).sum(axis=1)
        return ExampleGradients(lookups, pooled, squares, value, value)

    def clipped_dense_sum(self, factors: Float64[np.ndarray, "examples"]) -> dict[str, np.ndarray]:
        """sum_b fl32(fl32(f_b) * u_b): in float32, whose order cannot matter here."""
        if not self._dense:
            return {}
        shares = _normal(factors.astype(np.float32))
        parts = shares[:, None] * self._inputs
        total = np.zeros(self.plan.dense_width, dtype=np.float32)
        for part in parts:
            total = total + part
        for column in range(self.plan.dense_width):
            exact = math.fsum(parts[:, column].tolist())
            if np.count_nonzero(parts[:, column]) > 2 and float(total[column]) != exact:
                self.dense_order_matters = True
        return {DENSE: total.reshape(1, -1)}


def _normal(values: np.ndarray) -> np.ndarray:
    return np.where(np.abs(values) > SMALLEST_NORMAL, values, np.float32(0))
