"""Both twins in closed loop: the same key, the same batches, each on its own weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch

from samelaw.cli.models import Problem, auc, mean_loss
from samelaw.contract.errors import SamelawError
from samelaw.contract.ledger import Ledger
from samelaw.contract.noise import NoiseKey
from samelaw.contract.run import Release, Transcript
from samelaw.contract.spec import PrivacySpec
from samelaw.contract.trace import Batch
from samelaw.equivalence.scenarios import joined
from samelaw.fast.trainer import LazyTrainer
from samelaw.reference.eager import EagerTrainer

Fault = Callable[[LazyTrainer], None]
Draw = Callable[[int, np.ndarray], Batch]


@dataclass
class Curves:
    """Utility of one twin as it trains; for people, not for a claim."""

    steps: list[int] = field(default_factory=list[int])
    loss: list[float] = field(default_factory=list[float])
    auc: list[float] = field(default_factory=list[float])


@dataclass
class TwinRun:
    """What both twins did in one mode on one problem."""

    name: str
    spec: PrivacySpec
    lazy: Transcript
    eager: Transcript
    release: Release
    entries: list[Any]
    histories: dict[str, np.ndarray]
    padding: dict[str, int]
    batches: list[np.ndarray] = field(default_factory=list[np.ndarray])
    """Indices of the examples of each step, as trained on."""
    curves: dict[str, Curves] = field(default_factory=dict[str, Curves])


def run_twins(
    name: str,
    problem: Problem,
    spec: PrivacySpec,
    key: NoiseKey,
    draw: Draw,
    *,
    folder: Path,
    device: str = "cpu",
    fault: Fault | None = None,
    with_eager: bool = True,
    resume_at: int | None = None,
    test: Batch | None = None,
    evaluations: int = 8,
    ledger: Ledger | None = None,
    tick: Callable[[], object] = lambda: None,
) -> TwinRun:
    """Train both twins and collect their transcripts.

    Args:
        draw: the batch of a step, given the indices that the sampler drew for it.
        folder: where the private checkpoint of the resume lies for a moment.
        fault: patches the lazy trainer, again after a resume.
        with_eager: without it the lazy twin runs alone; its transcript then stands in for eager's.
        resume_at: save the lazy twin at this step, drop it, and go on from the checkpoint.
        test: held-out examples for the curves.
        tick: called once a step and twin.
    """
    ledger = ledger if ledger is not None else Ledger()
    lazy = problem.lazy(spec, key, device=device, ledger=ledger, record=True)
    if fault is not None:
        fault(lazy)
    eager = problem.eager(spec, key, device=device) if with_eager else None
    steps = spec.schedule.steps
    marks = set(np.linspace(0, steps - 1, evaluations).astype(int).tolist()) if test is not None else set[int]()
    curves = {"lazy": Curves(), "eager": Curves()}
    transcripts: list[Transcript] = []
    batches: list[np.ndarray] = []
    for step in range(steps):
        if step == resume_at:
            lazy, before = _resume(problem, spec, key, lazy, ledger, folder, device, fault)
            transcripts.append(before)
        indices = _numpy(lazy.sample())
        batch = draw(step, indices)
        batches.append(batch.indices)
        loss = lazy.train_batch(batch)
        tick()
        if step in marks and test is not None:
            _note(curves["lazy"], step, loss, problem, *settled_copy(lazy), test)
        if eager is None:
            continue
        loss = eager.train_batch(batch)
        tick()
        if step in marks and test is not None:
            _note(curves["eager"], step, loss, problem, eager.tables, eager.oracle.dense, test)
    padding = {name: table.padding_idx for name, table in lazy.tables.items() if table.padding_idx is not None}
    lazy.settle()
    histories = {table.name: table.history.cpu().numpy().copy() for table in lazy.tables.values()}
    release = lazy.release()
    transcripts.append(_of(lazy))
    lazily = reduce(joined, transcripts)
    if eager is not None:
        eager.release()
    return TwinRun(
        name, spec, lazily, lazily if eager is None else _of(eager), release, list(ledger.entries),
        histories, padding, batches, curves,
    )  # fmt: skip


def settled_copy(trainer: LazyTrainer) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Tables as they would be if every row paid now, and the dense parameters; the trainer is not touched.

    For held-out curves while training. In aggregate mode it is a draw of the same law, not the one that the released
    model will hold.
    """
    tables: dict[str, np.ndarray] = {}
    for name, table in trainer.tables.items():
        weights, since = table.weights.clone(), table.history.to(torch.int64)
        rows = torch.nonzero(since < trainer.step_index).flatten()
        if table.padding_idx is not None:
            rows = rows[rows != table.padding_idx]
        table.kernels.settle(weights, rows, since[rows].contiguous(), trainer.step_index, table.plan)
        tables[name] = weights.cpu().numpy()
    return tables, {name: value.detach().cpu().numpy().copy() for name, value in trainer.dense.items()}


def predict(problem: Problem, tables: dict[str, np.ndarray], dense: dict[str, np.ndarray], batch: Batch) -> np.ndarray:
    """Scores of a plain copy of the model at these weights."""
    import copy

    model = copy.deepcopy(problem.model)
    with torch.no_grad():
        for name, value in tables.items():
            model.get_submodule(name).weight.copy_(torch.from_numpy(value))  # type: ignore[union-attr]
        parameters = dict(model.named_parameters())
        for name, value in dense.items():
            parameters[name].copy_(torch.from_numpy(np.ascontiguousarray(value)))
        _, logits = problem.loss_fn(model.eval(), batch)
    return logits.cpu().numpy()


def _note(
    curves: Curves, step: int, loss: float | None, problem: Problem, tables: dict[str, np.ndarray],
    dense: dict[str, np.ndarray], test: Batch,
) -> None:  # fmt: skip
    if loss is None:
        return
    scores = predict(problem, tables, dense, test)
    curves.steps.append(step + 1)
    curves.loss.append(mean_loss(test.labels, scores))
    curves.auc.append(auc(test.labels, scores))


def _resume(
    problem: Problem, spec: PrivacySpec, key: NoiseKey, lazy: LazyTrainer, ledger: Ledger, folder: Path, device: str,
    fault: Fault | None,
) -> tuple[LazyTrainer, Transcript]:  # fmt: skip
    checkpoint = folder / "resume.checkpoint"
    lazy.save_checkpoint(checkpoint)
    fresh = problem.lazy(spec, key, device=device, ledger=ledger, record=True)
    if fault is not None:
        fault(fresh)
    fresh.load_checkpoint(checkpoint)
    _remove(checkpoint)
    return fresh, _of(lazy)


def _remove(path: Path) -> None:
    import shutil

    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _of(trainer: LazyTrainer | EagerTrainer) -> Transcript:
    if trainer.transcript is None:
        raise SamelawError("the trainer kept no transcript; build it with record=True")
    return trainer.transcript


def _numpy(indices: Any) -> np.ndarray:
    return indices.cpu().numpy() if isinstance(indices, torch.Tensor) else np.asarray(indices)
