"""safetensors files that somebody else wrote: a strict reader of float32 arrays, row by row.

Stricter than the format: float32 alone, every byte of the data belongs to exactly one tensor, and no shape is believed
before the file is known to hold that many bytes. Names are keys of a dictionary and never paths.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from samelaw.contract.errors import UntrustedFileError
from samelaw.contract.untrusted import BoundedFile, strict_json

LARGEST_HEADER = 32 << 20
LONGEST_NAME = 1024
_LENGTH = struct.Struct("<Q")
_PIECE = 1 << 22
_RUN = 1 << 14  # rows read at once when they lie together


@dataclass(frozen=True)
class Tensor:
    """Where one float32 array lies in its file."""

    shape: tuple[int, ...]
    start: int
    end: int


class TensorFile:
    """Named float32 arrays in a safetensors file.

    Attributes:
        tensors: name -> shape and place.
        metadata: the file's own words about itself.

    Raises:
        UntrustedFileError: malformed; see the module.
    """

    def __init__(self, file: BoundedFile) -> None:
        self.file = file
        where = file.name
        if file.size < _LENGTH.size:
            raise UntrustedFileError(f"{where} is too short to be a safetensors file")
        (length,) = _LENGTH.unpack(file.read(0, _LENGTH.size))
        if length > LARGEST_HEADER or length > file.size - _LENGTH.size:
            raise UntrustedFileError(f"{where} claims a header of {length} bytes, which is not there or too large")
        header = strict_json(file.read(_LENGTH.size, length), where=f"the header of {where}")
        if type(header) is not dict:
            raise UntrustedFileError(f"the header of {where} must be a JSON object")
        self._data = _LENGTH.size + length
        self.metadata = _metadata(header.pop("__metadata__", {}), where)
        self.tensors = {name: _tensor(name, entry, where) for name, entry in header.items()}
        _check_tiling(list(self.tensors.values()), file.size - self._data, where)

    def whole(self, name: str) -> Float32[np.ndarray, "..."]:
        """One array."""
        tensor = self.tensors[name]
        data = self.file.read(self._data + tensor.start, tensor.end - tensor.start)
        return np.frombuffer(data, dtype="<f4").astype(np.float32).reshape(tensor.shape)

    def rows(self, name: str, start: int, stop: int) -> Float32[np.ndarray, "rows dim"]:
        """Rows start .. stop - 1 of a matrix."""
        tensor = self.tensors[name]
        _, dim = tensor.shape
        data = self.file.read(self._data + tensor.start + 4 * dim * start, 4 * dim * (stop - start))
        return np.frombuffer(data, dtype="<f4").astype(np.float32).reshape(-1, dim)

    def finite(self) -> bool:
        """Whether every value of every array is; a bounded number of bytes is held at a time, whatever the shapes."""
        end = self.file.size
        return all(
            np.isfinite(np.frombuffer(self.file.read(start, min(_PIECE, end - start)), dtype="<f4")).all()
            for start in range(self._data, end, _PIECE)
        )

    def take(self, name: str, rows: Int64[np.ndarray, "n"]) -> Float32[np.ndarray, "n dim"]:
        """Some rows of a matrix, given ascending."""
        _, dim = self.tensors[name].shape
        found = np.empty((rows.size, dim), dtype=np.float32)
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        for part in np.split(np.arange(rows.size), breaks):
            for first in range(0, part.size, _RUN):
                some = part[first : first + _RUN]
                found[some] = self.rows(name, int(rows[some[0]]), int(rows[some[-1]]) + 1)
        return found


def _metadata(found: Any, where: str) -> dict[str, str]:
    if type(found) is not dict or not all(type(value) is str for value in found.values()):
        raise UntrustedFileError(f"the metadata of {where} must be a JSON object of strings")
    return found


def _tensor(name: str, entry: Any, where: str) -> Tensor:
    """One entry of the header, checked by itself."""
    place = f"{where}, tensor {name[:80]!r},"
    if len(name) > LONGEST_NAME:
        raise UntrustedFileError(f"{place} has a name of {len(name)} characters")
    if type(entry) is not dict or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise UntrustedFileError(f"{place} must have dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if entry["dtype"] != "F32":
        raise UntrustedFileError(f"{place} must be F32; nothing else is released")
    if type(shape) is not list or len(shape) > 8 or not all(type(n) is int and n >= 0 for n in shape):
        raise UntrustedFileError(f"{place} must have a shape of at most 8 whole numbers")
    if type(offsets) is not list or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
        raise UntrustedFileError(f"{place} must have two data_offsets")
    size = 4
    for n in shape:
        size *= n
    if size == 0:
        raise UntrustedFileError(f"{place} is empty; a shape of zeros may claim any number of rows")
    if offsets[1] - offsets[0] != size:
        raise UntrustedFileError(f"{place} needs {size} bytes and names {offsets[1] - offsets[0]}")
    return Tensor(tuple(shape), offsets[0], offsets[1])


def _check_tiling(tensors: list[Tensor], size: int, where: str) -> None:
    """Every byte of the data belongs to exactly one tensor."""
    reached = 0
    for tensor in sorted(tensors, key=lambda t: (t.start, t.end)):
        if tensor.start != reached:
            raise UntrustedFileError(f"{where}: tensors overlap or leave a hole at byte {min(reached, tensor.start)}")
        reached = tensor.end
    if reached != size:
        raise UntrustedFileError(f"{where} holds {size} bytes of data and names {reached}")
