"""The clipped sums of a step by the definition, for claim C1: what a trainer should have computed from what it read."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from samelaw.cli.models import Problem
from samelaw.contract.noise import NoiseKey, NoiseStream, Purpose
from samelaw.contract.run import StepRecord
from samelaw.contract.spec import PrivacySpec
from samelaw.contract.trace import Batch, GradientSums, Lookup
from samelaw.equivalence.spans import update_rate
from samelaw.fast.oracle import TorchOracle
from samelaw.reference.clipping import clip_factors, gradient_sums, square_norms
from samelaw.reference.noise import normals
from samelaw.reference.reading import read_bags


class Definition:
    """The clipped sums of a step, by the definition, at the rows that a record says it read.

    Dense parameters follow the recorded sums and the key's noise from step to step.
    """

    def __init__(self, problem: Problem, spec: PrivacySpec, key: NoiseKey, batches: Sequence[Batch]) -> None:
        self._oracle = TorchOracle(copy.deepcopy(problem.model), problem.loss_fn)
        self._spec, self._stream, self._batches = spec, NoiseStream(key, spec.rounds), batches
        self._order = sorted(self._oracle.tables)
        steps = np.arange(len(batches), dtype=np.int64)
        self._noise = {
            name: normals(self._stream, Purpose.DENSE, number, np.zeros_like(steps), steps, dim=parameter.size)
            for number, (name, parameter) in enumerate(sorted(self._oracle.dense.items()))
        }

    def __call__(self, record: StepRecord) -> GradientSums:
        batch = self._batches[record.step]
        sums = GradientSums(self._spec.contribution_exponent)
        if len(batch):
            found = self._oracle.gradients(batch, partial(self._pooled, record))
            norms = square_norms(found.lookups, found.pooled, found.dense_square_norms, self._order)
            factors = clip_factors(norms, self._spec.clip_norm)
            sums = gradient_sums(found.lookups, found.pooled, factors, sums.exponent, self._order)
            sums.dense = self._oracle.clipped_dense_sum(factors)
        self._advance(record)
        return sums

    def _pooled(self, record: StepRecord, lookup: Lookup) -> np.ndarray:
        rows = record.rows.get(lookup.table, np.empty(0, dtype=np.int64))
        dim = self._oracle.tables[lookup.table].shape[1]
        reads = record.reads.get(lookup.table, np.empty((0, dim), dtype=np.float32))
        return read_bags(reads, replace(lookup, ids=np.searchsorted(rows, lookup.ids)))

    def _advance(self, record: StepRecord) -> None:
        rate, scale = update_rate(self._spec, record.step), self._spec.clock.scale(record.step)
        for name, parameter in self._oracle.dense.items():
            if name in record.dense_sum:
                parameter[...] = parameter - rate * record.dense_sum[name]
            parameter[...] = parameter - scale * self._noise[name][record.step].reshape(parameter.shape)
