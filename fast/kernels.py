"""What a backend must be able to do: the seam between the lazy trainer and the machine it runs on.

`fast/cpu` (numba) and `fast/gpu` (Triton) implement `Kernels` independently of each other and of `samelaw.reference`;
docs/arithmetic.md fixes every bit that they return, so they can stand in for one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float32, Float64, Int64, Shaped
from torch import Tensor

from samelaw.contract.noise import NoiseStream, Purpose
from samelaw.contract.schedule import NoiseClock
from samelaw.contract.spec import Mode
from samelaw.contract.trace import Pooling


@dataclass(frozen=True, repr=False, eq=False)
class LookupCall:
    """One call of one embedding table, as tensors on the backend's device. `contract.trace.Lookup` in torch.

    Attributes:
        ids: row ids of all bags, end to end, padding removed; int64.
        offsets: bag i is ids[offsets[i]:offsets[i+1]]; int64, from 0 to len(ids), one more entry than bags.
        example_of_bag: the example of the batch that each bag belongs to; int64, non-decreasing.
        pooling: how a bag's rows become one vector.
        weights: one float32 weight per id (sum pooling only), or None.
        notes: what a backend remembers about this call, under its own name; gone with the call.
    """

    ids: Int64[Tensor, "ids"]
    offsets: Int64[Tensor, "bags_plus_1"]
    example_of_bag: Int64[Tensor, "bags"]
    pooling: Pooling = Pooling.SUM
    weights: Float32[Tensor, "ids"] | None = None
    notes: dict[str, Any] = field(default_factory=dict[str, Any], init=False)

    @property
    def bags(self) -> int:
        return self.example_of_bag.shape[0]

    def __repr__(self) -> str:  # traces are sensitive: shapes only
        return f"LookupCall(ids={self.ids.shape[0]}, bags={self.bags}, pooling={self.pooling})"


@dataclass(frozen=True, eq=False)
class NoisePlan:
    """All that decides one table's noise besides (row, step).

    Attributes:
        mode: how owed noise is drawn.
        stream: key and rounds.
        clock: scale and variance of every step.
        table: the table's number in the address, 0-based.
        dim: columns of the table.
    """

    mode: Mode
    stream: NoiseStream
    clock: NoiseClock
    table: int
    dim: int


@runtime_checkable
class Kernels(Protocol):
    """The operations of one backend, bit for bit as docs/arithmetic.md.

    Tables and their reads are float32, C-contiguous, (rows, dim); all tensors live on `device`. Nothing here reads or
    moves a global random state. Every method validates its arguments and raises InputError (AddressError for
    an address that would wrap) before it writes anything. Padding ids never reach a backend.
    """

    name: str
    device: torch.device

    def due_rows(
        self, history: Shaped[Tensor, "rows"], ids: Int64[Tensor, "ids"], until: int
    ) -> tuple[Int64[Tensor, "due"], Int64[Tensor, "due"]]:
        """Distinct ids whose history is below `until`, in order of first occurrence, and the history they had.

        Sets history[row] = until for each of them. `history` is int32 or int64: steps paid for, per row.
        """
        ...

    def settle(
        self,
        weights: Float32[Tensor, "rows dim"],
        rows: Int64[Tensor, "due"],
        since: Int64[Tensor, "due"],
        until: int,
        plan: NoisePlan,
    ) -> None:
        """Pay in place what each of the (distinct) `rows` owes for the steps since, ..., until - 1."""
        ...

    def pool(self, weights: Float32[Tensor, "rows dim"], call: LookupCall) -> Float32[Tensor, "bags dim"]:
        """The value of each bag. An empty bag is all zeros."""
        ...

    def square_norms(
        self,
        calls: Sequence[LookupCall],
        pooled: Sequence[Float32[Tensor, "bags dim"]],
        start: Float64[Tensor, "examples"],
    ) -> Float64[Tensor, "examples"]:
        """Continue the sum n of docs/arithmetic.md over one table's calls, from `start`; returns a new tensor.

        `pooled[k]` is the gradient of each example's own loss with respect to the pooled vectors of `calls[k]`, before
        the division of mean pooling.
        """
        ...

    def gradient_sums(
        self,
        calls: Sequence[LookupCall],
        pooled: Sequence[Float32[Tensor, "bags dim"]],
        factors: Float64[Tensor, "examples"],
        exponent: int,
    ) -> tuple[Int64[Tensor, "touched"], Int64[Tensor, "touched dim"]]:
        """Rows of one table that any example touched, ascending, and the exact sum of their clipped contributions.

        The unit of the sums is 2^exponent.
        """
        ...

    def update(
        self,
        weights: Float32[Tensor, "rows dim"],
        calls: Sequence[LookupCall],
        pooled: Sequence[Float32[Tensor, "bags dim"]],
        factors: Float64[Tensor, "examples"],
        exponent: int,
        rate: float,
    ) -> None:
        """w = fl32(w - fl32(rate * G)) in place on every touched row; `rate` is a_t, a float32 value."""
        ...

    def normals(
        self,
        stream: NoiseStream,
        purpose: Purpose,
        table: int,
        rows: Int64[Tensor, "n"],
        steps: Int64[Tensor, "n"] | int,
        dim: int,
    ) -> Float32[Tensor, "n dim"]:
        """Standard normals of each (row, step), as docs/noise.md. Rows below 2^48, steps below 2^32."""
        ...

    def subtract_noise(
        self,
        param: Float32[Tensor, "size"],
        stream: NoiseStream,
        purpose: Purpose,
        table: int,
        step: int,
        scale: float,
    ) -> None:
        """param = fl32(param - fl32(scale * z)) in place, z being row 0 at `step`; `scale` is s_t, a float32 value."""
        ...

    def poisson_sample(
        self, stream: NoiseStream, step: int, sampling_rate: float, examples: int
    ) -> Int64[Tensor, "drawn"]:
        """Indices, ascending, of the examples 0..examples-1 that join the batch of `step`."""
        ...
