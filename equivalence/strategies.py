"""Hypothesis strategies for whole runs. Hypothesis comes with the extra `testing`: pip install "samelaw[testing]"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from hypothesis import strategies as st

from samelaw.contract.spec import Mode
from samelaw.equivalence.run_plans import Example, RunPlan, Table

Draw: TypeAlias = Any
"""Hypothesis's DrawFn: a protocol that cannot be checked at run time, as the tests do with every annotation."""

POWERS = (-3, 0, 5, -12, -40)
"""Sizes of gradients: ordinary, clipped, clipped hard, a few grid units, and below the grid."""
WEIGHTS = (1.0, 0.5, 2.0, -1.0, 0.0, 1.25)
DENSE = (0.0, 1.0, -0.5, 4.0)
RATES = (0.5, 0.0, 0.05, 2.0)


@st.composite
def run_plans(draw: Draw, *, mode: Mode | None = None) -> RunPlan:
    """A run: tables, bags, law, batches and everything that happens on the way. Shrinks towards few of each.

    Args:
        mode: the mode of every plan; any by default.
    """
    tables = tuple(draw(_table(name)) for name in "abc"[: draw(st.integers(1, 3))])
    features = tuple(draw(st.lists(st.integers(0, len(tables) - 1), min_size=1, max_size=4)))
    dense_width = draw(st.integers(0, 2))
    weighted = draw(st.booleans())
    some = st.lists(_example(tables, features, dense_width, weighted=weighted), min_size=1, max_size=5)
    examples = tuple(draw(some))
    steps = draw(st.integers(1, 10))
    ends = sorted(draw(st.lists(st.integers(0, steps), max_size=4)))
    return RunPlan(
        tables=tables,
        features=features,
        examples=examples,
        steps=steps,
        schedule=draw(_schedules(steps)),
        batches=draw(_batches(len(examples), steps)),
        mode=str(mode or draw(st.sampled_from(list(Mode)))),
        clip_norm=draw(st.sampled_from([1.0, 0.3, 64.0])),
        noise_multiplier=draw(st.sampled_from([1.0, 0.0, 0.25])),
        expected_batch_size=draw(st.sampled_from([2.0, 1.0, 3.5])),
        sampling_rate=draw(st.sampled_from([0.5, 0.1, 1.0])),
        rounds=draw(st.sampled_from([12, 8, 20])),
        key=draw(st.integers(0, 3)),
        curvature=draw(st.sampled_from([0.0, 0.0, 0.5, -1.0])),
        dense_width=dense_width,
        restarts=tuple(zip(ends[::2], ends[1::2], strict=False)),
        early=tuple(sorted(draw(st.sets(st.integers(0, steps - 1), max_size=2)))) if draw(st.booleans()) else (),
        announce=draw(st.booleans()),
        look_ahead=draw(st.booleans()),
        threads=draw(st.integers(1, 2)),
        settle_chunk=draw(st.sampled_from([1 << 16, 1, 3])),
        check_mixing=draw(st.booleans()),
    )


def _table(name: str) -> st.SearchStrategy[Table]:
    rows = st.integers(1, 8)

    def of(size: int) -> st.SearchStrategy[Table]:
        padding = st.one_of(st.none(), st.none(), st.integers(0, size - 1))
        dims = st.sampled_from([1, 2, 3, 8, 16, 17])
        return st.builds(Table, st.just(name), st.just(size), dims, st.sampled_from(["sum", "mean"]), padding)

    return rows.flatmap(of)


@st.composite
def _example(
    draw: Draw, tables: tuple[Table, ...], features: tuple[int, ...], dense_width: int, *, weighted: bool
) -> Example:
    bags = tuple(tuple(draw(st.lists(st.integers(0, tables[t].rows - 1), max_size=5))) for t in features)
    weights: tuple[tuple[float, ...] | None, ...] = ()
    if weighted:
        weights = tuple(
            tuple(draw(st.sampled_from(WEIGHTS)) for _ in bag) if tables[t].pooling == "sum" else None
            for t, bag in zip(features, bags, strict=True)
        )
    return Example(
        bags=bags,
        slope=draw(st.integers(0, 16)),
        power=draw(st.sampled_from(POWERS)),
        weights=weights,
        dense=tuple(draw(st.sampled_from(DENSE)) for _ in range(dense_width)),
    )


def _schedules(steps: int) -> st.SearchStrategy[tuple[str | float | tuple[int, ...] | tuple[float, ...], ...]]:
    """Constant, cosine, and piecewise with rates of 0: at least one is above."""
    constant = st.sampled_from(RATES).filter(bool).map(lambda rate: ("constant", rate))
    cosine = st.integers(0, steps - 1).map(lambda warmup: ("cosine", 0.5, warmup))
    if steps == 1:
        return st.one_of(constant, cosine)
    places = st.sets(st.integers(1, steps - 1), min_size=1, max_size=3).map(lambda found: tuple(sorted(found)))

    def rates(boundaries: tuple[int, ...]) -> st.SearchStrategy[tuple[str | tuple[int, ...] | tuple[float, ...], ...]]:
        some = st.lists(st.sampled_from(RATES), min_size=len(boundaries) + 1, max_size=len(boundaries) + 1)
        return some.filter(any).map(lambda found: ("piecewise", boundaries, tuple(found)))

    return st.one_of(constant, cosine, places.flatmap(rates))


