"""The DLRM of Naumov et al. (arXiv 1906.00091) in torch, with the layers and names of `reference.dlrm`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from samelaw.contract.errors import InputError
from samelaw.contract.trace import Batch, Feature


class DLRM(nn.Module):
    """Bottom MLP, embedding bags, pairwise dots, top MLP, one logit.

    Args:
        features: categorical features in batch order; features that name the same table share it.
        dense_width: continuous features; 0 leaves the bottom MLP out.
        dim: columns of every table.
        bottom: widths of the bottom MLP's layers, the last one being `dim`; ReLU after every layer.
        top: widths of the top MLP's layers, the last one being 1; ReLU between layers.
        sparse: sparse gradients in the tables, for training without privacy.

    Raises:
        InputError: widths that do not fit, or features that disagree about a shared table.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        dense_width: int,
        *,
        dim: int,
        bottom: Sequence[int],
        top: Sequence[int],
        sparse: bool = False,
    ) -> None:
        super().__init__()
        _check(features, dense_width, dim, bottom, top)
        self.features, self.dense_width, self.dim = tuple(features), dense_width, dim
        self.tables = nn.ModuleDict()
        for feature in features:
            if feature.table not in self.tables:
                self.tables[feature.table] = _table(feature, dim, sparse)
        self.bottom = _layers(dense_width, bottom) if dense_width else nn.ModuleList()
        vectors = len(features) + (1 if dense_width else 0)
        self.top = _layers((dim if dense_width else 0) + vectors * (vectors - 1) // 2, top)

    def forward(
        self, dense: Float[Tensor, "examples width"], bags: Sequence[tuple[Tensor, Tensor]]
    ) -> Float[Tensor, "examples"]:
        """Logits. `bags` holds (ids, offsets) per feature; offsets end with the number of ids."""
        vectors = [
            self.tables[feature.table](ids, offsets)
            for feature, (ids, offsets) in zip(self.features, bags, strict=True)
        ]
        hidden = dense
        for layer in self.bottom:
            hidden = F.relu(layer(hidden))
        if self.dense_width:
            vectors = [hidden, *vectors]
        dots: Tensor = PairwiseDots.apply(torch.stack(vectors, dim=1))  # type: ignore[assignment]
        x = torch.cat([hidden, dots], dim=1) if self.dense_width else dots
        for layer in self.top[:-1]:
            x = F.relu(layer(x))
        return self.top[-1](x).squeeze(1)

    def rows(self, batch: Batch) -> dict[str, Int64[np.ndarray, "ids"]]:
        """The rows that a batch will read, by table name: what LazyTrainer.look_ahead takes."""
        ids: dict[str, list[np.ndarray]] = {}
        for feature, bags in zip(self.features, batch.features, strict=True):
            ids.setdefault(f"tables.{feature.table}", []).append(bags.ids)
        return {name: np.concatenate(parts) for name, parts in ids.items()}


class PairwiseDots(torch.autograd.Function):
    """<z_i, z_j> for i < j in row-major order, with a backward pass that scatters no index twice."""

    @staticmethod
    def forward(ctx: Any, vectors: Float[Tensor, "examples n dim"]) -> Float[Tensor, "examples pairs"]:
        n = vectors.shape[1]
        i, j = torch.triu_indices(n, n, 1, device=vectors.device)
        ctx.save_for_backward(vectors, i * n + j, j * n + i)
        return (vectors @ vectors.transpose(1, 2)).flatten(1).index_select(1, i * n + j)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        vectors, upper, lower = ctx.saved_tensors
        (gradient,) = gradients
        examples, n = vectors.shape[:2]
        square = gradient.new_zeros(examples, n * n)
        square.index_copy_(1, upper, gradient)
        square.index_copy_(1, lower, gradient)
        return square.view(examples, n, n) @ vectors


def bce_loss(model: nn.Module, batch: Batch) -> tuple[Float32[Tensor, "examples"], Float32[Tensor, "examples"]]:
    """Binary cross-entropy per example, and the logits, of a DLRM on a batch."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def place(array: np.ndarray) -> Tensor:
        # Always a copy: matrix products then see torch's own alignment, whatever array the batch came in.
        return torch.tensor(array, device=device)

    logits = model(place(batch.dense), [(place(f.ids), place(f.offsets)) for f in batch.features])
    return F.binary_cross_entropy_with_logits(logits, place(batch.labels), reduction="none"), logits


def _table(feature: Feature, dim: int, sparse: bool) -> nn.EmbeddingBag:
    table = nn.EmbeddingBag(feature.rows, dim, mode=str(feature.pooling), include_last_offset=True, sparse=sparse)
    bound = 1 / math.sqrt(feature.rows)
    nn.init.uniform_(table.weight, -bound, bound)
    return table


def _layers(width: int, sizes: Sequence[int]) -> nn.ModuleList:
    widths = [width, *sizes]
    return nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(widths)])


def _check(features: Sequence[Feature], dense_width: int, dim: int, bottom: Sequence[int], top: Sequence[int]) -> None:
    if dense_width and (not bottom or bottom[-1] != dim):
        raise InputError(f"the bottom MLP must end at the tables' width {dim} to meet them in dots, got {list(bottom)}")
    if not top or top[-1] != 1:
        raise InputError(f"the top MLP must end in one logit, got widths {list(top)}")
    if len(features) + (1 if dense_width else 0) < 2:
        raise InputError("a DLRM needs at least two vectors to take dots of: two features, or one and dense features")
    first: dict[str, Feature] = {}
    for feature in features:
        other = first.setdefault(feature.table, feature)
        if (other.rows, other.pooling) != (feature.rows, feature.pooling):
            raise InputError(
                f"features {other.name!r} and {feature.name!r} share table {feature.table!r} but disagree: "
                f"{other.rows} rows, {other.pooling} and {feature.rows} rows, {feature.pooling}"
            )
        if "." in feature.table or not feature.table:
            raise InputError(f"a table's name must not be empty or hold a dot, got {feature.table!r}")
