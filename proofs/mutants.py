"""Plant bugs in the Python, one at a time, and see what notices: the translator, a proof, or an execution on terms.

python proofs/mutants.py            write docs/proofs-mutants.md; exit 1 if a mutant survives
python proofs/mutants.py NAME ...   only these, to the terminal
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType

import check
import coq
import numpy as np
import ties
import translate
from translate import ROOT, TARGETS, Refused

PAGE = ROOT / "docs" / "proofs-mutants.md"
SCHEDULE, TRUNCATION, ROWS = "reference/lazy_schedule.py", "reference/truncation.py", "reference/rows.py"
PROOFS = {  # the theories that must fail, or not, in the order in which they are tried
    SCHEDULE: ("Schedule", "FiniteLaws", "Replay", "Release"),
    TRUNCATION: ("Sensitivity",),
}
TRACES = 150


@dataclass(frozen=True)
class Mutant:
    """One bug: in `file`, `old` becomes `new`, wherever it stands after `after`."""

    name: str
    file: str
    old: str
    new: str
    after: str = ""

    def text(self) -> str:
        source = (ROOT / self.file).read_text(encoding="utf-8")
        place = source.index(self.after)
        at = source.index(self.old, place)  # ValueError: the mutant no longer fits the source
        return source[:at] + self.new + source[at + len(self.old) :]


SETTLE_READ = """        settle_rows(weights, history, step, asked, owed)
        return weights[asked]
