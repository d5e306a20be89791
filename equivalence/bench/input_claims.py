"""Claims about single steps on small inputs: B1 (it runs), B2 (the signal), B3 (one example's share), B9 (padding)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from scipy import stats

from samelaw.contract.bench import Abilities, BenchProblem
from samelaw.contract.errors import InputError
from samelaw.contract.evidence import TestResult, Verdict
from samelaw.equivalence.bench import signal
from samelaw.equivalence.bench.claims import Draft
from samelaw.equivalence.bench.conduct import Kind, Outcome, Weights
from samelaw.equivalence.bench.problems import Job, Small, left_out
from samelaw.equivalence.laws import FALSE_PASS, unchanged_rows

INEXACT = 2.0**-13
"""What a clipped sum may be off, per example and in units of C, before it is called wrong. Clipping with
C / (norm + 1e-6) costs 4e-6 here (norms of 0.25 or more are clipped); float32 products and sums of 20 terms 2e-6; two
roundings of a weight below 1 cost 6e-8 each, and lr C / B is at least 0.1. The wrong answers of this bench are off by
0.05 C or more."""

Ran = tuple[Job, Outcome]
SmallRun = tuple[Small, Job, Outcome]


def runs_claim(ran: Sequence[Ran], shown: Sequence[SmallRun]) -> Draft:
    """B1: whatever failed, named by the input that shows it.

    Raises:
        InputError: what came back cannot be judged at all.
    """
    inputs = {id(job): case.shown for case, job, _ in shown}
    draft = Draft("B1", f"{len(ran)} runs", exact=True)
    failed: list[str] = []
    for job, outcome in ran:
        place = f"{job.name} ({inputs[id(job)]})" if id(job) in inputs else job.name
        failure = outcome.failure
        if failure is not None and failure.kind is Kind.MALFORMED:
            raise InputError(f"the trainer cannot be judged: on {place}, at {failure.where}: {failure.message}")
        if failure is not None:
            draft.fail(f"{place}, {failure.where}", "no error", f"{failure.kind}: {failure.message}")
            failed.append(f"{place}: {failure}")
            continue
        for name, value in (outcome.release or {}).items():
            if not np.isfinite(value).all():
                draft.fail(f"{place}, released {name!r}", "finite weights", "NaN or infinite values")
                failed.append(f"{place}: {name!r} is not finite")
    draft.numbers["failures"] = failed[:50]
    draft.found = f"All {len(ran)} runs came to an end with finite weights."
    return draft


def input_claims(
    abilities: Abilities,
    alone: Sequence[SmallRun],
    neighbours: Sequence[SmallRun],
    histories: Sequence[Ran],
    noisy: Sequence[Ran],
) -> list[Draft]:
    """Drafts of B2, B3 and B9.

    Args:
        alone: every small input that the abilities allow.
        neighbours: those of several examples, without each of them.
        histories: runs of several steps without noise or with little: one, then its neighbours.
        noisy: a run with full noise and a padding row.
    """
    padded = [(f"{case.name} ({case.shown})", job, outcome) for case, job, outcome in alone]
    padded += [(job.name, job, outcome) for job, outcome in noisy]
    return [
        _signal(abilities, alone, histories),
        _sensitivity(alone, neighbours, histories),
        _padding(abilities, padded),
    ]


def moved(problem: BenchProblem, batch_rate: float, release: Weights) -> Weights:
    """The sum of gradients (and noise) by which one step moved the weights, in units of C."""
    unit = batch_rate / problem.expected_batch_size * problem.clip_norm
    start = {**problem.tables, **problem.dense}
    return {name: (start[name].astype(np.float64) - release[name].astype(np.float64)) / unit for name in start}


def unit_of(job: Job) -> float:
    """C/B times the root of the sum of squared rates: the noise of a run has a std of noise_multiplier units."""
    rates = [batch.learning_rate for batch in job.batches]
    return job.problem.clip_norm / job.problem.expected_batch_size * float(np.linalg.norm(rates))


def _signal(abilities: Abilities, alone: Sequence[SmallRun], histories: Sequence[Ran]) -> Draft:
    scope = f"{len(alone)} small inputs and {len(histories)} runs of several steps, {_quiet(abilities)}"
    draft = Draft("B2", scope, exact=True)
    wrong: list[str] = []
    for case, job, outcome in alone:
        if outcome.release is None:
            continue
        problem, batch = job.problem, job.batches[0]
        expected = signal.clipped_sum(problem, batch)
        found = moved(problem, batch.learning_rate, outcome.release)
        off = {name: found[name] - expected[name] / problem.clip_norm for name in found}
        off = {name: _without_padding(problem, name, value) for name, value in off.items()}
        largest = max((float(np.abs(value).max(initial=0.0)) for value in off.values()), default=0.0)
        where = f"{case.name} ({case.shown})"
        if problem.noise_multiplier > 0:
            values = np.concatenate([value.ravel() for value in off.values()])
            draft.plan(_off, values, problem.noise_multiplier, slack=INEXACT * len(batch), name=where)
        elif not largest <= INEXACT * len(batch):
            size = signal.norm(off)
            draft.fail(where, f"{_length(expected, problem)} C, exactly", f"a sum that is off by {size:.3g} C")
            wrong.append(f"{where}: off by {size:.3g} C")
    seen = [1 for *_, outcome in alone if outcome.release is not None]
    for job, outcome in histories:
        if outcome.release is None:
            continue
        seen.append(1)
        problem, unit = job.problem, unit_of(job)
        expected = signal.noiseless(problem, job.batches)
        off = {name: (outcome.release[name] - expected[name]) / unit for name in expected}
        slack = INEXACT * sum(b.learning_rate * len(b) for b in job.batches) * problem.clip_norm
        slack /= problem.expected_batch_size * unit
        values = np.concatenate([value.ravel() for value in off.values()])
        where = f"{job.name} ({', '.join(str(len(batch)) for batch in job.batches)} examples)"
        if problem.noise_multiplier > 0:
            draft.plan(_off, values, problem.noise_multiplier, slack=slack, name=where)
        elif not float(np.abs(values).max()) <= slack:
            size = signal.norm(off)
            draft.fail(where, "the sums of every step, exactly", f"weights that are off by {size:.3g} C, all in all")
            wrong.append(f"{where}: off by {size:.3g} C, all in all")
    draft.numbers = {"wrong": wrong, "inputs_not_declared": left_out(abilities)}
    if not seen:
        draft.open = "No small input came to an end (see B1)."
    draft.found = f"{len(seen)} inputs, of one step and of several, move the weights as DP-SGD does."
    return draft


def _sensitivity(alone: Sequence[SmallRun], neighbours: Sequence[SmallRun], histories: Sequence[Ran]) -> Draft:
    """B3: a batch against the batch without one of its examples; one example against no example at all."""
    draft = Draft("B3", f"{len(alone)} small inputs, without each of their examples", exact=True)
    fewer = {case.name: outcome for case, _, outcome in neighbours}
    largest, beyond, compared = 0.0, list[str](), 0

    def compare(where: str, change: Weights, noise: float, runs: int, slack: float) -> None:
        nonlocal largest, compared
        compared += 1
        size = signal.norm(change)
        if noise > 0:
            dims = sum(value.size for value in change.values())
            draft.planned.append(partial(_beyond, where, size, noise * float(np.sqrt(runs)), dims, slack))
            return
        largest = max(largest, size)
        if not size <= 1 + slack:
            draft.fail(where, "at most 1 C", f"{size:.3g} C")
            beyond.append(f"{where}: {size:.3g} C")

    for case, job, outcome in alone:
        problem, batch = job.problem, job.batches[0]
        where = f"{case.name} ({case.shown})"
        if outcome.release is None:
            continue
        whole = moved(problem, batch.learning_rate, outcome.release)
        if len(batch) == 1:
            compare(where, whole, problem.noise_multiplier, 1, INEXACT)
            continue
        for example in range(len(batch)):
            its = fewer.get(case.without(example).name)
            if its is None or its.release is None:
                continue
            less = moved(problem, batch.learning_rate, its.release)
            change = {name: whole[name] - less[name] for name in whole}
            compare(f"{where}, example {example}", change, problem.noise_multiplier, 2, INEXACT * 2)
    for job, outcome in histories[1:]:
        whole = histories[0][1].release
        if whole is None or outcome.release is None:
            continue
        # The noise of both runs, in units of C at the step that differs.
        step = next(i for i, b in enumerate(job.batches) if len(b) != len(histories[0][0].batches[i]))
        unit = job.batches[step].learning_rate * job.problem.clip_norm / job.problem.expected_batch_size
        change = {name: (whole[name].astype(np.float64) - outcome.release[name]) / unit for name in whole}
        noise = job.problem.noise_multiplier * unit_of(job) / unit
        examples = sum(map(len, job.batches))
        compare(f"{job.name} ({examples} examples left)", change, noise, 2, INEXACT * 2 * examples)
    draft.numbers = {"beyond_the_bound": beyond, "largest_in_C": largest}
    if not compared:
        draft.open = "No small input came to an end (see B1)."
    draft.found = f"In {compared} neighbouring pairs one example moves the sum by at most C."
    return draft


def _padding(abilities: Abilities, padded: Sequence[tuple[str, Job, Outcome]]) -> Draft:
    draft = Draft("B9", "the inputs with a padding row, and a step with full noise", exact=True)
    if not abilities.padding:
        draft.open = "The trainer does not declare padding: nothing is said about it."
        return draft
    compared = 0
    for where, job, outcome in padded:
        for name, row in job.problem.padding.items():
            if outcome.release is None:
                continue
            compared += 1
            before, after = job.problem.tables[name][[row]], outcome.release[name][[row]]
            if not unchanged_rows(before, after).all():
                far = float(np.linalg.norm(after.astype(np.float64) - before))
                draft.fail(f"{where}, row {row} of {name!r}", "unchanged", f"moved by {far:.3g}")
    if not compared:
        draft.open = "No input with padding came to an end (see B1)."
    draft.found = f"The padding row is unchanged in {compared} inputs."
    return draft


def _off(off: np.ndarray, noise: float, *, slack: float, false_alarm: float, name: str) -> TestResult:
    """Is any coordinate of the sum off by more than its known noise explains? Exact, by Bonferroni over coordinates."""
    threshold = noise * float(stats.norm.isf(false_alarm / 2 / off.size)) + slack
    seen = threshold + noise * float(stats.norm.isf(FALSE_PASS))
    found = float(np.abs(off).max())
    p_value = 2 * off.size * float(stats.norm.sf(max(0.0, found - slack) / noise))
    return _result(name, found, threshold, off.size, false_alarm, seen, "a coordinate of the sum, in C", p_value)


def _beyond(name: str, size: float, noise: float, dims: int, slack: float, false_alarm: float) -> TestResult:
    """Is the change longer than C and its known noise? The noise's length is chi distributed."""
    threshold = 1 + slack + noise * float(stats.chi.isf(false_alarm, dims))
    seen = threshold + noise * float(stats.norm.isf(FALSE_PASS))  # the noise along the change is one normal
    p_value = float(stats.chi.sf(max(0.0, size - 1 - slack) / noise, dims))
    return _result(name, size, threshold, 1, false_alarm, seen, "length of the change, in C", p_value)


def _result(
    name: str,
    statistic: float,
    threshold: float,
    samples: int,
    false_alarm: float,
    seen: float,
    gap: str,
    p_value: float,
) -> TestResult:
    finite = math.isfinite(statistic)
    verdict = Verdict.NOT_REFUTED if finite and statistic <= threshold else Verdict.REFUTED
    return TestResult(
        name,
        verdict,
        statistic,
        threshold,
        samples,
        false_alarm,
        seen,
        1 - FALSE_PASS,
        gap,
        p_value=min(1.0, p_value) if finite else 0.0,
    )


def _without_padding(problem: BenchProblem, name: str, value: np.ndarray) -> np.ndarray:
    return np.delete(value, problem.padding[name], axis=0) if name in problem.padding else value


def _length(expected: signal.Gradient, problem: BenchProblem) -> str:
    return f"a sum of {signal.norm(expected) / problem.clip_norm:.3g}"


def _quiet(abilities: Abilities) -> str:
    return "without noise" if abilities.noise_off else "with noise of 0.001 C"
