"""Files that somebody else wrote: opened without following links, read within bounds, parsed strictly.

Nothing here trusts a size, a count or a name that a file states about itself: memory is only ever taken for bytes that
are there, and numbers are compared before they are used.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from samelaw.contract.errors import UntrustedFileError

DEEPEST_JSON = 32
LARGEST_INTEGER = 1 << 63
_CHUNK = 1 << 20
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)  # never fails at a quote, so a hostile text takes linear time
_NO_BRACKET = re.compile(rb"[^\[\]{}]+")


class BoundedFile:
    """A regular file, open for reading; its size is taken once, and a file that changes afterwards is an error.

    Args:
        path: where it lies; the last component may not be a link. Pipes, sockets, devices and folders are refused
            without waiting for them.
        most_bytes: larger files are refused.
        folder: descriptor of the folder that `path` is relative to.

    Raises:
        UntrustedFileError: not there, not a regular file, or too large.
    """

    def __init__(self, path: str | Path, *, most_bytes: int, folder: int | None = None) -> None:
        self.name = str(path)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            self._handle = os.open(path, flags, dir_fd=folder)
        except (OSError, ValueError) as cause:
            raise UntrustedFileError(f"{self.name} cannot be opened as a plain file: {cause}") from cause
        found = os.fstat(self._handle)
        problem = None
        if not stat.S_ISREG(found.st_mode):
            problem = f"{self.name} must be a regular file; it is a folder, pipe, socket or device"
        elif found.st_size > most_bytes:
            problem = f"{self.name} has {found.st_size} bytes; at most {most_bytes} are read"
        if problem is not None:
            os.close(self._handle)
            raise UntrustedFileError(problem)
        self.size = found.st_size
        self._seen = _state(found)

    def read(self, start: int, count: int) -> bytes:
        """Exactly `count` bytes from `start`.

        Raises:
            UntrustedFileError: the file ends before them.
        """
        if not 0 <= start <= start + count <= self.size:
            raise UntrustedFileError(f"{self.name} ends at byte {self.size}; bytes {start}..{start + count} were named")
        parts: list[bytes] = []
        while count:
            part = os.pread(self._handle, min(count, _CHUNK), start)
            if not part:
                raise UntrustedFileError(f"{self.name} became shorter while it was read")
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return b"".join(parts)

    def sha256(self) -> str:
        """Digest of the whole file."""
        digest = hashlib.sha256()
        for start in range(0, self.size, _CHUNK):
            digest.update(self.read(start, min(_CHUNK, self.size - start)))
        return digest.hexdigest()

    def check_unchanged(self) -> None:
        """Raise UntrustedFileError if the file was written to since it was opened."""
        if _state(os.fstat(self._handle)) != self._seen:
            raise UntrustedFileError(f"{self.name} changed while it was read; give a folder that nobody writes to")

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> BoundedFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()


def _state(found: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written to; nobody can set the time of change (ctime) back, as they can mtime."""
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def strict_json(data: bytes, *, where: str, deepest: int = DEEPEST_JSON) -> Any:
    """JSON as RFC 8259 has it and nothing beyond: UTF-8, no key twice, finite numbers, bounded depth and integers.

    Raises:
        UntrustedFileError: it is not.
    """

    def refuse(problem: str) -> NoReturn:
        raise UntrustedFileError(f"{where} {problem}")

    def integer(digits: str) -> int:
        if len(digits) > 20 or abs(int(digits)) >= LARGEST_INTEGER:
            refuse("holds an integer of 2^63 or more")
        return int(digits)

    def number(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            refuse("holds a number that float64 cannot hold")
        return value

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            refuse("names a key twice in one object")
        return found

    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as cause:
        raise UntrustedFileError(f"{where} is not UTF-8: {cause}") from cause
    if _depth(data) > deepest:
        refuse(f"is nested more than {deepest} deep")
    try:
        return json.loads(
            text,
            parse_int=integer,
            parse_float=number,
            parse_constant=lambda word: refuse(f"holds {word}, which is not JSON"),
            object_pairs_hook=once,
        )
    except UntrustedFileError:
        raise
    except (ValueError, RecursionError) as cause:
        raise UntrustedFileError(f"{where} is not JSON: {cause}") from cause


def whole_lines(data: bytes, *, where: str, longest: int) -> Iterator[bytes]:
    """The lines of a file of lines, each ended by a newline.

    Raises:
        UntrustedFileError: the last one is cut, or one is longer than `longest`.
    """
    start = 0
    while start < len(data):
        end = data.find(b"\n", start)
        if end < 0:
            raise UntrustedFileError(f"{where} ends within a line: it was cut short")
        if end - start > longest:
            raise UntrustedFileError(f"{where} holds a line of more than {longest} bytes")
        yield data[start:end]
        start = end + 1


def _depth(data: bytes) -> int:
    """The deepest nesting of brackets, those inside strings left out."""
    depth = deepest = 0
    for bracket in _NO_BRACKET.sub(b"", _STRING.sub(b"", data)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest
