"""The clip factor, the truncation of a contribution, and the sum over a batch: what bounds one example's influence.

As in lazy_schedule.py, the clipping of this package calls these functions and the proofs are about them
(proofs/theories/Gen_truncation.v, Sensitivity.v). Numbers are float64, every operation rounded to nearest, until they
are truncated; from there on they are exact integers.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from jaxtyping import Float64, Int64

from samelaw.contract.spec import CLIP_MARGIN

Vector: TypeAlias = Float64[np.ndarray, "_dim"]
Integers: TypeAlias = Int64[np.ndarray, "_dim"]


def clip_factor(square_norm: float, clip_norm: float) -> float:
    """f in [0, 1], so that f * norm is below the clip norm by more than rounding can make up for.

    Args:
        square_norm: finite, >= 0.
        clip_norm: C > 0.
    """
    target = clip_norm * (1 - CLIP_MARGIN)
    norm = math.sqrt(square_norm)
    return 1.0 if norm <= target else target / norm


def contribution(gradient: Vector, scale: float) -> Integers:
    """gradient * scale, toward zero: no coordinate grows."""
    return np.trunc(gradient * scale).astype(np.int64)


def batch_sum(contributions: list[Integers], nothing: Integers) -> Integers:
    """The contributions of a batch to one row, added exactly; `nothing` is the zero vector."""
    total = nothing
    for part in contributions:
        total = total + part
    return total
