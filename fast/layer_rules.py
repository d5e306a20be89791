"""Which layers can be clipped per example, and how; everything else is refused by name, before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch._C._dynamo.eval_frame import get_eval_frame_callback  # torch._dynamo takes a second to import
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.instancenorm import _InstanceNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.parameter import UninitializedParameter, is_lazy

from samelaw.contract.errors import MixedExamplesError, UnsupportedLayerError
from samelaw.fast.embedding_layers import TableGroup, TableLayer, has_forward_hooks


@dataclass(frozen=True, eq=False)
class Site:
    """A layer with trainable parameters of its own.

    Attributes:
        path: where it is in the model.
        parameters: its own name of each trainable parameter -> the model's name (tied parameters share one).
        linear: book-keeping in closed form; otherwise per-example gradients through torch.func.
    """

    path: str
    module: nn.Module
    parameters: dict[str, str]
    linear: bool


def parameter_sites(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> list[Site]:
    """The layers that hold the trainable parameters, in the order of the model's modules.

    Raises:
        MixedExamplesError: a layer whose output for one example depends on the others.
        UnsupportedLayerError: parameters or state that no per-example gradient is known for.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    found: list[tuple[str, nn.Module, dict[str, str]]] = []
    for path, module in model.named_modules():
        if isinstance(module, TableLayer):
            continue
        _check_module(path, module)
        own = {local: names[id(p)] for local, p in module.named_parameters(recurse=False) if p.requires_grad}
        if own:
            _check_parameters(path, module)
            found.append((path, module, own))
    linear = {path for path, module, _ in found if _is_linear(module)}
    # A weight tied between a Linear and another kind of layer has one gradient, so one rule must make both parts.
    while True:
        general = {name for path, _, own in found if path not in linear for name in own.values()}
        tied = {path for path, _, own in found if path in linear and general & set(own.values())}
        if not tied:
            return [Site(path, module, own, path in linear) for path, module, own in found]
        linear -= tied


