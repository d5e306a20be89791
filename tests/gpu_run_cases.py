"""Whole runs of the lazy trainer on the GPU backend, against eager and against the numba backend."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gpu_making import assert_same_bits, case

from samelaw.contract.noise import NoiseKey, NoiseStream
from samelaw.contract.run import Transcript
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import Mode, PrivacySpec
from samelaw.contract.trace import Batch, Feature, FeatureBags, Pooling
from samelaw.fast.gpu import GpuKernels
from samelaw.fast.kernels import Kernels, LookupCall


class NumbaDetour:
    """The numba backend for tensors on any device: everything is copied to the CPU and back."""

    name = "numba detour"

    def __init__(self, device: torch.device) -> None:
        from samelaw.fast.cpu import CpuKernels

        self.device = device
        self.cpu = CpuKernels()

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def detour(*arguments: Any, **options: Any) -> Any:
            moved = [self._there(argument) for argument in arguments]
            result = self._back(getattr(self.cpu, method)(*moved, **options))
            if method in ("settle", "update", "subtract_noise", "due_rows"):  # the first argument changes in place
                arguments[0].copy_(moved[0])
            return result

        return detour

    def _there(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().cpu().clone()
        if isinstance(value, LookupCall):
            parts = (value.ids, value.offsets, value.example_of_bag, value.pooling, value.weights)
            return LookupCall(*(self._there(part) for part in parts))
        return [self._there(item) for item in value] if isinstance(value, (list, tuple)) else value

    def _back(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._back(item) for item in value)
        return value.to(self.device) if isinstance(value, torch.Tensor) else value


FEATURES = (
    Feature("seen", "item", 12, Pooling.SUM),
    Feature("wanted", "item", 12, Pooling.SUM),
    Feature("friends", "user", 9, Pooling.MEAN),
)


def a_data_set(rng: np.random.Generator, examples: int) -> list[Batch]:
    """Every example as a batch of its own; bags hold 0 to 3 ids."""
    found = []
    for index in range(examples):
        bags = tuple(
            FeatureBags(ids, np.array([0, ids.size]))
            for ids in (rng.integers(0, feature.rows, rng.integers(0, 4)) for feature in FEATURES)
        )
        dense = np.zeros((1, 0), np.float32)
        label = rng.integers(0, 2, 1).astype(np.float32)
        found.append(Batch(dense, bags, label, np.array([index])))
    return found


def joined(examples: list[Batch], indices: np.ndarray) -> Batch:
    chosen = [examples[int(i)] for i in indices]
    features = tuple(
        FeatureBags(
            np.concatenate([np.zeros(0, np.int64), *(batch.features[f].ids for batch in chosen)]),
            np.cumsum([0, *(batch.features[f].ids.size for batch in chosen)]),
        )
        for f in range(len(FEATURES))
    )
    dense = np.concatenate([np.zeros((0, 0), np.float32), *(batch.dense for batch in chosen)])
    labels = np.concatenate([np.zeros(0, np.float32), *(batch.labels for batch in chosen)])
    return Batch(dense, features, labels, indices)


def assert_same_transcripts(found: Transcript, expected: Transcript) -> None:
    def same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
        assert list(one) == list(two)
        for name in one:
            assert_same_bits(torch.from_numpy(one[name]), two[name])

    assert len(found.steps) == len(expected.steps)
    for one, two in zip(found.steps, expected.steps, strict=True):
        assert (one.step, one.examples) == (two.step, two.examples)
        same(one.rows, two.rows)
        same(one.reads, two.reads)
        same(one.sums, two.sums)
        same(one.dense_sum, two.dense_sum)
    same(found.final_tables, expected.final_tables)
    same(found.final_dense, expected.final_dense)


@case
def whole_runs_in_every_mode(kernels: GpuKernels) -> None:
    """A lazy run, with an empty batch: the bits of eager in replay, and of a lazy run on numba in all modes.

    All runs share the model's dense arithmetic, which is torch's on this device.
    """
    from samelaw.fast.dlrm import DLRM, bce_loss
    from samelaw.fast.oracle import TorchOracle
    from samelaw.fast.trainer import LazyTrainer
    from samelaw.reference.eager import EagerTrainer

    torch.manual_seed(61)
    model = DLRM(FEATURES, 0, dim=4, bottom=[], top=[1]).to(kernels.device)
    data = a_data_set(np.random.default_rng(67), 16)
    key = NoiseKey.from_seed(71)
    for mode in Mode:
        spec = PrivacySpec(
            clip_norm=0.5,
            noise_multiplier=0.8,
            sampling_rate=0.3,
            expected_batch_size=5.0,
            delta=1e-5,
            schedule=Schedule.piecewise([2], [0.7, 0.2], steps=4),
            mode=mode,
            rounds=8,
        )

        def run(trainer: Any) -> Transcript:
            for step in range(4):
                drawn = np.zeros(0, np.int64) if step == 2 else trainer.sample()
                trainer.train_batch(joined(data, drawn))
            trainer.release()
            return trainer.transcript

        def lazily(backend: Kernels, spec: PrivacySpec = spec) -> Transcript:
            options: dict[str, Any] = {"examples": 16, "loss_fn": bce_loss, "kernels": backend, "record": True}
            return run(LazyTrainer(copy.deepcopy(model), spec, key, **options))

        found = lazily(kernels)
        assert_same_transcripts(found, lazily(NumbaDetour(kernels.device)))
        if mode is Mode.REPLAY:
            oracle = TorchOracle(copy.deepcopy(model), bce_loss)
            eager = EagerTrainer(oracle.tables, oracle, spec, NoiseStream(key, 8), examples=16, record=True)
            assert_same_transcripts(found, run(eager))
