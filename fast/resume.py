"""A run as a checkpoint holds it: which tensors, under which names, and which ledger stands behind them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from samelaw.contract.errors import ResumeError
from samelaw.contract.ledger import Ledger, verify_lines
from samelaw.contract.noise import NoiseStream
from samelaw.contract.spec import PrivacySpec
from samelaw.fast.checkpoint import Checkpoint, CheckpointRecord, check_storable, digest_of, write_checkpoint
from samelaw.fast.tables import LazyTable

Tables = Mapping[str, LazyTable]
Dense = Mapping[str, nn.Parameter]


def save_run(
    path: str | Path,
    step: int,
    spec: PrivacySpec,
    stream: NoiseStream,
    ledger: Ledger,
    tables: Tables,
    dense: Dense,
    model: nn.Module,
) -> None:
    """Write a checkpoint that refers to the ledger's last entry."""
    device = _device(tables, dense)
    record = CheckpointRecord(
        step=step,
        law_digest=spec.digest(),
        key_commitment=stream.key.commitment(),
        ledger_seq=ledger.entries[-1].seq,
        ledger_head=ledger.head,
        ledger_lines=() if ledger.path is not None else tuple(entry.line() for entry in ledger.entries),
        frozen=_frozen_digest(dense, model),
    )
    write_checkpoint(path, {**_state(tables, dense, model), "random": _random_state(device)}, record)


class SavedRun:
    """A verified checkpoint of the run that these tables, parameters and model belong to.

    Raises:
        ResumeError: damaged, or of another law or model.
        NoiseKeyError: of another key.
    """

    def __init__(
        self, path: str | Path, spec: PrivacySpec, stream: NoiseStream, tables: Tables, dense: Dense, model: nn.Module
    ) -> None:
        self._device = _device(tables, dense)
        self._tables, self._random = tables, _random_state(self._device)
        self._state = {**_state(tables, dense, model), "random": self._random}
        check_storable(self._state)
        self._checkpoint = Checkpoint(path)
        self._checkpoint.check(
            law_digest=spec.digest(),
            key_commitment=stream.key.commitment(),
            frozen=_frozen_digest(dense, model),
            tensors=self._state,
        )
        self.record = self._checkpoint.record

    def reconcile(self, ledger: Ledger) -> None:
        """Make sure that the ledger covers every step the checkpoint has run.

        A ledger without a file died with its process; the checkpoint then brings it along.

        Raises:
            ResumeError: it does not: going on would spend what nobody charged for.
        """
        record, entries = self.record, ledger.entries
        if record.ledger_seq < len(entries) and entries[record.ledger_seq].hash == record.ledger_head:
            return
        fresh = ledger.path is None and len(entries) == 1
        if fresh and record.ledger_lines:
            where = f"the ledger in {self._checkpoint.path}"
            restored = list(verify_lines("\n".join(record.ledger_lines), where=where))
            if restored[-1].hash == record.ledger_head:
                ledger.entries[:] = restored
                return
        raise ResumeError(
            f"{self._checkpoint.path} was written after entry {record.ledger_seq} ({record.ledger_head[:16]}…) of its "
            f"run's ledger, which is not among the {len(entries)} entries of this one; open the run's ledger with "
            "Ledger.reopen"
        )

    def restore(self) -> None:
        """Read everything into the run's own memory, torch's random state included."""
        self._checkpoint.load_into(self._state)
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(self._random, self._device)
        else:
            torch.set_rng_state(self._random)
        for table in self._tables.values():
            table.interrupted = False


def check_savable(tables: Tables, dense: Dense, model: nn.Module) -> None:
    """Refuse a model whose state a checkpoint cannot hold, before anything is written.

    Raises:
        UnsupportedLayerError: see check_storable.
    """
    check_storable(_state(tables, dense, model))


def _frozen_digest(dense: Dense, model: nn.Module) -> str:
    return digest_of({name: p.detach() for name, p in model.named_parameters() if name not in dense})


def _state(tables: Tables, dense: Dense, model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of a checkpoint but the random state, as views of the run's memory."""
    state: dict[str, Tensor] = {}
    for name, table in tables.items():
        state[f"table/{name}"], state[f"history/{name}"] = table.weights, table.history
    state.update({f"dense/{name}": parameter.detach() for name, parameter in dense.items()})
    state.update({f"buffer/{name}": buffer for name, buffer in model.named_buffers()})
    return state


def _device(tables: Tables, dense: Dense) -> torch.device:
    held: list[Tensor] = [table.weights for table in tables.values()] + list(dense.values())
    return held[0].device if held else torch.device("cpu")


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