def check_shared_storage(model: nn.Module, groups: list[TableGroup]) -> None:
    """Refuse a table whose weight is also used by another kind of layer, or memory that two parameters share, or a
    trainable one and a buffer.

    Called before the tables get their stand-ins.
    """
    tables = {id(group.weight): group for group in groups}
    embeddings = {id(module) for group in groups for _, module in group.layers}
    memory: dict[int, tuple[str, int]] = {}
    trained: dict[int, str] = {}
    for path, module in model.named_modules():
        for local, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{local}" if path else local
            if id(parameter) in tables and id(module) not in embeddings:
                group = tables[id(parameter)]
                raise UnsupportedLayerError(
                    f"parameter {name!r} is the weight of table {group.name!r}: a tied output layer touches every row "
                    "for every example, which undoes lazy settlement and needs another norm. Untie them"
                )
            if isinstance(parameter, UninitializedParameter) or not parameter.numel():
                continue
            start = parameter.untyped_storage().data_ptr()
            other, owner = memory.setdefault(start, (name, id(parameter)))
            if owner != id(parameter) and start:
                raise UnsupportedLayerError(
                    f"parameters {other!r} and {name!r} are different parameters in the same memory; make one of them "
                    "a copy, or tie them by using one nn.Parameter for both"
                )
            if parameter.requires_grad and start:
                trained[start] = name
    for name, buffer in model.named_buffers():
        if is_lazy(buffer) or buffer.layout is not torch.strided:
            continue
        other = trained.get(buffer.untyped_storage().data_ptr())
        if other is not None:
            raise UnsupportedLayerError(
                f"buffer {name!r} is in the memory of the trainable parameter {other!r}, but buffers are constants; "
                "register a copy"
            )


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile stands between a call of the module and its forward."""
    return "_orig_mod" in vars(module)["_modules"] or vars(module).get("_compiled_call_impl") is not None


def under_compiler() -> bool:
    """Whether this code is being traced by torch.compile, or runs where tracing it was given up."""
    return torch.compiler.is_compiling() or get_eval_frame_callback() not in (None, False)


def refuse_compiled(path: str) -> NoReturn:
    raise UnsupportedLayerError(
        f"module {path!r} is compiled by torch.compile, or runs inside a module that is, so what layers read and put "
        "out cannot be recorded. Train the plain module, and compile it after release()"
    )


def refuse_tracing(path: str) -> None:
    """Refuse a call that torch.compile traces."""
    if under_compiler():
        refuse_compiled(path)


def refuse_autocast(device: str) -> None:
    """Refuse to go on in half precision."""
    if torch.is_autocast_enabled(device):
        raise UnsupportedLayerError(
            f"torch.autocast is on for {device}: clipped sums of half precision can exceed the clip norm by rounding "
            "alone. Train in float32: leave the autocast context, which may be around the forward pass or inside it"
        )


def _is_trained(module: nn.Module) -> bool:
    """Whether a module holds, or is, something that is trained."""
    return any(p.requires_grad for p in module.parameters()) or any(isinstance(m, TableLayer) for m in module.modules())


def _is_linear(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Linear)
        and type(module).forward is nn.Linear.forward
        and isinstance(vars(module)["_parameters"].get("weight"), nn.Parameter)
    )


def _check_module(path: str, module: Any) -> None:
    """Refuse layers that mix examples or keep state of them, trainable or not."""
    kind = type(module).__name__
    if is_compiled(module) and _is_trained(module):
        refuse_compiled(path)
    if isinstance(module, _BatchNorm):
        raise MixedExamplesError(
            f"layer {path!r} ({kind}) normalises over the batch, so one example changes every other's gradient and "
            "clipping bounds nothing. Use LayerNorm or GroupNorm"
        )
    if isinstance(module, _InstanceNorm) and module.track_running_stats:
        raise MixedExamplesError(
            f"layer {path!r} ({kind}) keeps running statistics of the batch, which would leave without noise. Set "
            "track_running_stats=False"
        )
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise UnsupportedLayerError(
            f"layer {path!r} ({kind}) splits the batch over processes or devices; hand over the module inside it"
        )
    for name, buffer in module.named_buffers(recurse=False):
        if isinstance(buffer, Tensor) and buffer.requires_grad:
            raise UnsupportedLayerError(
                f"buffer {name!r} of layer {path!r} ({kind}) requires a gradient, but buffers are not trained; make it "
                "an nn.Parameter of a layer, or detach it"
            )


def _check_parameters(path: str, module: Any) -> None:
    """Refuse a module whose own trainable parameters cannot be attributed to its calls."""
    kind = type(module).__name__
    bare = (
        "so where they are used cannot be seen. Put the parameter and the operation that uses it into a small module "
        "of their own, called with the batch as leading index"
    )
    for name, parameter in module.named_parameters(recurse=False):
        if isinstance(parameter, UninitializedParameter):
            raise UnsupportedLayerError(
                f"parameter {name!r} of layer {path!r} ({kind}) has no shape yet; run one forward pass first"
            )
        if parameter.requires_grad and parameter.dtype is not torch.float32:
            raise UnsupportedLayerError(
                f"parameter {name!r} of layer {path!r} ({kind}) is {parameter.dtype}; noise and updates are defined in "
                "float32. Call model.float() first"
            )
    if isinstance(module, nn.ParameterList | nn.ParameterDict):
        raise UnsupportedLayerError(f"{path!r} ({kind}) holds bare parameters, {bare}")
    if next(module.children(), None) is not None:
        own = [name for name, p in module.named_parameters(recurse=False) if p.requires_grad]
        raise UnsupportedLayerError(
            f"module {path!r} ({kind}) has parameters of its own ({', '.join(own)}) beside its layers, {bare}"
        )
    if "forward" in vars(module):
        raise UnsupportedLayerError(
            f"layer {path!r} ({kind}) has had its forward replaced on the instance, so it may do something else than "
            "its class. Write a class of your own with that forward"
        )
    if isinstance(module, nn.RNNBase):
        raise UnsupportedLayerError(
            f"layer {path!r} ({kind}) returns its state beside its output; per-example gradients need one tensor. "
            "Build the recurrence from Linear layers, or freeze it with requires_grad_(False)"
        )
    if has_forward_hooks(module) or isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedLayerError(
            f"layer {path!r} ({kind}) has forward hooks or is compiled, so its output may not be what its parameters "
            "made of its input. Remove the hooks (weight_norm and spectral_norm are such), or use the plain module"
        )
