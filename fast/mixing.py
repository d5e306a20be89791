"""Checks of what a model does, made on its first batches: examples stay apart, and no parameter is used unseen."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, islice

import torch
from torch import Tensor
from torch.autograd.graph import Node

from samelaw.contract.errors import MixedExamplesError, UnsupportedLayerError
from samelaw.fast.bookkeeping import BatchGradients, Book, LayerCall, TableRead
from samelaw.fast.general_layers import mixes_examples

_ENOUGH = 16

_Place = tuple[str, int]


class FirstBatches:
    """The backward pass of a run, with the checks that its first batches are for.

    A place (a read of a table, or a call of a layer) where all gradients are zero, because a layer above starts at
    zero, shows nothing. So a batch is checked whenever a place has a gradient where fewer than 16 examples had one in
    the checks before. A gate that starts at zero hides what it will let through later, so the first, the second, the
    16th, the 256th batch and so on are checked in any case.

    Args:
        check_mixing: whether to check that examples stay apart; the uses of parameters are always checked.
    """

    def __init__(self, *, check_mixing: bool) -> None:
        self._uses_checked = False
        self._check_mixing = check_mixing
        self._batches = 0
        self._shown = Counter[_Place]()

    def backward(self, book: Book, losses: Tensor) -> BatchGradients:
        """Book.backward, with what is to be checked. On the first batch parameters are, and then need no gradients."""
        examples = book.check(losses)
        if not self._uses_checked:
            check_parameter_uses(book, losses)
        if self._check_mixing and examples > 1:
            found = self._checked(book, losses)
        else:
            found = book.collect(losses, book.gradients(losses.sum(), keep_graph=False))
        if not self._uses_checked:
            for parameter in book.parameters.values():
                parameter.requires_grad_(False)
            self._uses_checked = True
        return found

    def _checked(self, book: Book, losses: Tensor) -> BatchGradients:
        names, places = _names(book), (*book.forward.reads, *book.forward.layers)
        due = _is_due(self._batches + 1)
        waiting = any(self._shown[name] < _ENOUGH for name in names)
        gradients = book.gradients(losses.sum(), keep_graph=due or waiting)
        shown = {
            name: _examples_with_gradient(place, gradient, losses.shape[0])
            for name, place, gradient in zip(names, places, gradients, strict=True)
            if self._shown[name] < _ENOUGH
        }
        checking = due or any(shown.values())
        if checking:
            check_examples_apart(book, losses)
        found = book.collect(losses, gradients)
        if checking:
            with book.paused():
                check_layers_apart(found)
        self._batches += 1
        self._shown.update(shown)
        return found


def check_examples_apart(book: Book, losses: Tensor) -> None:
    """Check that no example's loss has a gradient at another example's reads or layer outputs.

    Every example gets a subset of k backward passes, half of them, no two the same; pass j sums the losses of the
    examples that have j in their subset. No subset contains another, so for any two examples some pass holds the first
    and not the second: whatever gradient the second then shows comes from others. Its value must be exactly zero. NaN
    says nothing.

    Raises:
        MixedExamplesError: some loss reaches another example.
    """
    forward, examples = book.forward, losses.shape[0]
    for inside in _subsets(examples, losses.device):
        gradients = book.gradients(losses[inside].sum(), keep_graph=True)
        worst: str | None = None
        for place, gradient in zip((*forward.reads, *forward.layers), gradients, strict=True):
            if gradient is None:
                continue
            outside = ~inside
            if place.owner is not None:
                outside = outside[place.owner]
            strangers = gradient[outside]
            if bool((strangers.nan_to_num() != 0).any()):
                worst = place.where  # the last one in call order stands closest to the culprit
        if worst is not None:
            raise MixedExamplesError(
                f"the loss of some examples depends on what {worst!r} put out for other examples: something between "
                "that layer and the losses mixes the batch (a normalisation, a batch statistic, a loss that is already "
                "a mean), so clipping would bound nothing. Compute each example's loss from that example alone"
            )


def check_layers_apart(found: BatchGradients) -> None:
    """Check that the layers torch.func handles put out for each example what they would put out for it alone.

    Raises:
        MixedExamplesError: one does not.
    """
    for call in found.dense.general:
        if mixes_examples(call):
            raise MixedExamplesError(
                f"layer {call.site.path!r} ({type(call.site.module).__name__}) puts out something else for an "
                "example in a batch than for the same example alone, so clipping would bound nothing. Use a layer that "
                "keeps examples apart"
            )


def check_parameter_uses(book: Book, losses: Tensor) -> None:
    """Walk the autograd graph and refuse a trainable parameter that is used outside the call of its own layer.

    Needs a forward pass that was run while the parameters still required gradients.

    Raises:
        UnsupportedLayerError: names the parameter.
    """
    names = {id(parameter): name for name, parameter in book.parameters.items()}
    inner = {call.edge.node: call for call in book.forward.layers}
    jumps = {node: [edge.node for edge in call.inputs] for node, call in inner.items()}
    for name in _reached(losses.grad_fn, names, jumps):
        raise UnsupportedLayerError(
            f"parameter {name!r} is used outside the layer that holds it, so its gradient there would not be clipped; "
            "move that use into a small module of its own with the batch as leading index, or use it detached"
        )
    for call in inner.values():
        own = set(call.site.parameters.values())
        stops = {edge.node: [] for edge in call.inputs}
        for name in _reached(call.edge.node, names, stops):
            if name not in own:
                raise UnsupportedLayerError(
                    f"layer {call.site.path!r} uses parameter {name!r} of another layer, so its gradient there would "
                    "not be clipped; register the parameter in this layer too, which ties the two"
                )


def _reached(root: Node | None, names: dict[int, str], jumps: dict[Node, list[Node]]) -> list[str]:
    """Names of the parameters that the graph below `root` ends in, taking `jumps` in place of a node's own edges."""
    found: list[str] = []
    stack, seen = [root], set[Node]()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) in names:
            found.append(names[id(variable)])
        stack.extend(jumps[node] if node in jumps else [edge[0] for edge in node.next_functions])
    return sorted(found)


