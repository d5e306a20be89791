"""The trainers of a run plan: its model in torch, the lazy trainer on it, and the definitions beside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from samelaw.contract.ledger import Ledger
from samelaw.contract.noise import NoiseStream
from samelaw.contract.trace import Batch
from samelaw.equivalence.run_plans import RunPlan
from samelaw.equivalence.whole_runs import Makers, as_test, judge
from samelaw.fast.oracle import TorchOracle
from samelaw.fast.trainer import LazyTrainer
from samelaw.reference.eager import EagerTrainer
from samelaw.reference.lazy import LazyTrainer as LazyDefinition
from samelaw.reference.noise import normals
from samelaw.reference.sampling import poisson_sample

Fault = Callable[[LazyTrainer], None]


class PlannedReadout(nn.Module):
    """The model of a plan at its initial weights; see equivalence/run_plans.py for its gradients."""

    def __init__(self, plan: RunPlan) -> None:
        super().__init__()
        self.tables = nn.ModuleDict()
        for number, initial in zip(plan.table_order(), plan.initial_tables().values(), strict=True):
            table = plan.tables[number]
            layer = nn.EmbeddingBag(
                table.rows, table.dim, mode=table.pooling, include_last_offset=True, padding_idx=table.padding
            )
            layer.weight.data = torch.from_numpy(initial.copy())
            self.tables[table.name] = layer
        self.out = nn.Linear(plan.dense_width, 1, bias=False) if plan.dense_width else None
        if self.out is not None:
            (dense,) = plan.initial_dense().values()
            self.out.weight.data = torch.from_numpy(dense.copy())


def planned_loss(plan: RunPlan, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """sum over features of <v + curvature * p, p>, the first p held constant; plus the dense readout."""
    assert isinstance(model, PlannedReadout)
    total = torch.zeros(len(batch))
    for f, bags in enumerate(batch.features):
        layer = model.tables[plan.tables[plan.features[f]].name]
        weights = plan.weights(f, batch.indices)
        pooled = layer(
            torch.from_numpy(bags.ids),
            torch.from_numpy(bags.offsets),
            None if weights is None else torch.from_numpy(weights),
        )
        slopes = torch.from_numpy(plan.slopes(f, batch.indices)) + plan.curvature * pooled.detach()
        total = total + (slopes * pooled).sum(1)
    if model.out is not None:
        total = total + model.out(torch.from_numpy(batch.dense))[:, 0]
    return total, total


class _Announced(LazyDefinition):
    """The lazy definition, with the batches of later steps: what it is to announce."""

    def sample(self, *, ahead: int = 0) -> np.ndarray:
        return poisson_sample(self.stream, self.step_index + ahead, self.spec.sampling_rate, self.examples)


def lazy_trainer(plan: RunPlan, ledger: Ledger, *, fault: Fault | None = None) -> LazyTrainer:
    """The trainer under test, on a fresh model, recording; a fault is planted in it."""
    trainer = LazyTrainer(
        PlannedReadout(plan),
        plan.spec,
        plan.noise_key,
        examples=len(plan.examples),
        loss_fn=partial(planned_loss, plan),
        options=plan.options,
        ledger=ledger,
        record=True,
    )
    if fault is not None:
        fault(trainer)
    return trainer


def eager_trainer(plan: RunPlan, kind: type[EagerTrainer] = EagerTrainer) -> EagerTrainer:
    """A definition over the same torch model: the dense arithmetic of both twins is then the same code."""
    oracle = TorchOracle(PlannedReadout(plan), partial(planned_loss, plan))
    return kind(
        oracle.tables,
        oracle,
        plan.spec,
        NoiseStream(plan.noise_key, plan.rounds),
        examples=len(plan.examples),
        padding=oracle.padding,
        record=True,
    )


def makers(fault: Fault | None = None) -> Makers:
    """Every trainer of a plan; the fault goes into the lazy one alone."""
    return Makers(
        lazy=partial(lazy_trainer, fault=fault),
        eager=eager_trainer,
        definition=partial(eager_trainer, kind=_Announced),
        normals=lambda plan: partial(normals, NoiseStream(plan.noise_key, plan.rounds)),
    )


def check(plan: RunPlan, *, fault: Fault | None = None) -> None:
    """Run a plan every way.

    Raises:
        AssertionError: two runs differ; with what, and a test to paste.
    """
    found = judge(plan, makers(fault))
    if found:
        raise AssertionError("\n".join([*map(str, found), "", as_test(plan)]))