"""
EAGER_UPDATE = "    weights[touched] = update(step, touched, gradient, weights[touched])\n"
EAGER_NOISE = "    weights[everyone] = owed(everyone, each(everyone, step), step + 1, weights[everyone])\n"
SETTLE_TOUCHED = "    settle_rows(weights, history, step, touched, owed)\n"
SETTLE_AHEAD = "    settle_rows(weights, history, step + 1, ahead, owed)\n"
PAY_DUE = "    weights[due] = owed(due, history[due], until, weights[due])\n"
ADVANCE = "    history[due] = until\n"
LAZY = "def lazy_step("

MUTANTS = (
    Mutant(
        "flush forgotten: a release marks every row settled and pays nothing", SCHEDULE,
        "    settle_rows(weights, history, step, everyone, owed)\n", "    history[everyone] = step\n", "def release(",
    ),
    Mutant("release through one step too many", SCHEDULE, "history, step, everyone", "history, step + 1, everyone", "def release("),
    Mutant(
        "settle after the read", SCHEDULE, SETTLE_READ,
        "        values = weights[asked]\n        settle_rows(weights, history, step, asked, owed)\n        return values\n",
    ),
    Mutant("read without settling", SCHEDULE, SETTLE_READ, "        return weights[asked]\n"),
    Mutant("settle what is read, but through the step itself", SCHEDULE, "history, step, asked", "history, step + 1, asked"),
    Mutant("history not advanced", SCHEDULE, ADVANCE, ""),
    Mutant("history advanced before the payment", SCHEDULE, PAY_DUE + ADVANCE, ADVANCE + PAY_DUE),
    Mutant("history one step ahead: the next span starts too late", SCHEDULE, ADVANCE, "    history[due] = until + 1\n"),
    Mutant("span one step too long at its end", SCHEDULE, "history[due], until, weights", "history[due], until + 1, weights"),
    Mutant("span starts at its end: nothing is ever paid", SCHEDULE, "owed(due, history[due]", "owed(due, each(due, until)"),
    Mutant("a repeated row is settled twice", SCHEDULE, "due = distinct(rows)", "due = rows"),
    Mutant("settle what is updated only after the update", SCHEDULE, SETTLE_TOUCHED + EAGER_UPDATE, EAGER_UPDATE + SETTLE_TOUCHED, LAZY),
    Mutant("rows announced are settled before the update", SCHEDULE, EAGER_UPDATE + SETTLE_AHEAD, SETTLE_AHEAD + EAGER_UPDATE, LAZY),
    Mutant("rows announced are settled a step too far", SCHEDULE, "step + 1, ahead", "step + 2, ahead"),
    Mutant("gradient uses the next step's rate", SCHEDULE, "update(step, touched", "update(step + 1, touched", LAZY),
    Mutant("eager: noise before the gradient", SCHEDULE, EAGER_UPDATE + EAGER_NOISE, EAGER_NOISE + EAGER_UPDATE),
    Mutant(
        "eager: noise on the touched rows alone", SCHEDULE, EAGER_NOISE,
        "    weights[touched] = owed(touched, each(touched, step), step + 1, weights[touched])\n",
    ),
    Mutant("eager: two steps of noise in one", SCHEDULE, "step), step + 1, weights[everyone]", "step), step + 2, weights[everyone]"),
    Mutant("replay leaves the last owed step out", SCHEDULE, "pay(rows, step, step + 1, values)", "pay(rows, step, step, values)"),
    Mutant("replay starts one step late", SCHEDULE, "for step in range(since, until)", "for step in range(since + 1, until)"),
    Mutant("the lazy run skips its first step", SCHEDULE, "range(start, stop)", "range(start + 1, stop)", "def lazy_run("),
    Mutant("settle in an if", SCHEDULE, SETTLE_TOUCHED, "    if step:\n    " + SETTLE_TOUCHED, LAZY),
    Mutant(
        "a default of the closure marks rows paid after step 6", SCHEDULE, "def read(asked: Rows)",
        "def read(asked: Rows = history.__setitem__(ahead, step) if step > 6 else None)", LAZY,
    ),
    Mutant("distinct() names 64 rows at most", ROWS, "np.unique(ids)", "np.unique(ids)[:64]"),
    Mutant("distinct() keeps repeats", ROWS, "name: np.unique(ids)", "name: ids"),
    Mutant("each() forgets its number", ROWS, "np.full(ids.shape, step, dtype", "np.full(ids.shape, 0, dtype"),
    Mutant(
        "a read is a view where it can be", ROWS,
        "return {name: self.arrays[name][_indices(name, ids, self.arrays[name])] for name, ids in rows.items()}",
        "return {n: self.arrays[n][i[0] : i[0] + 1] if i.size == 1 else self.arrays[n][i] for n, i in rows.items()}",
        "class Weights",
    ),
    Mutant("truncation toward minus infinity", TRUNCATION, "np.trunc(", "np.floor("),
    Mutant("rounding in place of truncation", TRUNCATION, "np.trunc(", "np.rint("),
    Mutant("the factor rounded up", TRUNCATION, "else target / norm", "else math.nextafter(target / norm, 2) * (1 + 2**-30)"),
    Mutant("the clip margin forgotten", TRUNCATION, "clip_norm * (1 - CLIP_MARGIN)", "clip_norm"),
    Mutant("the factor upside down", TRUNCATION, "target / norm", "norm / target", "1.0 if"),
    Mutant("never clipped", TRUNCATION, "norm <= target else", "target <= norm else"),
    Mutant("scale applied twice", TRUNCATION, "gradient * scale", "gradient * scale * scale", "np.trunc"),
    Mutant("the batch summed in float32", TRUNCATION, "total = total + part", "total = (total + part).astype(np.float32)"),
    Mutant("the batch keeps its last example alone", TRUNCATION, "total = total + part", "total = nothing + part"),
    Mutant(
        "a resumed run has lost its history", "reference/lazy.py", "History(pause.history)",
        "History({n: np.zeros_like(h) for n, h in pause.history.items()})",
    ),
    Mutant("a paused run keeps no copy of its history", "reference/lazy.py", "History(self._history.arrays).arrays\n", "self._history.arrays\n", "def pause"),
    Mutant("lazy publishes without settling", "reference/lazy.py", "        self.settle()\n", "", "def release(self)"),
    Mutant(
        "fast: pool before settling", "fast/tables.py",
        "        self.settle_rows(call.ids, until)\n        return self.kernels.pool(self.weights, call)\n",
        "        value = self.kernels.pool(self.weights, call)\n        self.settle_rows(call.ids, until)\n        return value\n",
    ),
    Mutant("fast: the last row of a table is never settled", "fast/tables.py", "range(0, self.rows, chunk)", "range(0, self.rows - 1, chunk)"),
    Mutant(
        "fast: announced rows are settled a step too far", "fast/trainer.py",
        "settle_rows(ids, self.step_index)\n", "settle_rows(ids, self.step_index + 1)\n",
    ),
    Mutant("fast: announced rows are settled before their update", "fast/trainer.py",
        "        for name in calls:\n            self.tables[name].update(",
        "        for name, ids in self._announced.items():\n            self.tables[name].settle_rows(ids, step + 1)\n"
        "        for name in calls:\n            self.tables[name].update(",
    ),
    Mutant("fast: a release settles through the step before", "fast/trainer.py", "table.settle_all(self.step_index, chunk", "table.settle_all(self.step_index - 1, chunk"),
    Mutant("fast: a repeated row is due twice", "fast/cpu/history.py", "            history[ids[i]] = until\n", ""),
    Mutant("fast: only the first 256 ids are ever due", "fast/cpu/history.py", "paid < until", "paid < until and i < 256"),
    Mutant("fast: rows that owe nothing are due", "fast/cpu/history.py", "paid < until", "paid <= until"),
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What noticed a mutant; an empty string: it did not, None: it does not apply."""

    translation: str | None
    proof: str | None
    execution: str

    @property
    def caught(self) -> bool:
        return bool(self.translation or self.proof or self.execution)


