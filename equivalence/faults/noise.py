"""Faults of the draws: their law, their addresses, and the key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import special

from samelaw.contract.noise import NoiseKey, NoiseStream
from samelaw.contract.schedule import NoiseClock
from samelaw.equivalence.faults.fault import Fault, Kind, Scenario, Table, Trainer, by_mode, seam, tables_of
from samelaw.equivalence.faults.payments import Pay, repay, reshape, std_of
from samelaw.equivalence.faults.redrawn import Draw, redraw

THREAD_ROWS = 64  # rows that one thread draws for, in the fault that seeds every thread alike
EPOCH = 10  # steps of an epoch, in the fault that draws the same noise in each


def _one_number_per_row(trainer: Trainer) -> None:
    reshape(trainer, lambda table, noise, since, until: noise[:, :1].expand(noise.shape).clone())


def _ids_shared_across_tables(trainer: Trainer) -> None:
    for table in tables_of(trainer):
        table.plan = replace(seam(table, "plan"), table=0)


def _at(
    change: Callable[[int, Any, Any, int], tuple[int, Any, Any, int]],
) -> Callable[[Trainer], None]:
    """A fault in the address: (table, rows, steps, dim) -> the ones that are drawn from."""

    def wrap(normals: Draw) -> Draw:
        def drawn(stream: Any, purpose: Any, table: int, rows: Any, steps: Any, dim: int) -> Any:
            table, rows, steps, dim = change(table, rows, steps, dim)
            return normals(stream, purpose, table, rows, steps, dim)

        return drawn

    return lambda trainer: redraw(trainer, wrap)


def _from(change: Callable[[NoiseStream], NoiseStream]) -> Callable[[Trainer], None]:
    """A fault in the key."""

    def wrap(normals: Draw) -> Draw:
        def drawn(stream: NoiseStream, *address: Any) -> Any:
            return normals(change(stream), *address)

        return drawn

    return lambda trainer: redraw(trainer, wrap)


def _law(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Trainer], None]:
    """A fault in the law of the draws: float64 normals -> what is drawn."""

    def wrap(normals: Draw) -> Draw:
        def drawn(*address: Any) -> Any:
            z = normals(*address)
            return z.new_tensor(change(z.cpu().numpy().astype(np.float64)).astype(np.float32))

        return drawn

    return lambda trainer: redraw(trainer, wrap)


def _blocks_repeat(trainer: Trainer) -> None:
    """Every sixteen columns are drawn from block 0."""

    def wrap(normals: Draw) -> Draw:
        def drawn(stream: Any, purpose: Any, table: int, rows: Any, steps: Any, dim: int) -> Any:
            block = normals(stream, purpose, table, rows, steps, 16)
            return block.repeat(1, -(-dim // 16))[:, :dim].contiguous()

        return drawn

    redraw(trainer, wrap)


def _seed_of_31_bits(stream: NoiseStream) -> NoiseStream:
    return replace(stream, key=NoiseKey((stream.key.words[0] & 0x7FFFFFFF, *(0,) * 7), stream.key.origin))


def _same_key_every_run(trainer: Trainer) -> None:
    """The key that is handed in is not the one that is drawn from."""
    trainer.stream = replace(seam(trainer, "stream"), key=NoiseKey.from_seed(0))
    for table in tables_of(trainer):
        table.plan = replace(seam(table, "plan"), stream=trainer.stream)


def uniform(z: np.ndarray) -> np.ndarray:
    """Uniform of mean 0 and variance 1."""
    return np.sqrt(12.0) * (special.ndtr(z) - 0.5)


def laplace(z: np.ndarray) -> np.ndarray:
    """Laplace of mean 0 and variance 1."""
    return -np.sign(z) * np.log(2 * special.ndtr(-np.abs(z))) / np.sqrt(2.0)


def tail_of_24_bits(z: np.ndarray) -> np.ndarray:
    """Box-Muller from a 24-bit uniform: what a radius of more bits rounds to. It ends at sqrt(48 ln 2) = 5.768.

    Numbers d and d + 8 of a block are one pair, of radius r = sqrt(-2 ln u).
    """
    whole = z.shape[1] // 16 * 16
    blocks = z[:, :whole].reshape(len(z), -1, 2, 8)
    square = (blocks**2).sum(axis=2, keepdims=True)
    u = (np.floor(np.exp(-square / 2) * 2.0**24) + 1) / 2.0**24  # in (0, 1]
    coarse = blocks * np.sqrt(-2 * np.log(np.minimum(u, 1.0)) / np.maximum(square, 1e-30))
    return np.concatenate([coarse.reshape(len(z), whole), np.clip(z[:, whole:], -5.768, 5.768)], axis=1)


@dataclass(frozen=True)
class _Float32Clock(NoiseClock):
    """A clock whose prefix sums are float32."""

    def at(self, steps: np.ndarray) -> np.ndarray:
        return super().at(steps).astype(np.float32).astype(np.int64)


def _float32_prefix_sums(trainer: Trainer) -> None:
    redraw(trainer, lambda normals: normals)  # compiled settlements keep a clock of their own
    for table in tables_of(trainer):
        plan = seam(table, "plan")
        table.plan = replace(plan, clock=_Float32Clock(**vars(plan.clock)))


def _half_precision(trainer: Trainer) -> None:
    """Weights with 11 bits: noise below half a unit of a weight's last place is rounded away."""

    def wrap(table: Table, pay: Pay) -> Pay:
        def paid(rows: Any, since: Any, until: int) -> None:
            pay(rows, since, until)
            table.weights[rows] = table.weights[rows].half().float()

        return paid

    repay(trainer, wrap)


