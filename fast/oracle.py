"""A torch model as a gradient oracle: the dense half of a run, for whoever owns the tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor, nn

from samelaw.contract.errors import InputError, UnsettledReleaseError
from samelaw.contract.oracle import ExampleGradients, Reader
from samelaw.contract.trace import Batch, Lookup
from samelaw.fast.bookkeeping import BatchGradients, Book
from samelaw.fast.embedding_layers import find_tables, replace_layers
from samelaw.fast.kernels import LookupCall
from samelaw.fast.layer_rules import check_shared_storage

LossFunction = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]


class TorchOracle:
    """`contract.oracle.GradientOracle` over an ordinary nn.Module, by the very code that LazyTrainer runs.

    With the same device, thread count and batches, the dense arithmetic of a trainer on this oracle is that of a
    LazyTrainer on a copy of the model, bit for bit.

    Args:
        model: taken over; its embedding layers are replaced by readers. Hand in a copy.
        loss_fn: (model, batch) -> (loss per example, logits).

    Attributes:
        tables: initial weights by name, the model's own memory: what an eager trainer starts from (it copies them).
        padding: the padding row of each table that has one.

    Raises:
        UnsupportedLayerError, MixedExamplesError: as LazyTrainer.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction) -> None:
        groups = find_tables(model)
        check_shared_storage(model, groups)
        self.model, self.loss_fn = model, loss_fn
        self.device = _device(model)
        self.tables: dict[str, Float32[np.ndarray, "rows dim"]] = {
            group.name: group.weight.detach().cpu().numpy() for group in groups
        }
        self.padding = {group.name: group.padding_idx for group in groups if group.padding_idx is not None}
        replace_layers(model, groups, self)
        self._book = Book(model, device=self.device, refuse_copy=self.refuse_copy)
        self._freeze()
        self._reader: Reader | None = None
        self._found: BatchGradients | None = None

    @property
    def dense(self) -> dict[str, np.ndarray]:
        """Trainable parameters by sorted name; on a CPU, views that follow in-place updates both ways."""
        if self.device.type != "cpu":
            return self._mirror
        return {name: parameter.detach().numpy() for name, parameter in self._book.parameters.items()}

    def gradients(self, batch: Batch, read: Reader) -> ExampleGradients:
        """Forward and backward for a batch of at least one example, reads served by `read`."""
        if len(batch) == 0:
            raise InputError("the oracle needs at least one example; an empty batch has no gradient")
        self._pull_mirror()
        self.model.train()
        self._book.discard()
        self._reader = read
        try:
            with torch.enable_grad():
                losses, logits = self.loss_fn(self.model, batch)
                self._found = found = self._book.backward(losses)
        finally:
            self._reader = None
            self._book.discard()
        return ExampleGradients(
            lookups=[_lookup(r.table, r.call) for r in found.reads],
            pooled=[_array(gradient) for gradient in found.pooled],
            dense_square_norms=_array(found.dense_square_norms),
            losses=_array(losses),
            logits=_array(logits),
        )

    def clipped_dense_sum(self, factors: Float64[np.ndarray, "examples"]) -> dict[str, np.ndarray]:
        """sum_i factors[i] * g_i over the dense gradients of the last `gradients` call."""
        if self._found is None:
            raise InputError("clipped_dense_sum needs a call of gradients() first")
        shares = torch.from_numpy(np.ascontiguousarray(factors)).to(self.device)
        return {name: _array(value) for name, value in self._book.clipped_sums(self._found, shares).items()}

    def read(self, table: str, call: LookupCall, examples: int, where: str) -> Float32[Tensor, "bags dim"]:
        """Serve a table layer (TableOwner)."""
        if self._reader is None:
            raise InputError(f"table {table!r} can only be read inside gradients(): the oracle holds no tables")
        pooled = self._reader(_lookup(table, call))
        # A copy into torch's own memory: matrix products must not see how NumPy happened to align its array.
        value = torch.empty(pooled.shape, dtype=torch.float32, device=self.device).copy_(torch.from_numpy(pooled))
        return self._book.note_read(table, where, call, examples, value) if self._book.recording else value

    def settled_weights(self, table: str) -> Tensor:
        raise UnsettledReleaseError(
            f"table {table!r} belongs to the trainer that this oracle serves, not to the oracle"
        )

    def refuse_copy(self) -> NoReturn:
        raise UnsettledReleaseError("the model of an oracle has no tables and cannot be copied; copy it before")

    def _freeze(self) -> None:
        for parameter in self._book.parameters.values():
            parameter.requires_grad_(False)
        self._mirror = {name: parameter.detach().cpu().numpy() for name, parameter in self._book.parameters.items()}

    def _pull_mirror(self) -> None:
        """Off the CPU, NumPy cannot see the parameters: take over what the trainer wrote to their copies."""
        if self.device.type != "cpu":
            for name, parameter in self._book.parameters.items():
                parameter.detach().copy_(torch.from_numpy(self._mirror[name]))


def _device(model: nn.Module) -> torch.device:
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def _lookup(table: str, call: LookupCall) -> Lookup:
    return Lookup(
        table,
        _array(call.ids),
        _array(call.offsets),
        _array(call.example_of_bag),
        call.pooling,
        None if call.weights is None else _array(call.weights),
    )


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
