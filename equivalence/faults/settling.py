"""Faults of the settlement: who pays, when, and for which steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from samelaw.equivalence.faults.fault import Fault, Kind, Table, Trainer, by_mode, everywhere, patch, seam, tables_of
from samelaw.equivalence.faults.payments import Pay, ids_of, mark_settled, pay_nothing, repay

LAZYDP = "the public LazyDP code"


def _no_final_settle(trainer: Trainer) -> None:
    patch(trainer, "settle", lambda settle: lambda: mark_settled(trainer))


def _flush_off_by_one(trainer: Trainer) -> None:
    def wrap(settle: Callable[[], None]) -> Callable[[], None]:
        def settled() -> None:
            for table in tables_of(trainer):
                table.settle_all(max(trainer.step_index - 1, 0), chunk=trainer.options.settle_chunk)
            mark_settled(trainer)
            settle()

        return settled

    patch(trainer, "settle", wrap)


def _off_by_one(trainer: Trainer) -> None:
    def wrap(table: Table, pay: Pay) -> Pay:
        def paid(rows: Any, since: Any, until: int) -> None:
            more = since + 1 < until
            pay(rows[more], since[more] + 1, until)

        return paid

    repay(trainer, wrap)


def _last_step_only(trainer: Trainer) -> None:
    def wrap(table: Table, pay: Pay) -> Pay:
        def paid(rows: Any, since: Any, until: int) -> None:
            pay(rows, since * 0 + (until - 1), until)

        return paid

    repay(trainer, wrap)


def _touched_rows_only(trainer: Trainer) -> None:
    _last_step_only(trainer)
    _no_final_settle(trainer)


def _paid_twice(trainer: Trainer) -> None:
    def wrap(table: Table, pay: Pay) -> Pay:
        def paid(rows: Any, since: Any, until: int) -> None:
            pay(rows, since, until)
            pay(rows, since, until)

        return paid

    repay(trainer, wrap)


def _duplicates_paid_twice(trainer: Trainer) -> None:
    def of(table: Table) -> Callable[[Any], Any]:
        def wrap(settle_rows: Callable[[Any, int], int]) -> Callable[[Any, int], int]:
            def settled(ids: Any, until: int) -> int:
                since = table.history[ids].long()
                rows, count = ids.unique(return_counts=True)
                paid = settle_rows(ids, until)
                again = rows[count > 1]
                owed = since.new_tensor([int(since[ids == row][0]) for row in again.tolist()]).long()
                more = owed < until
                table.pay(again[more], owed[more], until)
                return paid

            return settled

        return wrap

    for table in tables_of(trainer):
        patch(table, "settle_rows", of(table))


def _history_advanced_first(trainer: Trainer) -> None:
    """`since` is read after the history was moved, so it equals `until`; the flush at release reads it before."""

    def of(table: Table) -> Callable[[Any], Any]:
        def wrap(read: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
            def advanced(call: Any, until: int) -> Any:
                table.history[call.ids] = until
                return read(call, until)

            return advanced

        return wrap

    for table in tables_of(trainer):
        patch(table, "read", of(table))


def _after_update(trainer: Trainer, then: Callable[[Table, Any, int], None]) -> None:
    """Call then(table, rows, step) once the rows of a batch have been updated."""

    def of(table: Table) -> Callable[[Any], Any]:
        def wrap(update: Callable[..., None]) -> Callable[..., None]:
            def updated(calls: Any, pooled: Any, factors: Any, rate: float) -> None:
                update(calls, pooled, factors, rate)
                then(table, ids_of(calls), trainer.step_index)

            return updated

        return wrap

    for table in tables_of(trainer):
        patch(table, "update", of(table))


def _own_step_omitted(trainer: Trainer) -> None:
    def then(table: Table, rows: Any, step: int) -> None:
        table.history[rows] = step + 1

    _after_update(trainer, then)


def _own_step_doubled(trainer: Trainer) -> None:
    def then(table: Table, rows: Any, step: int) -> None:
        table.pay(rows, rows * 0 + step, step + 1)

    _after_update(trainer, then)


def _microstep_advances(trainer: Trainer) -> None:
    """The second half of a batch runs as a microstep of its own, and moves the history of its rows by one more step."""

    def of(table: Table) -> Callable[[Any], Any]:
        def wrap(update: Callable[..., None]) -> Callable[..., None]:
            def updated(calls: Any, pooled: Any, factors: Any, rate: float) -> None:
                update(calls, pooled, factors, rate)
                for call in calls:
                    offsets, examples = call.offsets.tolist(), call.example_of_bag.tolist()
                    second = [bag for bag, example in enumerate(examples) if 2 * example >= len(factors)]
                    for bag in second:
                        table.history[call.ids[offsets[bag] : offsets[bag + 1]]] = trainer.step_index + 1

            return updated

        return wrap

    for table in tables_of(trainer):
        patch(table, "update", of(table))


def _read_before_settle(trainer: Trainer) -> None:
    def of(table: Table) -> Callable[[Any], Any]:
        def wrap(_: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
            def read(call: Any, until: int) -> Any:
                value = table.kernels.pool(table.weights, call)
                table.settle_rows(call.ids, until)
                return value

            return read

        return wrap

    for table in tables_of(trainer):
        patch(table, "read", of(table))


def _looks_at_current_batch(trainer: Trainer) -> None:
    """Reads trust the look-ahead to have settled their rows, and the look-ahead is given the batch just trained on."""

    def of(table: Table) -> Callable[[Any], Any]:
        def read(call: Any, until: int) -> Any:
            return table.kernels.pool(table.weights, call)

        return lambda _: read

    for table in tables_of(trainer):
        patch(table, "read", of(table))
    _after_update(trainer, lambda table, rows, step: table.settle_rows(rows, step + 1))


def _empty_batch_no_noise(trainer: Trainer) -> None:
    def wrap(empty_step: Callable[[], None]) -> Callable[[], None]:
        def without_noise() -> None:
            step, pay_dense = trainer.step_index, seam(trainer, "pay_dense")
            for table in tables_of(trainer):
                table.settle_all(step, chunk=trainer.options.settle_chunk)
            trainer.pay_dense = pay_nothing
            empty_step()
            trainer.pay_dense = pay_dense
            mark_settled(trainer)

        return without_noise

    patch(trainer, "empty_step", wrap)


def _epoch_resets_history(trainer: Trainer) -> None:
    """Every tenth step ends an epoch, and the history starts afresh there."""

    def wrap(pay_dense: Callable[[int], None]) -> Callable[[int], None]:
        def paid(step: int) -> None:
            pay_dense(step)
            if step % 10 == 9:
                for table in tables_of(trainer):
                    table.history[table.history <= step] = step + 1

        return paid

    patch(trainer, "pay_dense", wrap)


def _dense_noise_missing(trainer: Trainer) -> None:
    patch(trainer, "pay_dense", lambda pay_dense: pay_nothing)


_LAW = by_mode("E1, L1", "E2, L1", "L1, L1 with key")
_UNMOVED = by_mode("E1, L1, R1", "E2, L1, R1", "L1, L1 with key, R1")

FAULTS = (
    Fault(
        "no-final-settle",
        Kind.SETTLEMENT,
        "Rows are published without the noise that they owe since their last read.",
        _UNMOVED,
        _no_final_settle,
        seen=f"{LAZYDP}, outside debug mode",
    ),
    Fault(
        "flush-off-by-one",
        Kind.SETTLEMENT,
        "The settlement at release stops one step short, and marks every row as settled.",
        _LAW,
        _flush_off_by_one,
    ),
    Fault(
        "off-by-one",
        Kind.SETTLEMENT,
        "Every settlement pays for one step too few.",
        _LAW,
        _off_by_one,
    ),
    Fault(
        "last-step-only",
        Kind.SETTLEMENT,
        "A row that missed many steps is paid for the last one.",
        _LAW,
        _last_step_only,
    ),
    Fault(
        "touched-rows-only",
        Kind.SETTLEMENT,
        "Only rows that a batch reads get noise, one step's worth; the others keep their initial value.",
        _UNMOVED,
        _touched_rows_only,
        seen="EANA, by design",
    ),
    Fault("paid-twice", Kind.SETTLEMENT, "Every settlement is subtracted twice.", _LAW, _paid_twice),
    Fault(
        "duplicates-paid-twice",
        Kind.SETTLEMENT,
        "A row that stands several times in a batch is paid a second time.",
        _LAW,
        _duplicates_paid_twice,
    ),
    Fault(
        "history-advanced-first",
        Kind.SETTLEMENT,
        "A read moves the history before it computes what the row owes, which is then nothing.",
        _LAW,
        _history_advanced_first,
    ),
    Fault(
        "own-step-omitted",
        Kind.SETTLEMENT,
        "A row that a batch reads never gets the noise of that step.",
        _LAW,
        _own_step_omitted,
    ),
    Fault(
        "own-step-doubled",
        Kind.SETTLEMENT,
        "A row that a batch reads gets the noise of that step at once, and again when it is next read.",
        _LAW,
        _own_step_doubled,
    ),
    Fault(
        "microstep-advances-history",
        Kind.SETTLEMENT,
        "The second half of a batch runs as a microstep, which moves the history of its rows without noise.",
        _LAW,
        _microstep_advances,
    ),
    Fault(
        "read-before-settle",
        Kind.SETTLEMENT,
        "The forward pass sees rows before they have paid.",
        by_mode("E1, C1", "C1", "C1"),
        _read_before_settle,
    ),
    Fault(
        "look-ahead-current-batch",
        Kind.SETTLEMENT,
        "The look-ahead settles the batch just trained on, and the next one reads rows that still owe.",
        _LAW,
        _looks_at_current_batch,
    ),
    Fault(
        "empty-batch-no-noise",
        Kind.SETTLEMENT,
        "A step whose batch is empty moves the history and adds no noise.",
        _LAW,
        _empty_batch_no_noise,
        seen=f"{LAZYDP}: a skipped step",
    ),
    Fault(
        "epoch-resets-history",
        Kind.SETTLEMENT,
        "The history starts afresh every ten steps, and what rows owed is forgotten.",
        _LAW,
        _epoch_resets_history,
    ),
    Fault(
        "dense-noise-missing",
        Kind.SETTLEMENT,
        "Dense parameters get no noise.",
        everywhere("L1, L1 with key") | by_mode(replay="E1, L1, L1 with key"),
        _dense_noise_missing,
        seen=f"{LAZYDP}, on a CPU",
    ),
)