def _tails_cut(trainer: Trainer) -> None:
    def change(table: Table, noise: Any, since: np.ndarray, until: int) -> Any:
        most = noise.new_tensor((2.5 * std_of(table, since, until)).tolist())[:, None]
        return noise.clamp(-most, most)

    reshape(trainer, change)


_ADDRESS = by_mode("E1, L1, N1, N2", "E2, N1, N2", "L1 with key, N1, N2")
_PAID = by_mode("E1, L1", "E2, L1", "L1, L1 with key")

FAULTS = (
    Fault(
        "reused-noise",
        Kind.NOISE,
        "The step is left out of the address: a row is paid with the same draw every time.",
        _ADDRESS,
        _at(lambda table, rows, steps, dim: (table, rows, steps * 0, dim)),
    ),
    Fault(
        "noise-shared-across-rows",
        Kind.NOISE,
        "The row is left out of the address: all rows of a table get one draw.",
        _ADDRESS,
        _at(lambda table, rows, steps, dim: (table, rows * 0, steps, dim)),
    ),
    Fault(
        "noise-shared-across-threads",
        Kind.NOISE,
        f"Every thread starts the same generator: rows {THREAD_ROWS} apart get the same noise.",
        _ADDRESS,
        _at(lambda table, rows, steps, dim: (table, rows % THREAD_ROWS, steps, dim)),
    ),
    Fault(
        "noise-shared-across-epochs",
        Kind.NOISE,
        f"The step in the address counts from the start of an epoch of {EPOCH} steps.",
        by_mode("E1, L1, N1, N2", "E2, N1, N2", "L1 with key, N1, N2"),
        _at(lambda table, rows, steps, dim: (table, rows, steps % EPOCH, dim)),
    ),
    Fault(
        "ids-shared-across-tables",
        Kind.NOISE,
        "All tables draw from one address, so row 7 of each gets the same noise.",
        _PAID,
        _ids_shared_across_tables,
    ),
    Fault(
        "one-number-per-row",
        Kind.NOISE,
        "One normal is drawn per row and copied to all its dimensions.",
        _PAID,
        _one_number_per_row,
    ),
    Fault(
        "blocks-repeat",
        Kind.NOISE,
        "The block is left out of the address: every sixteen dimensions get the same numbers.",
        by_mode("L1, N1, N2", "L1, N1, N2", "L1, L1 with key, N1, N2"),
        _blocks_repeat,
    ),
    Fault(
        "counter-wraps-at-2^8",
        Kind.NOISE,
        "The step in the address has 8 bits: step 256 repeats step 0.",
        by_mode("N1, N2", "N1, N2", "N1, N2"),
        _at(lambda table, rows, steps, dim: (table, rows, steps % (1 << 8), dim)),
    ),
    Fault(
        "counter-wraps-at-2^16",
        Kind.NOISE,
        "The step in the address has 16 bits.",
        by_mode("N1, N2", "N1, N2", "N1, N2"),
        _at(lambda table, rows, steps, dim: (table, rows, steps % (1 << 16), dim)),
    ),
    Fault(
        "counter-wraps-at-2^31",
        Kind.NOISE,
        "Row and step in the address have 31 bits, as signed integers do.",
        by_mode("N1, N2", "N1, N2", "N1, N2"),
        _at(lambda table, rows, steps, dim: (table, rows % (1 << 31), steps % (1 << 31), dim)),
    ),
    Fault(
        "seed-of-31-bits",
        Kind.NOISE,
        "The key holds 31 bits: whoever tries them all can strip the noise.",
        by_mode("E1, N1, N2", "E2, N1, N2", "L1 with key, N1, N2"),
        _from(_seed_of_31_bits),
        seen="the public LazyDP code, whose seeds come from rand()",
    ),
    Fault(
        "noise-shared-between-runs",
        Kind.NOISE,
        "Every run draws from the same key: two runs on different data cancel each other's noise.",
        by_mode("K1", "K1", "K1"),
        _same_key_every_run,
        seen="the public LazyDP code, which never calls srand",
        scenario=Scenario.TWO_RUNS,
    ),
    Fault(
        "tails-end-at-5.77",
        Kind.NOISE,
        "Box-Muller from a 24-bit uniform: no draw beyond 5.768 standard deviations.",
        by_mode("E1, N1", "E2, N1", "L1 with key, N1"),
        _law(tail_of_24_bits),
        seen="torch's float32 normals",
    ),
    Fault("tails-cut", Kind.NOISE, "Noise is cut at 2.5 standard deviations.", _PAID, _tails_cut),
    Fault(
        "uniform-noise",
        Kind.NOISE,
        "Uniform noise of the same variance.",
        by_mode("E1, L1, N1", "E2, L1, N1", "L1, L1 with key, N1"),
        _law(uniform),
    ),
    Fault(
        "laplace-noise",
        Kind.NOISE,
        "Laplace noise of the same variance.",
        by_mode("E1, L1, N1", "E2, L1, N1", "L1, L1 with key, N1"),
        _law(laplace),
    ),
    Fault(
        "float32-prefix-sums",
        Kind.NOISE,
        "The variance that a span owes is a difference of float32 prefix sums.",
        by_mode(bridge="E2, L1", aggregate="L1, L1 with key"),  # replay has no prefix sums
        _float32_prefix_sums,
        scenario=Scenario.FALLING,
    ),
    Fault(
        "half-precision",
        Kind.NOISE,
        "Settled rows are stored in half precision, and small noise is rounded away.",
        by_mode("E1, L1", "E2, L1", "L1, L1 with key"),
        _half_precision,
        scenario=Scenario.FALLING,
    ),
)
