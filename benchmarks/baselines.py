"""What the private step is compared with: sparse SGD without privacy, and eager DP-SGD, each as fast as it was got.

The numba ones use the same machinery as the lazy trainer (full-width ChaCha, prefetch, threads), so that a ratio shows
what laziness saves and nothing else.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from numba import int64, prange
from torch import Tensor, nn

from samelaw.contract.noise import NoiseStream, Purpose
from samelaw.fast.cpu import CpuKernels
from samelaw.fast.cpu.compiled import kernel
from samelaw.fast.cpu.settle import prefetch_row
from samelaw.fast.kernels import LookupCall

_AHEAD = 16
_NOISE_CHUNK = 1 << 16  # rows: torch fills a buffer of this many with normals, then adds it


@kernel(parallel=True)
def scatter_gradients(weights, ids, offsets, gradients, rate, workers):
    """w[id] -= rate * gradient of the id's bag. Worker k owns the rows with row % workers == k: no row has two."""
    dim, bags = int64(weights.shape[1]), int64(offsets.shape[0] - 1)
    for worker in prange(workers):
        for bag in range(bags):
            gradient = gradients[bag]
            for i in range(offsets[bag], offsets[bag + 1]):
                if i + _AHEAD < ids.shape[0] and ids[i + _AHEAD] % workers == worker:
                    prefetch_row(weights, ids[i + _AHEAD], dim)
                if ids[i] % workers == worker:
                    row = weights[ids[i]]
                    for j in range(dim):
                        row[j] = row[j] - rate * gradient[j]


class SparseSGD:
    """Non-private sparse SGD on one table: read the bags, then subtract rate * gradient where they point."""

    def __init__(self, weights: Tensor, rate: float) -> None:
        self.layer = nn.EmbeddingBag(1, weights.shape[1], mode="sum", sparse=True, include_last_offset=True)
        self.layer.weight = nn.Parameter(weights)
        self.optimizer = torch.optim.SGD(self.layer.parameters(), lr=rate)
        self.kernels, self.weights, self.rate = CpuKernels(), weights, np.float32(rate)

    def torch_step(self, call: LookupCall, gradient: Tensor) -> None:
        """As a torch user writes it."""
        self.layer(call.ids, call.offsets).backward(gradient)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def numba_step(self, call: LookupCall, gradient: Tensor) -> None:
        """The same with compiled kernels."""
        self.kernels.pool(self.weights, call)
        scatter_gradients(
            self.weights.numpy(),
            call.ids.numpy(),
            call.offsets.numpy(),
            gradient.numpy(),
            self.rate,
            numba.get_num_threads(),
        )


class EagerNoise:
    """What eager DP-SGD does beyond the lazy step without settlement: noise on every row."""

    def __init__(self, weights: Tensor, stream: NoiseStream, scale: float) -> None:
        self.weights, self.stream, self.scale = weights, stream, scale
        self.kernels = CpuKernels()
        self._buffer = torch.empty(min(_NOISE_CHUNK, weights.shape[0]), weights.shape[1])

    def torch_noise(self, step: int) -> None:
        """normal_ and add_, a chunk of rows at a time, so that the buffer stays small."""
        for part in self.weights.split(self._buffer.shape[0]):
            part.add_(self._buffer[: part.shape[0]].normal_(), alpha=-self.scale)

    def numba_noise(self, step: int) -> None:
        """One pass over the table, draws and subtraction fused, all threads: 2^28 normals at most a call."""
        for part in self.weights.view(-1).split(1 << 28):
            self.kernels.subtract_noise(part, self.stream, Purpose.DENSE, 0, step, self.scale)


def steady_history(
    probabilities: np.ndarray, now: int, generator: np.random.Generator
) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Histories as they stand after `now` steps in each of which row r was read with probability p_r, int32.

    The delay since the last read is geometric, cut off at `now` for rows that were never read.
    """
    return np.maximum(now - generator.geometric(probabilities), 0).astype(np.int32)
