"""Click logs in Criteo's TSV format, streamed from a file of the user's, plain or gzip-compressed.

A line is: label (0 or 1), 13 integers, 26 categories of 8 hexadecimal digits, separated by tabs; integers and
categories may be missing. Chunks of lines are parsed as whole arrays; only a bad line is looked at by itself.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from samelaw.contract.errors import DataError, InputError
from samelaw.contract.trace import Feature
from samelaw.workloads.base import UNIT_OF_PRIVACY, Bags, Dataset, Workload, one_each
from samelaw.workloads.hashing import held_out, mix
from samelaw.workloads.lines import BadLine, LineReader, columns, integer

NAME = "criteo"
INTEGERS, CATEGORIES, DIGITS = 13, 26, 10
BUCKETS = 4096
LOG_CEILING = 16.0
SALT = 39
CHUNK_BYTES = 4 << 20

_TAB, _NEWLINE, _RETURN, _MINUS = b"\t\n\r-"
_NOT_HEX = 255
_HEX = np.full(256, _NOT_HEX, dtype=np.uint8)
for _value, _digit in enumerate(b"0123456789abcdef"):
    _HEX[_digit] = _value
for _value, _digit in enumerate(b"ABCDEF"):
    _HEX[_digit] = _value + 10


def load_criteo(*, path: str | Path | None, scale: float = 1.0, skip_bad_lines: bool = False) -> Workload:
    """Click logs from `path`.

    Args:
        path: the file; a name that ends in .gz is decompressed on the way.
        scale: factor on the number of hash buckets per category column (4096 at 1).
        skip_bad_lines: skip and count bad lines instead of raising.

    Raises:
        DataError: no path, no such file, damaged compression, a malformed line (with its place), or too few lines.
    """
    if path is None:
        raise DataError("workload 'criteo' needs the path of a Criteo TSV file; pass path (--path FILE)")
    buckets = max(1, round(BUCKETS * scale))
    if buckets > 2**31:
        raise InputError(f"scale must give at most 2^31 buckets per column, got {scale!r} in criteo")
    reader = LineReader(skip_bad_lines)
    parts = (_Columns(), _Columns())
    for chunk in read_chunks(Path(path), reader):
        test = held_out(*chunk.integers.T, *chunk.categories.T, salt=SALT)
        for part, chosen in zip(parts, (~test, test), strict=True):
            part.append(chunk, chosen, buckets)
    train, test = (part.dataset() for part in parts)
    if not (len(train) and len(test)):
        raise DataError(
            f"{path}: its good lines leave {len(train)} examples to train on and {len(test)} to test on; both must "
            f"be at least 1. Give more lines"
        )
    features = tuple(Feature(f"category_{i + 1}", f"category_{i + 1}", buckets) for i in range(CATEGORIES))
    return Workload(
        NAME,
        features,
        INTEGERS,
        train,
        test,
        _notes(buckets),
        licence="the terms under which you hold this file",
        source=f"a file of the user's, {Path(path).name}",
        skipped=reader.skipped,
    )


class Chunk:
    """Parsed lines: labels, integers and categories, with what was missing.

    Attributes:
        labels: 0 or 1.
        integers: (lines, 13) int64; 0 where missing.
        categories: (lines, 26) int64, the 32-bit value; -1 where missing.
    """

    def __init__(self, labels: np.ndarray, integers: np.ndarray, categories: np.ndarray) -> None:
        self.labels: UInt8[np.ndarray, "lines"] = labels
        self.integers: Int64[np.ndarray, "lines 13"] = integers
        self.categories: Int64[np.ndarray, "lines 26"] = categories


def read_chunks(path: Path, reader: LineReader, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Parse a file chunk by chunk; memory is bounded by the chunk and the longest line."""
    first_line = 1
    try:
        with _open(path) as file:
            rest = b""
            while read := file.read(chunk_bytes):
                whole, newline, rest = (rest + read).rpartition(b"\n")
                if newline:
                    yield parse_chunk(whole + newline, reader, where=str(path), first_line=first_line)
                    first_line += whole.count(b"\n") + 1
                if len(rest) > 16 * CHUNK_BYTES:
                    raise DataError(f"{path}, line {first_line}: a line must end within 64 MiB. Is this a text file?")
            if rest:
                yield parse_chunk(rest + b"\n", reader, where=str(path), first_line=first_line)
    except (OSError, EOFError, zlib.error) as cause:
        raise DataError(
            f"cannot read {path} at or after line {first_line}: {cause}. Give a Criteo TSV file, plain or .gz"
        ) from cause


