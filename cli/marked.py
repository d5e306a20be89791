"""The section of a page that a command writes: between two comments that name the command."""

from __future__ import annotations

from pathlib import Path

from samelaw.cli import runfolder
from samelaw.contract.errors import InputError


def write_section(page: Path, name: str, text: str) -> None:
    """Replace what stands between the page's two marks of this name.

    Raises:
        InputError: the page is not there, or does not hold both marks, once each and in order.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    try:
        old = page.read_text(encoding="utf-8")
    except OSError as cause:
        raise InputError(f"--write {page} cannot be read: {cause}") from cause
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        raise InputError(f"--write {page} must hold the lines {begin!r} and {end!r}, once each and in this order")
    head, tail = old[: old.index(begin)], old[old.index(end) :]
    runfolder.write_text(page, f"{head}{begin}\n\n{text.strip()}\n\n{tail}")