def judge(mutant: Mutant, base: dict[str, str]) -> Verdict:
    """Try a mutant against everything that could notice it."""
    text = mutant.text()
    translation = proof = None
    for target in TARGETS:
        if target.source == mutant.file:
            translation, proof = prove(text, target, base)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(mutant.file).name
        path.write_text(text, encoding="utf-8")
        return Verdict(translation, proof, execute(mutant, path))


def prove(text: str, target: translate.Target, base: dict[str, str]) -> tuple[str, str | None]:
    """(what the translator says, the first theory that fails)."""
    try:
        generated = translate.translate(text, target)
    except Refused as refused:
        return f"refused: {str(refused).split(': ')[1]}", None
    name = target.theory.removesuffix(".v")
    changed = base | {name: generated}
    for theory in PROOFS[target.source]:
        wanted = {n: changed[n] for n in closure(theory, changed)}
        try:
            coq.compile_all(check.BUILD.parent / "mutants", wanted)
        except coq.CoqError as error:
            return (
                "",
                f"fails in {str(error).split(chr(34))[1].removeprefix('./') if chr(34) in str(error) else theory}",
            )
    return "", ""


def closure(theory: str, texts: dict[str, str]) -> set[str]:
    """A theory and all that it requires."""
    found: set[str] = set()
    todo = [theory]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += coq.requirements(texts[name])
    return found


def execute(mutant: Mutant, path: Path) -> str:
    """What the execution ties say of the mutated file; empty if nothing."""
    try:
        _execute(mutant, path)
    except AssertionError as error:
        return " ".join(str(error).split())[:90] or "an assertion inside failed"
    except Exception as error:  # a crash is a catch too
        return f"{type(error).__name__}: {' '.join(str(error).split())[:70]}"
    return ""


def _execute(mutant: Mutant, path: Path) -> None:
    module = check.load(path)
    reference = ROOT / "reference"
    if mutant.file in (SCHEDULE, ROWS):
        rows = module if mutant.file == ROWS else check.load(reference / "rows.py")
        schedule = module if mutant.file == SCHEDULE else check.load(reference / "lazy_schedule.py")
        if mutant.file == ROWS:
            for name in ("distinct", "each"):
                setattr(schedule, name, getattr(rows, name))
        run_schedule(schedule, rows)
    elif mutant.file == TRUNCATION:
        run_truncation(module)
    elif mutant.file == "reference/lazy.py":
        run_reference(module)
    else:
        with patched(mutant.file, module):
            run_fast(path.parent)


