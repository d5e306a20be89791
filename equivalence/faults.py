"""Seeded faults: the bugs that lazy private trainers have had, planted on purpose to see that the claims catch them.

A fault patches plain methods ("seams") of one trainer, which arrives as an argument: of each table `pay`, `read`,
`update` and `plan`; of the trainer `square_norms`, `clip_factors`, `pay_dense`, `empty_step`, `settle` and
`load_checkpoint`. Nothing here imports a backend: tensors arrive with the methods they have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from samelaw.contract.noise import Purpose
from samelaw.contract.schedule import NoiseClock
from samelaw.contract.spec import Mode

Trainer = Any
Table = Any


@dataclass(frozen=True)
class Fault:
    """One bug.

    Attributes:
        name: as `samelaw verify --fault` takes it.
        sentence: what is wrong, for `--fault list`.
        caught_by: mode -> the claims that must be refuted in a run in that mode; the modes in which it is a bug.
        apply: plants it in a trainer, before its first step (and again in a trainer that resumes).
    """

    name: str
    sentence: str
    caught_by: Mapping[Mode, tuple[str, ...]]
    apply: Callable[[Trainer], None]

    @property
    def modes(self) -> tuple[Mode, ...]:
        return tuple(self.caught_by)


def _pay(trainer: Trainer, wrap: Callable[[Table, Callable[..., None]], Callable[..., None]]) -> None:
    """Replace every table's `pay` by wrap(table, original)."""
    for table in trainer.tables.values():
        table.pay = wrap(table, table.pay)


def _mark_settled(trainer: Trainer) -> None:
    """Say of every row that it has paid for all steps so far. (A padding row stands at the end of the run already.)"""
    for table in trainer.tables.values():
        table.history[table.history < trainer.step_index] = trainer.step_index


def _no_final_settle(trainer: Trainer) -> None:
    trainer.settle = lambda: _mark_settled(trainer)


def _off_by_one(trainer: Trainer) -> None:
    def wrap(table: Table, pay: Callable[..., None]) -> Callable[..., None]:
        def paid(rows: Any, since: Any, until: int) -> None:
            more = since + 1 < until
            pay(rows[more], since[more] + 1, until)

        return paid

    _pay(trainer, wrap)


def _last_step_only(trainer: Trainer) -> None:
    def wrap(table: Table, pay: Callable[..., None]) -> Callable[..., None]:
        def paid(rows: Any, since: Any, until: int) -> None:
            pay(rows, since * 0 + (until - 1), until)

        return paid

    _pay(trainer, wrap)


def _touched_rows_only(trainer: Trainer) -> None:
    _last_step_only(trainer)
    _no_final_settle(trainer)


def _paid_twice(trainer: Trainer) -> None:
    def wrap(table: Table, pay: Callable[..., None]) -> Callable[..., None]:
        def paid(rows: Any, since: Any, until: int) -> None:
            pay(rows, since, until)
            pay(rows, since, until)

        return paid

    _pay(trainer, wrap)


def _reshape_noise(trainer: Trainer, change: Callable[[Table, Any, np.ndarray, int], Any]) -> None:
    """Let every table pay correctly, then replace what was subtracted by change(table, paid, since, until)."""

    def wrap(table: Table, pay: Callable[..., None]) -> Callable[..., None]:
        def paid(rows: Any, since: Any, until: int) -> None:
            before = table.weights[rows]
            pay(rows, since, until)
            noise = before - table.weights[rows]
            table.weights[rows] = before - change(table, noise, since.cpu().numpy(), until)

        return paid

    _pay(trainer, wrap)


def _span_std(table: Table, since: np.ndarray, until: int) -> np.ndarray:
    clock: NoiseClock = table.plan.clock
    return clock.std(clock.at(np.full_like(since, until)) - clock.at(since)).astype(np.float64)


def _scaled(noise: Any, factor: np.ndarray) -> Any:
    """Row i of the noise times factor[i]."""
    return noise * noise.new_tensor(np.nan_to_num(factor, nan=1.0, posinf=1.0).tolist())[:, None]


def _step_scales(table: Table) -> np.ndarray:
    """s_t for every step."""
    clock: NoiseClock = table.plan.clock
    lengths = np.diff([*clock.starts.tolist(), clock.steps])
    return np.repeat(clock.scales.astype(np.float64), lengths)


def _linear_std(trainer: Trainer) -> None:
    def change(table: Table, noise: Any, since: np.ndarray, until: int) -> Any:
        total = np.concatenate([[0.0], np.cumsum(_step_scales(table))])
        with np.errstate(divide="ignore", invalid="ignore"):
            return _scaled(noise, (total[until] - total[since]) / _span_std(table, since, until))

    _reshape_noise(trainer, change)


