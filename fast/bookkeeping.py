"""Per-example clipping in one backward pass.

A forward pass leaves a record of every table read and of every call of a layer with parameters: what went in, and
where in the autograd graph its output stands. One backward pass of the summed losses then yields the gradient of
each example's own loss at those places, and no weight gradient at all. From a layer's inputs and output gradients
follow the squared norm of each example's weight gradient and, once the clip factors are known, the clipped sum as one
weighted matrix product.

The lazy trainer and the eager twin's oracle both stand on this module, so their dense arithmetic is the same.

Source: Bu et al., "Differentially private optimization on large model at small cost", arXiv 2210.00038.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NoReturn

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.utils.checkpoint import CheckpointError

from samelaw.contract.errors import InputError, MixedExamplesError, PrivacyError, UnsupportedLayerError
from samelaw.fast.buffers import Buffers
from samelaw.fast.dense_calls import DenseCall
from samelaw.fast.dense_gradients import DenseGradients
from samelaw.fast.kernels import LookupCall
from samelaw.fast.layer_rules import (
    Site,
    is_compiled,
    parameter_sites,
    refuse_autocast,
    refuse_compiled,
    refuse_tracing,
)


@dataclass(frozen=True, eq=False, repr=False)
class TableRead:
    """One call of a table layer in a training forward pass."""

    table: str
    where: str
    call: LookupCall
    examples: int
    dim: int
    edge: GradientEdge

    @property
    def owner(self) -> Int64[Tensor, "bags"]:
        """The example of each bag."""
        return self.call.example_of_bag


@dataclass(frozen=True, eq=False, repr=False)
class LayerCall:
    """One call of a layer with parameters in a training forward pass."""

    site: Site
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    versions: tuple[int, ...]
    edge: GradientEdge
    inputs: tuple[GradientEdge, ...]
    examples: int
    owner = None  # index i of the output is example i

    @property
    def where(self) -> str:
        return self.site.path


@dataclass(eq=False, repr=False)
class BatchGradients:
    """What one backward pass found, before clipping.

    Attributes:
        reads: every table read, in call order.
        pooled: for each, the gradient of each example's own loss with respect to its pooled vectors.
        dense: the same for the layers with parameters.
        dense_square_norms: squared norm of each example's gradient over all dense parameters.
    """

    reads: list[TableRead]
    pooled: list[Float32[Tensor, "_ _"]]
    dense: DenseGradients
    dense_square_norms: Float64[Tensor, "examples"]

    def by_table(self) -> tuple[dict[str, list[LookupCall]], dict[str, list[Tensor]]]:
        """Calls and gradients of each table that was read, tables in sorted order, calls in call order."""
        calls: dict[str, list[LookupCall]] = {name: [] for name in sorted({r.table for r in self.reads})}
        pooled: dict[str, list[Tensor]] = {name: [] for name in calls}
        for read, gradient in zip(self.reads, self.pooled, strict=True):
            calls[read.table].append(read.call)
            pooled[read.table].append(gradient)
        return calls, pooled


class _State(Enum):
    """Where the model's own forward is: not called, running, returned."""

    OUTSIDE = 0
    INSIDE = 1
    DONE = 2


@dataclass(eq=False, repr=False)
class Forward:
    """The record of one training forward pass."""

    reads: list[TableRead] = field(default_factory=list[TableRead])
    layers: list[LayerCall] = field(default_factory=list[LayerCall])
    state: _State = _State.OUTSIDE

    def __bool__(self) -> bool:
        return bool(self.reads or self.layers)

    def edges(self) -> list[GradientEdge]:
        return [read.edge for read in self.reads] + [call.edge for call in self.layers]