def _batches(examples: int, steps: int) -> st.SearchStrategy[tuple[tuple[int, ...], ...] | None]:
    """The keyed sampler; the same examples at every step; or any at each, often none."""
    some = st.sets(st.integers(0, examples - 1)).map(lambda found: tuple(sorted(found)))
    repeated = some.map(lambda batch: (batch,) * steps)
    each = st.lists(st.one_of(st.just(()), some), min_size=steps, max_size=steps).map(tuple)
    return st.one_of(each, repeated, st.none())


def traits(plan: RunPlan) -> set[str]:
    """Which of TRAITS a plan has, whatever its key draws."""
    return {name for name, has in TRAITS.items() if has(plan)}


def _bags(plan: RunPlan) -> list[tuple[int, tuple[int, ...]]]:
    """Every bag that a declared batch reads, with its table."""
    return [
        (plan.features[f], bag)
        for batch in plan.batches or ()
        for i in batch
        for f, bag in enumerate(plan.examples[i].bags)
    ]


def _steps_read(plan: RunPlan) -> dict[tuple[int, int], int]:
    """(table, row) -> the number of steps that read it. Declared batches alone; padding is not read."""
    counts = {(t, row): 0 for t, table in enumerate(plan.tables) for row in range(table.rows) if row != table.padding}
    for batch in plan.batches or ():
        bags = [(plan.features[f], bag) for i in batch for f, bag in enumerate(plan.examples[i].bags)]
        for place in {(t, row) for t, bag in bags for row in bag} & counts.keys():
            counts[place] += 1
    return counts


def _rates(plan: RunPlan) -> np.ndarray:
    return np.array([plan.spec.schedule.rate(step) for step in range(plan.steps)])


TRAITS: dict[str, Callable[[RunPlan], bool]] = {
    "replay": lambda plan: plan.mode == "replay",
    "bridge": lambda plan: plan.mode == "bridge",
    "aggregate": lambda plan: plan.mode == "aggregate",
    "keyed sampler": lambda plan: plan.batches is None,
    "empty batch": lambda plan: () in (plan.batches or ()),
    "empty bag": lambda plan: any(not bag for _, bag in _bags(plan)),
    "repeated id": lambda plan: any(len(set(bag)) < len(bag) for _, bag in _bags(plan)),
    "padding id": lambda plan: any(plan.tables[t].padding in bag for t, bag in _bags(plan)),
    "weights": lambda plan: any(any(example.weights) for example in plan.examples),
    "sum pooling": lambda plan: any(plan.tables[t].pooling == "sum" for t in plan.features),
    "mean pooling": lambda plan: any(plan.tables[t].pooling == "mean" for t in plan.features),
    "shared table": lambda plan: len(set(plan.features)) < len(plan.features),
    "table without a feature": lambda plan: len(set(plan.features)) < len(plan.tables),
    "row never read": lambda plan: plan.batches is not None and 0 in _steps_read(plan).values(),
    "row read at every step": lambda plan: plan.steps > 1 and plan.steps in _steps_read(plan).values(),
    "row read again after a gap": lambda plan: any(1 < n < plan.steps for n in _steps_read(plan).values()),
    "constant rate": lambda plan: plan.schedule[0] == "constant",
    "cosine rate": lambda plan: plan.schedule[0] == "cosine",
    "piecewise rate": lambda plan: plan.schedule[0] == "piecewise",
    "rate of zero": lambda plan: bool((_rates(plan) == 0).any()),
    "no noise": lambda plan: plan.noise_multiplier == 0,
    "gradients that depend on reads": lambda plan: plan.curvature != 0,
    "dense parameter": lambda plan: plan.dense_width > 0,
    "restart": lambda plan: len(plan.restarts) > 0,
    "several restarts": lambda plan: len(plan.restarts) > 1,
    "restart that loses steps": lambda plan: any(save < kill for save, kill in plan.restarts),
    "restart before the first step": lambda plan: any(save == 0 for save, _ in plan.restarts),
    "restart after the last step": lambda plan: any(kill == plan.steps for _, kill in plan.restarts),
    "early settlement": lambda plan: len(plan.early) > 0,
    "look-ahead on": lambda plan: plan.announce and plan.look_ahead,
    "look-ahead off": lambda plan: not (plan.announce and plan.look_ahead),
    "two threads": lambda plan: plan.threads == 2,
    "settled row by row": lambda plan: plan.settle_chunk == 1,
}
