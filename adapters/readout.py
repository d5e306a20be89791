"""The bench's model as a torch module: tables read by bags, and dense coefficients through one Linear layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from samelaw.contract.bench import BenchBatch, BenchProblem, Reads


class Readout(nn.Module):
    """loss_i = sum over tables of <readout_i, pooled_i> + <coefficient_i, bias>.

    Args:
        problem: names, initial weights, pooling and padding.
        bags: read through nn.EmbeddingBag; otherwise through nn.Embedding, one id a bag.
        last_offset: give nn.EmbeddingBag the end of the last bag too, as recommender code often does.
    """

    def __init__(self, problem: BenchProblem, *, bags: bool = True, last_offset: bool = False) -> None:
        super().__init__()
        self.bags, self.last_offset = bags, last_offset
        self.tables = nn.ModuleDict()
        for name, weights in problem.tables.items():
            padding = problem.padding.get(name)
            if bags:
                table: nn.Module = nn.EmbeddingBag(
                    *weights.shape,
                    mode=str(problem.pooling[name]),
                    padding_idx=padding,
                    include_last_offset=last_offset,
                )
            else:
                table = nn.Embedding(*weights.shape, padding_idx=padding)
            _fill(table, weights)
            self.tables[name] = table
        self.dense = nn.ModuleDict()
        for name, value in problem.dense.items():
            layer = nn.Linear(value.size, 1, bias=False)
            _fill(layer, value[None])
            self.dense[name] = layer

    def forward(self, batch: BenchBatch) -> Tensor:
        """The loss of each example."""
        parts = [(self.pooled(name, reads) * _tensor(reads.readout)).sum(1) for name, reads in batch.reads.items()]
        parts += [self.dense[name](_tensor(value)).squeeze(1) for name, value in batch.dense.items()]
        return torch.stack(parts).sum(0)

    def pooled(self, name: str, reads: Reads) -> Tensor:
        """One vector an example."""
        ids = _tensor(reads.ids)
        if not self.bags:
            return self.tables[name](ids)
        offsets = _tensor(reads.offsets if self.last_offset else reads.offsets[:-1])
        if reads.weights is None:
            return self.tables[name](ids, offsets)
        return self.tables[name](ids, offsets, per_sample_weights=_tensor(reads.weights))

    def weights(self) -> dict[str, np.ndarray]:
        """Copies of all weights, by the problem's names."""
        found = {name: _weight(table) for name, table in self.tables.items()}
        found |= {name: _weight(layer)[0] for name, layer in self.dense.items()}
        return {name: value.detach().numpy().copy() for name, value in found.items()}


def examples_of(batch: BenchBatch) -> Sequence[BenchBatch]:
    """The examples of a batch, each as a batch of one."""

    def alone(reads: Reads, i: int) -> Reads:
        bag = reads.bag(i)
        ids = reads.ids[bag]
        weights = None if reads.weights is None else reads.weights[bag]
        return Reads(ids, np.array([0, ids.size]), reads.readout[i : i + 1], weights)

    return [
        BenchBatch(
            {name: alone(reads, i) for name, reads in batch.reads.items()},
            {name: value[i : i + 1] for name, value in batch.dense.items()},
            batch.learning_rate,
            1,
        )
        for i in range(len(batch))
    ]


def rows_read(problem: BenchProblem, batch: BenchBatch) -> Mapping[str, Tensor]:
    """By table, the distinct rows that a batch reads; padding is not read."""
    rows = {name: np.setdiff1d(reads.ids, [problem.padding.get(name, -1)]) for name, reads in batch.reads.items()}
    return {name: _tensor(found) for name, found in rows.items()}


def _tensor(values: np.ndarray) -> Tensor:
    return torch.tensor(values)


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _fill(layer: nn.Module, weights: np.ndarray) -> None:
    with torch.no_grad():
        _weight(layer).copy_(_tensor(weights))
