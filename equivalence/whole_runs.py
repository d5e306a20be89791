"""Runs of a plan from its first step to its release, compared: lazy against eager, and against the lazy definition.

Trainers come in as factories, so nothing here knows a backend. A lazy trainer needs `train_batch`, `sample`, `settle`,
`look_ahead`, `save_checkpoint`, `load_checkpoint`, `release`, `transcript`, `tables` and `step_index`.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from samelaw.contract.bounds import bridge_bounds
from samelaw.contract.evidence import Disagreement, Evidence
from samelaw.contract.ledger import Entry, Ledger, spent, verify_lines
from samelaw.contract.run import Release, Transcript
from samelaw.contract.spec import Mode
from samelaw.equivalence import exact
from samelaw.equivalence.recomputed import Normals, recomputed_dense, recomputed_tables
from samelaw.equivalence.run_plans import RunPlan
from samelaw.equivalence.scenarios import joined
from samelaw.equivalence.spans import table_spans


@dataclass(frozen=True)
class Makers:
    """How a plan's trainers are made, each on a model of its own, recording.

    Attributes:
        lazy: (plan, ledger) -> the trainer under test; called again after every restart.
        eager: plan -> the eager definition.
        definition: plan -> the lazy definition (reference.lazy): same schedule of settlements, no caching.
        normals: plan -> the definition's normals under the plan's key.
    """

    lazy: Callable[[RunPlan, Ledger], Any]
    eager: Callable[[RunPlan], Any]
    definition: Callable[[RunPlan], Any]
    normals: Callable[[RunPlan], Normals]


@dataclass
class Ran:
    """What one trainer left behind.

    Attributes:
        settled_early: the whole tables just before each step of `plan.early`.
    """

    transcript: Transcript
    release: Release
    entries: list[Entry]
    settled_early: dict[int, dict[str, np.ndarray]] = field(default_factory=dict[int, dict[str, np.ndarray]])


def run_lazy(plan: RunPlan, make: Callable[[RunPlan, Ledger], Any], folder: Path) -> Ran:
    """The trainer under test, with the plan's restarts: each is a new trainer on the reopened ledger file.

    Args:
        folder: for the ledger and the checkpoints.
    """
    ledger = Ledger(folder / "ledger.jsonl")
    trainer = make(plan, ledger)
    parts: list[Transcript] = []
    restarts = list(plan.restarts)
    try:
        step = 0
        while True:
            if restarts and step == restarts[0][0]:
                trainer.save_checkpoint(folder / "run.checkpoint")
            if restarts and step == restarts[0][1]:
                parts.append(trainer.transcript)
                ledger.close()  # what the end of a process does
                ledger = Ledger.reopen(folder / "ledger.jsonl")
                trainer = make(plan, ledger)
                trainer.load_checkpoint(folder / "run.checkpoint")
                step = restarts.pop(0)[0]
                if restarts and restarts[0][0] == step:
                    trainer.save_checkpoint(folder / "run.checkpoint")
            if step == plan.steps:
                break
            if step in plan.early:
                trainer.settle()
            if plan.announce:
                trainer.look_ahead(plan.rows_read(_batch(plan, trainer, step, ahead=1)))
            trainer.train_batch(_batch(plan, trainer, step))
            step += 1
        release = trainer.release()
    finally:
        ledger.close()
    text = (folder / "ledger.jsonl").read_text(encoding="utf-8")
    transcript = reduce(joined, [*parts, trainer.transcript])
    return Ran(transcript, release, list(verify_lines(text, where="the run's ledger")))


def run_definition(plan: RunPlan, trainer: Any) -> Ran:
    """A definition, without restarts: they are not to change a bit. Its lazy form settles when the plan says so."""
    found: dict[int, dict[str, np.ndarray]] = {}
    for step in range(plan.steps):
        if step in plan.early:
            trainer.settle()
            found[step] = trainer.tables
        if plan.announce and plan.look_ahead and hasattr(trainer, "announce"):
            trainer.announce(plan.rows_read(_batch(plan, trainer, step, ahead=1)))
        trainer.train_batch(_batch(plan, trainer, step))
    release = trainer.release()
    return Ran(trainer.transcript, release, list(trainer.ledger.entries), found)


def judge(plan: RunPlan, makers: Makers, folder: Path | None = None) -> list[Disagreement]:
    """Run a plan every way and compare; the first difference of each comparison that found one.

    replay: every bit of the eager run. bridge: every bit of the lazy definition, and without curvature the derived
    bound of the eager run. aggregate: every bit of the lazy definition, and, where nothing was settled early, every
    settlement recomputed from the key. All modes: dense parameters recomputed from the key, and a ledger that charges
    for each step once, as the definition's does, with one release.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as made:
            return judge(plan, makers, Path(made))
    mode, found = plan.spec.mode, list[Disagreement]()
    lazy = run_lazy(plan, makers.lazy, folder)
    if mode is Mode.REPLAY or (mode is Mode.BRIDGE and plan.curvature == 0):
        eager = run_definition(plan, makers.eager(plan))
        if mode is Mode.REPLAY:
            found += _refuted("eager", exact.replay(eager.transcript, lazy.transcript))
        else:
            bounds = bridge_bounds(_with_early_settlements(eager), plan.spec)
            found += _refuted("eager", exact.bridge(eager.transcript, lazy.transcript, plan.spec, bounds=bounds))
        found += _books(eager, lazy)
    if mode is not Mode.REPLAY:
        definition = run_definition(plan, makers.definition(plan))
        found += _refuted("the lazy definition", exact.replay(definition.transcript, lazy.transcript))
        found += _books(definition, lazy)
    found += _recomputed(plan, lazy.transcript, makers.normals(plan))
    return found


