"""Faults of the sampler: who joins a batch. They are the same in every mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from samelaw.equivalence.faults.fault import Fault, Kind, Scenario, Trainer, everywhere, patch, seam

MICROBATCH = 8


def _resample(trainer: Trainer, wrap: Callable[[Callable[[int], Any]], Callable[[int], Any]]) -> None:
    patch(trainer, "draw_sample", wrap)


def _order(trainer: Trainer, epoch: int) -> np.ndarray:
    """The order of the examples in an epoch: a shuffle that depends on the key."""
    seed = [*seam(trainer, "stream").key.words, epoch]
    return np.random.default_rng(seed).permutation(trainer.examples)


def _shuffled(trainer: Trainer) -> None:
    """Batches of a fixed size from a shuffled pass; the last, partial batch of a pass is kept."""
    size = round(trainer.spec.expected_batch_size)
    batches = -(-trainer.examples // size)

    def drawn(step: int) -> np.ndarray:
        epoch, batch = divmod(step, batches)
        return np.sort(_order(trainer, epoch)[batch * size : (batch + 1) * size])

    _resample(trainer, lambda _: drawn)


def _last_batch_dropped(trainer: Trainer) -> None:
    """As a loader with drop_last: examples that do not fill a batch wait for the next pass."""
    size = round(trainer.spec.expected_batch_size)
    batches = trainer.examples // size

    def drawn(step: int) -> np.ndarray:
        epoch, batch = divmod(step, batches)
        return np.sort(_order(trainer, epoch)[batch * size : (batch + 1) * size])

    _resample(trainer, lambda _: drawn)


def _fixed_size(trainer: Trainer) -> None:
    """Exactly B examples without replacement, afresh at every step."""
    size = round(trainer.spec.expected_batch_size)
    _resample(trainer, lambda _: lambda step: np.sort(_order(trainer, step)[:size]))


def _last_microbatch_dropped(trainer: Trainer) -> None:
    def wrap(draw: Callable[[int], np.ndarray]) -> Callable[[int], np.ndarray]:
        def drawn(step: int) -> np.ndarray:
            whole = draw(step)
            return whole[: len(whole) // MICROBATCH * MICROBATCH]

        return drawn

    _resample(trainer, wrap)


def _one_example_too_many(trainer: Trainer) -> None:
    def drawn(step: int) -> Any:
        rate = trainer.spec.sampling_rate + 1 / trainer.examples
        return trainer.kernels.poisson_sample(trainer.stream, step, rate, trainer.examples).cpu().numpy()

    _resample(trainer, lambda _: drawn)


def _one_sample_an_epoch(trainer: Trainer) -> None:
    """The step is not in the sampler's address: the same examples in every pass of 1 / q steps."""
    period = max(1, round(1 / trainer.spec.sampling_rate))
    _resample(trainer, lambda draw: lambda step: draw(step % period))


_KIND = Kind.SAMPLING
_HERE = Scenario.SAMPLED

FAULTS = (
    Fault(
        "shuffled-as-poisson",
        _KIND,
        "Batches of fixed size come from a shuffled pass over the data, and are priced as Poisson samples.",
        everywhere("P1, P1 with key, A2"),
        _shuffled,
        seen="the public LazyDP code, which prices fixed batches as Poisson samples",
        scenario=_HERE,
    ),
    Fault(
        "last-batch-dropped",
        _KIND,
        "Shuffled passes, and the last, partial batch of each is dropped.",
        everywhere("P1, P1 with key, A2"),
        _last_batch_dropped,
        scenario=_HERE,
    ),
    Fault(
        "fixed-size-as-poisson",
        _KIND,
        "Every batch holds exactly B examples, and is priced as a Poisson sample.",
        everywhere("P1, P1 with key, A2"),
        _fixed_size,
        scenario=_HERE,
    ),
    Fault(
        "last-microbatch-dropped",
        _KIND,
        f"A drawn batch is cut to whole microbatches of {MICROBATCH}: the last examples hardly ever join.",
        everywhere("P1, P1 with key, A2"),
        _last_microbatch_dropped,
        scenario=_HERE,
    ),
    Fault(
        "rate-off-by-one-example",
        _KIND,
        "The sampling rate is (B + 1) / N instead of B / N.",
        everywhere("P1, P1 with key, A2"),
        _one_example_too_many,
        scenario=_HERE,
    ),
    Fault(
        "same-sample-every-epoch",
        _KIND,
        "The sampler starts afresh after 1 / q steps, and draws the same batches again.",
        everywhere("P1, P1 with key, A2"),
        _one_sample_an_epoch,
        scenario=_HERE,
    ),
)
