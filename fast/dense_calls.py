"""One call of a layer with parameters, as book-keeping leaves it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float32
from torch import Tensor
from torch.nn import functional as F

from samelaw.fast.layer_rules import Site

_SMALLEST_NORMAL = 2.0**-126


@dataclass(frozen=True, eq=False, repr=False)
class DenseCall:
    """What went into a layer and the gradient at its output: example i is index i of both."""

    site: Site
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    gradient: Tensor


def weighted(
    value: Tensor, shares: Float32[Tensor, "examples"], void: Bool[Tensor, "examples"] | None
) -> Float32[Tensor, "..."]:
    """Each example's part of `value` times its share; zeros for examples in `void`, whatever they hold."""
    scaled = normal(value.to(torch.float32) * shares.view(-1, *[1] * (value.dim() - 1)))
    return scaled if void is None else cleared(scaled, void)


def normal(value: Float32[Tensor, "..."]) -> Float32[Tensor, "..."]:
    """`value` without what is below the normal float32 numbers.

    There a product may be rounded up by half its size, and an input of 1e38 makes that a part of the clip norm.
    """
    return F.hardshrink(value, _SMALLEST_NORMAL)


def cleared(value: Tensor, void: Bool[Tensor, "examples"] | None) -> Tensor:
    """`value` with the examples in `void` set to zero."""
    return value if void is None else value.masked_fill(void.view(-1, *[1] * (value.dim() - 1)), 0)
