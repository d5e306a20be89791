"""Small true runs of the lazy trainer with fresh keys, fast enough to make thousands of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from samelaw.cli.models import Problem
from samelaw.contract.errors import SamelawError
from samelaw.contract.noise import NoiseKey
from samelaw.contract.run import Transcript
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import ExecutionOptions, Mode, PrivacySpec
from samelaw.contract.trace import Batch, Feature, FeatureBags, Pooling
from samelaw.equivalence.received import Received, receive
from samelaw.equivalence.scenarios import joined
from samelaw.fast.dlrm import DLRM, bce_loss
from samelaw.fast.trainer import LazyTrainer


@dataclass(frozen=True)
class SmallRuns:
    """Runs of one small problem: two tables, a dense part, a rate that changes, a resume half-way.

    The upper half of each table is never read. Batches are drawn by the trainer's own keyed sampler and filled with
    random lookups, so that every run has another trace as well as another key.

    Attributes:
        rows, dim: of both tables.
        steps: training steps.
        folder: where the private checkpoint of the resume lies for a moment.
    """

    folder: Path
    rows: int = 40
    dim: int = 8
    steps: int = 8
    examples: int = 64
    sampling_rate: float = 0.1
    problem: Problem = field(init=False)

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = DLRM(self.features, 2, dim=self.dim, bottom=(self.dim,), top=(8, 1))
        object.__setattr__(self, "problem", Problem(model, bce_loss, self.examples))

    @property
    def features(self) -> tuple[Feature, Feature]:
        return (Feature("a", "a", self.rows, Pooling.SUM), Feature("b", "b", self.rows, Pooling.SUM))

    @property
    def restart(self) -> int:
        return self.steps // 2

    def spec(self, mode: Mode) -> PrivacySpec:
        return PrivacySpec(
            clip_norm=0.5,
            noise_multiplier=1.0,
            sampling_rate=self.sampling_rate,
            expected_batch_size=self.sampling_rate * self.examples,
            delta=1e-4,
            schedule=Schedule.piecewise([self.steps // 3], [0.4, 0.2], steps=self.steps),
            mode=mode,
        )

    def received(self, mode: Mode, key: NoiseKey, *, seed: int) -> Received:
        """All noise of one run, standardised."""
        spec = self.spec(mode)
        return receive(self.transcript(spec, key, seed=seed), spec, {})

    def transcript(self, spec: PrivacySpec, key: NoiseKey, *, seed: int) -> Transcript:
        """One run, saved and taken up by another trainer at `restart`, and released."""
        rng = np.random.default_rng(seed)
        first = self._trainer(spec, key)
        for _ in range(self.restart):
            first.train_batch(self._batch(rng, first.sample()))
        checkpoint = self.folder / f"small-{seed}.checkpoint"
        first.save_checkpoint(checkpoint)
        second = self._trainer(spec, key)
        second.load_checkpoint(checkpoint)
        checkpoint.unlink()
        for _ in range(self.restart, self.steps):
            second.train_batch(self._batch(rng, second.sample()))
        second.release()
        if first.transcript is None or second.transcript is None:
            raise SamelawError("the trainer kept no transcript; build it with record=True")
        return joined(first.transcript, second.transcript)

    def _trainer(self, spec: PrivacySpec, key: NoiseKey) -> LazyTrainer:
        options = ExecutionOptions(threads=1, check_mixing=False)
        return self.problem.lazy(spec, key, record=True, options=options)

    def _batch(self, rng: np.random.Generator, drawn: np.ndarray) -> Batch:
        """Lookups of one to three rows in each table for each drawn example."""
        n = len(drawn)
        bags: list[FeatureBags] = []
        for feature in self.features:
            lengths = rng.integers(1, 4, n)
            ids = rng.integers(0, feature.rows // 2, int(lengths.sum()))
            bags.append(FeatureBags(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)))
        labels = (rng.random(n) < 0.5).astype(np.float32)
        return Batch(rng.standard_normal((n, 2)).astype(np.float32), tuple(bags), labels, np.asarray(drawn))
