"""The check at the door of the CPU kernels: dtype, shape, layout and device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from samelaw.contract.errors import InputError


def array(name: str, tensor: Tensor, dtype: torch.dtype, dimensions: int) -> np.ndarray:
    """The tensor's memory as an array, without a copy.

    Raises:
        InputError: not a C-contiguous CPU tensor of `dtype` with `dimensions` dimensions.
    """
    if tensor.dtype is not dtype or tensor.dim() != dimensions:
        raise InputError(
            f"{name} must be {dimensions}-dimensional {dtype}, got shape {tuple(tensor.shape)} of {tensor.dtype}"
        )
    if not tensor.is_cpu:
        raise InputError(f"{name} must be on the CPU, got {tensor.device}: move it, or use the kernels of that device")
    if not tensor.is_contiguous():
        raise InputError(f"{name} must be C-contiguous, got strides {tensor.stride()}: call .contiguous()")
    return tensor.detach().numpy() if tensor.requires_grad else tensor.numpy()
