"""Who pays which noise when: the eager schedule, the lazy one, and the release.

The trainers of this package call the step functions and `release`; `eager_run` and `lazy_run` are the loops around
them, written down for the proofs. The machine-checked proofs are about these functions:
proofs/translate.py turns this file into proofs/theories/Gen_schedule.v, and refuses whatever it cannot translate. So
there are only assignments, calls, loops over steps and one `return` at the end. docs/proofs.md states the theorems.

Tables and histories are changed in place; everything else is a value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeAlias, TypeVar

from samelaw.reference.rows import Counts, History, Rows, Values, Weights, distinct, each

T = TypeVar("T")
Gradient = TypeVar("Gradient")
Side = TypeVar("Side")

Drawn: TypeAlias = Annotated[T, "the result of a computation that may draw at random"]
Read: TypeAlias = Callable[[Rows], Values]
"""Serves the values of rows to a model."""
Model: TypeAlias = Callable[[Read], tuple[Rows, Gradient, Side]]
"""What one step does with what it reads: the rows to update, their gradient, and everything else there is."""
Plan: TypeAlias = Callable[[int, Side], Drawn[Model[Gradient, Side]]]
"""(step, everything else) -> the model of that step; its batch may be drawn at random."""
Announce: TypeAlias = Callable[[int, Side], Rows]
"""(step, everything else) -> rows to settle right after that step; possibly none."""
Update: TypeAlias = Callable[[int, Rows, Gradient, Values], Values]
"""(step, rows, gradient, values) -> the values after the gradient step."""
Owed: TypeAlias = Callable[[Rows, Counts, int, Values], Drawn[Values]]
"""(rows, since, until, values) -> the values after each row has paid for its own steps since, ..., until - 1."""
Pay: TypeAlias = Callable[[Rows, int, int, Values], Values]
"""(rows, since, until, values) -> the values after all rows have paid for the steps since, ..., until - 1 at once."""


def eager_step(
    weights: Weights,
    step: int,
    model: Model[Gradient, Side],
    everyone: Rows,
    update: Update[Gradient],
    owed: Owed,
) -> Side:
    """Gradient first, then the noise of this step on every row.

    Source: Abadi et al., arXiv 1607.00133, Algorithm 1.
    """

    def read(asked: Rows) -> Values:
        return weights[asked]

    touched, gradient, side = model(read)
    weights[touched] = update(step, touched, gradient, weights[touched])
    weights[everyone] = owed(everyone, each(everyone, step), step + 1, weights[everyone])
    return side


def settle_rows(weights: Weights, history: History, until: int, rows: Rows, owed: Owed) -> None:
    """Pay, once each, what these rows owe for the steps before `until`."""
    due = distinct(rows)
    weights[due] = owed(due, history[due], until, weights[due])
    history[due] = until


def lazy_step(
    weights: Weights,
    history: History,
    step: int,
    model: Model[Gradient, Side],
    ahead: Rows,
    update: Update[Gradient],
    owed: Owed,
) -> Side:
    """Settle what is read before it is read, and what is updated before it is updated; then what was announced.

    Args:
        ahead: rows to settle through this step already now: those of the next batch, or any others.

    Source: LazyDP, arXiv 2404.08847.
    """

    def read(asked: Rows) -> Values:
        settle_rows(weights, history, step, asked, owed)
        return weights[asked]

    touched, gradient, side = model(read)
    settle_rows(weights, history, step, touched, owed)
    weights[touched] = update(step, touched, gradient, weights[touched])
    settle_rows(weights, history, step + 1, ahead, owed)
    return side


def release(weights: Weights, history: History, step: int, everyone: Rows, owed: Owed) -> None:
    """Settle every row through the steps so far; only then may weights leave.

    Guarantees:
        R1  Afterwards no row is recorded as owing noise.
    """
    settle_rows(weights, history, step, everyone, owed)


def pay_steps(rows: Rows, since: int, until: int, values: Values, pay: Pay) -> Values:
    """Replay: pay for one step after the other, in order."""
    for step in range(since, until):
        values = pay(rows, step, step + 1, values)
    return values


def eager_run(
    weights: Weights,
    side: Side,
    start: int,
    stop: int,
    everyone: Rows,
    plan: Plan[Side, Gradient],
    update: Update[Gradient],
    owed: Owed,
) -> Side:
    """The eager steps start, ..., stop - 1."""
    for step in range(start, stop):
        model = plan(step, side)
        side = eager_step(weights, step, model, everyone, update, owed)
    return side


def lazy_run(
    weights: Weights,
    history: History,
    side: Side,
    start: int,
    stop: int,
    plan: Plan[Side, Gradient],
    announce: Announce[Side],
    update: Update[Gradient],
    owed: Owed,
) -> Side:
    """The lazy steps start, ..., stop - 1; `release` is not among them."""
    for step in range(start, stop):
        model = plan(step, side)
        ahead = announce(step, side)
        side = lazy_step(weights, history, step, model, ahead, update, owed)
    return side