def run_schedule(schedule: ModuleType, rows: ModuleType) -> None:
    rng = np.random.default_rng(7)
    for _ in range(TRACES):
        trace = ties.random_trace(rng)
        ties.check_schedule(trace, schedule, rows, int(rng.integers(0, len(trace.steps) + 1)))
    for trace in (ties.long_trace(rng), ties.long_trace(rng), ties.wide_trace(rng)):
        ties.check_schedule(trace, schedule, rows, len(trace.steps) // 2)


def run_truncation(truncation: ModuleType) -> None:
    rng = np.random.default_rng(7)
    for _ in range(TRACES):
        gradients = [rng.standard_normal(int(rng.integers(1, 6))) * 10.0 ** rng.integers(-3, 4) for _ in range(3)]
        ties.check_truncation(truncation, gradients, float(10.0 ** rng.integers(-2, 3)), -30)
        parts = rng.integers(-(2**40), 2**40, size=(int(rng.integers(0, 5)), 3)).tolist()
        ties.check_batch_sum(truncation, parts, 3)


def run_reference(lazy: ModuleType) -> None:
    """The tests of the lazy trainer's definition that concern pauses and releases, on the mutated module."""
    tests = check.load(ROOT / "tests" / "test_lazy.py")
    tests.LazyTrainer = lazy.LazyTrainer
    tests.test_R2_a_pause_is_a_copy()
    tests.test_R2_a_run_may_be_paused_after_any_step(tests.Mode.REPLAY, 5)
    tests.test_R1_after_a_release_no_row_owes_noise(tests.Mode.REPLAY)


def run_fast(folder: Path) -> None:
    import fast_ties

    rng = np.random.default_rng(7)
    for number in range(40):
        sizes = {name: int(rng.integers(1, 5)) for name in fast_ties.FEATURES}
        steps = [fast_ties.random_step(rng, sizes) for _ in range(int(rng.integers(1, 6)))]
        place = folder / str(number)
        place.mkdir()
        fast_ties.check_fast(sizes, steps, place, int(rng.integers(0, len(steps))))
    sizes, steps = fast_ties.wide_run(rng)
    fast_ties.check_fast(sizes, steps, folder, None, chunk=64)


@contextmanager
def patched(file: str, module: ModuleType) -> Iterator[None]:
    """Put the functions of a mutated module in the place of the installed ones."""
    import samelaw.fast.cpu.backend as backend
    from samelaw.fast.tables import LazyTable
    from samelaw.fast.trainer import LazyTrainer

    if file == "fast/cpu/history.py":
        before = backend.take_due
        backend.take_due = module.take_due
        try:
            yield
        finally:
            backend.take_due = before
        return
    whole = LazyTable if file == "fast/tables.py" else LazyTrainer
    broken = getattr(module, whole.__name__)
    kept = {name: value for name, value in vars(whole).items() if isinstance(value, FunctionType)}
    try:
        for name, value in vars(broken).items():
            if isinstance(value, FunctionType):
                setattr(whole, name, value)
        yield
    finally:
        for name, value in kept.items():
            setattr(whole, name, value)


def rows_of_page(verdicts: Sequence[tuple[Mutant, Verdict]]) -> Iterator[str]:
    for mutant, verdict in verdicts:
        proof = "–" if verdict.proof is None else verdict.proof or "holds"
        translation = "–" if verdict.translation is None else verdict.translation or "translates"
        cells = (mutant.name, f"`{mutant.file}`", translation, proof, verdict.execution or "no difference")
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def page(verdicts: Sequence[tuple[Mutant, Verdict]]) -> str:
    """docs/proofs-mutants.md."""
    refused = sum(bool(v.translation) for _, v in verdicts)
    unproved = sum(bool(v.proof) for _, v in verdicts)
    executed = sum(bool(v.execution) for _, v in verdicts)
    survivors = [m.name for m, v in verdicts if not v.caught]
    lines = [
        "# Planted bugs",
        "",
        "Generated by `make proofs-mutants`. Each line is one bug planted in the Python: what the translator makes of it,",
        "the first theory that no longer compiles, and what the executions on terms and in exact rationals say. A dash:",
        "the file is not translated. What each column is, and what it cannot see, is on [the page about the proofs](proofs.md).",
        "",
        f"{len(verdicts)} bugs: the translator refuses {refused}, a proof fails for {unproved}, an execution catches "
        f"{executed}; without a bug nothing is refused. "
        + (f"Survivors: {', '.join(survivors)}." if survivors else "None survives."),
        "",
        "| bug | file | translation | proof | execution |",
        "|---|---|---|---|---|",
        *rows_of_page(verdicts),
        "",
    ]
    return "\n".join(lines)


def main(names: Sequence[str]) -> int:
    unusable = coq.unusable()
    if unusable:
        print(f"mutants: {unusable}", file=sys.stderr)
        return 1
    start = time.monotonic()
    base = check.theories()
    folder = check.BUILD.parent / "mutants"
    if not folder.exists() and check.BUILD.exists():
        shutil.copytree(check.BUILD, folder)
    for file in dict.fromkeys(mutant.file for mutant in MUTANTS):
        control = judge(Mutant("no bug", file, "", ""), base)
        if control.caught:
            print(f"{file}, without any bug planted, is refused: {control}", file=sys.stderr)
            return 1
    verdicts: list[tuple[Mutant, Verdict]] = []
    for mutant in MUTANTS:
        if names and not any(name in mutant.name for name in names):
            continue
        verdict = judge(mutant, base)
        verdicts.append((mutant, verdict))
        print(("caught   " if verdict.caught else "SURVIVES ") + next(rows_of_page(verdicts[-1:])), flush=True)
    if not names:
        PAGE.write_text(page(verdicts), encoding="utf-8")
    caught = sum(v.caught for _, v in verdicts)
    print(f"{caught} of {len(verdicts)} mutants caught in {time.monotonic() - start:.0f} s")
    return 0 if caught == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
