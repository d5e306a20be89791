"""Claims about one run's sampler, books, sums and noise, as `samelaw verify` asks them of the trainers that it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from samelaw.cli.definition import Definition
from samelaw.cli.models import Problem
from samelaw.cli.twins import TwinRun
from samelaw.contract.evidence import Evidence
from samelaw.contract.ledger import Spent
from samelaw.contract.noise import NoiseKey, NoiseStream
from samelaw.contract.spec import PrivacySpec
from samelaw.contract.trace import Batch
from samelaw.equivalence.budget import Pending
from samelaw.equivalence.recorded import recorded
from samelaw.equivalence.same_reads import same_reads
from samelaw.equivalence.sampler import measure_sampled
from samelaw.equivalence.two_runs import measure_unrelated
from samelaw.fast.cpu import CpuKernels
from samelaw.fast.trainer import LazyTrainer
from samelaw.reference.sampling import poisson_sample

DRAWS = 1 << 23  # that the definition's sampler makes in two seconds

Keyed = Callable[[int], np.ndarray]
"""The examples that the key draws for a step."""


def keyed_sampler(spec: PrivacySpec, key: NoiseKey, examples: int) -> Keyed:
    """What the key draws: by the definition if the whole run takes seconds, and by the CPU kernels if it takes longer.

    P1 holds the first steps against the definition in either case.
    """
    stream = NoiseStream(key, spec.rounds)
    if examples * spec.schedule.steps <= DRAWS:
        return defined_sampler(spec, key, examples)
    kernels = CpuKernels()

    @cache
    def drawn(step: int) -> np.ndarray:
        return kernels.poisson_sample(stream, step, spec.sampling_rate, examples).cpu().numpy()

    return drawn


def defined_sampler(spec: PrivacySpec, key: NoiseKey, examples: int) -> Keyed:
    """What the key draws, by the definition; each step is drawn once."""
    stream = NoiseStream(key, spec.rounds)

    @cache
    def drawn(step: int) -> np.ndarray:
        return poisson_sample(stream, step, spec.sampling_rate, examples)

    return drawn


def sampler_holds(trainer: LazyTrainer, key: NoiseKey, *, scope: str) -> Evidence | Pending:
    """P1 of a trainer that has not begun: its own draws, with the key, as many steps as there is time for."""
    spec, examples = trainer.spec, trainer.examples
    steps = max(1, min(spec.schedule.steps, DRAWS // max(1, examples)))
    return measure_sampled(
        lambda step: trainer.sample(ahead=step), steps=steps, examples=examples, sampling_rate=spec.sampling_rate,
        expected=defined_sampler(spec, key, examples), scope=f"{scope}, {steps} batches of {examples:,} examples",
    )  # fmt: skip


def books_hold(run: TwinRun, account: Spent, mechanism: Mapping[str, Any], key: NoiseKey, examples: int) -> Evidence:
    """A2 of a run: ledger and price against the steps, the batches and the sampler."""
    return recorded(
        account, run.lazy, run.spec,
        batches=run.batches, keyed=keyed_sampler(run.spec, key, examples), mechanism=mechanism, scope=run.name,
    )  # fmt: skip


def sums_hold(run: TwinRun, problem: Problem, key: NoiseKey, batches: Sequence[Batch]) -> Evidence:
    """C1 of a run on the CPU: the sums of each step, computed again by the definition from what the step read."""
    return same_reads(run.lazy, Definition(problem, run.spec, key, batches), scope=run.name)


def noise_is_apart(first: TwinRun, second: TwinRun) -> Evidence | Pending:
    """K1 of two runs on different data, each with a key of its own."""
    return measure_unrelated(
        first.lazy, second.lazy, first.spec,
        padding=first.padding, scope=f"{first.name}, and the same law on other data with another key",
    )  # fmt: skip
