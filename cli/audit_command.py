"""`samelaw audit`: judge a run folder that somebody else wrote."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from samelaw.cli.attack_command import add_attack_options

NOT_REFUTED, REFUTED, INCONCLUSIVE, BAD_INPUT = 0, 1, 2, 3


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    parser = commands.add_parser(
        "audit",
        help="judge a run folder that somebody else wrote, trusting nothing in it",
        description="Checks a run folder against itself, prices its ledger anew, looks at the released weights and, "
        "with the escrowed key and the transcript, executes the run again. Needs no torch; executes nothing from the "
        "folder. Exit 0: nothing refuted and nothing required missing; 1: refuted; 2: inconclusive; 3: bad input.",
    )
    parser.add_argument("run", metavar="RUN_DIR", type=Path, nargs="?", default=None, help="the run folder")
    parser.add_argument("--key", type=Path, default=None, metavar="FILE", help="the run's noise key, from escrow")
    parser.add_argument(
        "--transcript", type=Path, default=None, metavar="FILE", help="what `samelaw train --transcript` recorded"
    )
    parser.add_argument(
        "--replay",
        choices=["all", "sample"],
        default=None,
        help="execute all rows again, or a random sample of them; then replay is required, and without key and "
        "transcript the audit is inconclusive (default: all rows where that is cheap, if key and transcript are given)",
    )
    parser.add_argument("--sample-rows", type=int, default=None, help="rows of a sample (default: a tenth, at most)")
    parser.add_argument(
        "--other", type=Path, default=None, metavar="RUN_DIR", help="a second run, to look for noise that both share"
    )
    parser.add_argument("--confidence", type=float, default=0.95, help="of what a sample says (default 0.95)")
    parser.add_argument(
        "--largest-weights", type=float, default=64.0, metavar="GIB", help="refuse larger weight files (default 64)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        metavar="FILE.html",
        help="write the report here, the public record beside it as FILE.record.json, and the private evidence as "
        "FILE.evidence.json",
    )
    parser.add_argument("--json", action="store_true", help="print the public record as JSON on standard output")
    parser.add_argument("--junit", type=Path, default=None, metavar="FILE", help="write the checks as JUnit XML")
    parser.add_argument(
        "--attack",
        default=None,
        metavar="WORKLOAD",
        help="instead of a run folder: plant canaries in a training run of this workload (see `samelaw attack --help`)",
    )
    parser.add_argument("--path", type=Path, default=None, help="with --attack: file or folder of the workload")
    parser.add_argument("--scale", type=float, default=None, help="with --attack: scale of a synthetic workload")
    parser.add_argument("--skip-bad-lines", action="store_true", help="with --attack: count malformed lines")
    parser.add_argument("--quiet", action="store_true", help="with --attack: no progress bar")
    add_attack_options(parser)


def _usage(message: str) -> NoReturn:
    print(f"samelaw audit: {message}\nSee `samelaw audit --help`.", file=sys.stderr)
    sys.exit(BAD_INPUT)


def run(options: argparse.Namespace) -> int:
    if (options.run is None) == (options.attack is None):
        _usage("name a RUN_DIR, or a workload with --attack")
    if options.attack is not None:
        of_a_folder = ("key", "transcript", "replay", "sample_rows", "other", "out", "junit")
        given = [f"--{name.replace('_', '-')}" for name in of_a_folder if getattr(options, name) is not None]
        if given:
            _usage(f"{', '.join(given)}: only for a RUN_DIR; an attack starts a run of its own and keeps no folder")
        from samelaw.cli import attack_command

        return attack_command.run(options)
    from samelaw.cli.audit_run import run_audit

    return run_audit(options)
