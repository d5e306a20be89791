"""What LazyTrainer checks once, on entry and on the way out, and what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from samelaw.contract.entry import as_count
from samelaw.contract.errors import (
    DataDependentRateError,
    InputError,
    LedgerError,
    UnsettledReleaseError,
)
from samelaw.contract.ledger import Entry, Ledger, spent
from samelaw.contract.noise import check_address
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import PrivacySpec
from samelaw.fast.embedding_layers import TableGroup, TableLayer
from samelaw.fast.tables import LazyTable


def check_arguments(model: Any, spec: PrivacySpec, examples: Any) -> int:
    """Refuse what is no model, no declared schedule or no training set; returns the size of the training set."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    schedule: Any = spec.schedule
    if not isinstance(schedule, Schedule):
        raise DataDependentRateError(
            f"the schedule must be a samelaw Schedule, got {type(schedule).__name__}: an optimiser or scheduler may "
            "choose rates from the data, and noise that is drawn later must know the rate that was in force. Declare "
            "it with Schedule.constant, piecewise, warmup_cosine or from_function"
        )
    for path, module in model.named_modules():
        if isinstance(module, TableLayer):
            raise InputError(f"the tables of this model ({path!r}) belong to another trainer; release() it first")
    return as_count("examples", examples, "LazyTrainer", least=1)


def check_device(groups: Sequence[TableGroup], model: nn.Module, device: torch.device) -> None:
    """Tables and parameters must be where the kernels work."""
    tensors = [(group.name, group.weight) for group in groups]
    tensors += [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for name, tensor in tensors:
        if tensor.device.type != device.type:
            raise InputError(f"{name!r} is on {tensor.device} and the kernels work on {device}; move the model first")


def check_addresses(groups: Sequence[TableGroup], dense: Mapping[str, nn.Parameter], spec: PrivacySpec) -> None:
    """Refuse a model with a coordinate whose noise no address can name.

    Raises:
        AddressError: see check_address.
    """
    last = spec.schedule.steps - 1
    for number, group in enumerate(groups):
        rows, dim = group.weight.shape
        check_address(table=number, largest_row=rows - 1, largest_step=last, dim=dim)
    for number, parameter in enumerate(dense.values()):
        check_address(table=number, largest_row=0, largest_step=last, dim=max(1, parameter.numel()))


def open_ledger(ledger: Ledger, opening: dict[str, Any]) -> bool:
    """Write the "open" entry of a new run, or check that the ledger is of this run; returns whether it must resume.

    Raises:
        LedgerError: the ledger holds another run.
    """
    if not ledger.entries:
        ledger.append("open", opening)
        return False
    first = ledger.entries[0]
    # A key that was drawn from the system comes back from its file: its origin may differ, its commitment not.
    compared = {*first.data, *opening} - {"key_origin"}
    differing = sorted(k for k in compared if first.data.get(k) != opening.get(k))
    if first.event != "open" or differing:
        raise LedgerError(
            f"the ledger was opened by another run ({', '.join(differing)} differ); give this run a ledger of its own, "
            "or resume with the model, law and key that opened it"
        )
    return True


def check_ledger(entries: Sequence[Entry], tables: Mapping[str, LazyTable], step: int) -> None:
    """Refuse a release whose ledger and histories tell different stories.

    Raises:
        LedgerError: the ledger has other steps than were run, or a row claims noise of steps that were not.
    """
    charged = len(spent(list(entries)).steps)
    if charged != step:
        raise LedgerError(
            f"the ledger charges for {charged} steps and the trainer has run {step}; a release would claim another "
            "privacy than it has. Resume from the last checkpoint with the run's own ledger"
        )
    for name, table in tables.items():
        ahead = table.history > step
        if table.padding_idx is not None:
            ahead[table.padding_idx] = False
        if bool(ahead.any()):
            raise LedgerError(
                f"table {name!r}: {int(ahead.sum())} rows claim to be settled past step {step}, which the ledger has "
                "not seen; the history is damaged. Resume from the last checkpoint"
            )


def check_settled(table: LazyTable, step: int) -> None:
    """Refuse to let go of a table while a row owes noise.

    Raises:
        UnsettledReleaseError: with how many rows, some of them, and the oldest.
    """
    owing = table.owing(step)
    if owing is not None:
        rows = ", ".join(map(str, owing.rows)) + (", …" if owing.count > len(owing.rows) else "")
        raise UnsettledReleaseError(
            f"table {table.name!r} has {owing.count} rows owing noise at step {step} (rows {rows}; oldest settled "
            f"through step {owing.oldest}). Call trainer.release(); publishing now would give those rows less noise "
            "than the ledger claims"
        )
