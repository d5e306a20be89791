"""What the kernels read besides tables, on the device: the key, the sampling bound, and the clock."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from samelaw.contract.noise import NoiseStream
from samelaw.contract.schedule import NoiseClock

BRIDGE_BITS = 30


class DeviceWords:
    """32-bit words as int32 tensors. They are read from memory, so no kernel is compiled anew for a key or a bound."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held: dict[object, Int32[Tensor, "words"]] = {}

    def key(self, stream: NoiseStream) -> Int32[Tensor, "8"]:
        """The eight words of the stream's key."""
        return self._words(stream.key.words, stream.key.words)

    def bound(self, value: int) -> Int32[Tensor, "2"]:
        """A 64-bit bound, low half first."""
        return self._words(value, (value & 0xFFFFFFFF, value >> 32))

    def _words(self, name: object, words: tuple[int, ...]) -> Int32[Tensor, "words"]:
        if name not in self._held:
            if len(self._held) >= 16:
                self._held.clear()
            bits = torch.from_numpy(np.array(words, dtype=np.uint32).view(np.int32).copy())
            self._held[name] = bits.to(self._device)
        return self._held[name]


class DeviceClock:
    """A NoiseClock on the device.

    Attributes:
        source: the clock.
        starts: first step of each segment, padded to a power of two above their number by steps that never come.
        elapsed, ticks, scales: per segment (elapsed and ticks padded by zeros).
        search: starts has 2^search entries that a bisection may look at.
        exponent: k; one tick is a variance of 4^k.
        unit: u of the bridge; 0 for a run without noise, whose paths are zero in any unit.
        steps, horizon: steps of the run, and the smallest power of two that covers them.
    """

    def __init__(self, clock: NoiseClock, device: torch.device) -> None:
        self.source = clock
        segments = int(clock.starts.size)
        self.search = (segments - 1).bit_length()
        padding = (1 << self.search) - segments
        never = np.full(padding + 1, np.int64(1) << 62)
        none = np.zeros(padding, dtype=np.int64)
        self.starts = torch.from_numpy(np.concatenate([clock.starts, never])).to(device)
        self.elapsed = torch.from_numpy(np.concatenate([clock.elapsed, none])).to(device)
        self.ticks = torch.from_numpy(np.concatenate([clock.ticks, none])).to(device)
        self.scales = torch.from_numpy(clock.scales.copy()).to(device)
        self.exponent = int(clock.exponent)
        largest = float(clock.scales.max())
        self.unit = math.frexp(largest)[1] - 1 - BRIDGE_BITS if largest > 0 else 0
        self.steps = int(clock.steps)
        self.horizon = 1 << (self.steps - 1).bit_length()

    def at(self, step: int) -> int:
        """V(step)."""
        return int(self.source.at(np.array([step], dtype=np.int64))[0])

    def segments(self, since: Int64[Tensor, "n"]) -> Int64[Tensor, "n"]:
        """The segment of each step."""
        return torch.searchsorted(self.starts[:-1], since, right=True) - 1
