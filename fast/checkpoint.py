"""Resume checkpoints: everything a run needs to go on, except the key. Private: the weights inside are not settled.

One file in the safetensors format (8 bytes of header length, a JSON header, the tensors end to end), written a chunk
at a time so that saving needs no second copy of the tables. The header's metadata hold a JSON record and the SHA-256
of the file, taken with 64 zeros in the digest's place.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from samelaw.contract.errors import NoiseKeyError, ResumeError, UnsupportedLayerError

SCHEMA = "samelaw.checkpoint/1"
WARNING = "private: unsettled weights and histories; never publish, release() is for that"
_CHUNK = 1 << 24
_NO_DIGEST = "0" * 64
_LARGEST_HEADER = 1 << 27
_DTYPES = {
    torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class CheckpointRecord:
    """What a checkpoint says about its run.

    Attributes:
        step: steps run.
        law_digest: digest of the PrivacySpec.
        key_commitment: binds the file to the key without holding it.
        ledger_seq, ledger_head: the ledger's last entry when the file was written.
        ledger_lines: the ledger itself, when it has no file of its own; else empty.
        frozen: digest of the model's frozen parameters, which are not in the file.
    """

    step: int
    law_digest: str
    key_commitment: str
    ledger_seq: int
    ledger_head: str
    ledger_lines: tuple[str, ...]
    frozen: str


def check_storable(tensors: Mapping[str, Tensor]) -> None:
    """Refuse what a checkpoint could not hold, or could not be read back into.

    Raises:
        UnsupportedLayerError: a sparse tensor, one whose elements share memory (expanded), or of another type.
    """
    for name, tensor in tensors.items():
        strided = tensor.layout is torch.strided
        shared = strided and any(n > 1 and step == 0 for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        if tensor.dtype not in _DTYPES or not strided or shared:
            kind = "expanded" if shared else str(tensor.layout) if not strided else str(tensor.dtype)
            raise UnsupportedLayerError(
                f"{name!r} is {kind}, which a checkpoint cannot hold; make it a plain dense tensor of one of "
                f"{', '.join(sorted(_DTYPES.values()))}, or keep it outside the model"
            )


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        for part in _parts(tensor):
            digest.update(_bytes(part))
    return digest.hexdigest()


def write_checkpoint(path: str | Path, tensors: Mapping[str, Tensor], record: CheckpointRecord) -> None:
    """Write a checkpoint that is there whole or not at all, readable by its owner alone.

    The file is written beside its place, forced to disk and moved there in one step; what stood there before stays
    valid until then.
    """
    target = Path(path)
    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    handle = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(handle, 0o600)  # a leftover of another mode, or a loose umask, changes nothing
        with os.fdopen(handle, "r+b") as out:
            _write(out, tensors, record)
            out.flush()
            os.fsync(out.fileno())
        os.replace(scratch, target)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Checkpoint:
    """A checkpoint file whose digest has been verified.

    Raises:
        ResumeError: the file is missing, damaged, or no checkpoint.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as source:
                header, self._start = _read_header(source, self.path)
                self._entries: dict[str, Any] = {k: v for k, v in header.items() if k != "__metadata__"}
                metadata = header["__metadata__"]
                if metadata["schema"] != SCHEMA:
                    raise ResumeError(f"{self.path} says it is {metadata['schema']!r}, expected {SCHEMA!r}")
                digest = metadata["sha256"]
                if _digest(source, header, self._start) != digest:
                    raise ResumeError(f"{self.path} does not hash to what it says: it is damaged or was edited")
                raw: dict[str, Any] = json.loads(metadata["record"])
                raw["ledger_lines"] = tuple(raw["ledger_lines"])
                self.record = CheckpointRecord(**raw)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
            raise ResumeError(f"cannot read a checkpoint from {self.path}: {cause!r}") from cause

    def check(self, *, law_digest: str, key_commitment: str, frozen: str, tensors: Mapping[str, Tensor]) -> None:
        """Refuse a checkpoint of another run.

        Raises:
            NoiseKeyError: another key: rows would pay noise from two streams.
            ResumeError: another law, or another model (its frozen parameters included).
        """
        if self.record.key_commitment != key_commitment:
            raise NoiseKeyError(
                f"{self.path} belongs to the key with commitment {self.record.key_commitment[:16]}…, this trainer has "
                f"{key_commitment[:16]}…; load the run's key with NoiseKey.load"
            )
        if self.record.law_digest != law_digest:
            raise ResumeError(
                f"{self.path} was written under another law (digest {self.record.law_digest[:16]}…, this trainer has "
                f"{law_digest[:16]}…); resume with the PrivacySpec of the run"
            )
        if self.record.frozen != frozen:
            raise ResumeError(
                f"{self.path} belongs to a model whose frozen parameters have digest {self.record.frozen[:16]}…, this "
                f"model's have {frozen[:16]}…; they are constants of the model and not in the file: build the model of "
                "the run (the same weights, or the same seed) before LazyTrainer takes it"
            )
        found = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in self._entries.items()}
        wanted = {name: (_DTYPES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}
        for name in sorted({*found, *wanted}):
            if found.get(name) != wanted.get(name):
                raise ResumeError(
                    f"{self.path} holds {found.get(name, 'nothing')} for {name!r}, the model has "
                    f"{wanted.get(name, 'nothing')}; resume with the model of the run"
                )

    def load_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Read every tensor into the memory of the given one."""
        with self.path.open("rb") as source:
            for name, tensor in tensors.items():
                source.seek(self._start + self._entries[name]["data_offsets"][0])
                for part in _parts(tensor):
                    buffer = bytearray(part.numel() * part.element_size())
                    if source.readinto(buffer) != len(buffer):
                        raise ResumeError(
                            f"{self.path} ended early while {name!r} was read; it changed since it was checked"
                        )
                    if buffer:
                        part.copy_(torch.frombuffer(buffer, dtype=part.dtype))


def _write(out: IO[bytes], tensors: Mapping[str, Tensor], record: CheckpointRecord) -> None:
    header: dict[str, Any] = {
        "__metadata__": {
            "schema": SCHEMA,
            "warning": WARNING,
            "record": json.dumps(record.__dict__, sort_keys=True),
            "sha256": _NO_DIGEST,
        }
    }
    position = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, position + size],
        }
        position += size
    blank = _encode(header)
    out.write(blank)
    digest = hashlib.sha256(blank)
    for tensor in tensors.values():
        for part in _parts(tensor):
            raw = _bytes(part)
            digest.update(raw)
            out.write(raw)
    header["__metadata__"]["sha256"] = digest.hexdigest()
    out.seek(0)
    out.write(_encode(header))


def _bytes(part: Tensor) -> memoryview:
    return part.cpu().contiguous().view(torch.uint8).numpy().data if part.numel() else memoryview(b"")


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor's elements in row-major order as flat views of bounded size; in-place writes reach the tensor."""
    flat = tensor.detach()
    if flat.is_contiguous():
        flat = flat.view(-1)
        size = max(1, _CHUNK // flat.element_size())
        for start in range(0, flat.numel(), size):
            yield flat[start : start + size]
    elif flat.dim() > 1:
        for part in flat.unbind(0):
            yield from _parts(part)
    else:
        yield flat


def _encode(header: dict[str, Any]) -> bytes:
    """Header length and header, padded to a multiple of 8 bytes; its length does not depend on the digest."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read_header(source: IO[bytes], path: Path) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(source.read(8), "little")
    if not 2 <= length <= _LARGEST_HEADER:
        raise ResumeError(f"{path} is no checkpoint: its header claims {length} bytes")
    header: dict[str, Any] = json.loads(source.read(length))
    return header, 8 + length


def _digest(source: IO[bytes], header: dict[str, Any], start: int) -> str:
    """SHA-256 of the file as if its digest were all zeros. Leaves `header` as it is."""
    blank = {**header, "__metadata__": {**header["__metadata__"], "sha256": _NO_DIGEST}}
    digest = hashlib.sha256(_encode(blank))
    source.seek(start)
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
