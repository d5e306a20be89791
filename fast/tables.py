"""One embedding table with the noise that its rows still owe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Float64, Int64, Shaped
from torch import Tensor

from samelaw.contract.errors import InputError
from samelaw.fast.kernels import Kernels, LookupCall, NoisePlan

CACHE_LINE = 64
_EXAMPLES_IN_A_MESSAGE = 3


@dataclass(frozen=True, eq=False, repr=False)
class Payment:
    """Rows as they were before they were paid, so that a look that must change nothing can be undone."""

    rows: Int64[Tensor, "due"]
    since: Int64[Tensor, "due"]
    weights: Float32[Tensor, "due dim"]


@dataclass(frozen=True)
class Owing:
    """What a table still owes: how many rows, a few of them, and how far the oldest is settled."""

    count: int
    rows: tuple[int, ...]
    oldest: int


class LazyTable:
    """Weights of one table, and for each row the number of steps whose noise it has paid for.

    Args:
        name: path of the embedding layer in the model.
        number: rank of the name among all sorted table names; part of every noise address.
        weights: float32 (rows, dim), contiguous; updated in place, never copied.
        padding_idx: a row that is a constant of the model: no gradient, no noise. Its history stands at the end of
            the run from the start.
        plan: all that decides the table's noise.
        steps: length of the run.
        exponent: contributions are summed in units of 2^exponent.

    Guarantees:
        E1  In replay, a row that is settled through step t has the bits that eager's row has before step t.
        H1  history[r] never exceeds the steps whose noise row r holds.
    """

    def __init__(
        self,
        name: str,
        number: int,
        weights: Float32[Tensor, "rows dim"],
        *,
        padding_idx: int | None,
        plan: NoisePlan,
        kernels: Kernels,
        steps: int,
        exponent: int,
    ) -> None:
        self.name, self.number = name, number
        self.weights = weights
        self.padding_idx = padding_idx
        self.plan, self.kernels, self.exponent = plan, kernels, exponent
        wide = steps >= torch.iinfo(torch.int32).max
        self.history: Shaped[Tensor, "rows"] = torch.zeros(
            weights.shape[0], dtype=torch.int64 if wide else torch.int32, device=weights.device
        )
        if padding_idx is not None:
            self.history[padding_idx] = steps
        self.interrupted = False
        self._undo: list[Payment] | None = None

    @property
    def rows(self) -> int:
        return self.weights.shape[0]

    @property
    def dim(self) -> int:
        return self.weights.shape[1]

    def read(self, call: LookupCall, until: int) -> Float32[Tensor, "bags dim"]:
        """Pooled rows, each settled through the steps before `until`."""
        self.settle_rows(call.ids, until)
        return self.kernels.pool(self.weights, call)

    def settle_rows(self, ids: Int64[Tensor, "ids"], until: int) -> int:
        """Pay what these rows owe for the steps before `until`; returns how many owed anything.

        Raises:
            InputError: an id is not a row of the table; nothing has changed.
        """
        # `due_rows` moves the history, and until the end of `pay` it is ahead of the weights: an interrupt may come
        # anywhere in between.
        self.interrupted = True
        try:
            rows, since = self.kernels.due_rows(self.history, ids, until)
        except InputError as cause:
            self.interrupted = False  # it checks before it writes
            raise InputError(f"table {self.name!r} ({self.rows} rows): {cause}") from cause
        if rows.shape[0] > 0:
            if self._undo is not None:
                self._undo.append(Payment(rows, since, self.weights[rows]))
            self.pay(rows, since, until)
        self.interrupted = False
        return rows.shape[0]

    def pay(self, rows: Int64[Tensor, "due"], since: Int64[Tensor, "due"], until: int) -> None:
        """Pay in place what each row owes for the steps since, ..., until - 1."""
        self.kernels.settle(self.weights, rows, since, until, self.plan)

    def update(
        self,
        calls: Sequence[LookupCall],
        pooled: Sequence[Float32[Tensor, "_ dim"]],
        factors: Float64[Tensor, "examples"],
        rate: float,
    ) -> None:
        """Subtract `rate` times the clipped gradient sum from every row that the calls read."""
        self.kernels.update(self.weights, calls, pooled, factors, self.exponent, rate)

    def settle_all(self, until: int, *, chunk: int) -> int:
        """Pay everything that is owed for the steps before `until`, `chunk` rows at a time; returns rows paid."""
        paid = 0
        for start in range(0, self.rows, chunk):
            end = min(start + chunk, self.rows)
            ids = torch.arange(start, end, dtype=torch.int64, device=self.history.device)
            paid += self.settle_rows(ids, until)
        return paid

    def owing(self, step: int) -> Owing | None:
        """What the table owes before `step`, or None. Reads the history only."""
        behind = self.history < step
        count = int(behind.sum())
        if count == 0:
            return None
        oldest = int(self.history.min())
        rows = torch.nonzero(behind)[:_EXAMPLES_IN_A_MESSAGE].flatten().tolist()
        return Owing(count, tuple(rows), oldest)

    def watch(self) -> None:
        """Keep what every payment overwrites, until `restore`."""
        self._undo = []

    def restore(self) -> None:
        """Undo the payments since `watch`: weights and history are as they were."""
        for payment in reversed(self._undo or []):
            self.weights[payment.rows] = payment.weights
            self.history[payment.rows] = payment.since.to(self.history.dtype)
        self._undo = None

    def __repr__(self) -> str:  # histories are sensitive: shapes only
        return f"LazyTable({self.name!r}, rows={self.rows}, dim={self.dim})"


def aligned(weights: Tensor) -> Tensor:
    """The same values, contiguous and (on a CPU) from the start of a cache line; the tensor itself where that holds."""
    if weights.is_contiguous() and (weights.device.type != "cpu" or weights.data_ptr() % CACHE_LINE == 0):
        return weights
    spare = CACHE_LINE // weights.element_size()
    buffer = torch.empty(weights.numel() + spare, dtype=weights.dtype, device=weights.device)
    shift = (-buffer.data_ptr() % CACHE_LINE) // weights.element_size()
    copy = buffer[shift : shift + weights.numel()].view(weights.shape)
    return copy.copy_(weights)
