"""Claims about what is left of the weights when the known signal is taken away: B4 to B8, and B10 for iterates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from samelaw.contract.bench import Abilities
from samelaw.equivalence import laws
from samelaw.equivalence.bench import signal
from samelaw.equivalence.bench.claims import MARGIN, Draft
from samelaw.equivalence.bench.conduct import Outcome, Weights
from samelaw.equivalence.bench.parts import coarse, worst_part
from samelaw.equivalence.bench.problems import Job, rows_read, rows_read_running

CLOSE = 1e-3
"""Two rows of noise are the same if they agree to this many std in every coordinate: far above float32 rounding of
weights (ulp of 0.25 over the smallest std here, 1e-6) and of the clipped sum, far below chance at 32 columns."""

Ran = tuple[Job, Outcome]


@dataclass(frozen=True, repr=False)
class Residual:
    """The noise of one run, divided by its known std: standard normal for a correct trainer.

    The weights are float32 of size below 4 and the noise of a step has a std of 0.01 or more, so rounding is 1e-5 of a
    std or less, and the permitted inexactness of the clipped sum (input_claims.py) another 1e-3: both are far below
    the smallest mean or scale that any test here can see.

    Attributes:
        tables: by table, (rows, dim).
        dense: by parameter.
        read: by table, which rows the run read.
    """

    tables: Weights
    dense: Weights
    read: Weights

    def rows(self, *, touched: bool) -> np.ndarray:
        """Noise of all rows that were read, or of all that were not, tables one below the other."""
        return np.concatenate([z[self.read[name] == touched] for name, z in self.tables.items()])


def residual(job: Job, release: Weights, start: Weights | None = None, step: int | None = None) -> Residual:
    """What is left of the whole run, or of one step that began at `start`."""
    if start is None or step is None:
        expected, std, batches = signal.noiseless(job.problem, job.batches), signal.noise_std(job.problem), job.batches
    else:
        batches, one = (job.batches[step],), slice(step, step + 1)
        moved = signal.clipped_sum(job.problem, job.batches[step])
        rate = job.batches[step].learning_rate / job.problem.expected_batch_size
        expected = {name: start[name].astype(np.float64) - rate * value for name, value in moved.items()}
        std = signal.noise_std(job.problem, one)
    z = {name: (release[name].astype(np.float64) - value) / std for name, value in expected.items()}
    part = Job(job.name, job.problem, tuple(batches), job.seed)
    tables = {name: z[name] for name in job.problem.tables}
    return Residual(tables, {name: z[name] for name in job.problem.dense}, {n: rows_read(part, n) for n in tables})


def finished(ran: Iterable[Ran]) -> list[tuple[Job, Weights]]:
    """The runs that ended with a release."""
    return [(job, outcome.release) for job, outcome in ran if outcome.release is not None]


def noise_claims(
    abilities: Abilities, long: Sequence[Ran], single: Sequence[Ran], empty: Sequence[Ran], after: Sequence[Ran]
) -> list[Draft]:
    """Drafts of B4 to B8 and B10, from repeated runs of four kinds."""
    return [
        _rows("B4", long, single, touched=True),
        _rows("B5", long, single, touched=False),
        _dense(abilities, long, single),
        _empty(abilities, empty, after),
        _apart(long),
        _iterates(abilities, long),
    ]


def _rows(claim: str, long: Sequence[Ran], single: Sequence[Ran], *, touched: bool) -> Draft:
    kind = "rows read" if touched else "rows never read"
    draft = Draft(claim, _runs(long, single))
    if not finished(long) and not finished(single):
        draft.open = "No run came to an end (see B1)."
        return draft
    for runs, what in ((long, "run"), (single, "single step")):
        done = finished(runs)
        found = [residual(*one) for one in done]
        if not found:
            continue
        z = np.concatenate([r.rows(touched=touched) for r in found]).ravel()
        where = f"{what}, {kind}"
        _law(draft, z, where)
        if what == "run":
            for name in found[0].tables:
                of_table = np.concatenate([r.tables[name][r.read[name] == touched] for r in found]).ravel()
                draft.plan(laws.scale, of_table, margin=MARGIN, name=f"scale, {where}, table {name}")
                _parts(draft, [r.tables[name][r.read[name] == touched] for r in found], f"{where}, table {name}")
            if touched:
                running = [
                    r.tables[n][rows_read_running(j, n)]
                    for (j, _), r in zip(done, found, strict=True)
                    for n in r.tables
                ]
                draft.plan(
                    laws.scale,
                    np.concatenate(running).ravel(),
                    margin=MARGIN,
                    name=f"scale, {what}, rows read in two steps running",
                )
            draft.numbers["quantiles"] = {"touched rows" if touched else "idle rows": _quantiles(z)}
        elif not touched:
            draft.plan(coarse, z, name=f"repeated values, {where}")
        for job, release in done:
            _unchanged(draft, job, job.problem.tables, release, touched)
    draft.found = f"The noise of {kind} is as declared."
    return draft


def _dense(abilities: Abilities, long: Sequence[Ran], single: Sequence[Ran]) -> Draft:
    draft = Draft("B6", _runs(long, single))
    if not abilities.dense:
        draft.open = "The trainer does not declare dense parameters: nothing is said about their noise."
        return draft
    for runs, what in ((long, "run"), (single, "single step")):
        found = [residual(*one) for one in finished(runs)]
        if found:
            z = np.concatenate([value for r in found for value in r.dense.values()])
            _law(draft, z, f"{what}, dense")
    if not draft.planned:
        draft.open = "No run came to an end (see B1)."
    draft.found = "The noise of the dense parameters is as declared."
    return draft


def _empty(abilities: Abilities, empty: Sequence[Ran], after: Sequence[Ran]) -> Draft:
    draft = Draft("B7", _runs(empty, after))
    if not abilities.empty_batches:
        draft.open = (
            "The trainer does not declare empty batches: nothing is said about them. Poisson sampling draws one sooner "
            "or later, and it must cost a step of noise like any other."
        )
        return draft
    done = finished(empty)
    if not done:
        draft.open = "No run of empty batches came to an end (see B1)."
        return draft
    found = [residual(*one) for one in done]
    z = np.concatenate([r.rows(touched=False) for r in found]).ravel()
    draft.plan(laws.scale, z, margin=MARGIN, name="scale, rows")
    draft.plan(laws.mean, z, name="mean, rows")
    draft.plan(laws.kolmogorov_smirnov, z, name="Kolmogorov-Smirnov, rows")
    if abilities.dense:
        dense = np.concatenate([value for r in found for value in r.dense.values()])
        draft.plan(laws.scale, dense, margin=MARGIN, name="scale, dense")
    later = [residual(*one) for one in finished(after)]
    for touched, kind in ((True, "rows read before"), (False, "rows not read before")):
        if later:
            z = np.concatenate([r.rows(touched=touched) for r in later]).ravel()
            draft.plan(laws.scale, z, margin=MARGIN, name=f"scale, after a full batch, {kind}")
    if later and abilities.dense:
        dense = np.concatenate([value for r in later for value in r.dense.values()])
        draft.plan(laws.scale, dense, margin=MARGIN, name="scale, after a full batch, dense")
    for job, release in done:
        _unchanged(draft, job, job.problem.tables, release, False)
    draft.found = "Empty batches add their noise everywhere."
    return draft


def _apart(long: Sequence[Ran]) -> Draft:
    """B8: the same number twice, wherever it could come from."""
    draft = Draft("B8", _runs(long))
    found = [residual(*one) for one in finished(long)]
    if not found:
        draft.open = "No run came to an end (see B1)."
        return draft
    stacked = [np.concatenate(list(r.tables.values())) for r in found]
    for lag in (1, 2, 8, 16):
        left = np.concatenate([z[:, :-lag].ravel() for z in stacked])
        right = np.concatenate([z[:, lag:].ravel() for z in stacked])
        draft.plan(laws.correlation, left, right, name=f"correlation, columns {lag} apart")
    for lag in (1, 2):
        left = np.concatenate([z[:-lag].ravel() for r in found for z in r.tables.values()])
        right = np.concatenate([z[lag:].ravel() for r in found for z in r.tables.values()])
        draft.plan(laws.correlation, left, right, name=f"correlation, rows {lag} apart")
    names = list(found[0].tables)
    for one, other in pairwise(names):
        rows = min(len(found[0].tables[one]), len(found[0].tables[other]))
        left = np.concatenate([r.tables[one][:rows].ravel() for r in found])
        right = np.concatenate([r.tables[other][:rows].ravel() for r in found])
        draft.plan(laws.correlation, left, right, name=f"correlation, tables {one} and {other}")
    for lag in (1, 2):
        left = np.concatenate([z.ravel() for z in stacked[:-lag]] or [np.empty(0)])
        right = np.concatenate([z.ravel() for z in stacked[lag:]] or [np.empty(0)])
        draft.plan(laws.correlation, left, right, name=f"correlation, runs {lag} apart")
    for name in found[0].dense:
        z = [r.dense[name] for r in found]
        left, right = np.concatenate([v[:-1] for v in z]), np.concatenate([v[1:] for v in z])
        draft.plan(laws.correlation, left, right, name=f"correlation, neighbours in {name}")
        pairs = z[:-1], z[1:]
        left, right = (np.concatenate(part or [np.empty(0)]) for part in pairs)
        draft.plan(laws.correlation, left, right, name=f"correlation, {name} of consecutive runs")
        first = np.concatenate([r.tables[names[0]].ravel()[: r.dense[name].size] for r in found])
        draft.plan(laws.correlation, first, np.concatenate(z), name=f"correlation, {name} and table {names[0]}")
    every = np.concatenate([z for r in found for z in r.tables.values()])
    every = every[(np.abs(every) > CLOSE).any(axis=1)]  # rows without any noise are B4's and B5's to name
    draft.plan(laws.duplicates, every, within=CLOSE, name="repeated rows of noise, all tables and runs")
    draft.found = "No noise is found twice."
    return draft


def _iterates(abilities: Abilities, long: Sequence[Ran]) -> Draft:
    draft = Draft("B10", _runs(long))
    if not abilities.iterates:
        draft.open = (
            "The trainer does not declare that every iterate may be published: only released weights were looked at, "
            "and nothing is said about anything before them."
        )
        return draft
    steps: list[list[Residual]] = []
    for job, outcome in long:
        if outcome.release is None:
            continue
        weights: Weights = {**job.problem.tables, **job.problem.dense}
        found: list[Residual] = []
        for step, after in enumerate(outcome.iterates):
            found.append(residual(job, after, weights, step))
            _unchanged(draft, job, weights, after, None, f"by step {step}")
            weights = after
        for name, value in outcome.release.items():
            if not np.array_equal(value, weights[name], equal_nan=True):
                draft.fail(
                    f"{name!r}, release() of {job.name}", "the weights() of the last step, already published", "others"
                )
        steps.append(found)
    if not steps:
        draft.open = "No run came to an end (see B1)."
        return draft
    for touched, kind in ((True, "rows read in the step"), (False, "rows not read in the step")):
        z = np.concatenate([r.rows(touched=touched) for run in steps for r in run]).ravel()
        draft.plan(laws.scale, z, margin=MARGIN, name=f"scale, {kind}")
        draft.plan(laws.mean, z, name=f"mean, {kind}")
        draft.plan(laws.kolmogorov_smirnov, z, name=f"Kolmogorov-Smirnov, {kind}")
    for step in range(len(steps[0])):
        z = np.concatenate([np.concatenate(list(run[step].tables.values())) for run in steps]).ravel()
        draft.plan(laws.scale, z, margin=MARGIN, name=f"scale, step {step}")
    for name in steps[0][0].dense:
        runs = [[r.dense[name] for r in run] for run in steps]
        draft.plan(laws.scale, np.concatenate([z for run in runs for z in run]), margin=MARGIN, name=f"scale, {name}")
        left = np.concatenate([z for run in runs for z in run[:-1]])
        right = np.concatenate([z for run in runs for z in run[1:]])
        draft.plan(laws.correlation, left, right, name=f"correlation, {name} of consecutive steps")
    every = [[np.concatenate(list(r.tables.values())) for r in run] for run in steps]
    for lag in (1, 2, 3):
        left = np.concatenate([z.ravel() for run in every for z in run[:-lag]] or [np.empty(0)])
        right = np.concatenate([z.ravel() for run in every for z in run[lag:]] or [np.empty(0)])
        draft.plan(laws.correlation, left, right, name=f"correlation, steps {lag} apart")
    rows = np.concatenate([z for run in every for z in run])
    draft.plan(laws.duplicates, rows[(np.abs(rows) > CLOSE).any(axis=1)], within=CLOSE,
               name="repeated rows of noise, all steps")  # fmt: skip
    draft.found = "Every step adds its own noise."
    return draft


def _law(draft: Draft, z: np.ndarray, where: str) -> None:
    """The tests that one heap of samples goes through."""
    draft.plan(laws.scale, z, margin=MARGIN, name=f"scale, {where}")
    draft.plan(laws.mean, z, name=f"mean, {where}")
    draft.plan(laws.kolmogorov_smirnov, z, name=f"Kolmogorov-Smirnov, {where}")
    draft.plan(laws.anderson_darling, z, name=f"Anderson-Darling, {where}")
    for beyond in (2.0, 3.0, 4.0):
        draft.plan(laws.tail_count, z, beyond, name=f"share beyond {beyond:g} std, {where}")
    draft.plan(laws.largest, z, name=f"largest, {where}")


def _parts(draft: Draft, runs: Sequence[np.ndarray], where: str) -> None:
    """Each row and each column by itself, over all runs: (rows, dim) of every run."""
    z = np.stack(runs)
    rows, columns = z.transpose(1, 0, 2).reshape(z.shape[1], -1), z.reshape(-1, z.shape[2]).T
    draft.plan(worst_part, rows, part="row", name=f"the worst row, {where}")
    draft.plan(worst_part, columns, part="column", name=f"the worst column, {where}")


def _unchanged(
    draft: Draft,
    job: Job,
    before: Mapping[str, np.ndarray],
    after: Weights,
    touched: bool | None,
    when: str = "at release",
) -> None:
    """A row of 32 float32 that all came back to where they were: noise does not do that."""
    for name in job.problem.tables:
        same = laws.unchanged_rows(before[name], after[name])
        looked_at = np.ones_like(same) if touched is None else rows_read(job, name) == touched
        stuck = np.flatnonzero(same & looked_at)
        if stuck.size:
            draft.fail(
                f"table {name!r}, row {stuck[0]}, {when} ({job.name})",
                "noise in every column",
                f"the bits that it had before, as in {stuck.size} of {int(looked_at.sum())} such rows",
            )


def _quantiles(z: np.ndarray) -> dict[str, object]:
    """What the report plots."""
    if not np.isfinite(z).all():
        return {}
    grid = np.array([1e-4, 1e-3, *np.linspace(0.01, 0.99, 99), 0.999, 0.9999])
    inside = grid[(grid * z.size >= 10) & ((1 - grid) * z.size >= 10)]
    found = [float(q) for q in np.quantile(z, inside)]
    return {"probability": [float(p) for p in inside], "found": found, "samples": z.size}


def _runs(*kinds: Sequence[Ran]) -> str:
    parts = [f"{len(finished(ran))} runs of {ran[0][0].name}" for ran in kinds if ran]
    return ", ".join(parts) or "no runs"
