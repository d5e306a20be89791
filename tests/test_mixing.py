"""Mixing that the first batch cannot show is caught by a later one, before its weights move; and when to look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samelaw.contract.errors import InputError, MixedExamplesError
from samelaw.contract.noise import NoiseKey
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import ExecutionOptions, PrivacySpec
from samelaw.fast import mixing
from samelaw.fast.trainer import LazyTrainer

IDS = torch.arange(18).view(9, 2)


class Net(nn.Module):
    """A table, something that mixes, and a head that may start at zero."""

    def __init__(self, mix: Callable[[Tensor], Tensor], *, zero: bool = True) -> None:
        super().__init__()
        self.table, self.head, self.mix = nn.Embedding(20, 4), nn.Linear(4, 1), mix
        if zero:
            nn.init.zeros_(self.head.weight)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.mix(self.table(ids).sum(1))).squeeze(1)


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate


class Gated(Net):
    """A branch that mixes, behind a gate that starts shut, beside one that does not."""

    def __init__(self) -> None:
        super().__init__(lambda x: x, zero=False)
        self.gate = Gate()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids).sum(1)
        return self.head(x + self.gate(x - x.mean(0))).squeeze(1)


class Centred(nn.Module):
    """A layer with a parameter that looks at the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) * self.gain


class Below(nn.Module):
    """A layer that mixes, over a table that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(20, 4), Centred()
        nn.init.zeros_(self.table.weight)

    def forward(self, ids: Tensor) -> Tensor:
        return self.layer(self.table(ids).sum(1).detach()).sum(1) + self.table(ids).sum((1, 2))


def trainer_of(model: nn.Module, **options: Any) -> LazyTrainer:
    spec = PrivacySpec(1.0, 1.0, 0.5, 4.0, 1e-5, Schedule.constant(0.5, steps=400))
    return LazyTrainer(model, spec, NoiseKey.from_seed(0), examples=20, options=ExecutionOptions(**options))


def standardised(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / (x.std(0) + 1e-5)


MIXING: dict[str, Callable[[], nn.Module]] = {
    "a mean under a head of zeros": lambda: Net(lambda x: x - x.mean(0)),
    "a batch norm by hand under a head of zeros": lambda: Net(standardised),
    "a product with the mean under a head of zeros": lambda: Net(lambda x: x * x.mean(0)),
    "behind a gate that starts shut": Gated,
    "a layer whose inputs start at zero": Below,
}


@pytest.mark.parametrize("examples", [2, 9])
@pytest.mark.parametrize("name", MIXING)
def test_what_zeros_hide_on_the_first_batch_is_caught_on_the_second(name: str, examples: int) -> None:
    torch.manual_seed(0)
    model = MIXING[name]()
    trainer = trainer_of(model)
    trainer.step(F.softplus(model(IDS[:examples])))
    before = {k: p.detach().clone() for k, p in trainer.dense.items()}
    losses = F.softplus(model(IDS[:examples]))
    with pytest.raises(MixedExamplesError):
        trainer.step(losses)
    assert trainer.step_index == 1
    for k, parameter in trainer.dense.items():
        assert torch.equal(parameter, before[k])


def checked_batches(monkeypatch: pytest.MonkeyPatch, steps: int, losses: Callable[[int], Tensor], t: Any) -> list[int]:
    """The steps on which examples are checked against each other."""
    found: list[int] = []
    monkeypatch.setattr(mixing, "check_examples_apart", lambda *_: found.append(t.step_index))
    for step in range(steps):
        t.step(losses(step))
    return found


def test_an_honest_model_is_checked_until_enough_was_seen_and_then_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net(lambda x: x, zero=False)
    trainer = trainer_of(model)
    ids = torch.arange(20)[:, None]
    found = checked_batches(monkeypatch, 260, lambda _: F.softplus(model(ids)), trainer)
    assert found == [0, 1, 15, 255]


def test_small_batches_are_checked_until_sixteen_examples_had_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net(lambda x: x, zero=False)
    trainer = trainer_of(model)
    assert checked_batches(monkeypatch, 12, lambda _: F.softplus(model(IDS[:3])), trainer) == [0, 1, 2, 3, 4, 5]


def test_a_place_that_has_a_gradient_late_is_checked_then(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net(lambda x: x, zero=False)
    trainer = trainer_of(model)
    ids = torch.arange(20)[:, None]

    def losses(step: int) -> Tensor:
        out = F.softplus(model(ids))
        return out * float(step >= 5)  # nothing has a gradient before

    assert checked_batches(monkeypatch, 8, losses, trainer) == [0, 1, 5]


def test_examples_of_which_one_is_never_finite_do_not_keep_the_check_going(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net(lambda x: x, zero=False)
    trainer = trainer_of(model)
    ids, bad = torch.arange(20)[:, None], torch.ones(20)
    bad[3] = float("nan")
    assert checked_batches(monkeypatch, 6, lambda _: F.softplus(model(ids)) * bad, trainer) == [0, 1]


def test_nothing_is_checked_where_it_was_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net(lambda x: x - x.mean(0), zero=False)
    trainer = trainer_of(model, check_mixing=False)
    assert checked_batches(monkeypatch, 2, lambda _: F.softplus(model(IDS)), trainer) == []


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_losses_of_a_discarded_pass_are_refused(steps: int) -> None:
    model = Net(lambda x: x, zero=False)
    trainer = trainer_of(model)
    for _ in range(steps):
        trainer.step(model(IDS))
    stale = model(IDS)
    trainer.discard()
    model(IDS + 1)
    entries = len(trainer.ledger.entries)
    with pytest.raises(InputError, match=r"do not come from the training forward pass on record.*last output"):
        trainer.step(stale)
    assert len(trainer.ledger.entries) == entries
    trainer.step(model(IDS))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_step_without_gradients_is_refused_in_plain_words(context: Callable[[], Any]) -> None:
    model = Net(lambda x: x, zero=False)
    trainer = trainer_of(model)
    losses = model(IDS)
    with context(), pytest.raises(InputError, match=r"under torch\.no_grad\(\) or torch\.inference_mode\(\)"):
        trainer.step(losses)
    trainer.step(model(IDS))


@pytest.mark.parametrize("wrong", [None, 0.5, [1.0]], ids=str)
def test_losses_that_are_no_tensor_are_refused(wrong: Any) -> None:
    model = Net(lambda x: x, zero=False)
    trainer = trainer_of(model)
    model(IDS)
    with pytest.raises(InputError, match=r"vector of per-example losses.*reduction='none'"):
        trainer.step(wrong)
    trainer.step(model(IDS))


def test_a_read_that_no_loss_uses_has_gradient_zero_whatever_the_default_dtype() -> None:
    class Unused(Net):
        def forward(self, ids: Tensor) -> Tensor:
            self.table(ids + 1)
            return super().forward(ids)

    model = Unused(lambda x: x, zero=False)
    torch.set_default_dtype(torch.float64)
    try:
        trainer = trainer_of(model)
        trainer.step(model(IDS))
    finally:
        torch.set_default_dtype(torch.float32)
    trainer.release()
