"""The bug that each golden run hunts, planted in the lazy trainer: from the catalogue, or a small mutation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from samelaw.contract.trace import Pooling
from samelaw.equivalence.faults import FAULTS


def mean_not_divided(trainer):
    """Updates and norms take a mean for a sum."""

    def as_sums(calls):
        return [replace(call, pooling=Pooling.SUM) for call in calls]

    for table in trainer.tables.values():
        update = table.update
        table.update = lambda calls, *rest, update=update: update(as_sums(calls), *rest)


def history_too_narrow(bits):
    """The number of steps owed is kept in so many bits."""

    def plant(trainer):
        for table in trainer.tables.values():
            pay = table.pay

            def paid(rows, since, until, pay=pay):
                owed = (until - since) % (1 << bits)
                left = owed > 0
                pay(rows[left], (until - owed)[left].to(since.dtype), until)

            table.pay = paid

    return plant


def cross_terms_dropped(trainer):
    """Every call of a table is clipped as if it were a table of its own."""
    joint = trainer.square_norms

    def square_norms(calls, pooled, dense):
        norms = dense
        for name in sorted(calls):
            for call, gradient in zip(calls[name], pooled[name], strict=True):
                norms = joint({name: [call]}, {name: [gradient]}, norms)
        return norms

    trainer.square_norms = square_norms


def padding_trained(trainer):
    """The padding row owes noise like any other."""
    for table in trainer.tables.values():
        if table.padding_idx is not None:
            table.history[table.padding_idx] = 0


def clip_without_margin(trainer):
    """min(1, C / norm)."""

    def clip_factors(squares):
        norms = np.sqrt(squares.numpy())
        return torch.from_numpy(trainer.spec.clip_norm / np.maximum(norms, trainer.spec.clip_norm))

    trainer.clip_factors = clip_factors


def rounded_to_nearest(trainer):
    """Half a grid unit is added away from zero before a contribution is truncated (bags of one id)."""

    def outward(calls, pooled, factors, exponent):
        half = 0.5 * 2.0**exponent
        return [
            (g + half * torch.sign(g) / factors[call.example_of_bag, None]).to(torch.float32)
            for call, g in zip(calls, pooled, strict=True)
        ]

    # The noise of the tables hides so little; the recorded sums do not.
    sums = trainer.kernels.gradient_sums
    trainer.kernels.gradient_sums = lambda calls, pooled, factors, exponent: sums(
        calls, outward(calls, pooled, factors, exponent), factors, exponent
    )


MUTATIONS = {
    "mean-not-divided": mean_not_divided,
    "cross-terms-dropped": cross_terms_dropped,
    "padding-trained": padding_trained,
    "clip-without-margin": clip_without_margin,
    "rounded-to-nearest": rounded_to_nearest,
}


def fault_of(golden):
    """What plants the golden run's bug."""
    if golden.bug == "history-too-narrow":
        return history_too_narrow(int(golden.name.rsplit("-", 1)[1]))
    return FAULTS[golden.bug].apply if golden.bug in FAULTS else MUTATIONS[golden.bug]
