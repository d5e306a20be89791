"""The CPU backend: checks, then one compiled kernel per operation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from weakref import WeakKeyDictionary

import numba
import numpy as np
import torch
from torch import Tensor

from samelaw.contract.errors import InputError
from samelaw.contract.noise import NoiseStream, Purpose, check_address
from samelaw.contract.schedule import NoiseClock
from samelaw.contract.spec import Mode
from samelaw.contract.trace import Pooling
from samelaw.fast.cpu.batch import BAGS_A_CHUNK, TableBatch, call_arrays
from samelaw.fast.cpu.checks import array, check_rows
from samelaw.fast.cpu.clipping import continue_norms, first_bags
from samelaw.fast.cpu.draw import draw_normals, join_parts, sample_parts, subtract_row_noise
from samelaw.fast.cpu.history import take_due
from samelaw.fast.cpu.pooling import pool_bags
from samelaw.fast.cpu.settle import first_bad_span, settle_by_bridge, settle_by_draws
from samelaw.fast.cpu.update import sum_groups, update_groups
from samelaw.fast.kernels import LookupCall, NoisePlan

_BRIDGE_BITS = 30
_SAMPLED_AT_ONCE = 1 << 14


class CpuKernels:
    """`Kernels` on the CPU. No result depends on the number of threads.

    Args:
        threads: worker threads of this process's numba kernels; 0 leaves the setting alone.
    """

    name = "cpu"
    device = torch.device("cpu")

    def __init__(self, threads: int = 0) -> None:
        limit = int(numba.config.NUMBA_NUM_THREADS)
        if not 0 <= threads <= limit:
            raise InputError(f"threads must be in 0..{limit} on this machine, got {threads}")
        if threads:
            numba.set_num_threads(threads)
        self._plans: WeakKeyDictionary[NoisePlan, _Prepared] = WeakKeyDictionary()

    def due_rows(self, history: Tensor, ids: Tensor, until: int) -> tuple[Tensor, Tensor]:
        paid = array("history", history, (torch.int32, torch.int64), 1)
        wanted = array("ids", ids, torch.int64, 1)
        check_rows("ids", wanted, paid.shape[0])
        largest = int(np.iinfo(paid.dtype).max)
        if not 0 <= until <= largest:
            raise InputError(
                f"until must be in 0..{largest} for a history of {paid.dtype}, got {until}: longer runs need int64"
            )
        rows, since = torch.empty_like(ids), torch.empty_like(ids)
        count = take_due(paid, wanted, until, rows.numpy(), since.numpy())
        return rows[:count], since[:count]

    def settle(self, weights: Tensor, rows: Tensor, since: Tensor, until: int, plan: NoisePlan) -> None:
        table = array("weights", weights, torch.float32, 2)
        due, paid = array("rows", rows, torch.int64, 1), array("since", since, torch.int64, 1)
        if due.shape != paid.shape:
            raise InputError(f"rows and since must have one length, got {due.shape[0]} and {paid.shape[0]}")
        if table.shape[1] != plan.dim or not 0 <= until <= plan.clock.steps:
            raise InputError(
                f"the plan is for {plan.dim} columns and {plan.clock.steps} steps, "
                f"got {table.shape[1]} columns and until={until}"
            )
        bad = first_bad_span(due, paid, until, table.shape[0])
        if bad >= 0:
            raise InputError(
                f"entry {bad} must have a row in 0..{table.shape[0] - 1} and since in 0..{until}, "
                f"got row {int(due[bad])}, since {int(paid[bad])}"
            )
        prepared = self._plans.get(plan)
        if prepared is None:
            prepared = self._plans[plan] = _Prepared.of(plan)
        check_address(
            table=plan.table, largest_row=max(table.shape[0] - 1, 0), largest_step=plan.clock.steps - 1, dim=plan.dim
        )
        if due.shape[0] == 0:
            return
        if plan.mode is Mode.BRIDGE:
            settle_by_bridge(
                table, due, paid, until, prepared.key, plan.stream.rounds, int(Purpose.BRIDGE), plan.table,
                prepared.clock, prepared.bridge_scale, prepared.bridge_unit, max(1, 1024 // plan.dim),
            )  # fmt: skip
        else:
            aggregate = plan.mode is Mode.AGGREGATE
            purpose = Purpose.AGGREGATE if aggregate else Purpose.REPLAY
            settle_by_draws(
                table, due, paid, until, prepared.key, plan.stream.rounds, int(purpose), plan.table,
                prepared.clock, prepared.tick, aggregate, _rows_a_chunk(plan.dim),
            )  # fmt: skip

    def pool(self, weights: Tensor, call: LookupCall) -> Tensor:
        table = array("weights", weights, torch.float32, 2)
        ids, offsets, bag_examples, bag_weights = call_arrays(call)
        check_rows("ids", ids, table.shape[0])
        out = torch.empty((bag_examples.shape[0], table.shape[1]), dtype=torch.float32)
        mean = call.pooling is Pooling.MEAN
        pool_bags(table, ids, offsets, bag_weights, mean, out.numpy(), BAGS_A_CHUNK)
        return out

    def square_norms(self, calls: Sequence[LookupCall], pooled: Sequence[Tensor], start: Tensor) -> Tensor:
        norms = array("start", start, torch.float64, 1).copy()
        if calls:
            batch = TableBatch.of(calls, pooled, examples=norms.shape[0])
            first = np.empty(norms.shape[0] + 1, np.int64)
            first_bags(batch.example_of_bag, batch.order, first)
            continue_norms(
                norms, batch.gradients, batch.offsets, batch.means, batch.order, first, batch.rows,
                batch.multiplicity, batch.distinct, BAGS_A_CHUNK,
            )  # fmt: skip
        return torch.from_numpy(norms)

    def gradient_sums(
        self, calls: Sequence[LookupCall], pooled: Sequence[Tensor], factors: Tensor, exponent: int
    ) -> tuple[Tensor, Tensor]:
        clip = _factors(factors)
        batch = TableBatch.of(calls, pooled, examples=clip.shape[0])
        groups = batch.groups()
        touched = groups.row[: groups.count]
        ascending = np.argsort(touched)
        sums = np.empty((groups.count, batch.gradients.shape[1]), np.int64)
        sum_groups(
            sums, ascending, groups.first, groups.following, groups.bag_of_entry, batch.multiplicity,
            batch.example_of_bag, batch.offsets, batch.means, batch.gradients, clip, math.ldexp(1.0, -exponent),
            BAGS_A_CHUNK,
        )  # fmt: skip
        return torch.from_numpy(touched[ascending]), torch.from_numpy(sums)

    def update(
        self,
        weights: Tensor,
        calls: Sequence[LookupCall],
        pooled: Sequence[Tensor],
        factors: Tensor,
        exponent: int,
        rate: float,
    ) -> None:
        table, clip = array("weights", weights, torch.float32, 2), _factors(factors)
        batch = TableBatch.of(calls, pooled, examples=clip.shape[0], table_rows=table.shape[0])
        if batch.gradients.shape[1] != table.shape[1]:
            raise InputError(
                f"pooled gradients must have the table's {table.shape[1]} columns, got {batch.gradients.shape[1]}"
            )
        groups = batch.groups()
        update_groups(
            table, groups.count, groups.row, groups.first, groups.following, groups.bag_of_entry, batch.multiplicity,
            batch.example_of_bag, batch.offsets, batch.means, batch.gradients, clip, math.ldexp(1.0, -exponent),
            math.ldexp(1.0, exponent), np.float32(rate), BAGS_A_CHUNK,
        )  # fmt: skip

    def normals(
        self, stream: NoiseStream, purpose: Purpose, table: int, rows: Tensor, steps: Tensor | int, dim: int
    ) -> Tensor:
        at = array("rows", rows, torch.int64, 1)
        when = np.array([steps], np.int64) if isinstance(steps, int) else array("steps", steps, torch.int64, 1)
        if not isinstance(steps, int) and when.shape != at.shape:
            raise InputError(f"steps must be one number or one per row, got {when.shape[0]} for {at.shape[0]} rows")
        for row, step in ((at.min(initial=0), when.min(initial=0)), (at.max(initial=0), when.max(initial=0))):
            check_address(table=table, largest_row=int(row), largest_step=int(step), dim=dim)
        out = torch.empty((at.shape[0], dim), dtype=torch.float32)
        draw_normals(out.numpy(), at, when, _key(stream), stream.rounds, int(purpose), table, _rows_a_chunk(dim))
        return out

    def subtract_noise(
        self, param: Tensor, stream: NoiseStream, purpose: Purpose, table: int, step: int, scale: float
    ) -> None:
        values = array("param", param, torch.float32, 1)
        check_address(table=table, largest_row=0, largest_step=step, dim=max(values.shape[0], 1))
        subtract_row_noise(values, _key(stream), stream.rounds, int(purpose), table, step, np.float32(scale), 256)

    def poisson_sample(self, stream: NoiseStream, step: int, sampling_rate: float, examples: int) -> Tensor:
        if not 0 < sampling_rate <= 1:
            raise InputError(f"sampling_rate must be in (0, 1], got {sampling_rate!r}")
        if not 0 <= examples <= 1 << 51:
            raise InputError(f"examples must be in 0..2^51, got {examples}")
        check_address(table=0, largest_row=0, largest_step=step, dim=1)
        if sampling_rate == 1 or examples == 0:
            return torch.arange(examples, dtype=torch.int64)
        threshold = np.uint64(int(sampling_rate * 2.0**64))
        parts = -(-examples // _SAMPLED_AT_ONCE)
        expected = sampling_rate * _SAMPLED_AT_ONCE
        # Ten standard deviations of room: a part that needs more (about once in 10^23) is drawn a second time.
        room = min(_SAMPLED_AT_ONCE, math.ceil(expected + 10 * math.sqrt(expected)) + 16)
        drawn, counts = np.empty((parts, room), np.int64), np.empty(parts, np.int64)
        address = (_key(stream), stream.rounds, int(Purpose.SAMPLING), step, threshold, examples, _SAMPLED_AT_ONCE)
        sample_parts(drawn, counts, *address)
        out = np.empty(int(counts.sum()), np.int64)
        join_parts(out, drawn, counts, *address)
        return torch.from_numpy(out)


@dataclass(frozen=True, repr=False)
class _Prepared:
    """A plan in the form that kernels take."""

    key: np.ndarray
    clock: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]
    tick: float
    bridge_scale: float
    bridge_unit: float

    @classmethod
    def of(cls, plan: NoisePlan) -> _Prepared:
        clock: NoiseClock = plan.clock
        arrays = (
            np.array(clock.scales, np.float32),
            np.array(clock.starts, np.int64),
            np.array(clock.elapsed, np.int64),
            np.array(clock.ticks, np.int64),
            int(clock.steps),
        )
        largest = float(clock.scales.max())
        unit = (math.frexp(largest)[1] - 1 if largest > 0 else 0) - _BRIDGE_BITS
        return cls(
            _key(plan.stream),
            arrays,
            math.ldexp(1.0, clock.exponent),
            math.ldexp(1.0, clock.exponent - unit),
            math.ldexp(1.0, unit),
        )


@lru_cache(maxsize=64)
def _key(stream: NoiseStream) -> np.ndarray:
    return np.array(stream.key.words, dtype=np.uint32)


def _factors(factors: Tensor) -> np.ndarray:
    values = array("factors", factors, torch.float64, 1)
    if values.shape[0] and not (values.min() >= 0 and values.max() <= 1):  # NaN fails both
        raise InputError("clip factors must be in 0..1: a larger one would exceed the clip norm")
    return values


def _rows_a_chunk(dim: int) -> int:
    return max(1, min(1024, 4096 // dim))
