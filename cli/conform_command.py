"""`samelaw conform`: put a trainer that samelaw has never seen on the bench."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

HOLDS, REFUTED = 0, 1
LONGEST = 86400  # seconds


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    parser = commands.add_parser(
        "conform",
        help="put somebody else's trainer on the bench",
        description="Runs a trainer on problems whose gradients are known in advance, and judges every claim that its "
        "declared abilities allow; writes evidence.json, bench.json and report.html. docs/bench.md is the guide. "
        "Exit 0: no claim was refuted; 1: one was; 2: bad input, or weights that cannot be judged.",
    )
    parser.add_argument(
        "trainer", metavar="MODULE:FACTORY", nargs="?", default=None, help="a Python trainer, for instance mine:Trainer"
    )
    parser.add_argument(
        "--command",
        dest="program",
        metavar="COMMAND",
        default=None,
        help="a trainer that is a program: 'prog {in} {out}' reads a job from one folder and writes weights to another",
    )
    parser.add_argument(
        "--abilities", type=Path, default=None, metavar="FILE", help="with --command: JSON object of what it can do"
    )
    parser.add_argument("--runs", type=int, default=8, help="repeated runs whose noise is judged (default 8)")
    parser.add_argument(
        "--seed", type=int, default=None, help="decides the seeds that the trainer is handed (default: a fresh one)"
    )
    parser.add_argument(
        "--false-alarm",
        type=float,
        default=1e-9,
        help="probability of refuting a correct trainer, over all claims together (default 1e-9)",
    )
    parser.add_argument(
        "--timeout", type=float, default=60.0, help="seconds that one run of the trainer may take (default 60)"
    )
    parser.add_argument(
        "--price",
        nargs=4,
        default=None,
        metavar=("SIGMA", "RATE", "STEPS", "DELTA"),
        help="parameters of a run of yours: say what the smallest gap seen could cost it in epsilon",
    )
    parser.add_argument("--out", type=Path, default=None, help="folder to write (default runs/conform-<time>)")
    parser.add_argument("--json", action="store_true", help="print the evidence as JSON on standard output")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    import json
    import secrets
    import sys
    from dataclasses import asdict
    from datetime import UTC, datetime

    from tqdm import tqdm

    from samelaw.cli import runfolder
    from samelaw.cli.bench_price import mechanism_of, prices
    from samelaw.contract.errors import InputError
    from samelaw.equivalence.bench.claims import counts, verdict_line
    from samelaw.equivalence.bench.conform import conform, jobs_asked_for
    from samelaw.equivalence.bench.page import bench_page, headline
    from samelaw.equivalence.claims import suite_holds
    from samelaw.equivalence.schemas import check_bench, evidence_record

    if (options.trainer is None) == (options.program is None):
        raise InputError("samelaw conform needs either MODULE:FACTORY or --command, and not both")
    if options.abilities is not None and options.program is None:
        raise InputError("--abilities goes with --command; a Python factory has an attribute `abilities`")
    if not 0 < options.timeout <= LONGEST:
        raise InputError(f"--timeout must be > 0 and at most {LONGEST} seconds (a day), got {options.timeout}")
    priced = None if options.price is None else mechanism_of(options.price)
    check_options(options.runs, options.false_alarm, options.seed)
    seed = secrets.randbits(31) if options.seed is None else options.seed
    with ExitStack() as stack:
        runner, abilities, twin = trainer_of(options, stack)
        folder = runfolder.create(options.out, "conform")
        bar = stack.enter_context(
            tqdm(total=jobs_asked_for(abilities, options.runs), disable=options.quiet, unit="run", leave=False)
        )
        evidence = conform(
            runner,
            abilities,
            runs=options.runs,
            seed=seed,
            false_alarm=options.false_alarm,
            twin=twin,
            done=lambda _: bar.update(),
        )
    holds = suite_holds(evidence)
    record: dict[str, Any] = {
        "schema": "samelaw.bench/1",
        "trainer": options.trainer or options.program,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "abilities": abilities.to_json(),
        "options": {
            "runs": options.runs,
            "seed": seed,
            "false_alarm": options.false_alarm,
            "timeout": options.timeout,
            "price": None if priced is None else {**asdict(priced[0]), "delta": priced[1]},
        },
        "verdict": "HOLDS" if holds else "REFUTED",
        "verdicts": counts(evidence),
        "tolerances": [] if priced is None else prices(evidence, *priced),
        "environment": runfolder.environment(("samelaw", "numpy", "torch", "scipy", "opacus")),
    }
    found = evidence_record(evidence)
    runfolder.write_json(folder / "evidence.json", found)
    whole = record | {"files": runfolder.digests(folder)}
    check_bench(whole)
    runfolder.write_json(folder / "bench.json", whole)
    runfolder.write_text(folder / "report.html", bench_page(record, evidence))
    say = sys.stderr if options.json else sys.stdout
    for item in evidence:
        print(verdict_line(item), file=say)
    for tolerance in record["tolerances"]:
        print(tolerance["sentence"], file=say)
    if priced is not None and not record["tolerances"]:
        print("There is no tolerance to price: a claim about noise was refuted, or none was assessed.", file=say)
    print(*headline(evidence), f"\nThe report: {folder / 'report.html'}", file=say)
    if options.json:
        print(json.dumps(found, indent=2))
    return HOLDS if holds else REFUTED


def check_options(runs: int, false_alarm: float, seed: int | None) -> None:
    """Raises InputError unless `conform` can take them: said before anything is started."""
    from samelaw.contract.errors import InputError
    from samelaw.equivalence.bench.conform import FEWEST_RUNS

    if runs < FEWEST_RUNS:
        raise InputError(f"--runs must be >= {FEWEST_RUNS}, got {runs}: noise that repeats shows only in two runs")
    if not 0 < false_alarm <= 0.01:
        raise InputError(f"--false-alarm must be in (0, 0.01], got {false_alarm}")
    if seed is not None and seed < 0:
        raise InputError(f"--seed must be >= 0, got {seed}")


def trainer_of(options: argparse.Namespace, stack: ExitStack) -> tuple[Any, Any, Any]:
    """Runner, abilities and, for keyed noise, the reference; whatever was started ends with the stack."""
    from samelaw.cli.bench_processes import Command, Worker
    from samelaw.contract.bench import Abilities

    if options.program is not None:
        declared = Abilities() if options.abilities is None else read_abilities(options.abilities)
        runner: Any = Command(options.program, declared, timeout=options.timeout)
    else:
        runner = stack.enter_context(Worker(options.trainer, timeout=options.timeout))
    twin = None
    if runner.abilities.noise == "keyed":
        from samelaw.cli.bench_own import reference  # torch and numba: only where the reference is needed

        twin = reference
    return runner, runner.abilities, twin


def read_abilities(path: Path) -> Any:
    """Abilities from a JSON file."""
    import json

    from samelaw.contract.bench import Abilities
    from samelaw.contract.errors import InputError

    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise InputError(f"--abilities {path} cannot be read as JSON: {cause}") from cause
    return Abilities.of(record, f"--abilities {path}")