class Book:
    """Keeps the record of a model's training forward passes.

    Args:
        model: a model whose tables have stand-ins already; its other trainable parameters are the dense ones.
        device: where the attached values live.
        refuse_copy: raises, when somebody pickles or copies the model with the hooks of this book on it.

    Raises:
        UnsupportedLayerError, MixedExamplesError: see layer_rules.
    """

    def __init__(
        self, model: nn.Module, *, device: torch.device, refuse_copy: Callable[[], NoReturn] | None = None
    ) -> None:
        self.model = model
        self._refuse_copy = refuse_copy
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.parameters: dict[str, nn.Parameter] = {name: named[name] for name in sorted(named)}
        self.sites = parameter_sites(model, self.parameters)
        self.forward = Forward()
        self._token = torch.zeros((), dtype=torch.float32, device=device, requires_grad=True)
        self._paused = self.backward_runs = False
        self._buffers = Buffers(model)
        self._handles = [
            site.module.register_forward_hook(_LayerHook(self, site), with_kwargs=True) for site in self.sites
        ]
        self._handles.append(model.register_forward_pre_hook(self._enter))
        self._handles.append(model.register_forward_hook(self._leave))

    @property
    def recording(self) -> bool:
        """Whether a forward pass that runs now is a training one: gradients on, the model in training mode."""
        return self.model.training and not self._paused and torch.is_grad_enabled()

    @contextmanager
    def paused(self) -> Generator[None]:
        """Forward passes inside leave no record."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    @property
    def pending(self) -> bool:
        """Whether a training forward pass waits for its step."""
        return self.forward.state is _State.DONE or (self.forward.state is _State.OUTSIDE and bool(self.forward))

    @property
    def open(self) -> bool:
        """Whether a training forward pass is under way, or waits for its step."""
        return self.forward.state is not _State.OUTSIDE or bool(self.forward)

    @contextmanager
    def aside(self) -> Generator[None]:
        """A forward pass inside leaves the record, and all that belongs to it, as they were."""
        before, self.forward = self.forward, Forward()
        try:
            yield
        finally:
            self.forward = before

    def note_read(
        self, table: str, where: str, call: LookupCall, examples: int, value: Float32[Tensor, "bags dim"]
    ) -> Float32[Tensor, "bags dim"]:
        """Record a table read; returns the value as a place in the autograd graph."""
        value = self._attach(value)
        self.forward.reads.append(TableRead(table, where, call, examples, value.shape[1], get_gradient_edge(value)))
        return value

    def discard(self) -> None:
        """Forget the forward pass that is on record."""
        self.forward = Forward()

    def close(self) -> None:
        """Take the hooks off the model."""
        self.discard()
        for handle in self._handles:
            handle.remove()

    def backward(self, losses: Float32[Tensor, "examples"]) -> BatchGradients:
        """Gradients of each example's own loss at every read and layer output on record.

        Args:
            losses: one loss per example, from the forward pass on record.

        Raises:
            InputError: losses is not a vector that came out of that pass.
            UnsupportedLayerError: a read or layer call does not have the batch as its leading index, a buffer
                changed, or an input was overwritten after the layer read it.
        """
        self.check(losses)
        return self.collect(losses, self.gradients(losses.sum(), keep_graph=False))

    def collect(self, losses: Float32[Tensor, "examples"], gradients: Sequence[Tensor | None]) -> BatchGradients:
        """What `gradients` of the sum of the losses, one an edge on record, say about each example."""
        forward, examples = self.forward, losses.shape[0]
        count = len(forward.reads)
        pooled = [
            torch.zeros(read.call.bags, read.dim, dtype=torch.float32, device=losses.device)
            if gradient is None
            else gradient.contiguous()
            for gradient, read in zip(gradients[:count], forward.reads, strict=True)
        ]
        calls: list[DenseCall] = []
        for call, gradient in zip(forward.layers, gradients[count:], strict=True):
            _check_versions(call)
            if gradient is not None:
                calls.append(DenseCall(call.site, call.args, call.kwargs, gradient))
        with self.paused():
            dense = DenseGradients(self.parameters, calls, examples)
            return BatchGradients(forward.reads, pooled, dense, dense.square_norms(losses.device))

    def check(self, losses: Float32[Tensor, "examples"]) -> int:
        """Refuse losses that do not belong to the pass on record; returns the number of examples.

        Raises:
            as backward.
        """
        self.check_buffers()
        if not torch.is_grad_enabled():
            raise InputError(
                "step was called under torch.no_grad() or torch.inference_mode(), where no gradient can be taken; call "
                "it outside"
            )
        examples = self._check_losses(losses)
        self._check_examples(self.forward, examples)
        return examples

    def check_buffers(self) -> None:
        """Refuse a model whose buffers have changed, and put them back.

        Raises:
            UnsupportedLayerError: names the buffers.
        """
        self._buffers.check()

    def keep_buffers(self) -> None:
        """Buffers were loaded: these are the constants now."""
        self._buffers.keep()

    def clipped_sums(
        self, found: BatchGradients, factors: Float64[Tensor, "examples"]
    ) -> dict[str, Float32[Tensor, "..."]]:
        """The clipped dense sum of each parameter, by name.

        Raises:
            PrivacyError: a sum is not finite. No example whose norm is finite can make one so; this is the last line.
        """
        with self.paused():
            sums = found.dense.clipped_sums(factors)
        for name, value in sums.items():
            if value.numel() and not all(math.isfinite(end) for end in map(float, torch.aminmax(value))):
                raise PrivacyError(
                    f"the clipped sum of parameter {name!r} must be finite and is not: noise would not hide it. "
                    "Nothing was changed. A clip norm near 1e38 needs to be smaller; anything else, please report"
                )
        return sums

    def gradients(self, scalar: Tensor, *, keep_graph: bool) -> list[Tensor | None]:
        """d scalar / d each edge on record."""
        edges = self.forward.edges()
        if not edges:
            return []
        self.backward_runs = True
        try:
            with self.paused():
                return list(torch.autograd.grad(scalar, edges, retain_graph=keep_graph, allow_unused=True))
        except RuntimeError as cause:
            if isinstance(cause, CheckpointError) or "use_reentrant" in str(cause):
                raise UnsupportedLayerError(
                    "torch.utils.checkpoint runs a part of the model a second time in the backward pass, where its "
                    "tables cannot be read and, with use_reentrant=True, its layers leave no record. Read tables "
                    "outside of checkpoint(), and pass use_reentrant=False"
                ) from cause
            if "second time" not in str(cause):
                raise
            raise InputError(
                "the graph of these losses is gone: do not call losses.backward(), the trainer does it in step(losses)"
            ) from cause
        finally:
            self.backward_runs = False

    def _attach(self, value: Tensor) -> Tensor:
        """`value`, no copy, as a node of the autograd graph whose gradient can be asked for."""
        return _Attach.apply(self._token, (value,))  # type: ignore[no-any-return]

    def _enter(self, *_: Any) -> None:
        if not self.recording:
            return
        refuse_tracing("")
        if self.forward.state is _State.INSIDE:  # it raised: what it recorded belongs to no step
            self.discard()
        if self.forward.state is _State.DONE:
            raise InputError(
                "a training forward pass is on record and step(losses) has not been called for it. Each step takes "
                "one call of the model: put both parts into one module, run predictions inside "
                "trainer.evaluation(), or drop the first pass with trainer.discard()"
            )
        self.forward.state = _State.INSIDE

    def _leave(self, *_: Any) -> None:
        if self.forward.state is _State.INSIDE and self.recording:
            self.forward.state = _State.DONE

    def note_layer(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor:
        """Record a call of a layer with parameters; returns its output as a place in the autograd graph."""
        refuse_tracing(site.path)
        if is_compiled(site.module):
            refuse_compiled(site.path)
        if isinstance(output, Tensor):
            refuse_autocast(output.device.type)
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.dim() == 0:
            raise UnsupportedLayerError(
                f"layer {site.path!r} ({type(site.module).__name__}) returns {type(output).__name__}; per-example "
                "gradients need one float tensor whose leading index is the example. Wrap the layer, or build it "
                "from layers that do"
            )
        inputs = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        edges = tuple(get_gradient_edge(t) for t in inputs if t.requires_grad)
        attached = output if output.requires_grad else self._attach(output)
        detached = tuple(t.detach() if isinstance(t, Tensor) else t for t in args)
        named = {k: t.detach() if isinstance(t, Tensor) else t for k, t in kwargs.items()}
        versions = tuple(t._version for t in inputs)
        self.forward.layers.append(
            LayerCall(site, detached, named, versions, get_gradient_edge(attached), edges, output.shape[0])
        )
        return attached

    def note_layer_again(self, output: Any) -> Tensor | None:
        """Activation checkpointing calls a layer again: the graph must get the node that it got the first time."""
        return None if not isinstance(output, Tensor) or output.requires_grad else self._attach(output)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        if self._refuse_copy is not None:
            self._refuse_copy()
        raise InputError("a model cannot be pickled or copied while its forward passes are on record")

    def _check_losses(self, losses: Any) -> int:
        if not isinstance(losses, Tensor) or losses.dim() != 1 or not losses.is_floating_point():
            found = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise InputError(
                f"step needs the vector of per-example losses, shape (examples,), got {found}; use reduction='none'"
            )
        if not self.forward:
            raise InputError(
                "no training forward pass is on record: call the model in training mode with gradients enabled, then "
                "step"
            )
        if not losses.requires_grad:
            raise InputError("the losses do not depend on any table or trainable layer of the model")
        if not _reaches(losses.grad_fn, {edge.node for edge in self.forward.edges()}):
            raise InputError(
                "the losses do not come from the training forward pass on record: an earlier pass made them, or one "
                "that was discarded. Compute them from the model's last output"
            )
        return losses.shape[0]

    def _check_examples(self, forward: Forward, examples: int) -> None:
        for read in forward.reads:
            if read.examples != examples:
                raise MixedExamplesError(
                    f"table layer {read.where!r} was read for {read.examples} bags or leading indices in a batch of "
                    f"{examples} losses; bag i must belong to example i. Call the layer once per feature, or use "
                    "nn.Embedding on ids of shape (batch, ...)"
                )
        for call in forward.layers:
            if call.examples != examples:
                raise MixedExamplesError(
                    f"layer {call.site.path!r} put out a leading index of {call.examples} for a batch of {examples} "
                    "losses; index i must belong to example i. Keep the batch first, e.g. (batch, length, width)"
                )


@dataclass(frozen=True, eq=False)
class _LayerHook:
    """Forward hook of one layer with parameters."""

    book: Book
    site: Site

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
        book = self.book
        if book.recording:
            return book.note_layer(self.site, args, kwargs, output)
        return book.note_layer_again(output) if book.backward_runs else None


class _Attach(torch.autograd.Function):
    """Gives a computed tensor a place in the autograd graph: unlike a leaf, in-place layers may follow it."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, box: tuple[Tensor]) -> Tensor:
        return box[0]

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[None, None]:
        return None, None


def _reaches(root: Node | None, places: set[Node]) -> bool:
    """Whether the autograd graph below `root` holds one of `places`."""
    stack, seen = [root], set[Node]()
    while stack:
        node = stack.pop()
        if node in places:
            return True
        if node is not None and node not in seen:
            seen.add(node)
            stack.extend(edge[0] for edge in node.next_functions)
    return False


def _check_versions(call: LayerCall) -> None:
    tensors = [t for t in (*call.args, *call.kwargs.values()) if isinstance(t, Tensor)]
    if tuple(t._version for t in tensors) != call.versions:
        raise UnsupportedLayerError(
            f"an input of layer {call.site.path!r} was overwritten after the layer had read it, so its weight gradient "
            "cannot be rebuilt; replace the in-place operation by an ordinary one"
        )
