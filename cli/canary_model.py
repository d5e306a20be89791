"""A DLRM with canaries planted in its tables: what `audit.canaries` describes, in torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samelaw.audit.canaries import Canaries
from samelaw.cli.models import Problem, dlrm_problem
from samelaw.contract.errors import InputError
from samelaw.contract.trace import Batch, Feature

GAIN = 1024.0
"""A canary's gradient before clipping, in units of C: large, so that a wrong clip norm shows in full."""


class CanaryModel(nn.Module):
    """The DLRM for ordinary examples; for a canary, an inner product of its own rows with its direction.

    The last feature of a batch names the canary that an example is; its bag is empty for the others.
    """

    directions: Tensor

    def __init__(self, dlrm: nn.Module, canaries: Canaries, *, gain: float) -> None:
        super().__init__()
        self.dlrm = dlrm
        self.first_rows = dict(canaries.first_rows)
        self.gain, self.repeats = gain, canaries.repeats
        self.register_buffer("directions", torch.from_numpy(canaries.directions.copy()))

    def forward(self, dense: Tensor, bags: Sequence[tuple[Tensor, Tensor]], labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of every example, and the DLRM's logits."""
        *ordinary, (numbers, offsets) = bags
        logits = self.dlrm(dense, ordinary)
        ordinary_loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        canary = offsets[1:] > offsets[:-1]
        vectors = self.directions.new_zeros(len(labels), *self.directions.shape[1:])
        vectors[canary] = self.directions[numbers[:: self.repeats]]
        tables: nn.ModuleDict = self.dlrm.get_submodule("tables")  # type: ignore[assignment]
        value = torch.zeros_like(logits)
        for number, (table, first) in enumerate(self.first_rows.items()):
            value = value + (tables[table](first + numbers, offsets) * vectors[:, number]).sum(dim=1)
        return torch.where(canary, self.gain * value, ordinary_loss), logits


def canary_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """A loss function for the trainers."""
    device = next(model.buffers()).device

    def place(array: np.ndarray) -> Tensor:
        return torch.tensor(array, device=device)

    return model(place(batch.dense), [(place(f.ids), place(f.offsets)) for f in batch.features], place(batch.labels))


def canary_problem(
    features: Sequence[Feature], dense_width: int, canaries: Canaries, *, clip_norm: float, seed: int
) -> Problem:
    """A DLRM with longer tables, and the training set with the included canaries in it."""
    dim = int(canaries.directions.shape[2])
    inner = dlrm_problem(canaries.features(features), dense_width, canaries.training_examples, dim=dim, seed=seed)
    gain = GAIN * clip_norm
    if not np.isfinite(np.float32(gain * canaries.repeats)):
        raise InputError(
            f"clip_norm must be small enough for float32 gradients of {GAIN:g} times it, got {clip_norm!r}"
        )
    return Problem(CanaryModel(inner.model, canaries, gain=gain), canary_loss, canaries.training_examples)


def table_path(table: str) -> str:
    """Where the trainers find an attacked table in the model."""
    return f"dlrm.tables.{table}"
