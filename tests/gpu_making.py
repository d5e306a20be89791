"""Helpers of the GPU cases: the registry, exact comparison, and inputs.

A case is a plain function of a backend that raises AssertionError where a bit is wrong.
"""
# ruff: noqa: E402  (the path to an uninstalled samelaw comes first)

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
if importlib.util.find_spec("samelaw") is None:  # run from a source tree that was never installed
    sys.modules["samelaw"] = ModuleType("samelaw")
    sys.modules["samelaw"].__path__ = [str(ROOT)]

from samelaw.contract.noise import NoiseKey, NoiseStream
from samelaw.contract.schedule import NoiseClock, Schedule
from samelaw.contract.trace import Lookup, Pooling
from samelaw.fast.gpu import GpuKernels
from samelaw.fast.kernels import Kernels, LookupCall

CASES: dict[str, Callable[[GpuKernels], None]] = {}
STREAM = NoiseStream(NoiseKey.from_seed(2026), rounds=8)


def case(function: Callable[[GpuKernels], None]) -> Callable[[GpuKernels], None]:
    CASES[function.__name__] = function
    return function


def assert_same_bits(found: torch.Tensor, expected: np.ndarray | torch.Tensor) -> None:
    """Same dtype, shape and bits: -0.0 is not 0.0. A NaN matches a NaN, whose payload IEEE 754 leaves open."""
    one = found.cpu().numpy()
    two = expected.cpu().numpy() if isinstance(expected, torch.Tensor) else np.asarray(expected)
    assert (one.dtype, one.shape) == (two.dtype, two.shape), (one.dtype, one.shape, two.dtype, two.shape)
    integer = {4: np.uint32, 8: np.uint64, 1: np.uint8}[one.dtype.itemsize]
    same = np.ascontiguousarray(one).view(integer) == np.ascontiguousarray(two).view(integer)
    if one.dtype.kind == "f":
        same |= np.isnan(one) & np.isnan(two)
    if not same.all():
        where = tuple(int(i) for i in np.argwhere(~same)[0])
        raise AssertionError(
            f"{int((~same).sum())} of {same.size} differ, first at {where}: {one[where]!r} {two[where]!r}"
        )


def on(kernels: Kernels, values: Any, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=kernels.device)


def moved(kernels: Kernels, array: np.ndarray) -> torch.Tensor:
    """A copy of an array on the backend's device."""
    return torch.from_numpy(array.copy()).to(kernels.device)


def a_lookup(
    rng: np.random.Generator, *, examples: int, bags: int, length: int, rows: int, pooling: Pooling, weighted: bool
) -> Lookup:
    """Up to `bags` bags an example, up to `length` ids a bag; few rows, so that ids repeat within and between bags."""
    owners = np.repeat(np.arange(examples), rng.integers(0, bags + 1, examples))
    lengths = rng.integers(0, length + 1, owners.size)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    weights = None
    if weighted:  # of either sign and of far apart sizes, so that the order of additions shows
        weights = (rng.standard_normal(offsets[-1]) * 10.0 ** rng.integers(-6, 7, offsets[-1])).astype(np.float32)
    ids = rng.integers(0, rows, offsets[-1])
    return Lookup("t", ids, offsets, owners, pooling, weights)


def as_call(kernels: Kernels, lookup: Lookup) -> LookupCall:
    return LookupCall(
        moved(kernels, lookup.ids),
        moved(kernels, lookup.offsets),
        moved(kernels, lookup.example_of_bag),
        lookup.pooling,
        None if lookup.weights is None else moved(kernels, lookup.weights),
    )


def schedules() -> list[Schedule]:
    """One segment; jumps and pauses (rate 0, also at both ends); a segment a step."""
    return [
        Schedule.constant(0.1, steps=13),
        Schedule.piecewise([2, 3, 9, 20], [0.0, 0.3, 0.0, 1e-3, 0.0], steps=23),
        Schedule.warmup_cosine(1.0, steps=37, warmup=5),
    ]


def clock_of(schedule: Schedule, *, noise_multiplier: float = 1.1) -> NoiseClock:
    return NoiseClock.of(schedule, noise_multiplier=noise_multiplier, clip_norm=0.7, expected_batch_size=9.0)
