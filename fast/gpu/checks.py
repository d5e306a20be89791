"""Argument checks of the GPU backend: shapes, dtypes, devices and ranges, all before anything is written.

A range check copies two numbers to the host, which waits for the device; a call's ids are checked once and remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from triton import knobs

from samelaw.contract.errors import InputError
from samelaw.contract.noise import ROW_BITS, check_address
from samelaw.contract.trace import Pooling
from samelaw.fast.kernels import LookupCall, NoisePlan

SAMPLING_CHUNK = 1 << 28
SMALLEST_EXPONENT, LARGEST_EXPONENT = -1022, 1022


@dataclass(frozen=True)
class Facts:
    """What a check found out about a call: the range of its ids (smallest > largest when empty) and of its examples."""

    version: int
    smallest: int
    largest: int
    largest_example: int


_checked: WeakKeyDictionary[LookupCall, Facts] = WeakKeyDictionary()


def interpreting() -> bool:
    """Whether Triton interprets kernels on the CPU in this process."""
    return bool(knobs.runtime.interpret)


def usable_device(device: torch.device) -> torch.device:
    """`device` with its index, if kernels can run there."""
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device()) if str(device) == "cuda" else device
    if device.type == "cpu" and interpreting():
        return device
    raise InputError(
        f"GpuKernels need a CUDA device, got {str(device)!r} (CUDA available: {torch.cuda.is_available()}); "
        "use CpuKernels, or set TRITON_INTERPRET=1 before Python starts to interpret the kernels on the CPU"
    )


def vector(value: Tensor, name: str, dtype: torch.dtype, device: torch.device) -> int:
    """Length of a contiguous 1-D tensor of `dtype` on `device`."""
    if value.ndim != 1 or value.dtype != dtype or value.device != device or not value.is_contiguous():
        raise InputError(
            f"{name} must be a contiguous 1-D {dtype} tensor on {device}, "
            f"got {value.dtype} {tuple(value.shape)} on {value.device}"
        )
    return value.shape[0]


def table(weights: Tensor, device: torch.device) -> None:
    if (
        weights.ndim != 2
        or weights.dtype != torch.float32
        or weights.device != device
        or not weights.is_contiguous()
        or weights.shape[1] == 0
    ):
        raise InputError(
            f"a table must be a contiguous float32 (rows, dim) tensor on {device} with dim >= 1, "
            f"got {weights.dtype} {tuple(weights.shape)} on {weights.device}"
        )


def history(steps_paid: Tensor, device: torch.device) -> None:
    dtype = torch.int64 if steps_paid.dtype == torch.int64 else torch.int32
    vector(steps_paid, "history", dtype, device)


def ids(rows: Tensor, count: int, device: torch.device) -> None:
    """Every id is in 0..count-1."""
    if vector(rows, "row ids", torch.int64, device):
        _in_range(*_extent(rows), count)


def call(lookup: LookupCall, count: int, device: torch.device) -> int:
    """The call is well-formed and its ids are in 0..count-1; returns the largest example that it names, or -1."""
    version = -1 if lookup.ids.is_inference() else lookup.ids._version
    facts = _checked.get(lookup)
    if facts is None or facts.version != version:
        facts = _facts(lookup, version, device)
        _checked[lookup] = facts
    if lookup.ids.shape[0]:
        _in_range(facts.smallest, facts.largest, count)
    return facts.largest_example


def _facts(lookup: LookupCall, version: int, device: torch.device) -> Facts:
    """Check everything about a call that does not depend on the table."""
    count = vector(lookup.ids, "ids", torch.int64, device)
    bags = vector(lookup.example_of_bag, "example_of_bag", torch.int64, device)
    if vector(lookup.offsets, "offsets", torch.int64, device) != bags + 1:
        raise InputError(f"offsets need one more entry than the {bags} bags, got {lookup.offsets.shape[0]}")
    if lookup.weights is not None:
        if lookup.pooling is not Pooling.SUM:
            raise InputError(f"weights need sum pooling, got {lookup.pooling}")
        if vector(lookup.weights, "weights", torch.float32, device) != count:
            raise InputError(f"weights need one entry per id ({count}), got {lookup.weights.shape[0]}")
    lengths = lookup.offsets[1:] - lookup.offsets[:-1]
    rises = lookup.example_of_bag[1:] - lookup.example_of_bag[:-1]
    parts = [lookup.offsets[:1], lookup.offsets[-1:]]
    parts += [torch.stack(torch.aminmax(values)) for values in (lookup.ids, lookup.example_of_bag) if values.shape[0]]
    parts += [values.min().reshape(1) for values in (lengths, rises) if values.shape[0]]
    numbers = iter(torch.cat(parts).tolist())
    first, last = next(numbers), next(numbers)
    smallest, largest = (next(numbers), next(numbers)) if count else (0, -1)
    smallest_example, largest_example = (next(numbers), next(numbers)) if bags else (0, -1)
    if first != 0 or last != count or smallest_example < 0 or any(number < 0 for number in numbers):
        raise InputError(
            f"offsets must rise from 0 to the number of ids ({count}), and example_of_bag must rise from 0 or more; "
            f"offsets run from {first} to {last}, examples start at {smallest_example}"
        )
    return Facts(version, smallest, largest, largest_example)


def gradients(calls: Sequence[LookupCall], pooled: Sequence[Tensor], examples: int, device: torch.device) -> int:
    """The common dim of one table's gradients, one per bag; 1 when there is no call."""
    if len(calls) != len(pooled):
        raise InputError(f"one gradient tensor per call is needed: {len(calls)} calls, {len(pooled)} tensors")
    dims = {gradient.shape[1] if gradient.ndim == 2 else 0 for gradient in pooled}
    if len(dims) > 1 or 0 in dims:
        raise InputError(f"gradients of one table must be (bags, dim) with one dim >= 1, got {sorted(dims)}")
    for lookup, gradient in zip(calls, pooled, strict=True):
        largest_example = call(lookup, 1 << ROW_BITS, device)
        if gradient.dtype != torch.float32 or gradient.device != device or gradient.shape[0] != lookup.bags:
            raise InputError(
                f"gradients must be float32 on {device}, one row for each of {lookup.bags} bags, "
                f"got {gradient.dtype} {tuple(gradient.shape)} on {gradient.device}"
            )
        if largest_example >= examples:
            raise InputError(f"example_of_bag must name examples 0..{examples - 1}, got {largest_example}")
    return dims.pop() if dims else 1