def _names(book: Book) -> list[_Place]:
    """A name for every edge on record: the path, and which of its calls."""
    calls = Counter[str]()
    names: list[_Place] = []
    for place in (*book.forward.reads, *book.forward.layers):
        names.append((place.where, calls[place.where]))
        calls[place.where] += 1
    return names


def _examples_with_gradient(place: TableRead | LayerCall, gradient: Tensor | None, examples: int) -> int:
    """How many examples have a finite gradient that is not zero. (NaN spreads where examples are mixed.)"""
    if gradient is None or not gradient.numel():
        return 0
    if isinstance(place, LayerCall) and not place.site.linear and not _differ(place):
        return 0  # a layer of which every example asks the same says nothing about examples that ask something else
    rows = gradient.flatten(1) if gradient.dim() > 1 else gradient[:, None]
    shows = (rows != 0).any(1) & torch.isfinite(rows).all(1)
    if place.owner is None:
        return int(shows.sum())
    seen = torch.zeros(examples, dtype=torch.bool, device=shows.device)
    seen[place.owner[shows]] = True
    return int(seen.sum())


def _differ(call: LayerCall) -> bool:
    """Whether the examples of a call put different things in."""
    tensors = (value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor) and value.dim())
    return any(bool((value != value[:1]).any()) for value in tensors)


def _is_due(batch: int) -> bool:
    """1, 2, 16, 256, ..."""
    if batch == 2:
        return True
    while batch % 16 == 0:
        batch //= 16
    return batch == 1


def _subsets(examples: int, device: torch.device) -> list[Tensor]:
    """For each pass, which examples' losses it sums."""
    passes = 2
    while math.comb(passes, passes // 2) < examples:
        passes += 1
    members = torch.zeros(passes, examples, dtype=torch.bool, device=device)
    for example, chosen in enumerate(islice(combinations(range(passes), passes // 2), examples)):
        members[list(chosen), example] = True
    return [members[j] for j in range(passes) if bool(members[j].any())]
