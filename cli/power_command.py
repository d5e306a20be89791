"""`samelaw power`: do the tests of law see the gaps that they say they see?"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    parser = commands.add_parser(
        "power",
        help="plant gaps of stated size in correct noise and report how often they are seen",
        description="Plants in exact normals, for each test of law, a gap of exactly the size that it claims to "
        "detect; and in the noise of real runs of the lazy trainer gaps of stated sizes, judged by the whole suite at "
        "its working error rates. Reports detection rates with Clopper-Pearson intervals beside what was promised. "
        "Exit 0: no promise is refuted; 1: one is; 2: bad input.",
    )
    parser.add_argument("--runs", type=int, default=30, help="real runs, each with every gap (default 30)")
    parser.add_argument("--synthetic", type=int, default=1000, help="samples of normals a test (default 1000)")
    parser.add_argument(
        "--false-alarm", type=float, default=1e-9, metavar="RATE", help="budget of the whole suite (default 1e-9)"
    )
    parser.add_argument(
        "--alpha",
        type=float,
        default=1e-6,
        help="error budget of the judgement itself: probability of refuting a promise that holds (default 1e-6)",
    )
    parser.add_argument("--seed", type=int, default=None, help="repeat a measurement (default: fresh keys and traces)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON on standard output")
    parser.add_argument(
        "--write", type=Path, default=None, metavar="PAGE", help="put the tables into the marked section of a page"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    from samelaw.cli.power_run import run_power  # torch and scipy take seconds to import

    return run_power(options)
