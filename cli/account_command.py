"""`samelaw account`: what a run, several runs or a plan cost, and what they may cost."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    parser = commands.add_parser(
        "account",
        help="price a run folder's ledger, several runs on the same data, or a plan; calibrate noise or steps",
        description="With run folders: prices their ledgers, whatever was configured. Without: prices the mechanism "
        "given by --noise-multiplier, --sampling-rate and --steps; with --target-epsilon, finds the one of "
        "--noise-multiplier and --steps that is not given. The upper end of the interval is the promise. "
        "Exit 0: priced; 1: it cannot be priced soundly, with the reason; 2: bad input, or out of time.",
    )
    parser.add_argument("runs", metavar="RUN_DIR", type=Path, nargs="*", help="run folders, or ledger files")
    parser.add_argument(
        "--same-data",
        action="store_true",
        help="the runs were made from the same data, and their costs compose; needed for more than one run",
    )
    parser.add_argument("--noise-multiplier", type=float, metavar="SIGMA", help="noise std over clip norm")
    parser.add_argument("--sampling-rate", type=float, metavar="Q", help="probability that an example joins a batch")
    parser.add_argument("--steps", type=int, metavar="T")
    parser.add_argument("--delta", type=float, help="where epsilon is quoted; of a run, the law's own by default")
    parser.add_argument("--target-epsilon", type=float, metavar="EPS", help="find noise multiplier or steps for this")
    parser.add_argument(
        "--phase",
        action="append",
        default=[],
        metavar="Q,SIGMA,STEPS",
        help="steps of their own sampling rate and noise multiplier; may be repeated, instead of the three options",
    )
    parser.add_argument(
        "--second-noise-multiplier",
        type=float,
        metavar="SIGMA2",
        help="every step makes a second Gaussian release from the same batch (AdaFEST's selection)",
    )
    parser.add_argument(
        "--spend",
        action="append",
        default=[],
        metavar="NAME:EPS,DELTA",
        help="something else that was learned from the same data, e.g. vocabulary:0.5,1e-7; may be repeated",
    )
    parser.add_argument(
        "--adjacency",
        choices=["add_remove", "replace_one", "zero_out"],
        default="add_remove",
        help="when two data sets are neighbours (default add_remove)",
    )
    parser.add_argument(
        "--sampler",
        choices=["poisson", "truncated_poisson", "fixed_size", "shuffled"],
        default="poisson",
        help="how batches are drawn (default poisson); shuffled is refused, with how wrong Poisson would be",
    )
    parser.add_argument("--examples", type=int, metavar="N", help="size of the data set, for truncated_poisson")
    parser.add_argument("--largest-batch", type=int, metavar="B", help="where truncated_poisson cuts batches")
    parser.add_argument(
        "--examples-per-unit",
        type=int,
        default=1,
        metavar="K",
        help="examples that one person gives at most (default 1)",
    )
    parser.add_argument(
        "--released",
        choices=["final_model", "every_iterate"],
        default="every_iterate",
        help="what leaves (default every_iterate); both cost the same",
    )
    parser.add_argument(
        "--data-derived-batch-size",
        action="store_true",
        help="the sum is divided by a number that was computed from the data: refused, with the reason",
    )
    parser.add_argument(
        "--curve", type=Path, metavar="FILE", help="write delta as a function of epsilon to this .csv or .json file"
    )
    parser.add_argument("--points", type=int, default=21, help="points of curve and plot (default 21)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="the curve as a picture: .svg, .png or .html")
    parser.add_argument("--json", action="store_true", help="print everything as JSON on standard output")
    parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="SECONDS", help="give up after this long (default 120)"
    )


def run(options: argparse.Namespace) -> int:
    from samelaw.cli.account_run import run_account  # scipy and the accountants take a second to import

    return run_account(options)
