"""What a run is meant to be: its law (hashed into every claim) and its speed (hashed into none)."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from samelaw.contract.entry import as_count, as_float
from samelaw.contract.errors import InputError
from samelaw.contract.schedule import NoiseClock, Schedule

CONTRIBUTION_BITS = 32
CLIP_MARGIN = 2.0**-20
CANCELLATION_MARGIN = 2.0**-40


class Mode(StrEnum):
    """How owed noise is drawn. See docs/modes.md."""

    REPLAY = "replay"
    BRIDGE = "bridge"
    AGGREGATE = "aggregate"


@dataclass(frozen=True)
class PrivacySpec:
    """The parameters of DP-SGD. They decide the law of a run.

    Attributes:
        clip_norm: C > 0, bound on the joint L2 norm of one example's gradient over all tables and dense parameters.
        noise_multiplier: sigma >= 0; the summed gradient gets noise of std sigma * C. 0 is for tests only.
        sampling_rate: q in (0, 1]; every example joins a batch independently with this probability.
        expected_batch_size: B > 0, the constant that divides the noisy sum; never derived from a drawn batch.
        delta: in (0, 1), the delta at which epsilon is quoted.
        schedule: learning rate per step, and the number of steps.
        mode: how owed noise is drawn.
        rounds: ChaCha rounds, 8, 12 or 20.
        adjacency: "add_remove": neighbours differ in one example.
    """

    clip_norm: float
    noise_multiplier: float
    sampling_rate: float
    expected_batch_size: float
    delta: float
    schedule: Schedule
    mode: Mode = Mode.REPLAY
    rounds: int = 12
    adjacency: str = "add_remove"

    def __post_init__(self) -> None:
        for name in ("clip_norm", "noise_multiplier", "sampling_rate", "expected_batch_size", "delta"):
            object.__setattr__(self, name, as_float(name, getattr(self, name), "PrivacySpec"))
        requirements = (
            ("clip_norm", "finite and > 0", math.isfinite(self.clip_norm) and self.clip_norm > 0),
            (
                "noise_multiplier",
                "finite and >= 0",
                math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0,
            ),
            ("sampling_rate", "in (0, 1]", 0 < self.sampling_rate <= 1),
            (
                "expected_batch_size",
                "finite and > 0",
                math.isfinite(self.expected_batch_size) and self.expected_batch_size > 0,
            ),
            ("delta", "in (0, 1)", 0 < self.delta < 1),
            ("mode", "replay, bridge or aggregate, as contract.spec.Mode", type(self.mode) is Mode),
            ("rounds", "8, 12 or 20", self.rounds in (8, 12, 20)),
            ("adjacency", "'add_remove'", self.adjacency == "add_remove"),
        )
        for name, requirement, holds in requirements:
            if not holds:
                raise InputError(f"{name} must be {requirement}, got {getattr(self, name)!r} in PrivacySpec")

    @cached_property
    def clock(self) -> NoiseClock:
        return NoiseClock.of(
            self.schedule,
            noise_multiplier=self.noise_multiplier,
            clip_norm=self.clip_norm,
            expected_batch_size=self.expected_batch_size,
        )

    @cached_property
    def contribution_exponent(self) -> int:
        """e of the grid 2^e onto which contributions are truncated: C is at most 2^32 grid units."""
        return math.ceil(math.log2(self.clip_norm)) - CONTRIBUTION_BITS

    def to_json(self) -> dict[str, Any]:
        record = asdict(self)
        schedule = self.schedule
        record["mode"] = str(self.mode)
        record["schedule"] = {
            "name": schedule.name,
            "steps": schedule.steps,
            "digest": _digest([schedule.starts, schedule.rates]),
        }
        return record

    def digest(self) -> str:
        """SHA-256 over every field: two runs with the same digest have the same law given the same data and model."""
        return _digest(self.to_json())


@dataclass(frozen=True)
class ExecutionOptions:
    """What changes only the speed of a run, or what is recorded about it; never hashed into a claim.

    Attributes:
        threads: worker threads of the CPU kernels; 0 keeps the current setting.
        look_ahead: settle the next batch's rows together with this batch's update when it has been announced.
        settle_chunk: rows settled per kernel call at release; bounds the extra memory.
        check_mixing: on the first batch, check that no example's loss has a gradient in another example's reads or
            layer outputs (mixing that carries no gradient is not seen: docs/sharp-edges.md).
    """

    threads: int = 0
    look_ahead: bool = True
    settle_chunk: int = 1 << 16
    check_mixing: bool = True

    def __post_init__(self) -> None:
        for name, least in (("threads", 0), ("settle_chunk", 1)):
            object.__setattr__(self, name, as_count(name, getattr(self, name), "ExecutionOptions", least=least))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
