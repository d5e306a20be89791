"""What a careless loop, a signal or a full disk does to a run: nothing, or a refusal; never less noise than charged."""

from __future__ import annotations

import errno
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from samelaw.contract.entry import as_float
from samelaw.contract.errors import InputError, LedgerError, ResumeError, UnsupportedLayerError
from samelaw.contract.ledger import Ledger, read_ledger
from samelaw.contract.noise import NoiseKey
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import ExecutionOptions, Mode, PrivacySpec
from samelaw.fast.cpu import CpuKernels
from samelaw.fast.trainer import LazyTrainer

IDS = torch.tensor([[0, 1], [2, 2], [3, 5]])


def spec_of(**changes: Any) -> PrivacySpec:
    return PrivacySpec(**{
        "clip_norm": 1.0, "noise_multiplier": 1.0, "sampling_rate": 0.5, "expected_batch_size": 2.0, "delta": 1e-5,
        "schedule": Schedule.constant(0.5, steps=6), "mode": Mode.REPLAY, **changes,
    })  # fmt: skip


class Net(nn.Module):
    """A dense layer that is registered before the table, and one after it."""

    def __init__(self, table: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(1, 4)
        self.table = table or nn.EmbeddingBag(8, 4, mode="sum")
        self.last = nn.Linear(4, 1)

    def forward(self, ids: Tensor, weights: Tensor | None = None) -> Tensor:
        pooled = self.table(ids) if weights is None else self.table(ids, per_sample_weights=weights)
        if pooled.dim() == 3:
            pooled = pooled.sum(1)
        return self.last(pooled + self.first(torch.ones(len(pooled), 1)))[:, 0]


def net_of(seed: int = 0, table: Callable[[], nn.Module] | None = None) -> Net:
    torch.manual_seed(seed)
    return Net(None if table is None else table())


def trainer_of(net: nn.Module, **arguments: Any) -> LazyTrainer:
    spec = arguments.pop("spec", None) or spec_of()
    return LazyTrainer(net, spec, NoiseKey.from_seed(0), examples=arguments.pop("examples", 8), **arguments)


# --- Signals ----------------------------------------------------------------------------------------------------------


class Interrupted(CpuKernels):
    """Ctrl-C arrives while rows are being marked: Python raises it when the kernel returns."""

    armed = False

    def due_rows(self, history: Tensor, ids: Tensor, until: int) -> tuple[Tensor, Tensor]:
        found = super().due_rows(history, ids, until)
        if self.armed:
            raise KeyboardInterrupt
        return found


@pytest.mark.parametrize("moment", ["in a forward pass", "at release", "in settle"])
def test_R1_an_interrupt_between_history_and_noise_is_never_forgotten(moment):
    net, kernels = net_of(), Interrupted(1)
    trainer = trainer_of(net, kernels=kernels)
    trainer.step(net(IDS))
    kernels.armed = True
    attempts: dict[str, Callable[[], Any]] = {
        "in a forward pass": lambda: net(IDS), "at release": trainer.release, "in settle": trainer.settle,
    }  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        attempts[moment]()
    kernels.armed = False
    for again in (trainer.release, lambda: net(IDS), trainer.empty_step, lambda: trainer.save_checkpoint("never")):
        with pytest.raises(ResumeError, match="interrupted while it wrote"):
            again()


def test_an_id_that_does_not_exist_is_no_interrupt():
    net = net_of()
    trainer = trainer_of(net)
    with pytest.raises(InputError):
        net(torch.tensor([[99]]))
    trainer.step(net(IDS))
    trainer.release()


def test_a_step_that_was_interrupted_while_it_was_charged_is_not_charged_twice(monkeypatch):
    net = net_of()
    trainer = trainer_of(net)
    append = trainer.ledger.append

    def interrupted(event: str, data: dict[str, Any]) -> None:
        append(event, data)
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.ledger, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.step(net(IDS))
    monkeypatch.undo()
    with pytest.raises(ResumeError, match="interrupted while it wrote"):
        trainer.empty_step()


# --- The ledger's file ------------------------------------------------------------------------------------------------


class FullDisk(FileIO):
    """Takes half of a line, then fails."""

    full = False

    def write(self, data: Any) -> int:
        if self.full and len(data) > 1:
            return super().write(bytes(data)[: len(data) // 2])
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_a_full_disk_leaves_no_half_line_and_the_step_can_be_tried_again(tmp_path: Path):
    path = tmp_path / "ledger.jsonl"
    net = net_of()
    ledger = Ledger(path)
    trainer = trainer_of(net, ledger=ledger)
    real = ledger._file
    assert real is not None
    disk = FullDisk(real.fileno(), "r+", closefd=False)
    disk.seek(0, 2)
    ledger._file = disk  # type: ignore[assignment]
    before = {name: table.weights.clone() for name, table in trainer.tables.items()}
    disk.full = True
    with pytest.raises(OSError, match="No space"):
        trainer.step(net(IDS))
    disk.full = False
    assert torch.equal(trainer.tables["table"].weights, before["table"])
    assert len(read_ledger(path)) == 1
    trainer.step(net(IDS))
    trainer.release()
    assert [entry.event for entry in read_ledger(path)] == ["open", "step", "settle", "release"]


def test_two_writers_never_share_a_ledger(tmp_path: Path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("open", {})
    with pytest.raises(LedgerError, match="open elsewhere"):
        Ledger.reopen(tmp_path / "ledger.jsonl")
    ledger.close()
    with pytest.raises(LedgerError, match="has been closed"):
        ledger.append("open", {})
    again = Ledger.reopen(tmp_path / "ledger.jsonl")
    again.append("settle", {"step": 0})
    assert len(read_ledger(tmp_path / "ledger.jsonl")) == 2


# --- Inputs that change after the read --------------------------------------------------------------------------------


def after_one_step(ids: Tensor, weights: Tensor | None = None, *, spoil: bool, rows: bool = False) -> dict[str, Any]:
    net = net_of(table=(lambda: nn.Embedding(8, 4)) if rows else None)
    trainer = trainer_of(net)
    ids, weights = ids.clone(), None if weights is None else weights.clone()
    losses = net(ids) if weights is None else net(ids, weights)
    if spoil:
        ids.add_(100)
        if weights is not None:
            weights.mul_(100)
    trainer.step(losses)
    return {**trainer.release().tables, "last": net.last.weight.detach().numpy()}


@pytest.mark.parametrize(("rows", "weighted"), [(False, False), (True, False), (False, True)])
def test_ids_and_weights_that_are_overwritten_after_the_read_do_not_reach_the_update(rows, weighted):
    weights = torch.rand(IDS.shape) if weighted else None
    clean, spoilt = (after_one_step(IDS, weights, spoil=spoil, rows=rows) for spoil in (False, True))
    for name in clean:
        assert np.array_equal(clean[name], spoilt[name]), name


def test_announced_rows_are_those_that_were_announced():
    net = net_of()
    trainer = trainer_of(net)
    ids = torch.tensor([3, 5])
    losses = net(IDS)
    trainer.look_ahead({"table": ids})
    ids.fill_(7)
    trainer.step(losses)
    assert trainer.tables["table"].history.tolist() == [0, 0, 0, 1, 0, 1, 0, 0]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_ids_may_be_a_column_or_any_other_view(dtype):
    wide = torch.tensor([[0, 9], [2, 9], [5, 9]], dtype=dtype)
    views = [wide[:, :1], wide[:, 0][:, None], wide[:, :1].expand(3, 2), torch.stack([wide[:, 0]] * 4)[::2].t()]
    for ids in views:
        plain = after_one_step(ids.contiguous(), spoil=False)
        net = net_of()
        trainer = trainer_of(net)
        trainer.step(net(ids))
        assert np.array_equal(trainer.release().tables["table"], plain["table"])
    column = net_of(table=lambda: nn.Embedding(8, 4))
    trainer = trainer_of(column)
    trainer.step(column(wide[:, 0]))
    weights = torch.rand(3, 2).t().contiguous().t()
    assert not weights.is_contiguous()
    bag = net_of()
    trainer_of(bag).step(bag(IDS, weights))


# --- The model, meanwhile ---------------------------------------------------------------------------------------------


def test_a_refused_load_or_cast_has_changed_nothing():
    net = net_of()
    state = {name: torch.zeros_like(value) for name, value in net.state_dict().items()}
    trainer = trainer_of(net)
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    with pytest.raises(InputError, match="a state_dict cannot be loaded"):
        net.load_state_dict(state)
    for cast in (net.half, net.double, lambda: net.to("meta")):
        with pytest.raises(UnsupportedLayerError, match="weights stay float32"):
            cast()
    for name, value in net.named_parameters():
        assert value.dtype is torch.float32
        assert torch.equal(value, before[name]), name
    trainer.step(net(IDS))
    trainer.release()
    net.load_state_dict(state)
    assert net.half().first.weight.dtype is torch.float16


def test_a_table_read_as_a_whole_in_a_training_pass_is_refused():
    net = net_of()
    trainer = trainer_of(net)
    with pytest.raises(UnsupportedLayerError, match="read as a whole during a training pass"):
        trainer.step(net(IDS) + (net.table(IDS) @ net.table.weight.t())[:, 0])
    trainer.discard()
    assert net.table.weight.shape == (8, 4)  # between two steps, while nothing is owed


# --- Resuming ---------------------------------------------------------------------------------------------------------


def normal_padding() -> nn.Module:
    table = nn.Embedding(8, 4, padding_idx=2)
    nn.init.normal_(table.weight)
    return table


def test_a_resumed_run_reads_its_own_padding_row(tmp_path: Path):
    def run(resumed_seed: int | None) -> dict[str, Any]:
        net = net_of(1, normal_padding)
        trainer = trainer_of(net)
        trainer.step(net(IDS))
        if resumed_seed is not None:
            trainer.save_checkpoint(tmp_path / "run.resume")
            net = net_of(resumed_seed, normal_padding)
            trainer = trainer_of(net)
            trainer.load_checkpoint(tmp_path / "run.resume")
        trainer.step(net(IDS))
        release = trainer.release()
        return {**release.tables, **release.dense}

    whole, same, other = run(None), run(1), run(2)
    for name in whole:
        assert np.array_equal(whole[name], same[name])
        assert np.array_equal(whole[name], other[name]), name


def test_a_checkpoint_belongs_to_the_frozen_parameters_of_its_model(tmp_path: Path):
    def frozen(seed: int) -> Net:
        net = net_of(seed)
        net.first.requires_grad_(False)
        return net

    trainer = trainer_of(frozen(1))
    trainer.save_checkpoint(tmp_path / "run.resume")
    with pytest.raises(ResumeError, match="frozen parameters"):
        trainer_of(frozen(2)).load_checkpoint(tmp_path / "run.resume")
    trainer_of(frozen(1)).load_checkpoint(tmp_path / "run.resume")


@pytest.mark.parametrize(
    ("buffer", "kind"),
    [
        (torch.zeros(3, dtype=torch.complex64), "complex64"),
        (torch.zeros(1).expand(3), "expanded"),
        (torch.zeros(3).to_sparse(), "sparse"),
    ],
)
def test_a_buffer_that_no_checkpoint_can_hold_is_refused_before_anything_is_written(buffer, kind, tmp_path: Path):
    net = net_of()
    net.register_buffer("odd", buffer)
    trainer = trainer_of(net)
    with pytest.raises(UnsupportedLayerError, match=f"buffer/odd.*{kind}"):
        trainer.save_checkpoint(tmp_path / "run.resume")
    assert not list(tmp_path.iterdir())
    assert [entry.event for entry in trainer.ledger.entries] == ["open"]


# --- Numbers as they come ---------------------------------------------------------------------------------------------


def test_numpy_s_numbers_are_numbers(tmp_path: Path):
    odd = spec_of(clip_norm=np.float64(0.5), sampling_rate=np.float64(0.25))
    assert odd.digest() == spec_of(clip_norm=0.5, sampling_rate=0.25).digest()
    assert as_float("clip_norm", np.float32(0.5), "here") == 0.5
    assert type(as_float("clip_norm", np.float32(0.5), "here")) is float
    trainer = trainer_of(net_of(), spec=odd, examples=np.int64(8), ledger=Ledger(tmp_path / "ledger.jsonl"))
    trainer.empty_step()
    trainer.release()


@pytest.mark.parametrize("examples", [0, -1, 8.0, True, "8", None])
def test_examples_are_counted_in_whole_numbers(examples):
    with pytest.raises(InputError, match="examples must be a whole number >= 1"):
        trainer_of(net_of(), examples=examples)


@pytest.mark.parametrize("value", ["1.0", None, [1.0], 1j])
def test_what_is_no_number_is_refused_by_name(value):
    with pytest.raises(InputError, match="noise_multiplier must be a number"):
        as_float("noise_multiplier", value, "PrivacySpec")


@pytest.mark.parametrize(("name", "value"), [("settle_chunk", 0), ("settle_chunk", -1), ("threads", -1)])
def test_options_are_checked_when_they_are_made(name, value):
    with pytest.raises(InputError, match=f"{name} must be a whole number"):
        ExecutionOptions(**{name: value})
