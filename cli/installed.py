"""The sources that are installed here, by digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.resources import files


def source_digests(sources: Iterable[str]) -> dict[str, str]:
    """SHA-256 of each source, named as "reference/lazy_schedule.py"; one that is not installed is left out."""
    found: dict[str, str] = {}
    for source in sources:
        package, _, name = source.rpartition("/")
        file = files(f"samelaw.{package.replace('/', '.')}") / name
        if file.is_file():
            found[source] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found
