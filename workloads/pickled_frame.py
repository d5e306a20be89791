"""Reads the integer columns of a pickled pandas DataFrame without running anything that the pickle names.

A pickle is a program: it names functions, and loading it calls them. Here every name resolves to an inert
recorder, so that loading builds a description of the calls and performs none; no pandas or NumPy function runs. The
few names that such a file needs are listed; any other name is refused. Even a hostile file can then do no more than
fail or waste memory, and the one file that this is used for is pinned by digest besides.
"""

from __future__ import annotations

import io
import lzma
import pickle
from typing import Any

import numpy as np
from jaxtyping import Int64

from samelaw.contract.errors import DataError

_MAX_BYTES = 64 << 20


class _Recorded:
    """Stands for whatever a pickle names: remembers how it was called and what state it was given."""

    name = ""

    def __new__(cls, *arguments: Any) -> _Recorded:
        made = super().__new__(cls)
        made.arguments = arguments
        made.state = None
        return made

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    arguments: tuple[Any, ...]
    state: Any


def _recorder(name: str) -> type[_Recorded]:
    return type("Recorded_" + name.replace(".", "_"), (_Recorded,), {"name": name})


ALLOWED = {
    name: _recorder(name)
    for name in (
        "pandas.core.frame.DataFrame",
        "pandas.core.internals.managers.BlockManager",
        "pandas._libs.internals._unpickle_block",
        "pandas.core.indexes.base._new_Index",
        "pandas.core.indexes.base.Index",
        "pandas.core.indexes.range.RangeIndex",
        "numpy.core.numeric._frombuffer",
        "numpy.core.multiarray._reconstruct",
        "numpy.ndarray",
        "numpy.dtype",
        "builtins.slice",
    )
}


class _InertUnpickler(pickle.Unpickler):
    """Resolves the names above to recorders, and no other name."""

    def find_class(self, module_name: str, global_name: str, /) -> type[_Recorded]:
        name = f"{module_name}.{global_name}"
        if name not in ALLOWED:
            raise DataError(f"a pickled table may name {', '.join(sorted(ALLOWED))} and nothing else, got {name}")
        return ALLOWED[name]

    def persistent_load(self, pid: Any) -> Any:
        raise DataError(f"a pickled table must be complete in itself, got persistent id {pid!r}")


def read_integer_columns(content: bytes, *, where: str) -> dict[str, Int64[np.ndarray, "rows"]]:
    """The columns of a pickled (xz-compressed) DataFrame that holds one block of 64-bit integers.

    Args:
        content: the compressed bytes.
        where: their place, for error messages.

    Raises:
        DataError: the bytes are not such a table, or the pickle names anything unexpected.
    """
    try:
        unpacker = lzma.LZMADecompressor()
        plain = unpacker.decompress(content, max_length=_MAX_BYTES)
        _require(unpacker.eof, f"end: cut short, or larger than {_MAX_BYTES} bytes")
        frame = _InertUnpickler(io.BytesIO(plain)).load()
    except DataError as cause:
        raise DataError(f"{where}: {cause}; it is not loaded") from None
    except Exception as cause:  # a damaged pickle fails in many ways; all mean the same here
        raise DataError(f"{where} is not a compressed pickle: {cause!r}. Fetch it again") from cause
    try:
        return _columns(frame)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as cause:
        raise DataError(
            f"{where} must hold a DataFrame of one block of little-endian 64-bit integers: {cause!r}. Fetch it again"
        ) from cause


def _columns(frame: Any) -> dict[str, Int64[np.ndarray, "rows"]]:
    """Interpret the recorded calls."""
    manager = _called(frame.state["_mgr"], "pandas.core.internals.managers.BlockManager")
    (block,), (columns_index, _) = manager
    values, placement, dimensions = _called(block, "pandas._libs.internals._unpickle_block")
    start, stop, stride = _called(placement, "builtins.slice")
    buffer, dtype, shape, order = _called(values, "numpy.core.numeric._frombuffer")
    kind, *_ = _called(dtype, "numpy.dtype")
    _require((kind, dtype.state[1], order, dimensions) == ("i8", "<", "C", 2), "block layout")
    _require((start, stop, stride) == (0, shape[0], 1), "block placement")
    _, parts = _called(columns_index, "pandas.core.indexes.base._new_Index")
    names = parts["data"].state[4]
    _require(len(names) == shape[0] and all(isinstance(name, str) for name in names), "column names")
    table = np.frombuffer(bytes(buffer), dtype="<i8").reshape(shape)
    return {name: table[row].astype(np.int64) for row, name in enumerate(names)}


def _called(recorded: Any, name: str) -> tuple[Any, ...]:
    """The arguments that `name` would have been called with."""
    if not isinstance(recorded, _Recorded) or recorded.name != name:
        raise ValueError(f"expected a call of {name}")
    return recorded.arguments


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"unexpected {what}")
