"""Training and evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn


@contextmanager
def training_modes(model: nn.Module, *, training: bool) -> Generator[None]:
    """Every module in this mode inside, and in its own afterwards: some may be in evaluation mode for good."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode
