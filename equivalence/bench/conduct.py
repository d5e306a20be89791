"""Running a trainer on a job: what it returned, or how it failed, with nothing taken on trust."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from samelaw.contract.bench import BenchBatch, BenchProblem, BenchTrainer
from samelaw.equivalence.bench.problems import Job

Weights = dict[str, np.ndarray]


class Kind(StrEnum):
    """How a run failed."""

    CRASHED = "crashed"
    """The trainer raised, or its process died: a finding about the trainer."""
    TIMED_OUT = "timed out"
    """It did not answer in time: a finding about the trainer."""
    MALFORMED = "malformed"
    """What it returned is not what the protocol asks for: nothing can be judged before that is put right."""


@dataclass(frozen=True)
class Failure:
    """How and where a run failed.

    Attributes:
        kind: see Kind.
        where: "making the trainer", "step 3", "release()".
        message: one line.
        detail: the foreign traceback or standard error, its end.
    """

    kind: Kind
    where: str
    message: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind} at {self.where}: {self.message}"


@dataclass(frozen=True, repr=False)
class Outcome:
    """What a run left behind.

    Attributes:
        release: tables and dense parameters at the end; None after a failure.
        iterates: the same after every step, if the job asked for them.
        failure: None if there was none.
    """

    release: Weights | None = None
    iterates: tuple[Weights, ...] = ()
    failure: Failure | None = None


Runner = Callable[[Job], Outcome]
"""Whatever can carry out a job: in this process, in a worker, or through files."""


class _Malformed(Exception):
    """The protocol is not kept."""


def run_here(make: Callable[[BenchProblem, int], BenchTrainer], job: Job) -> Outcome:
    """Carry out a job in this process. What the trainer raises becomes a Failure; Ctrl-C and exits pass through."""
    problem, batches = _frozen(job)
    where = "making the trainer"
    lent: list[tuple[Weights, Weights]] = []  # what weights() returned, and a copy of what it held then
    try:
        trainer = make(problem, job.seed)
        for method in ("train_batch", "weights", "release"):
            if not callable(getattr(trainer, method, None)):
                raise _Malformed(f"the trainer must have a method {method}(); {type(trainer).__name__} has none")
        for step, batch in enumerate(batches):
            where = f"step {step}"
            trainer.train_batch(batch)
            _check_unchanged(lent, f"weights() after step {step - 1}")
            if job.iterates:
                where = f"weights() after step {step}"
                lent.append(_lent(job.problem, trainer.weights()))
        where = "release()"
        release = _lent(job.problem, trainer.release())[1]
        _check_unchanged(lent, f"weights() after step {len(batches) - 1}")
    except _Malformed as error:
        return Outcome(failure=Failure(Kind.MALFORMED, where, str(error)))
    except ImportError as error:
        return Outcome(failure=Failure(Kind.MALFORMED, where, f"the trainer needs what is not installed: {error}"))
    except Exception as error:
        message = " ".join(str(error).split())[:300]
        detail = "".join(traceback.format_exception(error))[-4000:]
        return Outcome(failure=Failure(Kind.CRASHED, where, f"{type(error).__name__}: {message}", detail))
    return Outcome(release, tuple(copy for _, copy in lent))


def complain(problem: BenchProblem, found: Any) -> str | None:
    """What is wrong with returned weights, if anything."""
    expected = {**problem.tables, **problem.dense}
    if not isinstance(found, Mapping):
        return f"weights must be a mapping from names to NumPy arrays, got {type(found).__name__}"
    if set(found) != set(expected):
        return f"weights must hold exactly {sorted(expected)}, got {sorted(map(str, found))}"
    for name, value in expected.items():
        array: Any = found[name]
        if not isinstance(array, np.ndarray):
            return f"{name!r} must be a NumPy array, got {type(array).__name__} (a torch tensor: .detach().numpy())"
        if array.dtype != np.float32:
            return f"{name!r} must be float32 as the problem's weights are, got {array.dtype}"
        if array.shape != value.shape:
            return f"{name!r} must have the shape {value.shape} of the problem's weights, got {array.shape}"
    return None


def _lent(problem: BenchProblem, found: Any) -> tuple[Weights, Weights]:
    """The very arrays that came back, and copies of them."""
    complaint = complain(problem, found)
    if complaint is not None:
        raise _Malformed(complaint)
    arrays: Weights = {name: found[name] for name in (*problem.tables, *problem.dense)}
    return arrays, {name: array.copy() for name, array in arrays.items()}


def _check_unchanged(lent: list[tuple[Weights, Weights]], when: str) -> None:
    """What was returned earlier is still what it was."""
    for arrays, copies in lent[-1:]:
        for name, array in arrays.items():
            if not np.array_equal(array, copies[name], equal_nan=True):
                raise _Malformed(
                    f"{name!r} as returned by {when} has changed since: weights() and release() must return copies, "
                    "not memory that the trainer goes on writing to"
                )


def _frozen(job: Job) -> tuple[BenchProblem, tuple[BenchBatch, ...]]:
    """Copies of everything that the trainer is handed: what it writes there cannot reach the judge."""

    def batch_of(batch: BenchBatch) -> BenchBatch:
        reads = {
            name: replace(
                r,
                ids=r.ids.copy(),
                offsets=r.offsets.copy(),
                readout=r.readout.copy(),
                weights=None if r.weights is None else r.weights.copy(),
            )
            for name, r in batch.reads.items()
        }
        return replace(batch, reads=reads, dense={name: value.copy() for name, value in batch.dense.items()})

    problem = replace(
        job.problem,
        tables={name: value.copy() for name, value in job.problem.tables.items()},
        dense={name: value.copy() for name, value in job.problem.dense.items()},
    )
    return problem, tuple(batch_of(batch) for batch in job.batches)
