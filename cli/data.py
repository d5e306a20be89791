"""Workloads as the commands take them: loaded by name, with a plain word where one cannot be had."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from samelaw.contract.errors import InputError
from samelaw.contract.trace import Batch
from samelaw.workloads import VERIFY_SCALE, DatasetUnavailable, Workload, load

_SYNTHETIC = ("zipf", "uniform")


def load_workload(options: argparse.Namespace, *, say: Callable[[str], None], fall_back: bool = False) -> Workload:
    """The workload that the command line names.

    Args:
        say: prints a line for the user.
        fall_back: go on with the Zipf trace, and say so, when a data set cannot be fetched.
    """
    name = options.workload
    scale = options.scale if options.scale is not None else VERIFY_SCALE if name in _SYNTHETIC else 1.0
    try:
        workload = load(name, scale=scale, path=options.path, skip_bad_lines=options.skip_bad_lines)
    except DatasetUnavailable as error:
        if not fall_back:
            raise
        say(f"{error}\n{name} is not to be had here: going on with the synthetic Zipf trace instead.")
        return load("zipf", scale=VERIFY_SCALE)
    for where, lines in workload.skipped.items():
        say(f"{where}: {lines} bad lines were skipped")
    return workload


def test_batch(workload: Workload, largest: int) -> Batch:
    """Held-out examples for the curves: the first `largest` of the test set."""
    return workload.test.batch(np.arange(min(largest, len(workload.test)), dtype=np.int64))


def check_positive(name: str, value: int | None, *, least: int) -> None:
    if value is not None and value < least:
        raise InputError(f"{name} must be >= {least}, got {value}")
    if value is not None and value >= 1 << 63:
        raise InputError(f"{name} must be below 2^63, got {value}")
