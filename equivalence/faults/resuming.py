"""Faults of a resume: what a run forgets, or does twice, when it goes on from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from samelaw.equivalence.faults.fault import Fault, Kind, Trainer, by_mode, patch, tables_of
from samelaw.equivalence.faults.payments import mark_settled
from samelaw.equivalence.faults.redrawn import Draw, redraw


def _after_load(trainer: Trainer, then: Callable[[], None]) -> None:
    def wrap(load: Callable[[Any], None]) -> Callable[[Any], None]:
        def loaded(path: Any) -> None:
            load(path)
            then()

        return loaded

    patch(trainer, "load_checkpoint", wrap)


def _history_lost(trainer: Trainer) -> None:
    _after_load(trainer, lambda: mark_settled(trainer))


def _history_zeroed(trainer: Trainer) -> None:
    def then() -> None:
        for table in tables_of(trainer):
            table.history[table.history <= trainer.step_index] = 0

    _after_load(trainer, then)


def _noise_starts_again(trainer: Trainer) -> None:
    """Draws after the resume are those of the first steps of the run."""

    def then() -> None:
        start = trainer.step_index

        def wrap(normals: Draw) -> Draw:
            def drawn(stream: Any, purpose: Any, table: int, rows: Any, steps: Any, dim: int) -> Any:
                return normals(stream, purpose, table, rows, steps - start if steps >= start else steps, dim)

            return drawn

        redraw(trainer, wrap)

    _after_load(trainer, then)


FAULTS = (
    Fault(
        "history-lost-on-resume",
        Kind.RESUME,
        "A resumed run forgets which noise its rows owed.",
        by_mode("E1, L1", "E2, L1", "L1, L1 with key"),
        _history_lost,
        seen="the public LazyDP code, whose state_dict lacks the history",
    ),
    Fault(
        "history-zeroed-on-resume",
        Kind.RESUME,
        "A resumed run pays every row from step 0 again.",
        by_mode("E1, L1", "E2, L1", "L1, L1 with key"),
        _history_zeroed,
    ),
    Fault(
        "noise-shared-across-restarts",
        Kind.RESUME,
        "After a resume the generator starts again, and the first steps' noise is paid a second time.",
        by_mode("E1", "E2", "L1 with key"),
        _noise_starts_again,
        seen="Opacus 1.6, resumed with a reseeded generator",
    ),
)
