"""Checks at the door of the CPU kernels: dtype, shape, layout, device and range, before anything is written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from samelaw.contract.errors import InputError
from samelaw.fast.cpu.history import first_out_of_range
from samelaw.fast.cpu.pooling import first_bad_bag
from samelaw.fast.kernels import LookupCall


def array(name: str, tensor: Tensor, dtypes: torch.dtype | tuple[torch.dtype, ...], dimensions: int) -> np.ndarray:
    """The tensor's memory as an array, without a copy.

    Raises:
        InputError: not a dense C-contiguous CPU tensor of one of `dtypes` with `dimensions` dimensions.
    """
    allowed = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    if tensor.dtype not in allowed or tensor.dim() != dimensions:
        raise InputError(
            f"{name} must be {dimensions}-dimensional {' or '.join(map(str, allowed))}, "
            f"got shape {tuple(tensor.shape)} of {tensor.dtype}"
        )
    if tensor.device.type != "cpu":
        raise InputError(f"{name} must be on the CPU, got {tensor.device}: move it, or use the kernels of that device")
    if not tensor.is_contiguous():
        raise InputError(f"{name} must be C-contiguous, got strides {tensor.stride()}: call .contiguous()")
    return tensor.detach().numpy()


def check_rows(name: str, ids: np.ndarray, rows: int) -> None:
    """Raise InputError unless every id is in 0..rows-1."""
    bad = first_out_of_range(ids, rows)
    if bad >= 0:
        raise InputError(f"{name}[{bad}] must be in 0..{rows - 1}, got {int(ids[bad])}: the table has {rows} rows")


def check_call(call: LookupCall, ids: np.ndarray, offsets: np.ndarray, bag_examples: np.ndarray, examples: int) -> None:
    """Raise InputError unless offsets and examples are in order; `examples` < 0 leaves the largest example open."""
    bad = first_bad_bag(offsets, bag_examples, ids.shape[0], examples)
    if bad == -2:
        raise InputError(
            f"offsets must have one entry more than the {bag_examples.shape[0]} bags and rise from 0 to {ids.shape[0]}, "
            f"got {offsets.shape[0]} entries in {call!r}"
        )
    if bad >= 0:
        raise InputError(
            f"bag {bad} of {call!r} breaks the order: offsets must not fall, and example_of_bag must not fall or leave "
            f"0..{examples - 1}"
        )


def check_pooled(calls: Sequence[LookupCall], pooled: Sequence[Tensor]) -> int:
    """The common number of columns of the pooled gradients.

    Raises:
        InputError: the gradients do not fit the calls.
    """
    if len(calls) != len(pooled) or not calls:
        raise InputError(f"one pooled gradient per call is needed, got {len(calls)} calls and {len(pooled)} gradients")
    dim = pooled[0].shape[-1] if pooled[0].dim() == 2 else 0
    for call, gradient in zip(calls, pooled, strict=True):
        if tuple(gradient.shape) != (call.bags, dim) or dim == 0:
            raise InputError(
                f"the pooled gradient of {call!r} must have shape ({call.bags}, dim) with one dim >= 1 for the table, "
                f"got {tuple(gradient.shape)}"
            )
    return dim
