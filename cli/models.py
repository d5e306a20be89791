"""The models that the command line trains, and the two trainers around one of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samelaw.contract.errors import InputError
from samelaw.contract.ledger import Ledger
from samelaw.contract.noise import NoiseKey, NoiseStream
from samelaw.contract.spec import ExecutionOptions, PrivacySpec
from samelaw.contract.trace import Batch, Feature
from samelaw.fast.dlrm import DLRM, bce_loss
from samelaw.fast.kernels import Kernels
from samelaw.fast.oracle import TorchOracle
from samelaw.fast.trainer import LazyTrainer
from samelaw.reference.eager import EagerTrainer

LossFunction = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Problem:
    """A model at its initial weights, its loss, and the size of its training set: what both twins start from."""

    model: nn.Module
    loss_fn: LossFunction
    examples: int

    def lazy(
        self,
        spec: PrivacySpec,
        key: NoiseKey,
        *,
        device: str = "cpu",
        ledger: Ledger | None = None,
        record: bool = False,
        options: ExecutionOptions | None = None,
    ) -> LazyTrainer:
        """A lazy trainer on its own copy of the model."""
        return LazyTrainer(
            copy.deepcopy(self.model).to(device),
            spec,
            key,
            examples=self.examples,
            loss_fn=self.loss_fn,
            options=options or ExecutionOptions(),
            ledger=ledger,
            kernels=kernels_for(device),
            record=record,
        )

    def eager(
        self, spec: PrivacySpec, key: NoiseKey, *, device: str = "cpu", ledger: Ledger | None = None
    ) -> EagerTrainer:
        """The eager twin: NumPy tables, the same dense arithmetic through a TorchOracle on its own copy."""
        return EagerTrainer(
            tables_of(self.model),
            TorchOracle(copy.deepcopy(self.model).to(device), self.loss_fn),
            spec,
            NoiseStream(key, spec.rounds),
            examples=self.examples,
            ledger=ledger,
            record=True,
        )


def dlrm_problem(features: Sequence[Feature], dense_width: int, examples: int, *, dim: int, seed: int) -> Problem:
    """A small DLRM at seeded initial weights (the initial weights are public)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DLRM(features, dense_width, dim=dim, bottom=(64, dim), top=(64, 32, 1))
    return Problem(model, bce_loss, examples)


class LinearReadout(nn.Module):
    """Tables read by fixed random vectors: gradients that do not depend on what was read.

    With this model both twins get the same integer sums even where their reads differ by rounding, so the difference
    of their final tables is what claim E2 bounds: rounding along one and the same path.
    """

    def __init__(self, features: Sequence[Feature], *, dim: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.names = [feature.table for feature in features]
        self.tables = nn.ModuleDict()
        for feature in features:
            if feature.table not in self.tables:
                table = nn.EmbeddingBag(feature.rows, dim, mode=str(feature.pooling), include_last_offset=True)
                table.weight.data = 0.1 * torch.randn(feature.rows, dim, generator=generator)
                self.tables[feature.table] = table
        self.readout: Tensor
        self.register_buffer("readout", torch.randn(997, len(features), dim, generator=generator))

    def forward(self, features: Sequence[tuple[Tensor, Tensor]], indices: Tensor) -> Tensor:
        vectors = self.readout[indices % 997]
        pooled = [self.tables[name](ids, offsets) for name, (ids, offsets) in zip(self.names, features, strict=True)]
        return (torch.stack(pooled, dim=1) * vectors).sum(dim=(1, 2))


def readout_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The readout itself is the loss."""
    device = next(model.buffers()).device

    def place(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device)

    value = model([(place(f.ids), place(f.offsets)) for f in batch.features], place(batch.indices))
    return value, value


def readout_problem(features: Sequence[Feature], examples: int, *, dim: int, seed: int) -> Problem:
    return Problem(LinearReadout(features, dim=dim, seed=seed), readout_loss, examples)


def tables_of(model: nn.Module) -> dict[str, np.ndarray]:
    """Initial tables by module path, copied."""
    return {
        name: module.weight.detach().cpu().numpy().copy()
        for name, module in model.named_modules()
        if isinstance(module, nn.EmbeddingBag | nn.Embedding)
    }


def kernels_for(device: str) -> Kernels:
    """The backend of a device.

    Raises:
        InputError: CUDA was asked for and there is none.
    """
    if device == "cuda":
        if not torch.cuda.is_available():
            raise InputError("--device cuda: torch sees no CUDA device here; use --device cpu")
        from samelaw.fast.gpu import GpuKernels

        return GpuKernels()
    from samelaw.fast.cpu import CpuKernels

    return CpuKernels()


def mean_loss(labels: np.ndarray, scores: np.ndarray) -> float:
    """Binary cross-entropy of the logits, averaged; NaN when a score is not finite."""
    if not np.isfinite(scores).all():
        return float("nan")
    return float(np.mean(np.logaddexp(0, scores) - labels * scores))


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve, ties counted half; NaN when one class is missing or a score is not finite."""
    from scipy.stats import rankdata

    positives = int(labels.sum())
    negatives = labels.size - positives
    if positives == 0 or negatives == 0 or not np.isfinite(scores).all():
        return float("nan")
    ranks: Any = rankdata(scores)
    return float((ranks[labels > 0].sum() - positives * (positives + 1) / 2) / (positives * negatives))
