"""samelaw's own trainers on the bench, as anybody's would be: `samelaw conform samelaw.cli.bench_own:Lazy`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import Float64

from samelaw.adapters.readout import Readout
from samelaw.contract.bench import Abilities, BenchBatch, BenchProblem
from samelaw.contract.noise import NoiseKey, NoiseStream
from samelaw.contract.oracle import ExampleGradients, Reader
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import Mode, PrivacySpec
from samelaw.contract.trace import Batch, Lookup
from samelaw.equivalence.bench.conduct import Weights, run_here
from samelaw.equivalence.bench.problems import Job
from samelaw.fast.trainer import LazyTrainer
from samelaw.reference.eager import EagerTrainer


class LinearOracle:
    """The bench's loss as a gradient oracle in NumPy: the gradients are in the batch."""

    def __init__(self, problem: BenchProblem) -> None:
        self.problem = problem
        self.batch: BenchBatch | None = None
        self._dense = {name: value.copy() for name, value in problem.dense.items()}

    @property
    def dense(self) -> dict[str, np.ndarray]:
        return self._dense

    def gradients(self, batch: Batch, read: Reader) -> ExampleGradients:
        found = self._current()
        lookups = [self._lookup(name) for name in found.reads]
        losses = np.zeros(len(found), dtype=np.float32)
        for lookup in lookups:
            losses += (read(lookup) * found.reads[lookup.table].readout).sum(axis=1)
        squares = np.zeros(len(found))
        for name, value in found.dense.items():
            losses += value @ self._dense[name]
            squares += (value.astype(np.float64) ** 2).sum(axis=1)
        return ExampleGradients(lookups, [found.reads[each.table].readout for each in lookups], squares, losses, losses)

    def clipped_dense_sum(self, factors: Float64[np.ndarray, "examples"]) -> dict[str, np.ndarray]:
        found = self._current().dense
        return {name: (factors @ value.astype(np.float64)).astype(np.float32) for name, value in found.items()}

    def _lookup(self, name: str) -> Lookup:
        """One table's bags without their padding."""
        reads = self._current().reads[name]
        kept = reads.ids != self.problem.padding.get(name, -1)
        offsets = np.concatenate([[0], np.cumsum(kept)])[reads.offsets].astype(np.int64)
        return Lookup(
            name,
            reads.ids[kept],
            offsets,
            np.arange(len(reads.readout)),
            self.problem.pooling[name],
            None if reads.weights is None else reads.weights[kept],
        )

    def _current(self) -> BenchBatch:
        assert self.batch is not None, "a batch is set before the trainer asks for its gradients"
        return self.batch


class Eager:
    """The reference itself."""

    abilities: ClassVar[Abilities] = Abilities.everything(noise="keyed", iterates=True)

    def __init__(self, problem: BenchProblem, seed: int) -> None:
        self.oracle = LinearOracle(problem)
        spec = law_of(problem, Mode.REPLAY)
        self.trainer = EagerTrainer(
            dict(problem.tables),
            self.oracle,
            spec,
            NoiseStream(NoiseKey.from_seed(seed), spec.rounds),
            examples=1 << 20,
            padding=problem.padding,
        )

    def train_batch(self, batch: BenchBatch) -> None:
        self.oracle.batch = batch
        nothing = np.zeros((len(batch), 0), dtype=np.float32)
        self.trainer.train_batch(Batch(nothing, (), nothing.sum(axis=1), np.arange(len(batch))))

    def weights(self) -> Mapping[str, np.ndarray]:
        return {**self.trainer.tables, **{name: value.copy() for name, value in self.oracle.dense.items()}}

    def release(self) -> Mapping[str, np.ndarray]:
        released = self.trainer.release()
        return {**released.tables, **released.dense}


class Lazy:
    """The lazy trainer in replay mode: keyed, so that its tables must have the reference's bits."""

    mode: ClassVar[Mode] = Mode.REPLAY
    abilities: ClassVar[Abilities] = Abilities.everything(noise="keyed")

    def __init__(self, problem: BenchProblem, seed: int) -> None:
        self.model = Readout(problem)
        self.trainer = LazyTrainer(self.model, law_of(problem, self.mode), NoiseKey.from_seed(seed), examples=1 << 20)

    def train_batch(self, batch: BenchBatch) -> None:
        if len(batch) == 0:
            self.trainer.empty_step()
        else:
            self.trainer.step(self.model(batch))

    def weights(self) -> Mapping[str, np.ndarray]:
        raise NotImplementedError("a lazy trainer publishes through release() alone")

    def release(self) -> Mapping[str, np.ndarray]:
        released = self.trainer.release()
        tables = {name.removeprefix("tables."): value for name, value in released.tables.items()}
        dense = {name.split(".")[1]: value[0] for name, value in released.dense.items()}
        return {**tables, **dense}


class LazyBridge(Lazy):
    """The lazy trainer in bridge mode: its noise is keyed, but not replay's, so it is judged by law."""

    mode, abilities = Mode.BRIDGE, Abilities.everything()


class LazyAggregate(Lazy):
    """The lazy trainer in aggregate mode, which production runs: one draw for all steps owed."""

    mode, abilities = Mode.AGGREGATE, Abilities.everything()


def law_of(problem: BenchProblem, mode: Mode) -> PrivacySpec:
    """The bench's parameters as samelaw's; the sampler is the bench's own, so its rate and delta stand for nothing."""
    rates = tuple(problem.learning_rates)
    return PrivacySpec(
        clip_norm=problem.clip_norm,
        noise_multiplier=problem.noise_multiplier,
        sampling_rate=0.5,
        expected_batch_size=problem.expected_batch_size,
        delta=1e-6,
        schedule=Schedule(tuple(range(len(rates))), rates, len(rates), "the bench's"),
        mode=mode,
    )


def reference(job: Job) -> Weights:
    """What the reference releases for a job: the twin of a keyed trainer."""
    outcome = run_here(Eager, job)
    assert outcome.release is not None, f"the reference failed on {job.name}: {outcome.failure}"
    return outcome.release


__all__ = ["Eager", "Lazy", "LazyAggregate", "LazyBridge", "law_of", "reference"]
