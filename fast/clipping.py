"""The clip factor of each example, from its squared norm."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from samelaw.contract.spec import CLIP_MARGIN


def clip_factors(square_norms: Float64[Tensor, "examples"], clip_norm: float) -> Float64[Tensor, "examples"]:
    """min(1, C (1 - 2^-20) / norm); 0 where the squared norm is not a finite number >= 0.

    In NumPy, one number per example: its square roots and quotients are rounded correctly, and torch's square root on a
    CPU is not, in float64 either (1.3 % of results are one unit off).
    """
    squares = square_norms.cpu().numpy()
    usable = np.isfinite(squares) & (squares >= 0)
    target = clip_norm * (1 - CLIP_MARGIN)
    norms = np.sqrt(np.where(usable, squares, 0.0))
    factors = np.where(norms <= target, 1.0, target / np.maximum(norms, target))
    return torch.from_numpy(np.where(usable, factors, 0.0)).to(square_norms.device)
