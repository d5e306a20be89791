"""Per-example gradients of any layer that keeps examples apart, through torch.func.

They are made in float64 from one example at a time (vmap), so the layer sees a batch of one. Norms and clipped sums
come from the same gradients: a layer that divides by what is nearly zero (a LayerNorm on a constant row) has another
gradient in every precision, and what is added must be what was measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vjp, vmap

from samelaw.contract.errors import UnsupportedLayerError
from samelaw.fast.dense_calls import DenseCall

_Convert = Callable[[Tensor], Tensor]


def example_gradients(call: DenseCall, start: int, end: int) -> dict[str, Tensor]:
    """Gradients of examples start .. end-1 by the model's parameter name, (examples, *shape) float64."""
    constants, parameters = _state(call, _double)
    args, rebuild = _tensors(call, lambda t: _double(t[start:end]))

    def gradient_of_one(gradient: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
        def forward(own: dict[str, Tensor]) -> Tensor:
            given, named = rebuild([value[None] for value in inputs])
            return functional_call(call.site.module, {**constants, **own}, given, named)

        pull = vjp(forward, parameters)[1]
        return pull(gradient[None])[0]

    try:
        found = vmap(gradient_of_one)(_double(call.gradient[start:end]), *args)
    except (RuntimeError, TypeError, ValueError) as cause:
        raise UnsupportedLayerError(
            f"layer {call.site.path!r} ({type(call.site.module).__name__}) has no per-example gradient "
            f"through torch.func: {cause}. Build it from layers that keep examples apart, with dropout as a layer "
            "of its own"
        ) from cause
    return _by_model_name(call, found)


def mixes_examples(call: DenseCall) -> bool:
    """Whether the layer's output for an example depends on the rest of the batch.

    Both sides are float64: a layer that keeps examples apart agrees with itself far better than 1e-6 of its largest
    output, and one that does not (a batch mean, say) differs by a part of it that is no rounding.
    """
    constants, parameters = _state(call, _double)
    args, rebuild = _tensors(call, _double)

    def outputs(values: list[Tensor]) -> Tensor:
        given, named = rebuild(values)
        with torch.no_grad():
            return functional_call(call.site.module, {**constants, **parameters}, given, named)

    together = outputs(args)
    alone = torch.cat([outputs([a[i : i + 1] for a in args]) for i in range(together.shape[0])])
    if together.shape != alone.shape:
        return True
    difference = (together - alone).abs().nan_to_num()
    return bool((difference > 1e-6 * together.abs().nan_to_num().max()).any()) if together.numel() else False


def _state(call: DenseCall, convert: _Convert) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The layer's constants (frozen parameters, buffers) and its trainable parameters, by its own names."""
    module = call.site.module
    constants: dict[str, Tensor] = {name: convert(b) for name, b in module.named_buffers(recurse=False)}
    parameters: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters(recurse=False):
        into = parameters if name in call.site.parameters else constants
        into[name] = convert(parameter.detach())
    return constants, parameters


def _tensors(
    call: DenseCall, convert: _Convert
) -> tuple[list[Tensor], Callable[[list[Tensor]], tuple[tuple[Any, ...], dict[str, Any]]]]:
    """The tensor arguments of a call, and a function that puts others in their place."""
    examples = call.gradient.shape[0]
    values = [*call.args, *call.kwargs.values()]
    places = [i for i, value in enumerate(values) if isinstance(value, Tensor)]
    for i in places:
        if values[i].dim() == 0 or values[i].shape[0] != examples:
            raise UnsupportedLayerError(
                f"layer {call.site.path!r} ({type(call.site.module).__name__}) takes a tensor of shape "
                f"{tuple(values[i].shape)} in a batch of {examples}; every tensor argument needs the batch as leading "
                "index. Make constants buffers of the layer"
            )

    def rebuild(tensors: list[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        filled = list(values)
        for i, tensor in zip(places, tensors, strict=True):
            filled[i] = tensor
        count = len(call.args)
        return tuple(filled[:count]), dict(zip(call.kwargs, filled[count:], strict=True))

    return [convert(values[i]) for i in places], rebuild


def _by_model_name(call: DenseCall, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Own names to the model's; two own names of one parameter add up."""
    named: dict[str, Tensor] = {}
    for local, gradient in gradients.items():
        name = call.site.parameters[local]
        named[name] = named[name] + gradient if name in named else gradient
    return named


def _double(value: Tensor) -> Tensor:
    return value.to(torch.float64) if value.is_floating_point() else value