def _open(path: Path) -> BufferedIOBase:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def parse_chunk(text: bytes, reader: LineReader, *, where: str, first_line: int) -> Chunk:
    """Parse whole lines, each ending in a newline, as arrays.

    Guarantees:
        W3  Accepts exactly the lines that `parse_line` accepts, with the same values.
    """
    buffer = np.frombuffer(text, dtype=np.uint8)
    newlines = np.flatnonzero(buffer == _NEWLINE)
    starts = np.concatenate([np.zeros(1, dtype=np.int64), newlines[:-1] + 1])
    ends = newlines - ((newlines > starts) & (buffer[newlines - 1] == _RETURN))
    tabs = np.flatnonzero(buffer == _TAB)
    first_tab = np.searchsorted(tabs, starts)
    fields = INTEGERS + CATEGORIES
    good = np.searchsorted(tabs, ends) - first_tab == fields
    rows = np.flatnonzero(good)
    cuts = tabs[first_tab[rows][:, None] + np.arange(fields)]
    begin = np.concatenate([starts[rows][:, None], cuts + 1], axis=1)
    end = np.concatenate([cuts, ends[rows][:, None]], axis=1)
    integers, integers_good = _parse_integers(buffer, begin[:, 1 : 1 + INTEGERS], end[:, 1 : 1 + INTEGERS])
    categories, categories_good = _parse_categories(buffer, begin[:, 1 + INTEGERS :], end[:, 1 + INTEGERS :])
    labels = buffer[begin[:, 0]] - np.uint8(ord("0"))
    row_good = (end[:, 0] - begin[:, 0] == 1) & (labels <= 1) & integers_good & categories_good
    good[rows[~row_good]] = False
    for bad in np.flatnonzero(~good):
        _report(text[starts[bad] : newlines[bad]], reader, where=where, line=first_line + int(bad))
    return Chunk(labels[row_good], integers[row_good], categories[row_good])


def _parse_integers(
    buffer: UInt8[np.ndarray, "bytes"], begin: np.ndarray, end: np.ndarray
) -> tuple[Int64[np.ndarray, "lines columns"], Bool[np.ndarray, "lines"]]:
    """Decimal integers of at most ten digits; an empty field is 0."""
    negative = (end > begin) & (buffer[begin] == _MINUS)
    first = begin + negative
    length = end - first
    good = (length <= DIGITS) & ((length >= 1) | ~negative)
    value = np.zeros(begin.shape, dtype=np.int64)
    last = buffer.size - 1
    for place in range(DIGITS):
        digit = buffer[np.minimum(first + place, last)] - np.uint8(ord("0"))
        here = place < length
        good &= ~here | (digit <= 9)
        value = np.where(here, 10 * value + digit, value)
    return np.where(negative, -value, value), good.all(axis=1)


def _parse_categories(
    buffer: UInt8[np.ndarray, "bytes"], begin: np.ndarray, end: np.ndarray
) -> tuple[Int64[np.ndarray, "lines columns"], Bool[np.ndarray, "lines"]]:
    """Categories of exactly eight hexadecimal digits; an empty field is -1."""
    length = end - begin
    missing = length == 0
    good = missing | (length == 8)
    value = np.zeros(begin.shape, dtype=np.int64)
    last = buffer.size - 1
    for place in range(8):
        digit = _HEX[buffer[np.minimum(begin + place, last)]]
        good &= missing | (digit != _NOT_HEX)
        value = 16 * value + digit
    return np.where(missing, -1, value), good.all(axis=1)


def _report(raw: bytes, reader: LineReader, *, where: str, line: int) -> None:
    """Say what is wrong with a line that the arrays refused."""
    text = raw.decode("ascii", errors="replace").removesuffix("\r")
    try:
        parse_line(text)
    except BadLine as bad:
        reader.bad(str(bad), where=where, line=line)
    else:
        raise AssertionError(f"{where}, line {line}: the two parsers disagree")