def spans(rows: Tensor, since: Tensor, until: int, plan: NoisePlan, target: Tensor, device: torch.device) -> None:
    """Every span (since, until) lies in the run, the addresses fit, and the table has the plan's columns."""
    if target.shape[1] != plan.dim:
        raise InputError(f"the plan is for {plan.dim} columns, the table has {target.shape[1]}")
    if vector(since, "since", torch.int64, device) != rows.shape[0]:
        raise InputError(f"since needs one entry per row ({rows.shape[0]}), got {since.shape[0]}")
    if not 0 <= until <= plan.clock.steps:
        raise InputError(f"until must be in 0..{plan.clock.steps}, got {until}: the schedule ends there")
    check_address(table=plan.table, largest_row=max(0, target.shape[0] - 1), largest_step=until, dim=plan.dim)
    if since.shape[0]:
        low, high = _extent(since)
        if low < 0 or high > until:
            raise InputError(f"since must be in 0..{until}, got {low}..{high}")


def addresses(number: int, rows: Tensor, steps: Tensor, dim: int, device: torch.device, *, constant: bool) -> None:
    """No field of any (row, step) address wraps."""
    count = vector(rows, "rows", torch.int64, device)
    if vector(steps, "steps", torch.int64, device) != (1 if constant else count):
        raise InputError(f"steps must be one number or one per row ({count}), got {steps.shape[0]}")
    if count == 0:
        check_address(table=number, largest_row=0, largest_step=0, dim=dim)
        return
    for row, step in zip(_extent(rows), _extent(steps), strict=True):
        check_address(table=number, largest_row=row, largest_step=step, dim=dim)


def exponent(value: int) -> None:
    if not SMALLEST_EXPONENT <= value <= LARGEST_EXPONENT:
        raise InputError(
            f"the exponent of the contribution grid must be in {SMALLEST_EXPONENT}..{LARGEST_EXPONENT}, got {value}: "
            "choose a clip norm that float64 can scale"
        )


def float32_value(name: str, value: float) -> None:
    """`value` is a finite float32, so that passing it to a kernel rounds nothing."""
    if not (np.isfinite(value) and float(np.float32(value)) == float(value)):
        raise InputError(f"{name} must be a finite float32 value, got {value!r}")


def _extent(values: Tensor) -> tuple[int, int]:
    """Smallest and largest entry of a tensor that is not empty."""
    low, high = torch.stack(torch.aminmax(values)).tolist()
    return low, high


def _in_range(low: int, high: int, count: int) -> None:
    if low < 0 or high >= count:
        raise InputError(f"row ids must be in 0..{count - 1}, got {low}..{high}")
