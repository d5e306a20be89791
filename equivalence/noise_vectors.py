"""Golden vectors of the noise, and the check of a backend against them on this machine.

The vectors are data, written by tools/make_golden.py from the NumPy definition and re-derived in the test suite by
exact rational arithmetic; docs/noise.md is the specification behind both.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jsonschema
import numpy as np
from jaxtyping import Float32

from samelaw.contract.errors import SchemaError
from samelaw.contract.evidence import Disagreement
from samelaw.contract.noise import NoiseKey, NoiseStream, Purpose

SCHEMA = "samelaw.noise_vectors/1"

Normals = Callable[[NoiseStream, Purpose, int, np.ndarray, np.ndarray, int], Any]
"""normals(stream, purpose, table, rows int64[n], steps int64[n], dim) -> float32 [n, dim], as an array or something
that numpy.asarray takes."""


@dataclass(frozen=True)
class NormalVector:
    """The normals of one row at one step, and the bug that they hunt."""

    name: str
    hunts: str
    stream: NoiseStream
    purpose: Purpose
    table: int
    row: int
    step: int
    normals: Float32[np.ndarray, "dim"]

    @property
    def dim(self) -> int:
        return int(self.normals.size)


@dataclass(frozen=True)
class NoiseVectors:
    """The golden file: its normals as vectors, and the whole document for tests that want the intermediate values."""

    normals: tuple[NormalVector, ...]
    document: dict[str, Any]


def load_vectors() -> NoiseVectors:
    """The golden vectors that ship with the package.

    Raises:
        SchemaError: the file is missing, damaged, or does not match contract/schemas/noise_vectors.schema.json.
    """
    try:
        text = resources.files("samelaw.equivalence").joinpath("golden/noise.json").read_text(encoding="utf-8")
        schema = resources.files("samelaw.contract").joinpath("schemas/noise_vectors.schema.json")
        rules = json.loads(schema.read_text(encoding="utf-8"))
        document = json.loads(text)
    except (OSError, ValueError) as cause:
        raise SchemaError(f"cannot read the golden noise vectors: {cause}; reinstall samelaw") from cause
    return parse_vectors(document, rules)


def parse_vectors(document: dict[str, Any], rules: dict[str, Any]) -> NoiseVectors:
    """Check a document against its schema, and read it.

    Raises:
        SchemaError: naming the first place that does not match.
    """
    try:
        jsonschema.validate(document, rules)
    except jsonschema.ValidationError as cause:
        place = "/".join(str(part) for part in cause.absolute_path) or "the document"
        raise SchemaError(f"the golden noise vectors do not match {SCHEMA} at {place}: {cause.message}") from cause
    normals = tuple(_read(record) for record in document["normals"])
    for vector, record in zip(normals, document["normals"], strict=True):
        if vector.dim != record["dim"]:
            raise SchemaError(f"vector {vector.name!r} has dim {record['dim']} and {vector.dim} normals")
    return NoiseVectors(normals, document)


def check_backend(normals: Normals, vectors: NoiseVectors | None = None) -> list[Disagreement]:
    """Compare a backend's normals with the golden vectors, bit for bit.

    Vectors that differ only in row and step are drawn in one call, so that the backend's own indexing is exercised.

    Args:
        normals: the backend; see `Normals`.
        vectors: what to compare with; the shipped vectors when None.

    Returns:
        The first disagreement of each vector that fails, naming the bug that the vector hunts. Empty: all agree.
    """
    vectors = load_vectors() if vectors is None else vectors
    calls: dict[tuple[NoiseStream, Purpose, int, int], list[NormalVector]] = defaultdict(list)
    for vector in vectors.normals:
        calls[vector.stream, vector.purpose, vector.table, vector.dim].append(vector)
    found: list[Disagreement] = []
    for (stream, purpose, table, dim), group in calls.items():
        rows = np.array([v.row for v in group], dtype=np.int64)
        steps = np.array([v.step for v in group], dtype=np.int64)
        drawn = np.asarray(normals(stream, purpose, table, rows, steps, dim))
        if drawn.dtype != np.float32 or drawn.shape != (len(group), dim):
            expected = f"float32 of shape {(len(group), dim)}"
            found += [Disagreement(_place(v), expected, f"{drawn.dtype} of shape {drawn.shape}") for v in group]
            continue
        bits = np.ascontiguousarray(drawn).view(np.uint32)
        for vector, row in zip(group, bits, strict=True):
            wanted = vector.normals.view(np.uint32)
            wrong = np.flatnonzero(row != wanted)
            if wrong.size:
                d = int(wrong[0])
                found.append(Disagreement(f"{_place(vector)}, dimension {d}", _show(wanted[d]), _show(row[d])))
    return found


def _place(vector: NormalVector) -> str:
    return (
        f"golden vector {vector.name!r} ({vector.purpose.name}, table {vector.table}, row {vector.row}, "
        f"step {vector.step}, rounds {vector.stream.rounds}; hunts: {vector.hunts})"
    )


def _show(bits: np.uint32) -> str:
    return f"{bits.view(np.float32)!s} (bits {int(bits):08x})"


def _read(record: dict[str, Any]) -> NormalVector:
    bits = np.array([int(word, 16) for word in record["normals"].split()], dtype=np.uint32)
    return NormalVector(
        name=record["name"],
        hunts=record["hunts"],
        stream=NoiseStream(NoiseKey.from_bytes(bytes.fromhex(record["key"])), record["rounds"]),
        purpose=Purpose[record["purpose"]],
        table=record["table"],
        row=record["row"],
        step=record["step"],
        normals=bits.view(np.float32),
    )
