"""From the arguments of an embedding layer to a LookupCall: padding out, offsets explicit, bags owned by examples."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from samelaw.contract.errors import InputError, UnsupportedLayerError
from samelaw.contract.trace import Pooling
from samelaw.fast.kernels import LookupCall

_INTEGERS = (torch.int64, torch.int32)


def bag_call(
    ids: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    *,
    pooling: Pooling,
    padding_idx: int | None,
    include_last_offset: bool,
    device: torch.device,
    where: str,
) -> LookupCall:
    """The arguments of nn.EmbeddingBag as a LookupCall: bag i belongs to example i.

    Args:
        ids: one bag a row (2-D), or all bags end to end (1-D, with offsets).
        offsets: where each bag starts; with include_last_offset, also where the last one ends.
        weights: per_sample_weights, in the shape of `ids`.
        where: path of the layer, for messages.

    Raises:
        InputError: an argument that nn.EmbeddingBag does not take either.
        UnsupportedLayerError: weights that want a gradient.
    """
    _check_ids(ids, where)
    if ids.dim() == 2:
        if offsets is not None:
            raise InputError(
                f"{where}: offsets go with 1-D ids; got 2-D ids {tuple(ids.shape)}, whose rows are the bags"
            )
        bags, length = ids.shape
        starts = torch.arange(bags + 1, dtype=torch.int64, device=device) * length
    elif ids.dim() == 1:
        starts = _starts(ids, offsets, include_last_offset, device, where)
    else:
        raise InputError(f"{where}: ids must be 1-D with offsets, or 2-D; got shape {tuple(ids.shape)}")
    flat = own_copy(ids, device, torch.int64)
    if weights is not None:
        weights = _check_weights(weights, ids, pooling, device, where)
    if padding_idx is not None:
        flat, starts, weights = _strip(flat, starts, weights, padding_idx, where)
    examples = torch.arange(starts.shape[0] - 1, dtype=torch.int64, device=device)
    return LookupCall(flat, starts, examples, pooling, weights)


def row_call(
    ids: Tensor, *, padding_idx: int | None, device: torch.device, where: str
) -> tuple[LookupCall, Tensor | None]:
    """The argument of nn.Embedding as bags of one id; the leading index is the example.

    Returns:
        The call, and a mask of the bags that are padding (and therefore empty), or None when there are none.
    """
    _check_ids(ids, where)
    if ids.dim() == 0:
        raise InputError(f"{where}: ids need a leading index that says which example they belong to, got one id")
    flat = own_copy(ids, device, torch.int64)
    examples = torch.arange(ids.shape[0], dtype=torch.int64, device=device)
    if ids.dim() > 1:
        per_example = flat.shape[0] // ids.shape[0] if ids.shape[0] else 0
        examples = examples.repeat_interleave(per_example)
    starts = torch.arange(flat.shape[0] + 1, dtype=torch.int64, device=device)
    if padding_idx is None:
        return LookupCall(flat, starts, examples), None
    kept, starts, _ = _strip(flat, starts, None, padding_idx, where)
    padded = flat == padding_idx if kept.shape[0] < flat.shape[0] else None
    return LookupCall(kept, starts, examples), padded


def own_copy(values: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A flat, contiguous copy: what the caller does to its tensor after the read must not reach the update."""
    flat = torch.empty(values.numel(), dtype=dtype, device=device)
    return flat.copy_(values.detach().reshape(-1))


def _check_ids(ids: Any, where: str) -> None:
    if not isinstance(ids, Tensor) or ids.dtype not in _INTEGERS:
        found = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise InputError(f"{where}: ids must be an int64 or int32 tensor, got {found}")


def _starts(
    ids: Tensor, offsets: Tensor | None, include_last_offset: bool, device: torch.device, where: str
) -> Int64[Tensor, "bags_plus_1"]:
    """Offsets with the end of the last bag, from 0 to len(ids)."""
    if not isinstance(offsets, Tensor) or offsets.dim() != 1 or offsets.dtype not in _INTEGERS:
        raise InputError(f"{where}: 1-D ids need 1-D integer offsets that say where each bag starts")
    starts = own_copy(offsets, device, torch.int64)
    if not include_last_offset:
        starts = torch.cat([starts, starts.new_tensor([ids.shape[0]])])
    # One question to the device: do the offsets rise from 0 to len(ids)?
    steps = torch.diff(starts, prepend=starts.new_zeros(1))
    if starts.shape[0] == 0 or bool((steps < 0).any() | (starts[0] != 0) | (starts[-1] != ids.shape[0])):
        raise InputError(
            f"{where}: offsets must start at 0 and not fall"
            + (f", and end at {ids.shape[0]}" if include_last_offset else f" or pass {ids.shape[0]}")
            + f" (the number of ids); got {offsets.shape[0]} offsets from {_end(offsets, 0)} to {_end(offsets, -1)}"
        )
    return starts


def _end(values: Tensor, index: int) -> str:
    return str(int(values[index])) if values.shape[0] else "nothing"


def _check_weights(weights: Tensor, ids: Tensor, pooling: Pooling, device: torch.device, where: str) -> Tensor:
    if pooling is not Pooling.SUM:
        raise InputError(f"{where}: per_sample_weights need mode='sum', got mode={str(pooling)!r}")
    if weights.shape != ids.shape or weights.dtype is not torch.float32:
        raise InputError(
            f"{where}: per_sample_weights must be float32 in the shape of the ids {tuple(ids.shape)}, "
            f"got {weights.dtype} {tuple(weights.shape)}"
        )
    if weights.requires_grad:
        raise UnsupportedLayerError(
            f"{where}: per_sample_weights must not require a gradient: the layer that makes them would be trained "
            "through a product that is not clipped. Detach them, or multiply after an unpooled nn.Embedding"
        )
    return own_copy(weights, device, torch.float32)


def _strip(
    ids: Tensor, starts: Tensor, weights: Tensor | None, padding_idx: int, where: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Take the padding ids out of their bags."""
    keep = ids != padding_idx
    kept = ids[keep]
    if kept.shape[0] == ids.shape[0]:
        return ids, starts, weights
    before = torch.zeros(ids.shape[0] + 1, dtype=torch.int64, device=ids.device)
    torch.cumsum(keep, 0, out=before[1:])
    return kept, before[starts], None if weights is None else weights[keep]
