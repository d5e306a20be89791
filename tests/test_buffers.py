"""Buffers are constants: a trace of a batch in one is refused, however it got there, and wiped."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samelaw.contract.errors import InputError, UnsupportedLayerError
from samelaw.contract.noise import NoiseKey
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import PrivacySpec
from samelaw.fast.buffers import Buffers
from samelaw.fast.trainer import LazyTrainer

IDS = torch.tensor([[0, 1], [2, 2], [3, 5]])


def in_place(model: nn.Module, x: Tensor) -> None:
    model.mean.mul_(0.9).add_(x.detach().mean(0))


def through_data(model: nn.Module, x: Tensor) -> None:
    model.mean.data.mul_(0.9).add_(x.detach().mean(0))


def through_numpy(model: nn.Module, x: Tensor) -> None:
    model.mean.numpy()[:] = x.detach().mean(0).numpy()


def reassigned(model: nn.Module, x: Tensor) -> None:
    model.mean = model.mean * 0.9 + x.detach().mean(0)


def resized(model: nn.Module, x: Tensor) -> None:
    model.mean.resize_(8)


def one_bit(model: nn.Module, x: Tensor) -> None:
    model.mean.copy_(torch.tensor([0.0, 0.0, 0.0, -0.0]))


def another(model: nn.Module, x: Tensor) -> None:
    model.register_buffer("seen", x.detach().mean(0), persistent=False)


def removed(model: nn.Module, x: Tensor) -> None:
    model.mean = None


CHANGES: list[Callable[[nn.Module, Tensor], None]] = [
    in_place, through_data, through_numpy, reassigned, resized, one_bit, another, removed,
]  # fmt: skip


class Net(nn.Module):
    def __init__(self, change: Callable[[nn.Module, Tensor], None]) -> None:
        super().__init__()
        self.table, self.top, self.change = nn.Embedding(6, 4), nn.Linear(4, 1), change
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids).sum(1)
        if self.training:
            self.change(self, x)
        return self.top(x).squeeze(1)


def trainer_of(model: nn.Module) -> LazyTrainer:
    spec = PrivacySpec(1.0, 1.0, 0.5, 2.0, 1e-5, Schedule.constant(0.5, steps=4))
    return LazyTrainer(model, spec, NoiseKey.from_seed(0), examples=8)


def wiped(net: Net) -> bool:
    buffers = dict(net.named_buffers())
    return list(buffers) == ["mean"] and buffers["mean"].view(torch.int32).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("call", ["__call__", "forward"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_step_on_a_pass_that_changed_a_buffer_is_refused_and_undone(
    change: Callable[[nn.Module, Tensor], None], call: str
) -> None:
    net = Net(change)
    trainer = trainer_of(net)
    for _ in range(2):
        losses = getattr(net, call)(IDS)
        with pytest.raises(UnsupportedLayerError, match=r"buffers \['(mean|seen)'\] changed.*LayerNorm"):
            trainer.step(losses)
        assert wiped(net)
    assert [entry.event for entry in trainer.ledger.entries] == ["open"]
    assert trainer.step_index == 0
    trainer.release()
    assert wiped(net)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_nothing_leaves_in_a_buffer_without_a_step(change: Callable[[nn.Module, Tensor], None], tmp_path: Path) -> None:
    net = Net(change)
    trainer = trainer_of(net)
    doors: tuple[Callable[[], Any], ...] = (
        trainer.empty_step, trainer.settle, lambda: trainer.save_checkpoint(tmp_path / "c"), trainer.release,
    )  # fmt: skip
    for door in doors:
        with torch.no_grad():
            net(IDS)
        with pytest.raises(UnsupportedLayerError, match=r"changed while the model was in training"):
            door()
        assert wiped(net)
    assert not (tmp_path / "c").exists()
    assert [entry.event for entry in trainer.ledger.entries] == ["open"]
    trainer.release()


def test_bad_losses_do_not_keep_what_the_pass_left() -> None:
    net = Net(in_place)
    trainer = trainer_of(net)
    with pytest.raises((InputError, UnsupportedLayerError)):
        trainer.step(net(IDS).mean())
    assert wiped(net)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_constants_of_every_kind_are_let_be() -> None:
    values = {
        "nan": torch.tensor([math.nan, -0.0, math.inf]),
        "scalar": torch.tensor(3),
        "nothing": None,
        "empty": torch.zeros(0, 3),
        "bool": torch.tensor([True, False]),
        "bf16": torch.ones(2, dtype=torch.bfloat16),
        "complex": torch.tensor([1j, complex(math.nan, 0)]),
        "expanded": torch.ones(1).expand(4),
        "overlapping": torch.arange(6.0).as_strided((3, 3), (1, 1)),
        "transposed": torch.arange(6.0).view(2, 3).t(),
        "sparse": torch.eye(3).to_sparse(),
        "rows": torch.eye(3).to_sparse_csr(),
        "meta": torch.empty(2, device="meta"),
    }
    model = nn.Module()
    for name, value in values.items():
        model.register_buffer(f"b_{name}", value)
    buffers = Buffers(model)
    buffers.check()
    for name, value in values.items():
        if value is not None and name not in ("meta", "empty"):
            setattr(model, f"b_{name}", torch.zeros_like(value) if value.layout is torch.strided else (value * 2))
            with pytest.raises(UnsupportedLayerError, match=f"b_{name}"):
                buffers.check()
            buffers.check()


def test_a_tensor_that_others_hold_gets_its_value_back() -> None:
    model = nn.Module()
    model.register_buffer("b", held := torch.ones(3))
    buffers = Buffers(model)
    held.zero_()
    model.b = torch.ones(3) * 7
    with pytest.raises(UnsupportedLayerError):
        buffers.check()
    assert model.b is held
    assert held.tolist() == [1.0, 1.0, 1.0]


def test_buffers_of_a_checkpoint_are_the_constants_after_it(tmp_path: Path) -> None:
    def made(value: float) -> tuple[Net, LazyTrainer]:
        net = Net(lambda *_: None)
        net.mean.fill_(value)
        return net, trainer_of(net)

    net, trainer = made(5.0)
    trainer.step(net(IDS))
    trainer.save_checkpoint(tmp_path / "c")
    net, trainer = made(0.0)
    trainer.load_checkpoint(tmp_path / "c")
    trainer.step(net(IDS))
    trainer.release()
    assert net.mean.tolist() == [5.0] * 4


def test_a_buffer_in_the_memory_of_a_trainable_parameter_is_refused() -> None:
    for share in (lambda net: net.top.weight, lambda net: net.table.weight):
        net = Net(in_place)
        net.register_buffer("alias", share(net).data[0])
        with pytest.raises(UnsupportedLayerError, match=r"buffer 'alias' is in the memory.*register a copy"):
            trainer_of(net)