def _stale_learning_rate(trainer: Trainer) -> None:
    def change(table: Table, noise: Any, since: np.ndarray, until: int) -> Any:
        latest = _step_scales(table)[until - 1]
        with np.errstate(divide="ignore", invalid="ignore"):
            return _scaled(noise, latest * np.sqrt(until - since) / _span_std(table, since, until))

    _reshape_noise(trainer, change)


def _one_number_per_row(trainer: Trainer) -> None:
    _reshape_noise(trainer, lambda table, noise, since, until: noise[:, :1].expand(noise.shape).clone())


def _tails_cut(trainer: Trainer) -> None:
    def change(table: Table, noise: Any, since: np.ndarray, until: int) -> Any:
        most = noise.new_tensor((2.5 * _span_std(table, since, until)).tolist())[:, None]
        return noise.clamp(-most, most)

    _reshape_noise(trainer, change)


def _reused_noise(trainer: Trainer) -> None:
    def wrap(table: Table, pay: Callable[..., None]) -> Callable[..., None]:
        def paid(rows: Any, since: Any, until: int) -> None:
            plan = table.plan
            z = table.kernels.normals(plan.stream, Purpose.AGGREGATE, plan.table, rows, 0, plan.dim)
            table.weights[rows] = table.weights[rows] - _scaled(z, _span_std(table, since.cpu().numpy(), until))

        return paid

    _pay(trainer, wrap)


def _ids_shared_across_tables(trainer: Trainer) -> None:
    for table in trainer.tables.values():
        table.plan = replace(table.plan, table=0)


def _per_table_clip(trainer: Trainer) -> None:
    joint = trainer.square_norms

    def square_norms(calls: Mapping[str, Any], pooled: Mapping[str, Any], dense: Any) -> Any:
        largest = dense
        for name in calls:
            largest = largest.maximum(joint({name: calls[name]}, {name: pooled[name]}, dense * 0))
        return largest

    trainer.square_norms = square_norms


def _bag_duplicates_once(trainer: Trainer) -> None:
    joint = trainer.square_norms

    def square_norms(calls: Mapping[str, Any], pooled: Mapping[str, Any], dense: Any) -> Any:
        once = {name: [_without_repeats(call) for call in of_table] for name, of_table in calls.items()}
        return joint(once, pooled, dense)

    trainer.square_norms = square_norms


def _without_repeats(call: Any) -> Any:
    """The call with each id kept once a bag."""
    ids, offsets = call.ids.cpu().numpy(), call.offsets.cpu().numpy()
    bag = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    pairs = np.stack([bag, ids], axis=1)
    kept = np.sort(np.unique(pairs, axis=0, return_index=True)[1]) if len(ids) else np.empty(0, dtype=np.int64)
    lengths = np.bincount(bag[kept], minlength=len(offsets) - 1)
    chosen = call.ids.new_tensor(kept.tolist())
    return replace(
        call,
        ids=call.ids[chosen],
        offsets=call.offsets.new_tensor([0, *np.cumsum(lengths).tolist()]),
        weights=None if call.weights is None else call.weights[chosen],
    )


def _dense_norm_ignored(trainer: Trainer) -> None:
    joint = trainer.square_norms

    def square_norms(calls: Any, pooled: Any, dense: Any) -> Any:
        return joint(calls, pooled, dense * 0)

    trainer.square_norms = square_norms


def _clip_norm_doubled(trainer: Trainer) -> None:
    factors = trainer.clip_factors

    def clip_factors(square_norms: Any) -> Any:
        return factors(square_norms / 4)

    trainer.clip_factors = clip_factors


def _batch_size_from_data(trainer: Trainer) -> None:
    def wrapped(update: Callable[..., None]) -> Callable[..., None]:
        def updated(calls: Any, pooled: Any, factors: Any, rate: float) -> None:
            drawn = rate * trainer.spec.expected_batch_size / max(1, len(factors))
            update(calls, pooled, factors, float(np.float32(drawn)))

        return updated

    for table in trainer.tables.values():
        table.update = wrapped(table.update)


def _pay_nothing(step: int) -> None:
    """In place of `pay_dense`."""


def _dense_noise_missing(trainer: Trainer) -> None:
    trainer.pay_dense = _pay_nothing


