"""The transcript of a run, on disk: what a reviewer who holds the key needs to execute the run again.

It holds the integer gradient sums of every step, which no noise protects: it is as private as the training data, and
the folder of the run never contains it. The format is docs/audit.md, "The transcript". In short, a file of frames:

    u32 length of the header | u64 length of the payload | header, canonical JSON | payload, little-endian arrays

Frame 0 opens (the schedule, a salt), one frame a step follows, and a last one closes. Every header holds the SHA-256 of
the frame before it; the hash of the last frame stands in the run's manifest. The salt, which is secret, keeps that hash
from confirming a guess about the data.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from samelaw.contract.errors import InputError, UntrustedFileError
from samelaw.contract.ledger import GENESIS
from samelaw.contract.run import StepRecord
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import PrivacySpec
from samelaw.contract.untrusted import BoundedFile, strict_json

SCHEMA = "samelaw.transcript/1"
LARGEST_HEADER = 8 << 20
LARGEST_PAYLOAD = 4 << 30
_PREFIX = struct.Struct("<IQ")


@dataclass(frozen=True, repr=False)
class RecordedStep:
    """One step as the transcript holds it. Private.

    Attributes:
        step: 0-based.
        examples: how many were drawn.
        entry: hash of the ledger entry that charged for it.
        rows, sums: per table, the distinct rows read, ascending, and their integer gradient sums.
        dense_sum: per dense parameter, the clipped sum, flat.
    """

    step: int
    examples: int
    entry: str
    rows: Mapping[str, Int64[np.ndarray, "_rows"]]
    sums: Mapping[str, Int64[np.ndarray, "_rows _dim"]]
    dense_sum: Mapping[str, Float32[np.ndarray, "_size"]]

    def __repr__(self) -> str:
        return f"RecordedStep(step={self.step}, tables={len(self.rows)})"


class TranscriptWriter:
    """Writes a transcript as the run goes, one frame a step, so that memory does not grow.

    Args:
        path: a new file; it is made readable by its owner alone.
        spec: the law of the run.
        opened: data of the ledger's "open" entry.

    Raises:
        InputError: the file exists.
    """

    def __init__(self, path: str | Path, spec: PrivacySpec, opened: Mapping[str, Any]) -> None:
        self.path = Path(path)
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as cause:
            raise InputError(
                f"the transcript {path} exists; a run never overwrites another: name a new file"
            ) from cause
        self._file = os.fdopen(handle, "r+b")
        self.head, self.frames = GENESIS, 0
        schedule = spec.schedule
        self._write(
            {"kind": "open", "salt": secrets.token_hex(32), "opened": dict(opened), "name": schedule.name,
             "steps": schedule.steps, "segments": len(schedule.starts)},
            [np.array(schedule.starts, dtype=np.int64), np.array(schedule.rates, dtype=np.float64)],
        )  # fmt: skip

    @classmethod
    def reopen(cls, path: str | Path, opened: Mapping[str, Any], *, step: int) -> TranscriptWriter:
        """Go on with the transcript of a run that resumes at `step`; frames of later steps are dropped.

        Raises:
            InputError: it is of another run, or does not reach that far.
            UntrustedFileError: it is damaged before that step.
        """
        end = 0
        with TranscriptReader(path) as reader:
            if _without_origin(reader.opened) != _without_origin(opened):
                raise InputError(f"the transcript {path} is of another run; name the one that this run began")
            end, head, frames = reader.position, reader.head, 1
            while frames <= step:
                if next(reader.steps(one=True), None) is None:
                    raise InputError(f"the transcript {path} ends before step {step}, at which the run goes on")
                end, head, frames = reader.position, reader.head, frames + 1
        writer = cls.__new__(cls)
        writer.path, writer.head, writer.frames = Path(path), head, frames
        writer._file = writer.path.open("r+b")
        writer._file.truncate(end)
        writer._file.seek(end)
        return writer

    def step(self, record: StepRecord, entry: str) -> None:
        """Add one step, charged for by the ledger entry of that hash."""
        names, parameters = sorted(record.sums), sorted(record.dense_sum)
        tables = [[name, *record.sums[name].shape] for name in names]
        dense = [[name, int(record.dense_sum[name].size)] for name in parameters]
        arrays = [array for name in names for array in (record.rows[name], record.sums[name].ravel())]
        arrays += [record.dense_sum[name].ravel() for name in parameters]
        header = {"kind": "step", "step": record.step, "examples": record.examples, "entry": entry}
        self._write({**header, "tables": tables, "dense": dense}, arrays)

    def close(self, release: str) -> None:
        """End the transcript of a run that was released by the ledger entry of that hash."""
        self._write({"kind": "close", "release": release}, [])
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def sync(self) -> None:
        """Force the file to disk: before a checkpoint refers to a step."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def _write(self, header: dict[str, Any], arrays: list[np.ndarray]) -> None:
        record = {"schema": SCHEMA, "prev": self.head, **header}
        text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        payload = b"".join(a.astype(a.dtype.newbyteorder("<")).tobytes() for a in arrays)
        frame = _PREFIX.pack(len(text), len(payload)) + text + payload
        self._file.write(frame)
        self.head, self.frames = hashlib.sha256(frame).hexdigest(), self.frames + 1


