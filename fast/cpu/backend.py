"""The CPU backend: checks, then one compiled kernel per operation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from samelaw.contract.errors import InputError
from samelaw.contract.noise import NoiseStream, Purpose, check_address
from samelaw.contract.schedule import NoiseClock
from samelaw.contract.spec import CANCELLATION_MARGIN, Mode
from samelaw.fast.cpu.batch import CheckedCall, bags_of
from samelaw.fast.cpu.checks import array
from samelaw.fast.cpu.clipping import continue_norms
from samelaw.fast.cpu.compiled import Team
from samelaw.fast.cpu.draw import draw_normals, join_parts, sample_parts, subtract_row_noise
from samelaw.fast.cpu.history import take_due
from samelaw.fast.cpu.pooling import pool_bags
from samelaw.fast.cpu.settle import settle_by_bridge, settle_by_draws
from samelaw.fast.cpu.update import all_in_unit_interval, sum_groups, update_groups
from samelaw.fast.kernels import LookupCall, NoisePlan

_BAGS_A_CHUNK = 128
_BRIDGE_BITS = 30
_LARGEST = {torch.int32: 2**31 - 1, torch.int64: 2**63 - 1}
_PURPOSES = {Mode.REPLAY: Purpose.REPLAY, Mode.BRIDGE: Purpose.BRIDGE, Mode.AGGREGATE: Purpose.AGGREGATE}
_NORMALS_A_ROW = {Mode.REPLAY: 16, Mode.BRIDGE: 40, Mode.AGGREGATE: 1}  # guesses that decide about threads alone
_SAMPLED_AT_ONCE = 1 << 14


class CpuKernels:
    """`Kernels` on the CPU. No result depends on the number of threads.

    Args:
        threads: worker threads; 0 takes as many as numba is set to use.
    """

    name = "cpu"
    device = torch.device("cpu")

    def __init__(self, threads: int = 0) -> None:
        self._team = Team(threads)
        self._plans: WeakKeyDictionary[NoisePlan, _Prepared] = WeakKeyDictionary()

    def due_rows(self, history: Tensor, ids: Tensor, until: int) -> tuple[Tensor, Tensor]:
        paid = array("history", history, torch.int64 if history.dtype is torch.int64 else torch.int32, 1)
        wanted = array("ids", ids, torch.int64, 1)
        size, largest = wanted.shape[0], _LARGEST[history.dtype]
        if not 0 <= until <= largest:
            raise InputError(
                f"until must be in 0..{largest} for a history of {history.dtype}, got {until}: longer runs need int64"
            )
        found = np.empty(2 * size, np.int64)
        count = take_due(paid, wanted, until, found)
        if count < 0:
            bad = int(np.flatnonzero((wanted < 0) | (wanted >= paid.shape[0]))[0])
            raise InputError(
                f"ids[{bad}] must be in 0..{paid.shape[0] - 1}, got {int(wanted[bad])}: "
                f"the table has {paid.shape[0]} rows"
            )
        return torch.from_numpy(found[:count]), torch.from_numpy(found[size : size + count])

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
        prepared = self._plans.get(plan)
        if prepared is None:
            prepared = self._plans[plan] = _Prepared.of(plan)
        address = (prepared.key, plan.stream.rounds, prepared.purpose, plan.table, prepared.clock)
        work = prepared.normals_a_row * due.shape[0] * plan.dim
        if plan.mode is Mode.BRIDGE:
            bad = self._team.run(
                work, settle_by_bridge, table, due, paid, until, *address, prepared.bridge_scale,
                prepared.bridge_unit, max(1, 1024 // plan.dim),
            )  # fmt: skip
        else:
            aggregate = plan.mode is Mode.AGGREGATE
            bad = self._team.run(
                work, settle_by_draws, table, due, paid, until, *address, prepared.tick, aggregate,
                _rows_a_chunk(plan.dim),
            )  # fmt: skip
        if bad >= 0:
            raise InputError(
                f"entry {bad} must have a row in 0..{table.shape[0] - 1} and since in 0..{until}, "
                f"got row {int(due[bad])}, since {int(paid[bad])}"
            )

    def pool(self, weights: Tensor, call: LookupCall) -> Tensor:
        table = array("weights", weights, torch.float32, 2)
        checked = CheckedCall.of(call, table.shape[0])
        out = torch.empty((checked.example_of_bag.shape[0], table.shape[1]), dtype=torch.float32)
        self._team.run(
            checked.ids.shape[0] * table.shape[1] // 2, pool_bags, table, checked.ids, checked.offsets,
            checked.weights, checked.mean, out.numpy(), _BAGS_A_CHUNK,
        )  # fmt: skip
        return out

    def square_norms(self, calls: Sequence[LookupCall], pooled: Sequence[Tensor], start: Tensor) -> Tensor:
        norms = array("start", start, torch.float64, 1).copy()
        if calls:
            bags = bags_of(calls, pooled, norms.shape[0], self._team)
            gradients = bags.gradients(pooled)
            self._team.run(
                gradients.size // 2, continue_norms, norms, gradients, bags.offsets, bags.means, bags.order,
                bags.first_of_example(norms.shape[0]), bags.rows, bags.multiplicity, bags.distinct, CANCELLATION_MARGIN,
                _BAGS_A_CHUNK,
            )  # fmt: skip
        return torch.from_numpy(norms)

    def gradient_sums(
        self, calls: Sequence[LookupCall], pooled: Sequence[Tensor], factors: Tensor, exponent: int
    ) -> tuple[Tensor, Tensor]:
        clip = _factors(factors)
        bags = bags_of(calls, pooled, clip.shape[0], self._team)
        gradients, groups = bags.gradients(pooled), bags.groups
        ascending = np.argsort(groups.row)
        sums = np.empty((groups.count, gradients.shape[1]), np.int64)
        self._team.run(
            bags.rows.shape[0] * gradients.shape[1], sum_groups, sums, ascending, groups.first, groups.following,
            groups.bag_of_entry, bags.multiplicity, (bags.offsets, bags.example_of_bag, bags.means), gradients, clip,
            math.ldexp(1.0, -exponent), _BAGS_A_CHUNK,
        )  # fmt: skip
        return torch.from_numpy(groups.row[ascending]), torch.from_numpy(sums)

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
        bags = bags_of(calls, pooled, clip.shape[0], self._team)
        gradients, groups = bags.gradients(pooled), bags.groups
        if gradients.shape[1] != table.shape[1]:
            raise InputError(f"pooled gradients must have the table's {table.shape[1]} columns, got {gradients.shape}")
        if bags.largest_id >= table.shape[0]:
            for call in calls:
                CheckedCall.of(call, table.shape[0])  # raises, and says where
        self._team.run(
            bags.rows.shape[0] * gradients.shape[1], update_groups, table, groups.count, groups.row, groups.first,
            groups.following, groups.bag_of_entry, bags.multiplicity,
            (bags.offsets, bags.example_of_bag, bags.means), gradients, clip, math.ldexp(1.0, -exponent),
            math.ldexp(1.0, exponent), np.float32(rate), _BAGS_A_CHUNK,
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
        self._team.run(
            2 * out.numel(), draw_normals, out.numpy(), at, when, _key(stream), stream.rounds, int(purpose), table,
            _rows_a_chunk(dim),
        )  # fmt: skip
        return out

    def subtract_noise(
        self, param: Tensor, stream: NoiseStream, purpose: Purpose, table: int, step: int, scale: float
    ) -> None:
        values = array("param", param, torch.float32, 1)
        check_address(table=table, largest_row=0, largest_step=step, dim=max(values.shape[0], 1))
        self._team.run(
            2 * values.shape[0], subtract_row_noise, values, _key(stream), stream.rounds, int(purpose), table, step,
            np.float32(scale), 256,
        )  # fmt: skip

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
        self._team.run(examples, sample_parts, drawn, counts, *address)
        out = np.empty(int(counts.sum()), np.int64)
        join_parts(out, drawn, counts, *address)
        return torch.from_numpy(out)


@dataclass(frozen=True, repr=False)
class _Prepared:
    """A plan in the form that kernels take."""

    key: np.ndarray
    purpose: int
    normals_a_row: int
    clock: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]
    tick: float
    bridge_scale: float
    bridge_unit: float

    @classmethod
    def of(cls, plan: NoisePlan) -> _Prepared:
        clock: NoiseClock = plan.clock
        check_address(table=plan.table, largest_row=0, largest_step=clock.steps - 1, dim=plan.dim)
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
            int(_PURPOSES[plan.mode]),
            _NORMALS_A_ROW[plan.mode],
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
    if not all_in_unit_interval(values):
        raise InputError("clip factors must be in 0..1: a larger one would exceed the clip norm")
    return values


def _rows_a_chunk(dim: int) -> int:
    return max(1, min(1024, 4096 // dim))