def _empty_batch_no_noise(trainer: Trainer) -> None:
    empty_step = trainer.empty_step

    def without_noise() -> None:
        step, pay_dense = trainer.step_index, trainer.pay_dense
        for table in trainer.tables.values():
            table.settle_all(step, chunk=trainer.options.settle_chunk)
        trainer.pay_dense = _pay_nothing
        empty_step()
        trainer.pay_dense = pay_dense
        _mark_settled(trainer)

    trainer.empty_step = without_noise


def _history_lost_on_resume(trainer: Trainer) -> None:
    load = trainer.load_checkpoint

    def forgetful(path: Any) -> None:
        load(path)
        _mark_settled(trainer)

    trainer.load_checkpoint = forgetful


def _read_before_settle(trainer: Trainer) -> None:
    def wrapped(table: Table) -> Callable[..., Any]:
        def read(call: Any, until: int) -> Any:
            value = table.kernels.pool(table.weights, call)
            table.settle_rows(call.ids, until)
            return value

        return read

    for table in trainer.tables.values():
        table.read = wrapped(table)


_NOISE = {Mode.REPLAY: ("E1",), Mode.BRIDGE: ("E2",), Mode.AGGREGATE: ("L1",)}
_CLIPPING = {Mode.REPLAY: ("E1", "S1"), Mode.BRIDGE: ("E2", "S1"), Mode.AGGREGATE: ("S1",)}
_UNMOVED = {Mode.REPLAY: ("E1", "R1"), Mode.BRIDGE: ("E2", "R1"), Mode.AGGREGATE: ("L1", "R1")}

_ALL = (
    Fault(
        "no-final-settle",
        "Rows are published without the noise that they owe since their last read.",
        _UNMOVED,
        _no_final_settle,
    ),
    Fault("off-by-one", "Every settlement pays for one step too few.", _NOISE, _off_by_one),
    Fault(
        "linear-std",
        "The std of a settlement grows with the steps owed instead of their square root.",
        _NOISE,
        _linear_std,
    ),
    Fault(
        "stale-learning-rate",
        "Past steps are paid at today's learning rate instead of their own.",
        _NOISE,
        _stale_learning_rate,
    ),
    Fault("reused-noise", "A row is paid with the same draw every time.", _NOISE, _reused_noise),
    Fault(
        "touched-rows-only",
        "Only rows that a batch reads get noise, one step's worth; the others keep their initial value.",
        _UNMOVED,
        _touched_rows_only,
    ),
    Fault(
        "per-table-clip",
        "Each table is clipped by itself: the largest table norm is held against C, not the joint norm.",
        _CLIPPING,
        _per_table_clip,
    ),
    Fault(
        "bag-duplicates-once",
        "A row that stands several times in a bag is counted once in the norm.",
        _CLIPPING,
        _bag_duplicates_once,
    ),
    Fault(
        "dense-noise-missing",
        "Dense parameters get no noise.",
        {**_NOISE, Mode.BRIDGE: ("L1",)},  # as for dense-norm-ignored
        _dense_noise_missing,
    ),
    Fault("empty-batch-no-noise", "A step whose batch is empty adds no noise.", _NOISE, _empty_batch_no_noise),
    Fault(
        "history-lost-on-resume",
        "A resumed run forgets which noise its rows owed.",
        _NOISE,
        _history_lost_on_resume,
    ),
    Fault("last-step-only", "A row that missed many steps is paid for the last one.", _NOISE, _last_step_only),
    Fault("paid-twice", "Every settlement is subtracted twice.", _NOISE, _paid_twice),
    Fault(
        "one-number-per-row",
        "One normal is drawn per row and copied to all its dimensions.",
        _NOISE,
        _one_number_per_row,
    ),
    Fault("tails-cut", "Noise is cut at 2.5 standard deviations.", _NOISE, _tails_cut),
    Fault(
        "ids-shared-across-tables",
        "All tables draw from one address, so row 7 of each gets the same noise.",
        _NOISE,
        _ids_shared_across_tables,
    ),
    Fault(
        "dense-norm-ignored",
        "The clip factor looks at the tables alone.",
        {**_CLIPPING, Mode.BRIDGE: ("S1",)},  # E2 is run on a model without dense parameters
        _dense_norm_ignored,
    ),
    Fault("clip-norm-doubled", "Examples are clipped at twice the declared norm.", _CLIPPING, _clip_norm_doubled),
    Fault(
        "batch-size-from-data",
        "The update divides by the number of examples drawn, which is private, not by the constant B.",
        _NOISE,
        _batch_size_from_data,
    ),
    Fault(
        "read-before-settle",
        "The forward pass sees rows before they have paid.",
        {Mode.REPLAY: ("E1",)},
        _read_before_settle,
    ),
)

FAULTS: dict[str, Fault] = {fault.name: fault for fault in _ALL}
