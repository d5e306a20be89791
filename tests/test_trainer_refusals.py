"""What cannot be clipped, or would leave without noise, is refused: with its own error, the place, and a way out."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samelaw.contract.errors import (
    AddressError,
    DataDependentRateError,
    InputError,
    LedgerError,
    MixedExamplesError,
    PrivacyError,
    SamelawError,
    UnsettledReleaseError,
    UnsupportedLayerError,
)
from samelaw.contract.ledger import Ledger
from samelaw.contract.noise import NoiseKey
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import PrivacySpec
from samelaw.fast.embedding_layers import TableGroup, TableLayer
from samelaw.fast.trainer import LazyTrainer
from samelaw.fast.trainer_checks import check_addresses


def spec_of(steps: int = 4, **changes: Any) -> PrivacySpec:
    values: dict[str, Any] = {
        "clip_norm": 1.0,
        "noise_multiplier": 1.0,
        "sampling_rate": 0.5,
        "expected_batch_size": 2.0,
        "delta": 1e-5,
        "schedule": Schedule.constant(0.5, steps=steps),
    }
    return PrivacySpec(**{**values, **changes})


def trainer_of(model: nn.Module, **arguments: Any) -> LazyTrainer:
    return LazyTrainer(model, arguments.pop("spec", spec_of()), NoiseKey.from_seed(0), examples=8, **arguments)


class Net(nn.Module):
    """A table, then whatever is tested."""

    def __init__(self, *layers: nn.Module, table: nn.Module | None = None) -> None:
        super().__init__()
        self.table = table if table is not None else nn.EmbeddingBag(6, 4, mode="sum")
        self.rest = nn.Sequential(*layers)

    def forward(self, ids: Tensor) -> Tensor:
        return self.rest(self.table(ids)).flatten(1).sum(1)


IDS = torch.tensor([[0, 1], [2, 2], [3, 5]])


def tied() -> nn.Module:
    net = Net(nn.Linear(4, 6, bias=False), table=nn.Embedding(6, 4))
    net.rest[0].weight = net.table.weight
    return net


def same_memory() -> nn.Module:
    net = Net(nn.Linear(4, 6, bias=False))
    net.rest[0].weight.data = net.table.weight.data
    return net


def bare() -> nn.Module:
    net = Net(nn.Linear(4, 2))
    net.scale = nn.Parameter(torch.ones(4))
    return net


def bare_list() -> nn.Module:
    net = Net(nn.Linear(4, 2))
    net.scales = nn.ParameterList([torch.ones(4)])
    return net


def disagreeing_padding() -> nn.Module:
    net = Net(table=nn.Embedding(6, 4, padding_idx=0))
    net.other = nn.Embedding(6, 4)
    net.other.weight = net.table.weight
    return net


def trainable_buffer() -> nn.Module:
    net = Net(nn.Linear(4, 2))
    net.register_buffer("offset", torch.zeros(4, requires_grad=True))
    return net


def hooked(net: nn.Module, path: str) -> nn.Module:
    net.get_submodule(path).register_forward_hook(lambda *_: None)
    return net


def patched(net: nn.Module, path: str) -> nn.Module:
    layer = net.get_submodule(path)
    layer.forward = lambda *args, before=layer.forward: before(*args) * 2
    return net


def compiled(net: nn.Module, path: str) -> nn.Module:
    net.get_submodule(path).compile(backend="eager")
    return net


class Norm(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) / 2


REFUSED: dict[str, tuple[Callable[[], nn.Module], type[SamelawError], str]] = {
    "max pooling": (
        lambda: Net(table=nn.EmbeddingBag(6, 4, mode="max")),
        UnsupportedLayerError,
        "'table': mode='max'.*use mode='sum' or 'mean'",
    ),
    "max_norm": (lambda: Net(table=nn.Embedding(6, 4, max_norm=1.0)), UnsupportedLayerError, "'table': max_norm"),
    "max_norm on a frozen table": (
        lambda: Net(table=nn.Embedding(6, 4, max_norm=1.0)).requires_grad_(False),
        UnsupportedLayerError,
        "'table': max_norm",
    ),
    "scale_grad_by_freq": (
        lambda: Net(table=nn.EmbeddingBag(6, 4, scale_grad_by_freq=True)),
        UnsupportedLayerError,
        "'table': scale_grad_by_freq",
    ),
    "a float64 table": (
        lambda: Net(table=nn.EmbeddingBag(6, 4, dtype=torch.float64)),
        UnsupportedLayerError,
        "'table': the table is torch.float64.*model.float",
    ),
    "an empty table": (lambda: Net(table=nn.Embedding(0, 4)), UnsupportedLayerError, r"shape \(0, 4\)"),
    "an embedding of one's own": (lambda: Net(table=Norm(6, 4)), UnsupportedLayerError, "Norm overrides the forward"),
    "a hooked table": (lambda: hooked(Net(), "table"), UnsupportedLayerError, "'table': the layer has forward hooks"),
    "a table with another forward": (
        lambda: patched(Net(), "table"),
        UnsupportedLayerError,
        "'table': its forward was",
    ),
    "a layer with another forward": (
        lambda: patched(Net(nn.Linear(4, 2)), "rest.0"),
        UnsupportedLayerError,
        "'rest.0' .Linear. has had its forward replaced",
    ),
    "a compiled model": (lambda: torch.compile(Net(), backend="eager"), UnsupportedLayerError, "after release"),
    "a model compiled in place": (lambda: compiled(Net(), ""), UnsupportedLayerError, "after release"),
    "a compiled layer": (
        lambda: compiled(Net(nn.Linear(4, 2)), "rest.0"),
        UnsupportedLayerError,
        "'rest.0' is compiled",
    ),
    "a bare embedding": (lambda: nn.Embedding(6, 4), UnsupportedLayerError, r"nn\.Sequential\(embedding\)"),
    "padding that disagrees": (disagreeing_padding, UnsupportedLayerError, "table, other share one weight"),
    "an output layer tied to a table": (tied, UnsupportedLayerError, "'rest.0.weight' is the weight of table 'table'"),
    "parameters in the same memory": (same_memory, UnsupportedLayerError, "different parameters in the same memory"),
    "batch norm": (lambda: Net(nn.BatchNorm1d(4)), MixedExamplesError, "'rest.0' .BatchNorm1d.*LayerNorm or GroupNorm"),
    "batch norm without parameters": (
        lambda: Net(nn.BatchNorm1d(4, affine=False, track_running_stats=False)),
        MixedExamplesError,
        "'rest.0' .BatchNorm1d",
    ),
    "sync batch norm": (lambda: Net(nn.SyncBatchNorm(4)), MixedExamplesError, "'rest.0' .SyncBatchNorm"),
    "instance norm that remembers": (
        lambda: Net(nn.InstanceNorm1d(4, track_running_stats=True)),
        MixedExamplesError,
        "track_running_stats=False",
    ),
    "a bare parameter": (bare, UnsupportedLayerError, "'' .Net. has parameters of its own .scale."),
    "a list of bare parameters": (bare_list, UnsupportedLayerError, "'scales' .ParameterList. holds bare parameters"),
    "a trainable buffer": (trainable_buffer, UnsupportedLayerError, "buffer 'offset'"),
    "a float64 layer": (lambda: Net(nn.Linear(4, 2).double()), UnsupportedLayerError, "'rest.0'.*torch.float64"),
    "a layer without a shape yet": (lambda: Net(nn.LazyLinear(2)), UnsupportedLayerError, "has no shape yet"),
    "a recurrent layer": (lambda: Net(nn.LSTM(4, 2)), UnsupportedLayerError, "'rest.0' .LSTM. returns its state"),
    "attention": (lambda: Net(nn.MultiheadAttention(4, 2)), UnsupportedLayerError, "'rest.0' .MultiheadAttention"),
    "a hooked layer": (
        lambda: hooked(Net(nn.Linear(4, 2)), "rest.0"),
        UnsupportedLayerError,
        "'rest.0'.*forward hooks",
    ),
    "weight norm": (
        lambda: Net(nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))),
        UnsupportedLayerError,
        "'rest.0",
    ),
    "a parallel wrapper": (lambda: nn.DataParallel(Net()), UnsupportedLayerError, "hand over the module inside"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_the_first_step_and_the_model_is_left_as_it_was(name: str) -> None:
    make, error, message = REFUSED[name]
    model = make()
    before = [(path, id(module)) for path, module in model.named_modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    with pytest.raises(error, match=message):
        trainer_of(model)
    assert [(path, id(module)) for path, module in model.named_modules()] == before
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks


def test_what_needs_no_clipping_is_left_alone() -> None:
    frozen = nn.Embedding(6, 4)
    frozen.weight.requires_grad_(False)
    net = Net(nn.Linear(4, 3), nn.Dropout(0.5), nn.LSTM(3, 2).requires_grad_(False), nn.Identity())
    net.rest = nn.Sequential(net.rest[0], net.rest[1])
    net.side = frozen
    trainer = trainer_of(net)
    assert list(trainer.tables) == ["table"]
    assert list(trainer.dense) == ["rest.0.bias", "rest.0.weight"]
    assert net.side is frozen
    trainer.step(net(IDS))
    assert trainer.release().step == 1


def test_weights_that_want_a_gradient_are_refused_and_nothing_is_lost() -> None:
    net = Net()
    trainer = trainer_of(net)
    with pytest.raises(UnsupportedLayerError, match="table: per_sample_weights must not require a gradient"):
        net.table(IDS, None, torch.ones(3, 2, requires_grad=True))
    trainer.step(net(IDS))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.tensor([0.0, 1.0]), torch.tensor([0])), "int64 or int32"),
        (([0, 1], torch.tensor([0])), "int64 or int32"),
        ((torch.tensor([0, 1]),), "1-D integer offsets"),
        ((torch.tensor([0, 1]), torch.tensor([0.0])), "1-D integer offsets"),
        ((torch.tensor([0, 1]), torch.tensor([1])), "offsets must start at 0"),
        ((torch.tensor([0, 1]), torch.tensor([0, 2, 1])), "not fall"),
        ((torch.tensor([0, 1]), torch.tensor([0, 3])), "or pass 2"),
        ((torch.tensor([[0, 1]]), torch.tensor([0])), "offsets go with 1-D ids"),
        ((torch.tensor(0), torch.tensor([0])), "1-D with offsets, or 2-D"),
        ((torch.tensor([[0, 1]]), None, torch.ones(2)), "in the shape of the ids"),
        ((torch.tensor([[0, 1]]), None, torch.ones(1, 2).double()), "must be float32"),
        ((torch.tensor([[0, 6]]),), r"table 'table' \(6 rows\).*got 6"),
        ((torch.tensor([[0, -1]]),), r"table 'table' \(6 rows\).*got -1"),
    ],
    ids=str,
)
def test_malformed_lookups_name_the_layer_and_change_nothing(arguments: tuple[Any, ...], message: str) -> None:
    net = Net()
    trainer = trainer_of(net)
    trainer.empty_step()
    weights, history = trainer.tables["table"].weights.clone(), trainer.tables["table"].history.clone()
    with pytest.raises(InputError, match=f"table.*{message}|{message}"):
        net.table(*arguments)
    assert torch.equal(trainer.tables["table"].weights, weights)
    assert torch.equal(trainer.tables["table"].history, history)
    trainer.step(net(IDS))
    trainer.release()


def test_weights_need_sum_pooling() -> None:
    net = Net(table=nn.EmbeddingBag(6, 4, mode="mean"))
    trainer_of(net)
    with pytest.raises(InputError, match="need mode='sum'"):
        net.table(IDS, None, torch.ones(3, 2))


def test_an_embedding_call_without_a_batch_is_refused() -> None:
    net = Net(table=nn.Embedding(6, 4))
    trainer_of(net)
    with pytest.raises(InputError, match="leading index that says which example"):
        net.table(torch.tensor(3))


def test_bags_that_are_not_one_per_example_are_refused() -> None:
    net = Net()
    trainer = trainer_of(net)
    pooled = net.table(torch.zeros(6, 2, dtype=torch.int64)).view(3, 2, 4)
    with pytest.raises(MixedExamplesError, match=r"'table' was read for 6 bags.*batch of 3.*once per feature"):
        trainer.step(pooled.sum((1, 2)))
    trainer.step(net(IDS))


def test_a_loss_that_mixes_examples_is_refused_before_anything_is_charged() -> None:
    net = Net(nn.Linear(4, 4))
    trainer = trainer_of(net)
    outputs = net(IDS)
    with pytest.raises(MixedExamplesError):
        trainer.step(outputs - outputs.mean())
    assert trainer.step_index == 0
    assert [entry.event for entry in trainer.ledger.entries] == ["open"]
    trainer.step(net(IDS))


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("how", ["torch.compile", "model.compile", "layer.compile"])
def test_a_model_compiled_while_it_is_trained_is_refused_at_its_call(how: str, backend: str) -> None:
    torch._dynamo.reset()
    net = Net(nn.Linear(4, 2), nn.Tanh())
    trainer = trainer_of(net)
    trainer.step(net(IDS))
    model = torch.compile(net, backend=backend) if how == "torch.compile" else net
    if how == "model.compile":
        net.compile(backend=backend)
    if how == "layer.compile":
        net.rest[0].compile(backend=backend)
    for _ in range(2):
        with pytest.raises(UnsupportedLayerError, match=r"torch\.compile.*compile it after release"):
            model(IDS)
    assert trainer.step_index == 1
    net.rest[0]._compiled_call_impl = net._compiled_call_impl = None
    trainer.step(net(IDS))
    trainer.release()


def test_what_is_compiled_and_trains_nothing_is_let_be() -> None:
    net = Net(nn.Linear(4, 2), activation := nn.Tanh())
    activation.compile(backend="eager")
    trainer = trainer_of(net)
    trainer.step(net(IDS))


class Checkpointed(Net):
    """Part of it runs again in the backward pass."""

    def __init__(self, part: str, *, reentrant: bool | None) -> None:
        super().__init__(nn.Linear(4, 3), nn.Tanh(), nn.LayerNorm(3), nn.Linear(3, 2))
        self.part, self.reentrant = part, reentrant

    def forward(self, ids: Tensor) -> Tensor:
        read = self.table(ids)
        given: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
            "after the table": (self.rest, read),
            "beside the table": (self.rest, torch.linspace(0, 1, 12).view(3, 4)),
            "with the table": (lambda ids: self.rest(self.table(ids)), ids),
        }
        part, x = given[self.part]
        y = part(x) if self.reentrant is None else checkpoint(part, x, use_reentrant=self.reentrant)
        return y.sum(1) + read.sum(1)


@pytest.mark.parametrize(("part", "reentrant"), [("with the table", False), ("after the table", True)])
def test_activation_checkpointing_that_cannot_be_followed_is_refused(part: str, reentrant: bool) -> None:
    net = Checkpointed(part, reentrant=reentrant)
    trainer = trainer_of(net)
    for _ in range(2):
        losses = net(IDS)
        with pytest.raises(UnsupportedLayerError, match=r"torch\.utils\.checkpoint.*pass use_reentrant=False"):
            trainer.step(losses)
    assert trainer.step_index == 0


@pytest.mark.parametrize("part", ["after the table", "beside the table"])
def test_activation_checkpointing_of_layers_changes_no_bit(part: str) -> None:
    released = []
    for reentrant in (False, None):
        torch.manual_seed(0)
        net = Checkpointed(part, reentrant=reentrant)
        trainer = trainer_of(net)
        for _ in range(3):
            trainer.step(net(IDS))
        released.append(trainer.release())
    for name, value in released[0].dense.items():
        assert np.array_equal(value, released[1].dense[name]), name
    assert np.array_equal(released[0].tables["table"], released[1].tables["table"])


def test_autocast_is_refused_wherever_a_layer_is_called() -> None:
    class Inside(Net):
        def forward(self, ids: Tensor) -> Tensor:
            x = self.table(ids)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.rest(x).float().sum(1)

    net = Inside(nn.Linear(4, 2))
    trainer = trainer_of(net)
    with pytest.raises(UnsupportedLayerError, match=r"torch\.autocast is on for cpu"):
        net(IDS)
    without_tables = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    trainer_of(without_tables)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(UnsupportedLayerError, match=r"torch\.autocast is on for cpu"):
            without_tables(torch.ones(3, 4))
        trainer.empty_step()


def test_an_optimiser_or_scheduler_is_no_schedule() -> None:
    net = Net(nn.Linear(4, 2))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for schedule in (optimiser, torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser)):
        spec = copy.copy(spec_of())
        object.__setattr__(spec, "schedule", schedule)
        with pytest.raises(DataDependentRateError, match=r"Schedule\.constant"):
            trainer_of(net, spec=spec)


def test_arguments_are_checked() -> None:
    with pytest.raises(InputError, match=r"torch\.nn\.Module, got int"):
        trainer_of(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="examples must be a whole number >= 1"):
        LazyTrainer(Net(), spec_of(), NoiseKey.from_seed(0), examples=0)
    net = Net()
    trainer_of(net)
    with pytest.raises(InputError, match="belong to another trainer"):
        trainer_of(net)
    with pytest.raises(InputError, match="on meta and the kernels work on cpu"):
        trainer_of(Net(nn.Linear(4, 2)).to("meta"))


class TestTheLoop:
    def test_two_forward_passes_before_a_step(self) -> None:
        net = Net()
        trainer = trainer_of(net)
        net(IDS)
        with pytest.raises(InputError, match=r"trainer\.evaluation.*trainer\.discard"):
            net(IDS)
        trainer.discard()
        trainer.step(net(IDS))

    def test_a_forward_pass_that_failed_needs_no_discard(self) -> None:
        net = Net(nn.Linear(4, 2))
        trainer = trainer_of(net)
        with pytest.raises(InputError):
            net(torch.tensor([[0, 99]]))
        net.rest.append(nn.Linear(3, 1).requires_grad_(False))  # a shape that does not fit
        with pytest.raises(RuntimeError):
            net(IDS)
        del net.rest[1]
        trainer.step(net(IDS))

    def test_a_step_without_a_forward_pass(self) -> None:
        net = Net()
        trainer = trainer_of(net)
        with pytest.raises(InputError, match="no training forward pass"):
            trainer.step(torch.ones(3, requires_grad=True))
        net.eval()
        losses = net(IDS)
        assert not losses.requires_grad
        with pytest.raises(InputError, match="training mode with gradients enabled"):
            trainer.step(losses)
        net.train()
        with torch.no_grad():
            losses = net(IDS)
        with pytest.raises(InputError, match="training mode with gradients enabled"):
            trainer.step(losses)
        losses = net(IDS)
        trainer.step(losses)
        with pytest.raises(InputError, match="no training forward pass"):
            trainer.step(losses)

    def test_an_empty_step_while_a_forward_pass_waits(self) -> None:
        net = Net()
        trainer = trainer_of(net)
        net(IDS)
        with pytest.raises(InputError, match="this step is not empty"):
            trainer.empty_step()

    def test_backward_by_hand(self) -> None:
        net = Net(nn.Linear(4, 2))
        trainer = trainer_of(net)
        losses = net(IDS)
        losses.sum().backward()
        with pytest.raises(InputError, match=r"do not call losses\.backward"):
            trainer.step(losses)
        trainer.step(net(IDS))

    def test_a_batch_of_nan_contributes_nothing_and_the_run_goes_on(self) -> None:
        net = Net(nn.Linear(4, 2))
        trainer, quiet = trainer_of(net), trainer_of(empty := Net(nn.Linear(4, 2)))
        with torch.no_grad():
            for mine, other in zip(trainer.dense.values(), quiet.dense.values(), strict=True):
                other.copy_(mine)
            quiet.tables["table"].weights.copy_(trainer.tables["table"].weights)
        trainer.step(net(IDS) * float("nan"))
        trainer.step(net(IDS) * float("inf"))
        quiet.empty_step()
        with torch.no_grad():
            empty(IDS)  # the rows are paid at the same times
        quiet.empty_step()
        found, expected = trainer.release(), quiet.release()
        assert np.array_equal(found.tables["table"], expected.tables["table"])
        for name in expected.dense:
            assert np.array_equal(found.dense[name], expected.dense[name])

    def test_the_schedule_ends(self) -> None:
        net = Net()
        trainer = trainer_of(net, spec=spec_of(steps=1))
        trainer.empty_step()
        for attempt in (
            trainer.empty_step,
            trainer.sample,
            lambda: trainer.step(net(IDS)),
            lambda: trainer.look_ahead({}),
        ):
            with pytest.raises(InputError, match="schedule ends after 1 steps"):
                attempt()
        assert trainer.release().step == 1

    def test_look_ahead_checks_what_it_is_told(self) -> None:
        trainer = trainer_of(Net())
        with pytest.raises(InputError, match="there is no table 'tabel'"):
            trainer.look_ahead({"tabel": [0]})
        with pytest.raises(InputError, match=r"rows 0\.\.5, got ids from -1 to 2"):
            trainer.look_ahead({"table": torch.tensor([2, -1])})

    def test_train_batch_needs_a_loss_function_and_one_loss_per_example(self) -> None:
        trainer = trainer_of(Net())
        with pytest.raises(InputError, match="loss_fn="):
            trainer.train_batch([])  # type: ignore[arg-type]

    def test_the_sampler_is_named_only_when_its_sample_was_used(self) -> None:
        net = Net()
        trainer = trainer_of(net, spec=spec_of(steps=20))
        while len(drawn := trainer.sample()) in (0, 5):
            trainer.empty_step() if len(drawn) == 0 else trainer.step(net(IDS[:1].repeat(len(drawn), 1)))
        first = trainer.step_index
        trainer.step(net(IDS[:1].repeat(len(drawn), 1)))
        trainer.sample()
        trainer.step(net(IDS[:1].repeat(5, 1)) if len(trainer.sample()) != 5 else net(IDS))
        trainer.step(net(IDS))  # sample() was not asked
        samplers = {e.data["step"]: e.data["sampler"] for e in trainer.ledger.entries if e.event == "step"}
        assert samplers[first] == "keyed-poisson"
        assert samplers[first + 1] == samplers[first + 2] == "external"

    def test_a_kernel_that_fails_while_it_writes_stops_the_run(self) -> None:
        net = Net()
        trainer = trainer_of(net)
        losses = net(IDS)

        def broken(*_: Any) -> None:
            raise MemoryError

        trainer.tables["table"].update = broken  # type: ignore[method-assign]
        with pytest.raises(MemoryError):
            trainer.step(losses)
        for attempt in (trainer.empty_step, trainer.release, trainer.settle, lambda: net(IDS)):
            with pytest.raises(PrivacyError, match="interrupted while it wrote"):
                attempt()

    def test_a_payment_that_fails_stops_the_run(self) -> None:
        net = Net()
        trainer = trainer_of(net)
        trainer.empty_step()

        def broken(*_: Any) -> None:
            raise MemoryError

        trainer.tables["table"].pay = broken  # type: ignore[method-assign]
        with pytest.raises(MemoryError):
            net(IDS)
        with pytest.raises(PrivacyError, match="interrupted while it wrote"):
            trainer.release()

    def test_a_full_disk_loses_nothing(self) -> None:
        net = Net()
        trainer = trainer_of(net)
        before = trainer.tables["table"].weights.clone()
        append = trainer.ledger.append

        def full(*_: Any) -> Any:
            raise OSError("no space left")

        trainer.ledger.append = full  # type: ignore[method-assign]
        losses = net(IDS)
        with pytest.raises(OSError, match="no space"):
            trainer.step(losses)
        assert torch.equal(trainer.tables["table"].weights, before)
        assert trainer.step_index == 0
        trainer.ledger.append = append  # type: ignore[method-assign]
        trainer.step(net(IDS))
        trainer.release()


class TestRelease:
    def test_R1_unsettled_tables_do_not_leave(self) -> None:
        net = Net(nn.Linear(4, 2))
        trainer = trainer_of(net)
        for _ in range(2):
            trainer.step(net(IDS))
        attempts: tuple[Callable[[], Any], ...] = (
            net.state_dict,
            net.table.state_dict,
            lambda: net.table.weight,
            lambda: torch.save(net, io.BytesIO()),
            lambda: torch.save(net.state_dict(), io.BytesIO()),
            lambda: copy.deepcopy(net),
            lambda: copy.deepcopy(net.rest),
            lambda: torch.save(net.rest, io.BytesIO()),
            lambda: pickle.dumps(trainer),
        )
        for attempt in attempts:
            # Row 4 was never read and owes two steps; the five others owe the noise of step 1.
            with pytest.raises(
                UnsettledReleaseError, match=r"'table' has 6 rows owing noise at step 2 \(rows 0, 1, 2, …;"
            ):
                attempt()
        with pytest.raises(UnsettledReleaseError, match="oldest settled through step 0"):
            net.state_dict()
        trainer.settle()
        assert list(net.state_dict()) == ["table.weight", "rest.0.weight", "rest.0.bias"]
        with pytest.raises(UnsettledReleaseError, match="can be pickled or copied while"):
            copy.deepcopy(net)

    def test_the_model_is_an_ordinary_module_afterwards(self) -> None:
        net = Net(nn.Linear(4, 2), nn.Dropout(0.1))
        table = net.table
        net.eval()
        trainer = trainer_of(net)
        net.train()
        assert isinstance(net.table, TableLayer)
        assert "table.weight" not in dict(net.named_parameters())
        for _ in range(3):
            trainer.step(net(IDS))
        release = trainer.release()
        assert net.table is table
        assert np.array_equal(net.state_dict()["table.weight"].numpy(), release.tables["table"])
        assert np.array_equal(net.state_dict()["rest.0.bias"].numpy(), release.dense["rest.0.bias"])
        assert release.tables["table"].ctypes.data == table.weight.data_ptr()  # no second copy
        assert all(p.requires_grad for p in net.parameters())
        again = copy.deepcopy(net)
        again(IDS).sum().backward()
        assert again.table.weight.grad is not None
        torch.save(net, io.BytesIO())
        assert trainer.tables["table"].history.numel() == 0

    def test_nothing_is_trained_after_a_release(self) -> None:
        net = Net()
        trainer = trainer_of(net)
        trainer.release()
        for attempt in (trainer.empty_step, trainer.release, trainer.settle, lambda: trainer.save_checkpoint("x")):
            with pytest.raises(PrivacyError, match="Start a new run"):
                attempt()

    def test_a_release_whose_settlement_did_nothing_is_refused(self) -> None:
        trainer = trainer_of(Net())
        trainer.empty_step()
        trainer.settle = lambda: None  # type: ignore[method-assign]
        with pytest.raises(UnsettledReleaseError, match="6 rows owing noise at step 1"):
            trainer.release()

    def test_a_release_refuses_a_ledger_of_other_steps(self) -> None:
        trainer = trainer_of(Net())
        trainer.empty_step()
        trainer.ledger.entries.pop()
        with pytest.raises(LedgerError, match="charges for 0 steps and the trainer has run 1"):
            trainer.release()

    def test_a_release_refuses_histories_from_the_future(self) -> None:
        trainer = trainer_of(Net(table=nn.Embedding(6, 4, padding_idx=2)))
        trainer.empty_step()
        trainer.tables["table"].history[3] = 2
        with pytest.raises(LedgerError, match="1 rows claim to be settled past step 1"):
            trainer.release()
        trainer.tables["table"].history[3] = 1
        trainer.release()

    def test_settlement_at_release_takes_a_chunk_of_rows_at_a_time(self) -> None:
        from samelaw.contract.spec import ExecutionOptions

        trainer = trainer_of(Net(), options=ExecutionOptions(settle_chunk=4))
        trainer.empty_step()
        sizes: list[int] = []
        pay = trainer.tables["table"].pay
        trainer.tables["table"].pay = lambda rows, since, until: (sizes.append(len(rows)), pay(rows, since, until))[1]  # type: ignore[method-assign]
        trainer.release()
        assert sizes == [4, 2]

    def test_the_ledger_tells_the_run(self) -> None:
        net = Net(nn.Linear(4, 2))
        ledger = Ledger()
        trainer = trainer_of(net, ledger=ledger)
        trainer.empty_step()
        trainer.step(net(IDS))
        release = trainer.release()
        assert [entry.event for entry in ledger.entries] == ["open", "step", "step", "settle", "release"]
        assert ledger.entries[0].data == {
            "law": trainer.spec.to_json(),
            "law_digest": trainer.spec.digest(),
            "key_commitment": NoiseKey.from_seed(0).commitment(),
            "key_origin": "seed",
            "tables": {"table": [6, 4, None]},
            "dense": {"rest.0.bias": [2], "rest.0.weight": [2, 4]},
            "examples": 8,
        }
        assert ledger.entries[2].data == {
            "step": 1,
            "examples": 3,
            "lr": 0.5,
            "noise_std": 1.0,
            "sampler": "external",
        }
        assert release.ledger_head == ledger.head

    def test_a_ledger_of_another_run_is_refused(self) -> None:
        ledger = Ledger()
        trainer_of(Net(), ledger=ledger)
        net = Net(nn.Linear(4, 2))
        table = net.table
        with pytest.raises(LedgerError, match=r"opened by another run \(dense, law, law_digest differ\)"):
            trainer_of(net, ledger=ledger, spec=spec_of(clip_norm=2.0))
        assert net.table is table
        trainer_of(net).step(net(IDS))

    def test_a_table_that_no_address_can_name_is_refused(self) -> None:
        wide = {"w": nn.Parameter(torch.empty(1 << 14, 1 << 15, device="meta"))}
        many = [TableGroup(str(i), nn.Parameter(torch.zeros(1, 1)), None, ()) for i in range((1 << 16) + 1)]
        with pytest.raises(AddressError, match="table must be in"):
            check_addresses(many, {}, spec_of())
        with pytest.raises(AddressError, match="dim must be in"):
            check_addresses([], wide, spec_of())


class TestTheModelMeanwhile:
    def test_it_cannot_be_moved_cast_or_overwritten(self) -> None:
        net = Net()
        trainer = trainer_of(net)
        with pytest.raises(UnsupportedLayerError, match="weights stay float32"):
            net.double()
        with pytest.raises(UnsupportedLayerError, match="weights stay float32"):
            net.to("meta")
        net.float().cpu().train()
        trainer.settle()
        with pytest.raises(InputError, match="a state_dict cannot be loaded"):
            net.load_state_dict({"table.weight": torch.zeros(6, 4)})

    def test_it_shows_what_it_holds(self) -> None:
        net = Net()
        trainer = trainer_of(net)
        assert "TableBag(6, 4, table='table')" in repr(net)
        assert repr(trainer).startswith("LazyTrainer(step=0 of 4, mode=replay, tables=1, dense=0, kernels=cpu)")
        assert repr(trainer.tables["table"]) == "LazyTable('table', rows=6, dim=4)"

    def test_a_layer_under_two_paths_is_one_table(self) -> None:
        net = Net()
        net.again = net.table
        trainer = trainer_of(net)
        assert net.again is net.table
        assert list(trainer.tables) == ["table"]
        trainer.step(net(IDS))
        trainer.release()
        assert net.again is net.table

    def test_weights_keep_their_memory_when_it_is_aligned(self) -> None:
        net = Net()
        address = net.table.weight.data_ptr()
        trainer = trainer_of(net)
        assert trainer.tables["table"].weights.data_ptr() % 64 == 0
        if address % 64 == 0:
            assert trainer.tables["table"].weights.data_ptr() == address

    def test_weights_off_a_cache_line_or_strided_are_moved_onto_one(self) -> None:
        for make in (
            lambda: torch.arange(25.0)[1:].view(6, 4),
            lambda: torch.arange(24.0).view(4, 6).t(),
        ):
            net = Net()
            net.table.weight.data = make()
            trainer = trainer_of(net)
            weights = trainer.tables["table"].weights
            assert weights.data_ptr() % 64 == 0
            assert weights.is_contiguous()
            assert torch.equal(weights, make())
            trainer.release()
            assert net.table.weight.data_ptr() == weights.data_ptr()

    def test_torch_keeps_its_number_of_threads(self) -> None:
        script = (
            "import torch; torch.set_num_threads(1)\n"
            "from samelaw.contract.noise import NoiseKey\n"
            "from samelaw.contract.schedule import Schedule\n"
            "from samelaw.contract.spec import PrivacySpec\n"
            "from samelaw.fast.trainer import LazyTrainer\n"
            "spec = PrivacySpec(1.0, 1.0, 1.0, 4.0, 1e-5, Schedule.constant(0.1, steps=2))\n"
            "net = torch.nn.Sequential(torch.nn.EmbeddingBag(50000, 64, mode='sum'))\n"
            "trainer = LazyTrainer(net, spec, NoiseKey.from_seed(0), examples=50000)\n"
            "trainer.step(net(torch.arange(50000)[:, None]).sum(1))\n"
            "trainer.release()\n"
            "assert torch.get_num_threads() == 1, torch.get_num_threads()\n"
        )
        subprocess.run([sys.executable, "-c", script], check=True)

    def test_long_runs_keep_their_history_in_64_bits(self) -> None:
        short, long = ((1 << 31) - 2, torch.int32), ((1 << 31) - 1, torch.int64)
        for steps, dtype in (short, long):
            trainer = trainer_of(Net(), spec=spec_of(schedule=Schedule.constant(0.1, steps=steps)))
            assert trainer.tables["table"].history.dtype is dtype
