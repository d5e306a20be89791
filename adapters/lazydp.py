"""LazyDP from scratch, in torch operations and with torch's own generator: one draw pays all steps that a row owes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from samelaw.adapters.plain import PlainDPSGD, table_of
from samelaw.adapters.readout import rows_read
from samelaw.contract.bench import Abilities, BenchBatch, BenchProblem


class LazyDP(PlainDPSGD):
    """Rows pay before they are read, and all of them at release.

    What a row owes over a span of steps is one normal with the summed variance, so `spent` keeps the running sum of
    (lr sigma C / B)^2, and `paid` what each row has paid of it.

    Source: LazyDP, arXiv 2404.08847 (aggregated noise sampling).
    """

    abilities: ClassVar[Abilities] = Abilities.everything(iterates=False)

    def __init__(self, problem: BenchProblem, seed: int) -> None:
        super().__init__(problem, seed)
        self.spent = 0.0
        self.paid = {name: torch.zeros(len(weights), dtype=torch.float64) for name, weights in problem.tables.items()}

    def train_batch(self, batch: BenchBatch) -> None:
        for name, rows in rows_read(self.problem, batch).items():
            self.settle(name, rows)
        super().train_batch(batch)
        scale = batch.learning_rate * self.problem.noise_multiplier * self.problem.clip_norm
        self.spent += (scale / self.problem.expected_batch_size) ** 2

    def noise(self, name: str, parameter: Tensor, batch: BenchBatch) -> Tensor:
        """Dense parameters pay at once; tables owe."""
        return torch.zeros_like(parameter) if table_of(name) else super().noise(name, parameter, batch)

    def settle(self, name: str, rows: Tensor) -> None:
        """Pay what these rows owe through the steps so far."""
        std = torch.sqrt(self.spent - self.paid[name][rows]).float()
        table = self.model.tables[name].weight
        assert isinstance(table, Tensor)
        with torch.no_grad():
            table[rows] -= std[:, None] * torch.randn(len(rows), table.shape[1], generator=self.generator)
        self.paid[name][rows] = self.spent

    def release(self) -> Mapping[str, np.ndarray]:
        for name, weights in self.problem.tables.items():
            rows = np.setdiff1d(np.arange(len(weights)), [self.problem.padding.get(name, -1)])
            self.settle(name, torch.from_numpy(rows))
        return self.model.weights()


class UnflushedLazyDP(LazyDP):
    """The same without the last payment: rows that were not read lately leave without their noise."""

    abilities: ClassVar[Abilities] = LazyDP.abilities

    def release(self) -> Mapping[str, np.ndarray]:
        return self.model.weights()
