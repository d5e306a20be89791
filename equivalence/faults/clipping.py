"""Faults of the joint norm and of the clip factor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from samelaw.equivalence.faults.fault import Fault, Kind, Trainer, by_mode, patch

Norms = Callable[[Mapping[str, Any], Mapping[str, Any], Any], Any]
"""square_norms(calls, pooled, dense square norms) of a trainer."""


def _renorm(trainer: Trainer, change: Callable[[Norms], Norms]) -> None:
    patch(trainer, "square_norms", change)


def _per_table_clip(trainer: Trainer) -> None:
    def change(joint: Norms) -> Norms:
        def square_norms(calls: Mapping[str, Any], pooled: Mapping[str, Any], dense: Any) -> Any:
            largest = dense
            for name in calls:
                largest = largest.maximum(joint({name: calls[name]}, {name: pooled[name]}, dense * 0))
            return largest

        return square_norms

    _renorm(trainer, change)


def _one_table_outside(trainer: Trainer) -> None:
    def change(joint: Norms) -> Norms:
        def square_norms(calls: Mapping[str, Any], pooled: Mapping[str, Any], dense: Any) -> Any:
            inside = sorted(calls)[:-1]
            return joint({name: calls[name] for name in inside}, {name: pooled[name] for name in inside}, dense)

        return square_norms

    _renorm(trainer, change)


def _dense_norm_ignored(trainer: Trainer) -> None:
    _renorm(trainer, lambda joint: lambda calls, pooled, dense: joint(calls, pooled, dense * 0))


def _recall(change: Callable[[Any], Any]) -> Callable[[Trainer], None]:
    """Norms computed from other calls than those that were made."""

    def wrap(joint: Norms) -> Norms:
        def square_norms(calls: Mapping[str, Any], pooled: Mapping[str, Any], dense: Any) -> Any:
            return joint({name: [change(call) for call in made] for name, made in calls.items()}, pooled, dense)

        return square_norms

    return lambda trainer: _renorm(trainer, wrap)


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


def _all_distinct(call: Any) -> Any:
    """The call as if no id stood twice in it: then |g|^2 times the length of the bag is the norm."""
    return replace(call, ids=call.ids.new_tensor(list(range(len(call.ids)))))


def _refactor(change: Callable[[Any], Any]) -> Callable[[Trainer], None]:
    """Clip factors computed from other squared norms."""

    def wrap(factors: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def clip_factors(square_norms: Any) -> Any:
            return factors(change(square_norms))

        return clip_factors

    return lambda trainer: patch(trainer, "clip_factors", wrap)


_CLIPPED = by_mode("E1, S1, C1", "E2, S1, C1", "S1, C1")

FAULTS = (
    Fault(
        "per-table-clip",
        Kind.CLIPPING,
        "Each table is clipped by itself: the largest table norm is held against C, not the joint norm.",
        _CLIPPED,
        _per_table_clip,
    ),
    Fault(
        "one-table-outside",
        Kind.CLIPPING,
        "The last table is left out of the joint norm.",
        _CLIPPED,
        _one_table_outside,
    ),
    Fault(
        "dense-norm-ignored",
        Kind.CLIPPING,
        "The clip factor looks at the tables alone.",
        by_mode("E1, S1, C1", "S1, C1", "S1, C1"),  # E2 is run on a model without dense parameters
        _dense_norm_ignored,
    ),
    Fault(
        "bag-duplicates-once",
        Kind.CLIPPING,
        "A row that stands several times in a bag is counted once in the norm.",
        _CLIPPED,
        _recall(_without_repeats),
        seen="Opacus 1.6 in ghost mode (docs/opacus.md)",
    ),
    Fault(
        "bag-norm-by-length",
        Kind.CLIPPING,
        "The norm of a bag is taken as |g| times the root of its length, which holds for distinct ids only.",
        _CLIPPED,
        _recall(_all_distinct),
        seen="the public LazyDP code",
    ),
    Fault(
        "clip-norm-doubled",
        Kind.CLIPPING,
        "Examples are clipped at twice the declared norm.",
        _CLIPPED,
        _refactor(lambda square_norms: square_norms / 4),
    ),
    Fault(
        "clipped-after-averaging",
        Kind.CLIPPING,
        "One factor for the whole batch, from the mean of its norms.",
        by_mode("E1, S2, C1", "E2, S2, C1", "S2, C1"),  # one example alone is clipped as it should be
        _refactor(lambda square_norms: square_norms.sqrt().mean().square().expand(square_norms.shape).clone()),
    ),
)
