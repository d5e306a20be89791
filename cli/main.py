"""The `samelaw` command.

Exit status: 0 everything holds, 1 a claim was refuted (or training lost a guarantee), 2 bad input; 70 an error inside
samelaw itself, which says nothing about the claims; 130 and 143 ended by Ctrl-C or SIGTERM. For audit and attack: 2
inconclusive, 3 bad input.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import traceback
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from samelaw.cli import (
    account_command,
    attack_command,
    audit_command,
    calibrate_command,
    conform_command,
    faults_command,
    power_command,
)
from samelaw.contract.errors import DataError, InputError, NoiseKeyError, PrivacyError, SamelawError

HOLDS, REFUTED, BAD_INPUT, BUG, INTERRUPTED, TERMINATED = 0, 1, 2, 70, 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status."""
    parser = build_parser()
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        options = parser.parse_args(given)
    except SystemExit as end:
        if end.code == BAD_INPUT and given[:1] in (["audit"], ["attack"]):  # where 2 means inconclusive
            sys.exit(audit_command.BAD_INPUT)
        raise
    with _termination():
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    """The command, and what its end means as an exit status."""
    try:
        return _COMMANDS[options.command](options)
    except (InputError, DataError, NoiseKeyError) as error:
        print(f"samelaw: {error}", file=sys.stderr)
        return BAD_INPUT
    except PrivacyError as error:
        print(f"samelaw: {type(error).__name__}: {error}", file=sys.stderr)
        return REFUTED
    except SamelawError as error:
        print(f"samelaw: {error}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return HOLDS
    except OSError as error:
        print(f"samelaw: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("samelaw: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception:  # Python's own status for it, 1, would read as a refuted claim
        traceback.print_exc()
        print("samelaw: an error inside samelaw; nothing was concluded. Please report it", file=sys.stderr)
        return BUG


@contextmanager
def _termination() -> Generator[None]:
    """Let SIGTERM end the command as an exception, so that temporary folders are removed on the way out."""

    def terminated(*_: object) -> NoReturn:
        sys.exit(TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="samelaw",
        description="Differentially private training of recommender models, "
        "and evidence that the lazy way is the same law.",
    )
    parser.add_argument("--version", action="version", version=f"samelaw {version('samelaw')}")
    commands = parser.add_subparsers(dest="command", required=True)

    verify = commands.add_parser(
        "verify",
        help="train both twins from identical seeds, compare them, price the run, write a report",
        description="Trains the eager definition and the lazy trainer in closed loop from identical seeds, checks the "
        "claims, prices the run and writes a run folder with report.html. "
        "Exit 0: every claim holds; 1: one fails; 2: bad input.",
    )
    _add_data_options(verify, default="movielens-100k")
    verify.add_argument(
        "--steps", type=int, default=None, help="training steps per mode (default 120; bridge runs at most 32)"
    )
    verify.add_argument(
        "--mode",
        choices=["replay", "bridge", "aggregate", "all"],
        default="all",
        help="how owed noise is drawn (default all)",
    )
    verify.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="where the lazy trainer runs (default cpu)"
    )
    verify.add_argument(
        "--seed",
        type=int,
        default=None,
        help="fixed seed of the noise key, for a run that can be repeated (default: a fresh key)",
    )
    verify.add_argument("--out", type=Path, default=None, help="run folder to write (default runs/verify-<time>)")
    verify.add_argument(
        "--false-alarm",
        type=float,
        default=1e-9,
        metavar="RATE",
        help="probability of refusing a correct trainer, all tests of the call together (default 1e-9)",
    )
    verify.add_argument(
        "--fault",
        default=None,
        metavar="NAME",
        help="seed a fault in the lazy trainer and see it caught; 'list' explains them",
    )
    verify.add_argument("--json", action="store_true", help="print the evidence as JSON on standard output")
    verify.add_argument("--quiet", action="store_true", help="no progress bars")

    train = commands.add_parser(
        "train",
        help="train with the lazy trainer and write a run folder",
        description="Trains a DLRM with the lazy trainer, with held-out AUC as it goes, and writes the same kind of "
        "run folder as verify: settled weights, ledger, manifest, report.",
    )
    _add_data_options(train, default=None)
    train.add_argument(
        "--epochs", type=float, default=None, help="expected passes over the data (default 10, unless --steps)"
    )
    train.add_argument("--steps", type=int, default=None, help="training steps, instead of --epochs")
    train.add_argument(
        "--batch-size",
        type=float,
        default=1024,
        help="expected batch size B; sets the sampling rate B / N (default 1024)",
    )
    train.add_argument(
        "--clip-norm",
        type=float,
        default=0.25,
        help="clip norm C of the joint per-example gradient (default 0.25)",
    )
    noise = train.add_mutually_exclusive_group()
    noise.add_argument(
        "--noise-multiplier",
        type=float,
        default=None,
        help="sigma: the summed gradient gets noise of std sigma * C",
    )
    noise.add_argument(
        "--target-epsilon",
        type=float,
        default=None,
        help="choose sigma for this epsilon at --delta (default 8 when neither is given)",
    )
    train.add_argument(
        "--delta", type=float, default=None, help="delta at which epsilon is quoted (default: 1 / N^1.1)"
    )
    train.add_argument(
        "--learning-rate",
        type=float,
        default=30.0,
        help="peak learning rate; the update is lr / B times the noisy sum (default 30)",
    )
    train.add_argument(
        "--schedule",
        choices=["constant", "cosine"],
        default="cosine",
        help="learning rate as a function of the step (default cosine)",
    )
    train.add_argument("--dim", type=int, default=16, help="embedding dimension (default 16)")
    train.add_argument(
        "--mode",
        choices=["replay", "bridge", "aggregate"],
        default="aggregate",
        help="how owed noise is drawn (default aggregate)",
    )
    train.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    train.add_argument(
        "--seed",
        type=int,
        default=None,
        help="fixed seed of the noise key: for tests only, anybody who guesses it can strip the noise",
    )
    train.add_argument(
        "--key-file",
        type=Path,
        default=None,
        help="noise key: written to this new file; with --resume, read from it",
    )
    train.add_argument(
        "--transcript",
        type=Path,
        default=None,
        metavar="FILE",
        help="record the gradient sums of every step in this new file, for `samelaw audit --replay`. SENSITIVE: no "
        "noise protects them; keep the file as you keep the training data",
    )
    train.add_argument(
        "--no-initial-weights",
        dest="initial_weights",
        action="store_false",
        help="leave the initial weights out of the run folder (they are public, and as large as the released ones)",
    )
    train.add_argument("--out", type=Path, default=None, help="run folder to write (default runs/train-<time>)")
    train.add_argument(
        "--checkpoint-every",
        type=int,
        default=0,
        help="write a private resume checkpoint every so many steps (default never)",
    )
    train.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out, with --key-file")
    train.add_argument(
        "--evaluate-every",
        type=int,
        default=0,
        help="steps between held-out evaluations (default: 20 in a run)",
    )
    train.add_argument("--json", action="store_true", help="print the manifest as JSON on standard output")
    train.add_argument("--quiet", action="store_true", help="no progress bar")

    account_command.add_parser(commands)
    attack_command.add_parser(commands)
    audit_command.add_parser(commands)
    calibrate_command.add_parser(commands)
    conform_command.add_parser(commands)
    power_command.add_parser(commands)
    faults_command.add_parser(commands)

    workloads = commands.add_parser("workloads", help="list the data sets and synthetic traces")
    workloads.add_argument("--json", action="store_true")
    return parser


def _add_data_options(parser: argparse.ArgumentParser, *, default: str | None) -> None:
    if default is None:
        parser.add_argument("workload", metavar="WORKLOAD", help="a name from `samelaw workloads`")
    else:
        parser.add_argument(
            "workload",
            metavar="WORKLOAD",
            nargs="?",
            default=default,
            help=f"a name from `samelaw workloads` (default {default})",
        )
    parser.add_argument(
        "--path",
        type=Path,
        default=None,
        help="file or folder of a workload that is read from disk (criteo; also a copy of movielens-100k or insteval)",
    )
    parser.add_argument(
        "--scale", type=float, default=None, help="scale of a synthetic workload's tables (default: small)"
    )
    parser.add_argument(
        "--skip-bad-lines", action="store_true", help="count malformed lines instead of stopping at the first"
    )


def _verify(options: argparse.Namespace) -> int:
    from samelaw.cli.verify import run_verify  # torch and numba take seconds to import: only when needed

    return run_verify(options)


def _train(options: argparse.Namespace) -> int:
    from samelaw.cli.train import run_train

    return run_train(options)


def _workloads(options: argparse.Namespace) -> int:
    from samelaw.cli.listing import run_workloads

    return run_workloads(options)


_COMMANDS = {
    "verify": _verify,
    "train": _train,
    "account": account_command.run,
    "attack": attack_command.run,
    "audit": audit_command.run,
    "calibrate": calibrate_command.run,
    "conform": conform_command.run,
    "faults": faults_command.run,
    "power": power_command.run,
    "workloads": _workloads,
}

if __name__ == "__main__":
    sys.exit(main())