class TranscriptReader:
    """Reads a transcript that somebody else wrote, frame by frame.

    Attributes:
        opened: data of the ledger's "open" entry, as the transcript repeats it.
        schedule: the run's schedule, whole.
        head, frames: hash of the last frame read, and how many were read.
        release: hash of the ledger's release entry, once the closing frame was read.

    Raises:
        UntrustedFileError: malformed, or its chain is broken.
    """

    def __init__(self, path: str | Path, *, most_bytes: int = 1 << 44) -> None:
        self._file = BoundedFile(path, most_bytes=most_bytes)
        self.position, self.head, self.frames = 0, GENESIS, 0
        self.release: str | None = None
        try:
            header, payload = self._frame("open")
            self.opened: dict[str, Any] = _of_type(header, "opened", dict, self._where)
            segments = _count(header, "segments", self._where)
            starts, rates = _cut(payload, [("<i8", segments), ("<f8", segments)], self._where)
            steps, name = _count(header, "steps", self._where), _of_type(header, "name", str, self._where)
            self.schedule = Schedule(tuple(starts.tolist()), tuple(rates.tolist()), steps, name)
        except BaseException:
            self._file.close()
            raise

    def steps(self, *, one: bool = False) -> Iterator[RecordedStep]:
        """The steps from here on, in order; after the last one the transcript must be closed."""
        while self.release is None and (self.position < self._file.size or not one):
            header, payload = self._frame("step", "close")
            if header["kind"] == "close":
                self.release = _of_type(header, "release", str, self._where)
                if self.position != self._file.size:
                    raise UntrustedFileError(f"{self._where}: something follows the closing frame")
                return
            yield self._step(header, payload)
            if one:
                return

    def check_unchanged(self) -> None:
        self._file.check_unchanged()

    def __enter__(self) -> TranscriptReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def _where(self) -> str:
        return f"{self._file.name}, frame {self.frames - 1}"

    def _frame(self, *kinds: str) -> tuple[dict[str, Any], bytes]:
        place = f"{self._file.name}, frame {self.frames}"
        if self._file.size - self.position < _PREFIX.size:
            raise UntrustedFileError(f"{place}: the transcript ends here, and was not closed")
        lengths = self._file.read(self.position, _PREFIX.size)
        header, payload = _PREFIX.unpack(lengths)
        end = self.position + _PREFIX.size + header + payload
        if header > LARGEST_HEADER or payload > LARGEST_PAYLOAD or end > self._file.size:
            raise UntrustedFileError(f"{place} claims {header} + {payload} bytes, which are not there or too many")
        text = self._file.read(self.position + _PREFIX.size, header)
        data = self._file.read(self.position + _PREFIX.size + header, payload)
        record = strict_json(text, where=place)
        if type(record) is not dict or record.get("schema") != SCHEMA or record.get("kind") not in kinds:
            raise UntrustedFileError(f"{place} must be a frame of {SCHEMA} of kind {' or '.join(kinds)}")
        if record.get("prev") != self.head:
            raise UntrustedFileError(f"{place}: the chain is broken; a frame was changed, removed, moved or added")
        self.head = hashlib.sha256(lengths + text + data).hexdigest()
        self.position, self.frames = end, self.frames + 1
        return record, data

    def _step(self, header: dict[str, Any], payload: bytes) -> RecordedStep:
        where = self._where
        tables = [_shape(item, 3, where) for item in _of_type(header, "tables", list, where)]
        dense = [_shape(item, 2, where) for item in _of_type(header, "dense", list, where)]
        layout = [part for _, rows, dim in tables for part in (("<i8", rows), ("<i8", rows * dim))]
        arrays = iter(_cut(payload, [*layout, *(("<f4", size) for _, size in dense)], where))
        rows: dict[str, np.ndarray] = {}
        sums: dict[str, np.ndarray] = {}
        for name, count, dim in tables:
            rows[name], sums[name] = next(arrays), next(arrays).reshape(count, dim)
            if count and not (rows[name][0] >= 0 and (np.diff(rows[name]) > 0).all()):
                raise UntrustedFileError(f"{where}: the rows of table {name!r} must be ascending and >= 0")
        dense_sum = {name: next(arrays) for name, _ in dense}
        if len(rows) != len(tables) or len(dense_sum) != len(dense):
            raise UntrustedFileError(f"{where} names a table or parameter twice")
        step, examples = _count(header, "step", where), _count(header, "examples", where)
        return RecordedStep(step, examples, _of_type(header, "entry", str, where), rows, sums, dense_sum)


def _without_origin(opened: Mapping[str, Any]) -> dict[str, Any]:
    """A key that was drawn comes back from its file: its origin may differ, its commitment not."""
    return {key: value for key, value in opened.items() if key != "key_origin"}


def _of_type(header: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    if type(header.get(name)) is not kind:
        raise UntrustedFileError(f"{where}: {name} must be a JSON {kind.__name__}")
    return header[name]


def _count(header: Mapping[str, Any], name: str, where: str) -> int:
    value = _of_type(header, name, int, where)
    if value < 0:
        raise UntrustedFileError(f"{where}: {name} must be >= 0, got {value}")
    return value


def _shape(item: Any, length: int, where: str) -> tuple[Any, ...]:
    """[name, size, ...]"""
    if (
        type(item) is not list
        or len(item) != length
        or type(item[0]) is not str
        or not all(type(size) is int and 0 <= size < 1 << 48 for size in item[1:])
    ):
        raise UntrustedFileError(f"{where}: a table or parameter must be [name, size, ...] with {length} entries")
    return tuple(item)


def _cut(payload: bytes, layout: list[tuple[str, int]], where: str) -> list[np.ndarray]:
    """The arrays that make up a payload, which must be exactly as long as they are together."""
    needed = sum(np.dtype(kind).itemsize * count for kind, count in layout)
    if needed != len(payload):
        raise UntrustedFileError(f"{where} holds {len(payload)} bytes of arrays, and names {needed}")
    arrays: list[np.ndarray] = []
    start = 0
    for kind, count in layout:
        arrays.append(
            np.frombuffer(payload, dtype=kind, count=count, offset=start).astype(np.dtype(kind).newbyteorder("="))
        )
        start += np.dtype(kind).itemsize * count
    return arrays