def parse_line(line: str) -> tuple[int, list[int], list[int]]:
    """Label, integers (0 where missing) and categories (-1 where missing) of one line, or BadLine.

    This is the definition; `parse_chunk` is the same thing for many lines at once.
    """
    try:
        label, *fields = columns(line, "\t", 1 + INTEGERS + CATEGORIES)
    except BadLine as bad:
        if line.count("\t") == INTEGERS + CATEGORIES - 1:
            raise BadLine("a line must start with its label (this may be the unlabelled test file)", line) from None
        raise bad
    largest = 10**DIGITS - 1
    integers = [
        integer(text, f"integer {i + 1}", -largest, largest) if text else 0 for i, text in enumerate(fields[:INTEGERS])
    ]
    categories = [_category(text, i + 1) for i, text in enumerate(fields[INTEGERS:])]
    if label not in ("0", "1"):
        raise BadLine("the label must be 0 or 1", label)
    return int(label), integers, categories


def _category(text: str, number: int) -> int:
    if not text:
        return -1
    if len(text) != 8 or any(character not in "0123456789abcdefABCDEF" for character in text):
        raise BadLine(f"category {number} must be 8 hexadecimal digits or empty", text)
    return int(text, 16)


class _Columns:
    """Examples gathered chunk by chunk, column by column, ids in the narrowest type."""

    def __init__(self) -> None:
        self._labels: list[np.ndarray] = []
        self._dense: list[np.ndarray] = []
        self._ids: list[list[np.ndarray]] = [[] for _ in range(CATEGORIES)]
        self._present: list[list[np.ndarray]] = [[] for _ in range(CATEGORIES)]

    def append(self, chunk: Chunk, chosen: Bool[np.ndarray, "lines"], buckets: int) -> None:
        self._labels.append(chunk.labels[chosen].astype(np.float32))
        self._dense.append(log_scale(chunk.integers[chosen]))
        for column in range(CATEGORIES):
            values = chunk.categories[chosen, column]
            present = values >= 0
            self._present[column].append(present)
            self._ids[column].append(bucket(values[present], column, buckets))

    def dataset(self) -> Dataset:
        labels = np.concatenate([np.zeros(0, dtype=np.float32), *self._labels])
        dense = np.concatenate([np.zeros((0, INTEGERS), dtype=np.float32), *self._dense])
        self._labels, self._dense = [], []
        return Dataset(dense, tuple(self._bags(column) for column in range(CATEGORIES)), labels)

    def _bags(self, column: int) -> Bags:
        ids = np.concatenate([np.zeros(0, dtype=np.int32), *self._ids[column]])
        present = np.concatenate([np.zeros(0, dtype=np.bool_), *self._present[column]])
        self._ids[column], self._present[column] = [], []  # frees each column before the next one is joined
        if present.all():
            return one_each(ids)
        return ids, np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(present)])


def log_scale(integers: Int64[np.ndarray, "lines columns"]) -> Float32[np.ndarray, "lines columns"]:
    """log(1 + max(x, 0)) / 16: no constant of it comes from the data, and it stays below 1.5 for ten digits."""
    return (np.log1p(np.maximum(integers, 0).astype(np.float64)) / LOG_CEILING).astype(np.float32)


def bucket(values: Int64[np.ndarray, "ids"], column: int, buckets: int) -> np.ndarray:
    """Hash bucket of each 32-bit category, with a hash of its own for every column; int32."""
    tagged = values.astype(np.uint64) | np.uint64((column + 1) << 32)
    return (mix(tagged) % np.uint64(buckets)).astype(np.int32)


def _notes(buckets: int) -> dict[str, object]:
    return {
        "unit_of_privacy": UNIT_OF_PRIVACY,
        "label": "the file's: 1 is a click",
        "split": f"one line in five is held out, by a fixed hash of its integers and categories (salt {SALT})",
        "declared_vocabularies": {
            "category_1 … category_26": f"hashed into {buckets} buckets each; a missing value is an empty bag"
        },
        "dense": "log(1 + max(x, 0)) / 16; a missing integer counts as 0",
    }
