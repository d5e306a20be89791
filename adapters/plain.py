"""DP-SGD in plain torch: autograd on one example at a time, clip, add up, noise on everything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from samelaw.adapters.readout import Readout, examples_of
from samelaw.contract.bench import Abilities, BenchBatch, BenchProblem


class PlainDPSGD:
    """The textbook loop. Slow, and the measure of what follows.

    Source: Abadi et al., arXiv 1607.00133, Algorithm 1.
    """

    abilities: ClassVar[Abilities] = Abilities.everything(iterates=True)

    def __init__(self, problem: BenchProblem, seed: int) -> None:
        self.problem = problem
        self.model = Readout(problem)
        self.generator = torch.Generator().manual_seed(seed)

    def train_batch(self, batch: BenchBatch) -> None:
        sums = self.clipped_sums(batch)
        rate = batch.learning_rate / self.problem.expected_batch_size
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter -= rate * (sums[name] + self.noise(name, parameter, batch))

    def clipped_sums(self, batch: BenchBatch) -> dict[str, Tensor]:
        """Each example's gradient, over all parameters together no longer than C, added up."""
        parameters = dict(self.model.named_parameters())
        sums = {name: torch.zeros_like(value) for name, value in parameters.items()}
        for example in examples_of(batch):
            gradients = torch.autograd.grad(self.model(example).sum(), list(parameters.values()))
            norm = torch.sqrt(sum((g.double() ** 2).sum() for g in gradients))  # type: ignore[arg-type]
            factor = float(torch.clamp(self.problem.clip_norm / norm, max=1.0))
            for name, gradient in zip(parameters, gradients, strict=True):
                sums[name] += factor * gradient
        return sums

    def noise(self, name: str, parameter: Tensor, batch: BenchBatch) -> Tensor:
        """Noise of one step for one parameter, whatever the batch is; padding rows are constants of the model."""
        drawn = torch.randn(parameter.shape, generator=self.generator)
        drawn *= self.problem.noise_multiplier * self.problem.clip_norm
        padding = self.problem.padding.get(table_of(name))
        if padding is not None:
            drawn[padding] = 0
        return drawn

    def weights(self) -> Mapping[str, np.ndarray]:
        return self.model.weights()

    def release(self) -> Mapping[str, np.ndarray]:
        return self.model.weights()


def table_of(parameter: str) -> str:
    """The table's name in "tables.item.weight"; of a dense parameter, a name that no table has."""
    group, name, _ = parameter.split(".")
    return name if group == "tables" else ""
