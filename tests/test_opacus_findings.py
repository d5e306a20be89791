"""docs/opacus.md says what samelaw does with the inputs that Opacus gets wrong. Opacus itself is not needed here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from samelaw.contract.errors import UnsupportedLayerError
from samelaw.contract.noise import NoiseKey
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import PrivacySpec
from samelaw.fast.trainer import LazyTrainer

REFUSED = {"max pooling", "scale_grad_by_freq"}


def script() -> ModuleType:
    """benchmarks/opacus_findings.py, which is no package's module."""
    path = Path(__file__).parent.parent / "benchmarks" / "opacus_findings.py"
    spec = importlib.util.spec_from_file_location("opacus_findings", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


FINDINGS = script()


@pytest.mark.parametrize("case", [c for c in FINDINGS.CASES if c.name not in REFUSED], ids=lambda case: case.name)
def test_the_clipped_sum_is_that_of_per_example_autograd(case: Any) -> None:
    found, exact = FINDINGS.samelaw_sum(case), FINDINGS.exact_sum(case)
    # The clip margin shortens a clipped gradient by 2^-20 = 9.5e-7; autograd's own float32 sum of 20 terms errs by
    # at most 20 * 2^-24 = 1.2e-6; truncation to the grid costs less than 6 * 2^-32. Together below 3e-6 of C = 1.
    assert float((found - exact).norm()) <= 3e-6
    assert float(found.double().norm()) <= len(case.alone)


@pytest.mark.parametrize("case", [c for c in FINDINGS.CASES if c.name in REFUSED], ids=lambda case: case.name)
def test_what_cannot_be_bounded_is_refused(case: Any) -> None:
    with pytest.raises(UnsupportedLayerError, match="layer 'table': "):
        FINDINGS.samelaw_sum(case)


def test_renormalising_tables_are_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match="max_norm rescales the rows that a batch reads, without noise"):
        trainer_of(nn.Embedding(3, 2, max_norm=1.0))


def test_the_padding_row_is_a_constant_and_an_example_with_an_infinite_loss_adds_nothing() -> None:
    table = FINDINGS.filled(nn.Embedding(3, 2, padding_idx=0))
    padding = table.weight[0].detach().clone()
    trainer = trainer_of(table)
    outputs = trainer.model(torch.tensor([[0, 1], [1, 2]]))
    trainer.step((outputs - torch.tensor([0.0, float("inf")])) ** 2)
    released = trainer.release().tables["table"]
    assert np.array_equal(released[0], padding.numpy())
    assert np.isfinite(released).all()


def trainer_of(table: nn.Module) -> LazyTrainer:
    spec = PrivacySpec(
        clip_norm=1.0,
        noise_multiplier=1.0,
        sampling_rate=1.0,
        expected_batch_size=2.0,
        delta=1e-5,
        schedule=Schedule.constant(1.0, steps=2),
    )
    return LazyTrainer(FINDINGS.Readout(table), spec, NoiseKey.from_seed(0), examples=2)
