"""The buffers of a model in training are constants: what they learnt of a batch would leave without noise."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from samelaw.contract.errors import UnsupportedLayerError

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Buffers:
    """Copies of a model's buffers, to see whether one has changed, whoever changed it and however.

    Args:
        model: its buffers now are its constants.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.keep()

    def keep(self) -> None:
        """Take the buffers as they are now for the constants."""
        self._kept = {
            (module, local): (name, buffer, None if buffer is None else buffer.detach().clone())
            for name, module, local, buffer in self._all()
        }

    def check(self) -> None:
        """Raise if a bit of a buffer is another than it was, after putting all of them back.

        Raises:
            UnsupportedLayerError: names the buffers.
        """
        now = {(module, local): (name, buffer) for name, module, local, buffer in self._all()}
        changed = {name for key, (name, _) in now.items() if key not in self._kept}
        for key, (name, _, kept) in self._kept.items():
            if key not in now or not _same(now[key][1], kept):
                changed.add(name)
        if changed:
            self._restore(now.keys() - self._kept.keys())
            raise UnsupportedLayerError(
                f"buffers {sorted(changed)} changed while the model was in training: statistics of the batch would "
                "leave the model without noise. They were put back. Use layers that keep none (LayerNorm, GroupNorm), "
                "and set constants before LazyTrainer takes the model"
            )

    def _restore(self, added: set[tuple[nn.Module, str]]) -> None:
        for module, local in added:
            delattr(module, local)
        for (module, local), (_, buffer, kept) in self._kept.items():
            if buffer is None or kept is None:
                module.register_buffer(local, None)
                continue
            if not _same(buffer, kept):
                try:
                    buffer.data.copy_(kept)  # whoever else holds the tensor sees its old value too
                except RuntimeError:  # expanded or overlapping memory
                    buffer = kept.clone()
            if not _same(buffer, kept):  # it was resized
                buffer = kept.clone()
            vars(module)["_buffers"][local] = buffer

    def _all(self) -> Iterator[tuple[str, nn.Module, str, Tensor | None]]:
        for path, module in self._model.named_modules():
            for local, buffer in vars(module)["_buffers"].items():
                yield f"{path}.{local}" if path else local, module, local, buffer


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two tensors have the same bits: NaN is itself, and 0.0 is not -0.0."""
    if a is None or b is None:
        return a is b
    if (a.shape, a.dtype, a.device, a.layout) != (b.shape, b.dtype, b.device, b.layout):
        return False
    if a.is_meta:
        return True
    if a.layout is torch.sparse_coo:
        return all(_same(x, y) for x, y in ((a._indices(), b._indices()), (a._values(), b._values())))
    if a.layout is not torch.strided:
        return bool((a.to_dense() == b.to_dense()).all())
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    if a.is_floating_point():
        integers = _INTEGERS[a.element_size()]
        a, b = a.view(integers), b.view(integers)
    return torch.equal(a, b)
