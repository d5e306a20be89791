"""The sources that are installed here, by digest."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.resources import files

from samelaw.contract.errors import InputError
from samelaw.equivalence.proofs import constant_value, source_digest


def source_digests(sources: Iterable[str]) -> dict[str, str]:
    """Digest of each source, named as "reference/lazy_schedule.py" or "contract/spec.py#CLIP_MARGIN".

    One that is not installed is left out. A constant that its file binds in more than one way, or that is another
    number once imported than its file says, gets a digest that no record holds.
    """
    found: dict[str, str] = {}
    for source in sources:
        path, _, constant = source.partition("#")
        package, _, name = path.rpartition("/")
        file = files(f"samelaw.{package.replace('/', '.')}") / name
        if file.is_file():
            text = file.read_bytes()
            module = f"samelaw.{path.removesuffix('.py').replace('/', '.')}"
            found[source] = _constant_digest(text, module, constant) if constant else source_digest(text)
    return found


def _constant_digest(text: bytes, module: str, name: str) -> str:
    try:
        written = constant_value(text, name)
    except InputError:
        return source_digest(text)
    value = getattr(import_module(module), name, None)
    if type(value) is not float or value != written:
        return source_digest(f"{name} is {value!r} once imported".encode())
    return source_digest(text, name)
