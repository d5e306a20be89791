"""The layers that stand in for nn.EmbeddingBag and nn.Embedding while a trainer or an oracle owns their tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, runtime_checkable

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from samelaw.contract.errors import InputError, UnsupportedLayerError
from samelaw.contract.trace import Pooling
from samelaw.fast.kernels import LookupCall
from samelaw.fast.lookups import bag_call, row_call


@runtime_checkable
class TableOwner(Protocol):
    """Whoever serves the reads of the table layers and answers for their weights."""

    @property
    def device(self) -> torch.device: ...

    def read(self, table: str, call: LookupCall, examples: int, where: str) -> Float32[Tensor, "bags dim"]:
        """The pooled value of each bag; in a training forward pass, with gradients recorded."""
        ...

    def settled_weights(self, table: str) -> Float32[Tensor, "rows dim"]:
        """The whole table; raises UnsettledReleaseError while a row owes noise."""
        ...

    def refuse_copy(self) -> NoReturn:
        """Say why the model cannot be pickled or copied now."""
        ...


@dataclass(frozen=True, eq=False)
class TableGroup:
    """One table: every layer, under every path, that shares its weight."""

    name: str
    weight: nn.Parameter
    padding_idx: int | None
    layers: tuple[tuple[str, nn.Module], ...]


class TableLayer(nn.Module):
    """What both stand-ins share: their weights are not parameters, and do not leave unsettled."""

    def __init__(self, path: str, table: str, owner: TableOwner, original: Any) -> None:
        super().__init__()
        self.path, self.table = path, table
        self.num_embeddings: int = original.num_embeddings
        self.embedding_dim: int = original.embedding_dim
        self.padding_idx: int | None = original.padding_idx
        self._owner = owner
        self.train(original.training)

    @property
    def weight(self) -> Float32[Tensor, "rows dim"]:
        return self._owner.settled_weights(self.table)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, table={self.table!r}"

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        # A copy: the tensor itself would go on changing, unsettled, after it was taken.
        destination[prefix + "weight"] = self.weight.detach().clone()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *_: Any, **__: Any) -> None:
        _refuse_load(self.path)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TableLayer:
        _refuse_move(fn, self._owner.device, self.path)
        return self

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self._owner.refuse_copy()


class TableBag(TableLayer):
    """Stands in for nn.EmbeddingBag: bag i belongs to example i."""

    def __init__(self, path: str, table: str, owner: TableOwner, original: nn.EmbeddingBag) -> None:
        super().__init__(path, table, owner, original)
        self.pooling = Pooling(original.mode)
        self.mode = original.mode
        self.include_last_offset = original.include_last_offset

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Float32[Tensor, "bags dim"]:
        call = bag_call(
            input,
            offsets,
            per_sample_weights,
            pooling=self.pooling,
            padding_idx=self.padding_idx,
            include_last_offset=self.include_last_offset,
            device=self._owner.device,
            where=self.path,
        )
        return self._owner.read(self.table, call, call.bags, self.path)


class TableRows(TableLayer):
    """Stands in for nn.Embedding: the leading index is the example."""

    def __init__(self, path: str, table: str, owner: TableOwner, original: nn.Embedding) -> None:
        super().__init__(path, table, owner, original)
        # The padding row is a constant of the model, read where it lies: a checkpoint may bring another one.
        self._padding_row: Callable[[], Tensor] = lambda: original.weight.detach()[original.padding_idx]

    def forward(self, input: Tensor) -> Tensor:
        call, padded = row_call(input, padding_idx=self.padding_idx, device=self._owner.device, where=self.path)
        rows = self._owner.read(self.table, call, input.shape[0], self.path)
        if padded is not None:
            rows = torch.where(padded[:, None], self._padding_row(), rows)
        return rows.view(*input.shape, self.embedding_dim)


def guard_model(model: Any, device: torch.device) -> Callable[[], None]:
    """Refuse to load or cast the whole model before its first layer is touched; returns what lifts the guard.

    The stand-ins refuse too, but only when their turn comes: layers that were registered before them would have changed
    by then.
    """

    def refuse(*_: Any) -> NoReturn:
        _refuse_load("the model")

    loading, move = model.register_load_state_dict_pre_hook(refuse), model._apply

    def checked(fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        _refuse_move(fn, device, "the model")
        return move(fn, recurse)

    model._apply = checked

    def lift() -> None:
        loading.remove()
        vars(model).pop("_apply", None)

    return lift


def _refuse_load(where: str) -> NoReturn:
    raise InputError(
        f"{where}: a state_dict cannot be loaded while the trainer owns the tables; load it into the model "
        "before LazyTrainer takes it, or resume with trainer.load_checkpoint"
    )


def _refuse_move(fn: Callable[[Tensor], Tensor], device: torch.device, where: str) -> None:
    probe = torch.zeros(1, device=device)
    moved = fn(probe)
    if moved.dtype is not probe.dtype or moved.device != probe.device:
        raise UnsupportedLayerError(
            f"{where}: weights stay float32 on {device} while they are trained; move or cast the model "
            "before LazyTrainer takes it, or after release()"
        )


def find_tables(model: nn.Module) -> list[TableGroup]:
    """The trainable tables of a model in the order of their sorted names: what `number` counts.

    Modules that share one weight are one table, named by the first. A table with requires_grad=False is a constant
    of the model and stays as it is.

    Raises:
        UnsupportedLayerError: an option whose per-example gradient cannot be bounded, named by its path.
    """
    layers: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            _check_layer(path, module)
            if module.weight.requires_grad:
                layers.setdefault(id(module.weight), []).append((path, module))
    groups: list[TableGroup] = []
    for members in layers.values():
        first: Any = members[0][1]
        paddings = {module.padding_idx for _, module in members}  # type: ignore[union-attr]
        if len(paddings) > 1:
            raise UnsupportedLayerError(
                f"{', '.join(path for path, _ in members)} share one weight and disagree about padding_idx "
                f"({paddings}): a padding row gets no noise, so it must be padding everywhere. Give them the same "
                "padding_idx"
            )
        groups.append(TableGroup(members[0][0], first.weight, first.padding_idx, tuple(members)))
    return sorted(groups, key=lambda group: group.name)


def replace_layers(model: nn.Module, groups: list[TableGroup], owner: TableOwner) -> None:
    """Put a stand-in in the place of every layer of the groups; a layer under two paths stays one layer."""
    made: dict[int, TableLayer] = {}
    for group in groups:
        for path, module in group.layers:
            if id(module) not in made:
                kind = TableBag if isinstance(module, nn.EmbeddingBag) else TableRows
                made[id(module)] = kind(path, group.name, owner, module)  # type: ignore[arg-type]
            _set_module(model, path, made[id(module)])


def restore_layers(model: nn.Module, groups: list[TableGroup]) -> None:
    """Put the original layers back."""
    for group in groups:
        for path, module in group.layers:
            current = model.get_submodule(path)
            module.train(current.training)
            _set_module(model, path, module)


def has_forward_hooks(module: Any) -> bool:
    """Whether anybody looks at, or changes, what goes through a layer."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _set_module(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _check_layer(path: str, module: Any) -> None:
    """Refuse what cannot be bounded. Frozen tables too: max_norm writes to the rows that a batch reads."""
    kind = nn.EmbeddingBag if isinstance(module, nn.EmbeddingBag) else nn.Embedding
    problems = (
        (not path, "the model itself is an embedding", "put it into a module, e.g. nn.Sequential(embedding)"),
        (
            type(module).forward is not kind.forward,
            f"{type(module).__name__} overrides the forward of {kind.__name__}",
            f"use {kind.__name__} itself and do the rest in another layer",
        ),
        (
            "forward" in vars(module),
            "its forward was replaced on the instance, and would be lost",
            f"use {kind.__name__} itself and do the rest in another layer",
        ),
        (
            module.max_norm is not None,
            "max_norm rescales the rows that a batch reads, without noise",
            "set max_norm=None",
        ),
        (
            module.scale_grad_by_freq,
            "scale_grad_by_freq divides by counts over the whole batch, which mixes examples",
            "set scale_grad_by_freq=False",
        ),
        (
            getattr(module, "mode", None) == "max",
            "mode='max' sends each coordinate's gradient to another row, which no bound here covers",
            "use mode='sum' or 'mean'",
        ),
        (
            module.weight.requires_grad and module.weight.dtype is not torch.float32,
            f"the table is {module.weight.dtype}; noise and updates are defined in float32",
            "call model.float() first",
        ),
        (
            module.weight.requires_grad and 0 in module.weight.shape,
            f"the table has shape {tuple(module.weight.shape)}",
            "give it at least one row and one column",
        ),
        (
            has_forward_hooks(module),
            "the layer has forward hooks, which would be lost or would see settled rows",
            "remove them",
        ),
        (
            bool(getattr(module, "parametrizations", None)),
            "the weight is parametrised, so its rows are not independent parameters",
            "remove the parametrisation",
        ),
    )
    for found, problem, way_out in problems:
        if found:
            raise UnsupportedLayerError(f"layer {path!r}: {problem}; {way_out}")
