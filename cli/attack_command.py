"""`samelaw attack`: plant canaries in a run that the reviewer starts, and hold what they show against its price."""

from __future__ import annotations

import argparse
from pathlib import Path

DEFAULT_CANARIES = 20_000
NOT_REFUTED, REFUTED, INCONCLUSIVE, BAD_INPUT = 0, 1, 2, 3


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    parser = commands.add_parser(
        "attack",
        help="plant canaries in a training run and bound epsilon from below",
        description="Trains with planted canaries, bounds epsilon from below by what the released weights show of "
        "them, and holds the bounds against the accountant's epsilon for the same run. "
        "Exit 0: no bound is above the claim; 1: the claim is refuted; 2: inconclusive; 3: bad input.",
    )
    parser.add_argument("attack", metavar="WORKLOAD", help="a name from `samelaw workloads`")
    parser.add_argument("--path", type=Path, default=None, help="file or folder of a workload that is read from disk")
    parser.add_argument("--scale", type=float, default=None, help="scale of a synthetic workload's tables")
    parser.add_argument("--skip-bad-lines", action="store_true", help="count malformed lines instead of stopping")
    parser.add_argument("--confidence", type=float, default=0.95, help="of all bounds together (default 0.95)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_attack_options(parser)


def add_attack_options(parser: argparse.ArgumentParser) -> None:
    """The options that only an attack has; `attack` (the workload), `confidence`, `json` and `quiet` are others'."""
    group = parser.add_argument_group("attack")
    group.add_argument(
        "--canaries",
        type=int,
        default=DEFAULT_CANARIES,
        help=f"planted examples, half of which join the training set by fair coins (default {DEFAULT_CANARIES})",
    )
    group.add_argument(
        "--examples", type=int, default=1000, help="ordinary examples of the workload beside them (default 1000)"
    )
    group.add_argument("--steps", type=int, default=16, help="training steps (default 16)")
    group.add_argument(
        "--sampling-rate",
        type=float,
        default=1.0,
        help="q of the run; only at 1 is the attack as strong as the accountant allows (default 1)",
    )
    group.add_argument("--noise-multiplier", type=float, default=8.0, help="sigma of the run (default 8)")
    group.add_argument("--clip-norm", type=float, default=1.0, help="C of the run (default 1)")
    group.add_argument("--learning-rate", type=float, default=10.0, help="constant learning rate (default 10)")
    group.add_argument("--delta", type=float, default=1e-5, help="delta of claim and bounds (default 1e-5)")
    group.add_argument("--dim", type=int, default=8, help="embedding dimension (default 8)")
    group.add_argument(
        "--repeats",
        type=int,
        default=1,
        help="how often a canary names its row in its bag; needs sum pooling (default 1)",
    )
    group.add_argument(
        "--mode", choices=["replay", "bridge", "aggregate"], default="aggregate", help="how owed noise is drawn"
    )
    group.add_argument(
        "--trainer",
        choices=["fast", "reference"],
        default="fast",
        help="whom to attack: the lazy trainer on torch or the eager NumPy definition (default fast)",
    )
    group.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where the trainer runs (default cpu)")
    group.add_argument(
        "--false-alarm",
        type=float,
        default=1e-6,
        help="probability with which a correct run may be called refuted (default 1e-6)",
    )
    group.add_argument(
        "--fault", default=None, metavar="NAME", help="plant a fault in the fast trainer; 'list' explains them"
    )
    group.add_argument(
        "--seed", type=int, default=None, help="fixed seed of key, coins and directions, for a run to be repeated"
    )


def run(options: argparse.Namespace) -> int:
    from samelaw.cli.canary_run import run_attack  # torch and numba take seconds to import

    return run_attack(options)
