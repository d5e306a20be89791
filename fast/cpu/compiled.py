"""How kernels are compiled: no fast-math, NumPy's errors, and a cache that a source change always invalidates."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import config, get_num_threads, njit, set_num_threads
from numba.core.errors import NumbaError

from samelaw.contract.errors import InputError

_WORTH_WAKING = 30_000  # nanoseconds
_ONE_AT_A_TIME = threading.Lock()  # not every threading layer of numba can run two parallel kernels at once


def sources_digest() -> str:
    """Digest of every source of this folder: numba's cache looks at one file alone, and kernels call across files."""
    text = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        text.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return text.hexdigest()[:16]


def _cache_folder() -> str | None:
    """A writable folder for compiled code, or None when there is none (a read-only install without a home)."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for parent in (chosen or Path(__file__).parent / "__pycache__", user):
        folder = Path(parent) / f"samelaw-numba-{sources_digest()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return str(folder)
    return None


CACHE = _cache_folder()
_settings: Any = config


class Team:
    """The threads that share the work of a parallel kernel.

    Args:
        threads: how many; 0 takes as many as numba is set to use at the time of each call.
    """

    def __init__(self, threads: int = 0) -> None:
        limit = int(_settings.NUMBA_NUM_THREADS)
        if not 0 <= threads <= limit:
            raise InputError(f"threads must be in 0..{limit} in this process (NUMBA_NUM_THREADS), got {threads}")
        self.threads = threads

    def run(self, nanoseconds: int, compiled: Callable[..., Any], *arguments: object) -> Any:
        """Run a kernel of about so much work: on one thread where waking the others would cost more than it saves."""
        wanted = self.threads if nanoseconds > _WORTH_WAKING else 1
        with _ONE_AT_A_TIME:
            present = get_num_threads() if wanted else 0
            if wanted == present:
                return compiled(*arguments)
            set_num_threads(wanted)
            try:
                return compiled(*arguments)
            finally:
                set_num_threads(present)


def inline(function: Callable[..., Any]) -> Any:
    """A helper that is compiled into each kernel that calls it."""
    return njit(inline="always", error_model="numpy")(function)


def kernel(*, parallel: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """A compiled entry point. Integer overflow wraps, division by zero follows IEEE 754, the lock is released."""

    def decorate(function: Callable[..., Any]) -> Any:
        options: dict[str, Any] = {"error_model": "numpy", "nogil": True, "parallel": parallel}
        if CACHE is None:
            return njit(**options)(function)
        before = _settings.CACHE_DIR
        _settings.CACHE_DIR = CACHE
        try:
            return njit(cache=True, **options)(function)
        except (RuntimeError, NumbaError):  # numba found no place after all: compile on every start
            return njit(**options)(function)
        finally:
            _settings.CACHE_DIR = before

    return decorate
