"""The sources that are installed here, by digest."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files

from samelaw.equivalence.proofs import source_digest


def source_digests(sources: Iterable[str]) -> dict[str, str]:
    """Digest of each source, named as "reference/lazy_schedule.py" or "contract/spec.py#CLIP_MARGIN".

    One that is not installed is left out.
    """
    found: dict[str, str] = {}
    for source in sources:
        path, _, constant = source.partition("#")
        package, _, name = path.rpartition("/")
        file = files(f"samelaw.{package.replace('/', '.')}") / name
        if file.is_file():
            found[source] = source_digest(file.read_bytes(), constant)
    return found
