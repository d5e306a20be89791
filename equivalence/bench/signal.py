"""What DP-SGD adds up, without its noise: the linear loss of the bench makes it a function of the batch alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

import numpy as np

from samelaw.contract.bench import BenchBatch, BenchProblem
from samelaw.contract.trace import Pooling

Gradient = dict[str, np.ndarray]
"""By table or dense parameter, an array of its shape, float64."""


def zeros(problem: BenchProblem) -> Gradient:
    """Nothing, in the shape of the model."""
    return {name: np.zeros(value.shape) for name, value in {**problem.tables, **problem.dense}.items()}


def example_gradient(problem: BenchProblem, batch: BenchBatch, example: int) -> Gradient:
    """The gradient of one example's loss, unclipped: every occurrence of an id counts, padding does not."""
    found = zeros(problem)
    for name, reads in batch.reads.items():
        bag = reads.bag(example)
        ids = reads.ids[bag]
        weights = np.ones(ids.size) if reads.weights is None else reads.weights[bag].astype(np.float64)
        kept = ids != problem.padding.get(name, -1)
        ids, weights = ids[kept], weights[kept]
        if problem.pooling[name] is Pooling.MEAN and ids.size:
            weights = weights / ids.size
        np.add.at(found[name], ids, weights[:, None] * reads.readout[example].astype(np.float64))
    for name, coefficients in batch.dense.items():
        found[name] += coefficients[example]
    return found


def norm(gradient: Mapping[str, np.ndarray]) -> float:
    """L2 norm over all tables and dense parameters together."""
    return float(np.sqrt(sum(float((value**2).sum()) for value in gradient.values())))


@lru_cache(maxsize=32)  # repeated runs share their problem and batches
def clipped_sum(problem: BenchProblem, batch: BenchBatch) -> Gradient:
    """Per-example gradients scaled down to norm C where they are longer, and added. Not to be written to.

    Guarantees:
        S1  Adding or removing one example moves the sum by at most C.

    Source: Abadi et al., arXiv 1607.00133, Algorithm 1.
    """
    total = zeros(problem)
    for example in range(len(batch)):
        gradient = example_gradient(problem, batch, example)
        length = norm(gradient)
        factor = 1.0 if length <= problem.clip_norm else problem.clip_norm / length
        for name, value in gradient.items():
            total[name] += factor * value
    return total


def noiseless(problem: BenchProblem, batches: Iterable[BenchBatch]) -> Gradient:
    """Where the weights would be after these batches without any noise."""
    weights = {name: value.astype(np.float64) for name, value in {**problem.tables, **problem.dense}.items()}
    for batch in batches:
        for name, value in clipped_sum(problem, batch).items():
            weights[name] -= batch.learning_rate / problem.expected_batch_size * value
    return weights


def noise_std(problem: BenchProblem, steps: slice = slice(None)) -> float:
    """Std of the noise that every weight has received over these steps: sigma C / B times the root of sum lr^2."""
    squares = sum(rate**2 for rate in problem.learning_rates[steps])
    return problem.noise_multiplier * problem.clip_norm / problem.expected_batch_size * float(np.sqrt(squares))
