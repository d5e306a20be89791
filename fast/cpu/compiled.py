"""How kernels are compiled: no fast-math, NumPy's errors, and a cache that a source change always invalidates."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import config, njit
from numba.core.errors import NumbaError


def _sources_digest() -> str:
    """Digest of every source of this folder: numba's cache looks at one file alone, and kernels call across files."""
    text = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        text.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return text.hexdigest()[:16]


def _cache_folder() -> str | None:
    """A writable folder for compiled code, or None when there is none (a read-only install without a home)."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    candidates = [
        Path(chosen) if chosen else Path(__file__).parent / "__pycache__",
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"),
    ]
    for parent in candidates:
        folder = parent / f"samelaw-numba-{_sources_digest()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return str(folder)
    return None


_CACHE = _cache_folder()
_settings: Any = config


def thread_limit() -> int:
    """Threads that numba may use in this process (NUMBA_NUM_THREADS, or the number of cores)."""
    return int(_settings.NUMBA_NUM_THREADS)


def inline(function: Callable[..., Any]) -> Any:
    """A helper that is compiled into each kernel that calls it."""
    return njit(inline="always", error_model="numpy")(function)


def kernel(*, parallel: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """A compiled entry point. Integer overflow wraps, division by zero follows IEEE 754, the lock is released."""

    def decorate(function: Callable[..., Any]) -> Any:
        options: dict[str, Any] = {"error_model": "numpy", "nogil": True, "parallel": parallel}
        if _CACHE is None:
            return njit(**options)(function)
        before = _settings.CACHE_DIR
        _settings.CACHE_DIR = _CACHE
        try:
            return njit(cache=True, **options)(function)
        except (RuntimeError, NumbaError):  # numba found no place after all: compile on every start
            return njit(**options)(function)
        finally:
            _settings.CACHE_DIR = before

    return decorate
