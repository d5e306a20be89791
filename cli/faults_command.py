"""`samelaw faults`: every fault of the catalogue planted in real trainers, and which claims refuse it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samelaw.contract.spec import Mode
    from samelaw.equivalence.faults import Fault, Scenario

SEED = 7
RECORD = "fault-matrix.json"


def add_parser(commands: Any) -> None:
    """`samelaw faults`, its options."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "faults",
        help="plant every fault of the catalogue and print which claims refuse it",
        description="Plants every fault in every mode in which it is one, runs real trainers, and prints the matrix "
        "fault by claim. Exit 0: every fault is caught by the claims that it names, and nothing is refused without a "
        "fault; 1: a fault escapes or a sound run is refused; 2: bad input, or a fault that can no longer be planted.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one mode a fault, and of each fault only the claims that it names"
    )
    parser.add_argument("--only", default=None, metavar="NAME,...", help="these faults")
    parser.add_argument("--mode", choices=["replay", "bridge", "aggregate", "all"], default="all")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of keys and models (default {SEED})")
    parser.add_argument("--list", action="store_true", help="print the catalogue and run nothing")
    parser.add_argument("--json", action="store_true", help="print the matrix as JSON on standard output")
    parser.add_argument("--out", type=Path, default=None, metavar="DIR", help=f"write {RECORD} there")
    parser.add_argument(
        "--page", type=Path, default=None, metavar="FILE", help="write the matrix as a page in Markdown"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Plan, run, judge, print."""
    from samelaw.cli.data import check_positive
    from samelaw.equivalence.matrix import matrix_record
    from samelaw.equivalence.matrix_page import page, terminal
    from samelaw.equivalence.schemas import check_fault_matrix

    if options.list:
        _print_catalogue()
        return 0
    check_positive("--seed", options.seed, least=0)
    faults = _chosen(options)
    _check_writable(options)
    matrix = run_matrix(faults, _modes(options), options.seed, quick=options.quick, quiet=options.quiet)
    record = matrix_record(matrix)
    check_fault_matrix(record)
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    if options.out is not None:
        (options.out / RECORD).write_text(text, encoding="utf-8")
    if options.page is not None:
        options.page.write_text(page(matrix), encoding="utf-8")
    print(text if options.json else "\n".join(terminal(matrix)))
    for row in matrix.rows:
        if not row.holds:
            where = "; ".join(f"{c}: {row.findings[c].where}" for c in row.caught_by if row.findings[c].where)
            name = row.fault or f"no fault ({row.scenario})"
            missing = f", not refused by {', '.join(row.missed)}" if row.missed else ""
            print(f"{row.outcome}: {name}, {row.mode}{missing}. {where}", file=sys.stderr)
    caught = len(
        {row.fault for row in matrix.planted if row.holds} - {row.fault for row in matrix.rows if not row.holds}
    )
    print(f"{caught} of {len(faults)} faults are caught by the claims that they name.", file=sys.stderr)
    return 0 if matrix.holds else 1


def run_matrix(faults: list[Fault], modes: tuple[Mode, ...], seed: int, *, quick: bool, quiet: bool = True) -> Any:
    """Every trial of the plan, judged: a Matrix."""
    import tempfile

    from tqdm import tqdm

    from samelaw.cli.bench_runs import Bench
    from samelaw.equivalence.budget import Budget
    from samelaw.equivalence.matrix import Matrix, Row, judge

    plan = list(planned(faults, modes, quick=quick))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as private:
        # No run without a fault may be refused, with one budget for all of them; faults are judged as strictly.
        sound = sum(fault is None for fault, *_ in plan)
        bench = Bench(seed, Path(private), Budget(Budget().share(sound)))
        for fault, mode, scenario, asked in tqdm(plan, desc="faults", unit="trial", disable=quiet, file=sys.stderr):
            rows.append(judge(fault, mode, scenario, bench.evidence(scenario, mode, fault, asked)))
    return Matrix(tuple(rows), seed, quick)


Trial = tuple["Fault | None", "Mode", "Scenario", "set[str] | None"]


def planned(faults: list[Fault], modes: tuple[Mode, ...], *, quick: bool) -> Iterator[Trial]:
    """Fault, mode, scenario and the claims that are asked (None: all): the runs without a fault first.

    Quick: the modes of the catalogue's faults take turns, so that every mode is met.
    """
    from samelaw.equivalence.faults import FAULTS

    turn = {name: number for number, name in enumerate(FAULTS)}
    trials: list[Trial] = []
    for fault in faults:
        mine = [mode for mode in fault.modes if mode in modes]
        if quick:
            number = turn.get(fault.name, 0)
            mine = [mine[number % len(mine)]]
        for mode in mine:
            asked = {claim.partition(" ")[0] for claim in fault.caught_by[mode]} if quick else None
            trials.append((fault, mode, fault.scenario, asked))
    for mode, scenario in dict.fromkeys((mode, scenario) for _, mode, scenario, _ in trials):
        asked = {claim for _, m, s, claims in trials if (m, s) == (mode, scenario) for claim in claims or ()}
        yield None, mode, scenario, asked if quick else None
    yield from trials


def _chosen(options: argparse.Namespace) -> list[Fault]:
    """The faults of --only and --mode.

    Raises:
        InputError: no such fault, or one that is none in this mode.
    """
    from samelaw.contract.errors import InputError
    from samelaw.equivalence.faults import FAULTS

    modes = _modes(options)
    if options.only is None:
        return [fault for fault in FAULTS.values() if set(fault.modes) & set(modes)]
    names = [name for name in options.only.split(",") if name]
    for name in names:
        if name not in FAULTS:
            raise InputError(f"--only takes names of `samelaw faults --list`, separated by commas; got {name!r}")
        if not set(FAULTS[name].modes) & set(modes):
            wanted = " or ".join(map(str, FAULTS[name].modes))
            raise InputError(f"{name} is no bug in --mode {options.mode}; use --mode {wanted}, or all")
    if not names:
        raise InputError(f"--only needs at least one name of `samelaw faults --list`, got {options.only!r}")
    return [FAULTS[name] for name in dict.fromkeys(names)]


def _modes(options: argparse.Namespace) -> tuple[Mode, ...]:
    from samelaw.contract.spec import Mode

    return tuple(Mode) if options.mode == "all" else (Mode(options.mode),)


def _check_writable(options: argparse.Namespace) -> None:
    """Before minutes are spent: whether the results will have a place."""
    from samelaw.contract.errors import InputError

    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out must be a folder, and {options.out} is a file")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    if options.page is not None and options.page.is_dir():
        raise InputError(f"--page must be a file, and {options.page} is a folder")
    if options.page is not None and not options.page.parent.is_dir():
        raise InputError(f"--page must lie in a folder that exists; there is no {options.page.parent}")


def _print_catalogue() -> None:
    from samelaw.equivalence.faults import FAULTS

    width = max(map(len, FAULTS))
    for name, fault in FAULTS.items():
        seen = f" Seen in {fault.seen}." if fault.seen else ""
        print(f"{name:<{width}}  {fault.kind:<10}  {fault.sentence}{seen} [{', '.join(map(str, fault.modes))}]")
