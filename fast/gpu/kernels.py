"""`GpuKernels`: the Kernels protocol on a CUDA device, by Triton kernels and exact integer tensor operations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Float32, Float64, Int64, Shaped
from torch import Tensor

from samelaw.contract.errors import InputError
from samelaw.contract.noise import NORMALS_PER_BLOCK, ROW_BITS, NoiseStream, Purpose, check_address
from samelaw.contract.spec import Mode
from samelaw.contract.trace import Pooling
from samelaw.fast.gpu import checks, gradients, noise, settlement
from samelaw.fast.gpu.device import DeviceClock, DeviceWords
from samelaw.fast.gpu.layout import Bags, first_occurrences
from samelaw.fast.kernels import LookupCall, NoisePlan

LARGEST_GRID = (1 << 31) - 1


class GpuKernels:
    """Triton kernels on one device, the same bits as the NumPy definition.

    Args:
        device: a CUDA device, or the CPU when Triton interprets (TRITON_INTERPRET=1 before triton is imported).
        lanes: blocks of 16 normals per program; speed only.

    Raises:
        InputError: the device is neither.
    """

    name = "gpu"

    def __init__(self, device: torch.device | str = "cuda", *, lanes: int = 128) -> None:
        self.device = checks.usable_device(torch.device(device))
        self.lanes = lanes
        self._words = DeviceWords(self.device)
        self._clocks: list[DeviceClock] = []

    def due_rows(
        self, history: Shaped[Tensor, "rows"], ids: Int64[Tensor, "ids"], until: int
    ) -> tuple[Int64[Tensor, "due"], Int64[Tensor, "due"]]:
        checks.history(history, self.device)
        checks.ids(ids, history.shape[0], self.device)
        if not 0 <= until <= torch.iinfo(history.dtype).max:
            raise InputError(f"until must fit the history's {history.dtype}, got {until}")
        rows = first_occurrences(ids[history[ids] < until])
        since = history[rows].to(torch.int64)
        history[rows] = until
        return rows, since

    def settle(
        self,
        weights: Float32[Tensor, "rows dim"],
        rows: Int64[Tensor, "due"],
        since: Int64[Tensor, "due"],
        until: int,
        plan: NoisePlan,
    ) -> None:
        checks.table(weights, self.device)
        checks.ids(rows, weights.shape[0], self.device)
        checks.spans(rows, since, until, plan, weights, self.device)
        self._settle(weights, rows, since, until, plan, owed=False)

    def owed_units(
        self, rows: Int64[Tensor, "due"], since: Int64[Tensor, "due"], until: int, plan: NoisePlan
    ) -> Int64[Tensor, "due dim"]:
        """What each row owes in bridge mode, P(until) - P(since), in units of 2^u; exact and additive."""
        if plan.mode is not Mode.BRIDGE:
            raise InputError(f"owed units exist in bridge mode only, got {plan.mode}")
        owed = torch.zeros((rows.shape[0], plan.dim), dtype=torch.int64, device=self.device)
        checks.ids(rows, 1 << ROW_BITS, self.device)
        checks.spans(rows, since, until, plan, owed, self.device)
        self._settle(owed, rows, since, until, plan, owed=True)
        return owed

    def pool(self, weights: Float32[Tensor, "rows dim"], call: LookupCall) -> Float32[Tensor, "bags dim"]:
        checks.table(weights, self.device)
        checks.call(call, weights.shape[0], self.device)
        dim = weights.shape[1]
        out = torch.empty((call.bags, dim), dtype=torch.float32, device=self.device)
        columns, tiles = _columns(dim)
        bags = max(1, 1024 // columns)
        self.launch(
            gradients.pool_kernel,
            _parts(call.bags, bags) * tiles,
            out,
            weights,
            call.ids,
            call.offsets,
            call.ids if call.weights is None else call.weights,
            call.bags,
            MEAN=call.pooling is Pooling.MEAN,
            WEIGHTED=call.weights is not None,
            DIM=dim,
            TILES=tiles,
            BAGS=bags,
            COLUMNS=columns,
        )
        return out

    def square_norms(
        self,
        calls: Sequence[LookupCall],
        pooled: Sequence[Float32[Tensor, "bags dim"]],
        start: Float64[Tensor, "examples"],
    ) -> Float64[Tensor, "examples"]:
        examples = checks.vector(start, "start", torch.float64, self.device)
        dim = checks.gradients(calls, pooled, examples, self.device)
        norms = start.clone()
        if sum(call.bags for call in calls) == 0:
            return norms
        bags = Bags.of(calls, pooled)
        per_program = 32
        self.launch(
            gradients.square_norms_kernel,
            _parts(examples, per_program),
            norms,
            bags.ids,
            bags.ids if bags.weights is None else bags.weights,
            bags.firsts,
            bags.lengths,
            bags.lengths if bags.counts is None else bags.counts,
            bags.gradients,
            bags.order,
            bags.spans(examples),
            examples,
            MEAN=bags.counts is not None,
            WEIGHTED=bags.weights is not None,
            DIM=dim,
            EXAMPLES=per_program,
        )
        return norms

    def gradient_sums(
        self,
        calls: Sequence[LookupCall],
        pooled: Sequence[Float32[Tensor, "bags dim"]],
        factors: Float64[Tensor, "examples"],
        exponent: int,
    ) -> tuple[Int64[Tensor, "touched"], Int64[Tensor, "touched dim"]]:
        examples = checks.vector(factors, "factors", torch.float64, self.device)
        dim = checks.gradients(calls, pooled, examples, self.device)
        checks.exponent(exponent)
        if sum(call.ids.shape[0] for call in calls) == 0:
            empty = torch.empty(0, dtype=torch.int64, device=self.device)
            return empty, empty.reshape(0, dim)
        bags = Bags.of(calls, pooled)
        found = bags.occurrences()
        sums = torch.zeros((found.rows.shape[0], dim), dtype=torch.int64, device=self.device)
        columns, tiles = _columns(dim)
        groups = found.starts.shape[0] - 1
        per_program = max(1, 1024 // columns)
        self.launch(
            gradients.contributions_kernel,
            _parts(groups, per_program) * tiles,
            sums,
            found.starts,
            found.slots,
            found.bag_of,
            bags.example_of_bag,
            found.slots if found.weights is None else found.weights,
            bags.lengths if bags.counts is None else bags.counts,
            bags.gradients,
            factors,
            exponent,
            groups,
            MEAN=bags.counts is not None,
            WEIGHTED=bags.weights is not None,
            DIM=dim,
            TILES=tiles,
            GROUPS=per_program,
            COLUMNS=columns,
        )
        return found.rows, sums

    def update(
        self,
        weights: Float32[Tensor, "rows dim"],
        calls: Sequence[LookupCall],
        pooled: Sequence[Float32[Tensor, "bags dim"]],
        factors: Float64[Tensor, "examples"],
        exponent: int,
        rate: float,
    ) -> None:
        checks.table(weights, self.device)
        for call in calls:
            checks.call(call, weights.shape[0], self.device)
        checks.float32_value("rate", rate)
        dim = weights.shape[1]
        if any(gradient.shape[1:] != (dim,) for gradient in pooled):
            raise InputError(f"gradients must have the table's {dim} columns, got {[tuple(g.shape) for g in pooled]}")
        rows, sums = self.gradient_sums(calls, pooled, factors, exponent)
        if rows.shape[0] == 0:
            return
        columns, tiles = _columns(dim)
        per_program = max(1, 1024 // columns)
        self.launch(
            gradients.apply_kernel,
            _parts(rows.shape[0], per_program) * tiles,
            weights,
            rows,
            sums,
            float(rate),
            exponent,
            rows.shape[0],
            DIM=dim,
            TILES=tiles,
            ROWS=per_program,
            COLUMNS=columns,
        )

    def normals(
        self,
        stream: NoiseStream,
        purpose: Purpose,
        table: int,
        rows: Int64[Tensor, "n"],
        steps: Int64[Tensor, "n"] | int,
        dim: int,
    ) -> Float32[Tensor, "n dim"]:
        constant = isinstance(steps, int)
        if isinstance(steps, int):
            check_address(table=table, largest_row=0, largest_step=steps, dim=dim)
            steps = torch.full((1,), steps, dtype=torch.int64, device=self.device)
        checks.addresses(table, rows, steps, dim, self.device, constant=constant)
        out = torch.empty((rows.shape[0], dim), dtype=torch.float32, device=self.device)
        blocks = _blocks(dim)
        lanes = rows.shape[0] * blocks
        self.launch(
            noise.normals_kernel,
            _parts(lanes, self.lanes),
            out,
            rows,
            steps,
            self._words.key(stream),
            table,
            0 if constant else 1,
            lanes,
            PURPOSE=int(purpose),
            ROUNDS=stream.rounds,
            DIM=dim,
            BLOCKS=blocks,
            LANES=self.lanes,
        )
        return out

    def subtract_noise(
        self,
        param: Float32[Tensor, "size"],
        stream: NoiseStream,
        purpose: Purpose,
        table: int,
        step: int,
        scale: float,
    ) -> None:
        size = checks.vector(param, "param", torch.float32, self.device)
        check_address(table=table, largest_row=0, largest_step=step, dim=max(1, size))
        checks.float32_value("scale", scale)
        self.launch(
            noise.subtract_noise_kernel,
            _parts(_blocks(size), self.lanes),
            param,
            self._words.key(stream),
            table,
            step,
            float(scale),
            size,
            PURPOSE=int(purpose),
            ROUNDS=stream.rounds,
            LANES=self.lanes,
        )

    def poisson_sample(
        self, stream: NoiseStream, step: int, sampling_rate: float, examples: int
    ) -> Int64[Tensor, "drawn"]:
        if not 0 < sampling_rate <= 1:
            raise InputError(f"sampling_rate must be in (0, 1], got {sampling_rate!r}")
        if examples < 0:
            raise InputError(f"examples must be >= 0, got {examples}")
        check_address(table=0, largest_row=max(0, examples - 1) // 8, largest_step=step, dim=NORMALS_PER_BLOCK)
        if sampling_rate == 1:
            return torch.arange(examples, dtype=torch.int64, device=self.device)
        threshold = self._words.bound(math.floor(Fraction(sampling_rate) * 2**64))
        parts: list[Tensor] = []
        for first in range(0, examples, checks.SAMPLING_CHUNK):
            count = min(checks.SAMPLING_CHUNK, examples - first)
            drawn = torch.empty(count, dtype=torch.int8, device=self.device)
            self.launch(
                noise.sampling_kernel,
                _parts(count, 8 * self.lanes),
                drawn,
                self._words.key(stream),
                threshold,
                step,
                first // 8,
                count,
                PURPOSE=int(Purpose.SAMPLING),
                ROUNDS=stream.rounds,
                LANES=self.lanes,
            )
            parts.append(torch.nonzero(drawn).squeeze(1) + first)
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=self.device)

    def _settle(self, target: Tensor, rows: Tensor, since: Tensor, until: int, plan: NoisePlan, *, owed: bool) -> None:
        """Launch the kernel of the plan's mode; `target` is the table, or what to write owed units into."""
        clock = self._clock(plan)
        blocks = _blocks(plan.dim)
        lanes = rows.shape[0] * blocks
        programs = _parts(lanes, self.lanes)
        key = self._words.key(plan.stream)
        shape: dict[str, Any] = {
            "ROUNDS": plan.stream.rounds,
            "DIM": plan.dim,
            "BLOCKS": blocks,
            "LANES": self.lanes,
        }
        if plan.mode is Mode.REPLAY:
            self.launch(
                settlement.replay_kernel,
                programs,
                target,
                rows,
                since,
                clock.segments(since),
                key,
                clock.starts,
                clock.scales,
                plan.table,
                until,
                lanes,
                PURPOSE=int(Purpose.REPLAY),
                **shape,
            )
        elif plan.mode is Mode.AGGREGATE:
            self.launch(
                settlement.aggregate_kernel,
                programs,
                target,
                rows,
                since,
                key,
                clock.starts,
                clock.elapsed,
                clock.ticks,
                plan.table,
                until,
                clock.at(until),
                clock.exponent,
                lanes,
                PURPOSE=int(Purpose.AGGREGATE),
                SEARCH=clock.search,
                **shape,
            )
        else:
            self.launch(
                settlement.bridge_kernel,
                programs,
                target,
                rows,
                since,
                key,
                clock.starts,
                clock.elapsed,
                clock.ticks,
                plan.table,
                until,
                clock.steps,
                clock.at(clock.steps),
                clock.exponent,
                clock.unit,
                clock.horizon,
                lanes,
                PURPOSE=int(Purpose.BRIDGE),
                SEARCH=clock.search,
                OWED=owed,
                **shape,
            )

    def _clock(self, plan: NoisePlan) -> DeviceClock:
        """The plan's clock on the device, uploaded once."""
        for clock in self._clocks:
            if clock.source is plan.clock:
                return clock
        self._clocks = [DeviceClock(plan.clock, self.device), *self._clocks[:3]]
        return self._clocks[0]

    def launch(self, kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
        """Run `programs` programs without fused multiply-adds; nothing at all where there is nothing to do."""
        if programs == 0:
            return
        assert programs <= LARGEST_GRID, "a grid of more than 2^31 - 1 programs"
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            kernel[(programs,)](*arguments, **constants, num_warps=4, enable_fp_fusion=False)


def _parts(whole: int, part: int) -> int:
    """How many parts cover the whole."""
    return -(-whole // part)


def _blocks(dim: int) -> int:
    """Blocks of 16 normals that cover `dim` columns."""
    return _parts(dim, NORMALS_PER_BLOCK)


def _columns(dim: int) -> tuple[int, int]:
    """Columns per program (a power of two, at most 128) and how many such tiles cover `dim`."""
    columns = min(128, 1 << (dim - 1).bit_length())
    return columns, _parts(dim, columns)
