"""`samelaw calibrate`: how often do the tests of law refuse a correct trainer?"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    parser = commands.add_parser(
        "calibrate",
        help="run the tests of law on many correct runs and report their false-alarm rates",
        description="Makes many small runs of the lazy trainer, each with a fresh key and trace, and measures every "
        "test of law on each; then the same tests on exact normals. Reports how often each would have refused at "
        "several nominal rates, with Clopper-Pearson intervals, and the whole suite after Holm. Exit 0: no rate is "
        "refuted as above its nominal level; 1: one is; 2: bad input.",
    )
    parser.add_argument("--runs", type=int, default=300, help="runs of the lazy trainer (default 300)")
    parser.add_argument(
        "--synthetic", type=int, default=2000, help="samples of exact normals for each test (default 2000)"
    )
    parser.add_argument(
        "--alpha",
        type=float,
        default=1e-6,
        help="error budget of the judgement itself: probability of calling a well calibrated suite badly calibrated "
        "(default 1e-6)",
    )
    parser.add_argument(
        "--rates",
        default="0.1,0.01,0.001",
        help="nominal false-alarm rates, separated by commas (default 0.1,0.01,0.001)",
    )
    parser.add_argument(
        "--mode",
        choices=["replay", "bridge", "aggregate", "all"],
        default="all",
        help="how owed noise is drawn; all takes turns (default all)",
    )
    parser.add_argument("--seed", type=int, default=None, help="repeat a calibration (default: fresh keys and traces)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON on standard output")
    parser.add_argument(
        "--write", type=Path, default=None, metavar="PAGE", help="put the tables into the marked section of a page"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    from samelaw.cli.calibrate_run import run_calibrate  # torch and scipy take seconds to import

    return run_calibrate(options)