def as_test(plan: RunPlan, *, module: str = "samelaw.cli.whole_runs", name: str = "test_this_run") -> str:
    """A complete test of this plan, ready to paste: it runs as it is, and by itself.

    Args:
        module: where `check` is; see cli/whole_runs.py.
    """
    body = "\n".join(f"    {line}" if line else line for line in repr(plan).splitlines())
    return (
        f"def {name}():\n"
        f"    from {module} import check\n"
        "    from samelaw.equivalence.run_plans import Example, RunPlan, Table\n\n"
        f"    check({body.lstrip()})\n"
    )


def _batch(plan: RunPlan, trainer: Any, step: int, *, ahead: int = 0) -> Any:
    """The batch of a step: declared, or what the keyed sampler draws. Beyond the end nobody is drawn."""
    if step + ahead >= plan.steps:
        return plan.batch(())
    if plan.batches is not None:
        return plan.batch(plan.batches[step + ahead])
    return plan.batch(trainer.sample(ahead=ahead) if ahead else trainer.sample())


def _with_early_settlements(eager: Ran) -> Transcript:
    """The eager transcript with every row touched where everything was settled early: what the bound counts.

    A settlement before step t counts as a touch of step t. (One that is read there is settled by the read.)
    """
    if not eager.settled_early:
        return eager.transcript
    touched = copy.copy(eager.transcript)
    touched.steps = [copy.deepcopy(record) for record in eager.transcript.steps]
    for step, tables in eager.settled_early.items():
        record = touched.steps[step]
        for name, table in tables.items():
            sums = np.zeros(table.shape, dtype=np.int64)
            if name in record.rows:
                sums[record.rows[name]] = record.sums[name]
            every = np.arange(len(table), dtype=np.int64)
            record.rows[name], record.reads[name], record.sums[name] = every, table, sums
    return touched


def _refuted(twin: str, evidence: Evidence) -> list[Disagreement]:
    wrong = evidence.first_disagreement
    return [] if wrong is None else [Disagreement(f"against {twin}: {wrong.where}", wrong.expected, wrong.found)]


def _recomputed(plan: RunPlan, transcript: Transcript, normals: Normals) -> Iterator[Disagreement]:
    found = [recomputed_dense(transcript, plan.spec, normals)]
    if plan.spec.mode is Mode.AGGREGATE and not plan.early:
        padding = plan.padding()
        spans = {
            name: table_spans(transcript, name, plan.spec, padding=padding.get(name))
            for name in transcript.initial_tables
        }
        found.append(recomputed_tables(spans, plan.spec, normals))
    for test, wrong in found:
        if wrong is not None:
            yield Disagreement(f"{test.name}: {wrong.where}", wrong.expected, wrong.found)


def _books(definition: Ran, lazy: Ran) -> Iterator[Disagreement]:
    """The ledger that the lazy run wrote, against the definition's, and the released weights against the transcript."""
    one, other = spent(definition.entries), spent(lazy.entries)
    for what, expected, found in (
        ("opening", one.opened, other.opened),
        ("steps charged", one.steps, other.steps),
        ("releases", one.releases, other.releases),
    ):
        if expected != found:
            yield Disagreement(f"the ledger, {what}", str(expected), str(found))
    yield from _same_arrays("released table", lazy.transcript.final_tables, lazy.release.tables)
    yield from _same_arrays("released dense", lazy.transcript.final_dense, lazy.release.dense)


def _same_arrays(
    what: str, expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]
) -> Iterator[Disagreement]:
    for name, array in expected.items():
        wrong = exact.first_difference(array, np.asarray(found[name]), f"{what} {name!r}")
        if wrong is not None:
            yield wrong
