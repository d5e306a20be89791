"""Opacus on the bench, by its front door: PrivacyEngine.make_private with the defaults that its tutorials use.

The loss is a mean, the divisor is the expected batch size that Opacus takes from its data loader, and the learning rate
is set on the optimiser before each step. Batches come from the bench, so the loader that Opacus makes is not used and
nothing is said about its sampling.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from samelaw.adapters.readout import Readout
from samelaw.contract.bench import Abilities, BenchBatch, BenchProblem


class LinearLoss(nn.Module):
    """The model's output is the loss; Opacus sets `reduction` as it does with torch's criteria."""

    def __init__(self) -> None:
        super().__init__()
        self.reduction = "mean"

    def forward(self, losses: Tensor, _: Tensor) -> Tensor:
        return losses if self.reduction == "none" else losses.mean()


class _Opacus:
    """What the four factories share."""

    mode: ClassVar[str]
    bags: ClassVar[bool]
    abilities: ClassVar[Abilities]

    def __init__(self, problem: BenchProblem, seed: int) -> None:
        try:
            from opacus import PrivacyEngine
        except ImportError as cause:
            raise ImportError("Opacus (pip install --no-deps opacus==1.6.0 opt_einsum)") from cause
        warnings.filterwarnings("ignore", module="opacus")
        warnings.filterwarnings("ignore", message="Full backward hook")
        batch_size = int(problem.expected_batch_size)
        self.readout = Readout(problem, bags=self.bags)
        self.criterion: Any = LinearLoss()
        made = PrivacyEngine().make_private(
            module=self.readout,
            optimizer=torch.optim.SGD(self.readout.parameters(), lr=1.0),
            criterion=self.criterion,
            data_loader=DataLoader(TensorDataset(torch.zeros(4 * batch_size, 1)), batch_size=batch_size),
            noise_multiplier=problem.noise_multiplier,
            max_grad_norm=problem.clip_norm,
            noise_generator=torch.Generator().manual_seed(seed),
            grad_sample_mode=self.mode,
        )
        self.model: Any = made[0]
        self.optimizer: Any = made[1]
        if self.mode == "ghost":
            self.criterion = made[2]

    def train_batch(self, batch: BenchBatch) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = batch.learning_rate
        self.optimizer.zero_grad()
        self.criterion(self.model(batch), torch.zeros(len(batch))).backward()
        self.optimizer.step()

    def weights(self) -> Mapping[str, np.ndarray]:
        return self.readout.weights()

    def release(self) -> Mapping[str, np.ndarray]:
        return self.readout.weights()


_BAGS = Abilities.everything(iterates=True)
_ROWS = replace(_BAGS, bags=False, repeats=False, mean=False, weights=False)


class EmbeddingBagHooks(_Opacus):
    """nn.EmbeddingBag, per-example gradients."""

    mode, bags, abilities = "hooks", True, _BAGS


class EmbeddingBagGhost(_Opacus):
    """nn.EmbeddingBag, ghost clipping."""

    mode, bags, abilities = "ghost", True, _BAGS


class EmbeddingHooks(_Opacus):
    """nn.Embedding, per-example gradients; one id a bag."""

    mode, bags, abilities = "hooks", False, _ROWS


class EmbeddingGhost(_Opacus):
    """nn.Embedding, ghost clipping; one id a bag."""

    mode, bags, abilities = "ghost", False, _ROWS
