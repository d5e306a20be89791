"""The model as a gradient oracle: reads in; per-example gradients of the pooled reads and the dense sum out.

Two matrix libraries never sum alike, so a bitwise comparison of two trainers must give both the same dense
arithmetic. The trainers own the tables, the clipping, the noise and the update; the oracle owns everything between
the pooled reads and the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64

from samelaw.contract.trace import Batch, Lookup


@runtime_checkable
class Reader(Protocol):
    """Serves one table call: the pooled float32 vector of each bag, (bags, dim)."""

    def __call__(self, lookup: Lookup) -> Float32[np.ndarray, "bags dim"]: ...


@dataclass(repr=False)
class ExampleGradients:
    """What one backward pass yields before clipping.

    Attributes:
        lookups: every table call of the forward pass, in order.
        pooled: for each of them, d(example's loss)/d(pooled vector), float32 (bags, dim).
        dense_square_norms: squared L2 norm of each example's gradient over all dense parameters, float64.
        losses: loss per example, float32.
        logits: model output per example, float32.
    """

    lookups: Sequence[Lookup]
    pooled: Sequence[Float32[np.ndarray, "_bags _dim"]]
    dense_square_norms: Float64[np.ndarray, "examples"]
    losses: Float32[np.ndarray, "examples"]
    logits: Float32[np.ndarray, "examples"]

    def __repr__(self) -> str:
        return f"ExampleGradients(examples={len(self.losses)}, lookups={len(self.lookups)})"


@runtime_checkable
class GradientOracle(Protocol):
    """A model without its tables.

    `dense` maps names to float32 arrays, in a fixed order; the trainer updates the arrays in place and the oracle
    must see the new values at the next call.
    """

    @property
    def dense(self) -> dict[str, np.ndarray]: ...

    def gradients(self, batch: Batch, read: Reader) -> ExampleGradients:
        """Forward and backward for a batch of at least one example."""
        ...

    def clipped_dense_sum(self, factors: Float64[np.ndarray, "examples"]) -> dict[str, np.ndarray]:
        """sum_i factors[i] * g_i over the dense gradients g_i of the last `gradients` call, float32."""
        ...
