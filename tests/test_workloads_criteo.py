"""Claims about the Criteo format: two parsers that agree, places of errors, streaming, hash buckets."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samelaw.contract.errors import DataError, InputError
from samelaw.workloads import load
from samelaw.workloads.criteo import bucket, log_scale, parse_chunk, parse_line, read_chunks
from samelaw.workloads.lines import BadLine, LineReader


def line_of(label: str = "1", integers: str = "5", categories: str = "0badcafe") -> str:
    return "\t".join([label, *[integers] * 13, *[categories] * 26])


def random_lines(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    lines: list[str] = []
    for _ in range(count):
        integers = [str(v) if v > -3 else "" for v in rng.integers(-4, 3000, 13)]
        categories = [f"{v:08x}" if v % 7 else "" for v in rng.integers(0, 2**32, 26)]
        lines.append("\t".join([str(rng.integers(0, 2)), *integers, *categories]))
    return lines


integer_fields = st.one_of(
    st.just(""),
    st.integers(-(10**10), 10**10).map(str),
    st.sampled_from(["-", "--1", "1-", "+1", " 1", "0001", "9999999999", "10000000000", "-0", "１", "1.0"]),
)
category_fields = st.one_of(
    st.just(""),
    st.integers(0, 2**32 - 1).map("{:08x}".format),
    st.integers(0, 2**32 - 1).map("{:08X}".format),
    st.sampled_from(["0badcaf", "0badcafe0", "0badcafg", "g", "-badcafe", "0x123456"]),
)
labels = st.sampled_from(["0", "1", "0", "1", "2", "", "01", "-1", "x"])


@st.composite
def lines(draw: st.DrawFn) -> str:
    """Mostly a good line with a few fields replaced, sometimes with a column too many or too few."""
    fields = line_of(draw(st.sampled_from("01"))).split("\t")
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, 39))
        fields[at] = draw(labels if at == 0 else integer_fields if at < 14 else category_fields)
    change = draw(st.sampled_from(["none"] * 8 + ["drop", "add", "empty"]))
    if change == "drop":
        fields.pop(draw(st.integers(0, 39)))
    elif change == "add":
        fields.append("0badcafe")
    return "" if change == "empty" else "\t".join(fields) + draw(st.sampled_from(["", "", "\r"]))


@given(batch=st.lists(lines(), min_size=1, max_size=12))
@settings(max_examples=300)
def test_W3_the_array_parser_accepts_what_the_line_parser_accepts_with_the_same_values(batch: list[str]) -> None:
    expected: list[tuple[int, list[int], list[int]]] = []
    for line in batch:
        try:
            expected.append(parse_line(line.removesuffix("\r")))
        except BadLine:
            continue
    reader = LineReader(skip=True)
    text = "".join(line + "\n" for line in batch).encode()
    chunk = parse_chunk(text, reader, where="f", first_line=1)
    found = list(zip(chunk.labels.tolist(), chunk.integers.tolist(), chunk.categories.tolist(), strict=True))
    assert found == expected
    assert reader.skipped.get("f", 0) == len(batch) - len(expected)


@pytest.mark.parametrize("chunk_bytes", [1, 97, 10_000, 1 << 20])
@pytest.mark.parametrize("last_newline", [True, False])
def test_the_size_of_a_chunk_changes_nothing(tmp_path: Path, chunk_bytes: int, last_newline: bool) -> None:
    written = random_lines(40, seed=3)
    text = "\n".join(written) + ("\n" if last_newline else "")
    path = tmp_path / "day.tsv"
    path.write_text(text)
    chunks = list(read_chunks(path, LineReader(), chunk_bytes=chunk_bytes))
    expected = [parse_line(line) for line in written]
    assert np.concatenate([chunk.labels for chunk in chunks]).tolist() == [label for label, _, _ in expected]
    assert np.concatenate([chunk.integers for chunk in chunks]).tolist() == [values for _, values, _ in expected]
    assert np.concatenate([chunk.categories for chunk in chunks]).tolist() == [values for _, _, values in expected]


def test_plain_and_compressed_files_give_the_same_workload(tmp_path: Path) -> None:
    text = ("\n".join(random_lines(60, seed=1)) + "\n").encode()
    (tmp_path / "day.tsv").write_bytes(text)
    with gzip.open(tmp_path / "day.tsv.gz", "wb") as file:
        file.write(text)
    plain = load("criteo", path=tmp_path / "day.tsv")
    packed = load("criteo", path=tmp_path / "day.tsv.gz")
    assert len(plain.train) + len(plain.test) == 60
    assert plain.train.labels.tolist() == packed.train.labels.tolist()
    assert plain.dense_width == 13
    assert [feature.rows for feature in plain.features] == [4096] * 26
    for one, other in zip(plain.train.features, packed.train.features, strict=True):
        assert one[0].tolist() == other[0].tolist()
        assert one[1].tolist() == other[1].tolist()


def test_a_missing_category_is_an_empty_bag_and_a_present_one_is_its_bucket(tmp_path: Path) -> None:
    written = random_lines(50, seed=2)
    path = tmp_path / "day.tsv"
    path.write_text("\n".join(written) + "\n")
    workload = load("criteo", path=path, scale=0.25)
    assert workload.features[0].rows == 1024
    seen = 0
    expected = {tuple(log_scale(np.array([parse_line(line)[1]]))[0].tolist()): parse_line(line) for line in written}
    for part in (workload.train, workload.test):
        batch = part.batch(np.arange(len(part)))
        for i in range(len(batch)):
            label, _, categories = expected[tuple(batch.dense[i].tolist())]
            assert batch.labels[i] == label
            for column, value in enumerate(categories):
                bag = batch.features[column]
                ids = bag.ids[bag.offsets[i] : bag.offsets[i + 1]].tolist()
                assert ids == ([] if value < 0 else bucket(np.array([value]), column, 1024).tolist())
                seen += not ids
    assert seen > 0


def test_columns_have_hash_functions_of_their_own() -> None:
    values = np.arange(1000)
    assert (bucket(values, 0, 4096) == bucket(values, 1, 4096)).mean() < 0.02  # 1/4096 expected by chance
    assert len(set(bucket(values, 0, 7).tolist())) == 7


def test_integers_are_scaled_by_declared_constants_alone() -> None:
    assert log_scale(np.array([[-3, 0, 1]])).tolist() == [[0.0, 0.0, np.float32(np.log(2) / 16)]]
    assert log_scale(np.array([[10**10]]))[0, 0] < 1.5


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (line_of(label="2"), "the label must be 0 or 1, got '2'"),
        (line_of(integers="x"), "integer 1 must be an integer, got 'x'"),
        (line_of(integers="99999999999"), r"integer 1 must be in -9999999999\.\.9999999999"),
        (line_of(categories="zz"), "category 1 must be 8 hexadecimal digits or empty, got 'zz'"),
        (line_of()[:-9], "this may be the unlabelled test file"),
        ("", "a line must have 40 columns"),
    ],
)
def test_a_bad_line_is_refused_with_its_place_or_skipped_and_counted(tmp_path: Path, line: str, problem: str) -> None:
    good = random_lines(30, seed=4)
    path = tmp_path / "day.tsv"
    path.write_text("\n".join([*good[:20], line, *good[20:]]) + "\n")
    with pytest.raises(DataError, match=rf"day\.tsv, line 21: .*{problem}"):
        load("criteo", path=path)
    workload = load("criteo", path=path, skip_bad_lines=True)
    assert len(workload.train) + len(workload.test) == 30
    assert workload.skipped == {str(path): 1}


def test_the_line_number_survives_chunks(tmp_path: Path) -> None:
    path = tmp_path / "day.tsv"
    path.write_text("\n".join([*random_lines(200, seed=5), "bad"]) + "\n")
    with pytest.raises(DataError, match=r"line 201: "):
        list(read_chunks(path, LineReader(), chunk_bytes=512))


def test_missing_damaged_and_unsuitable_files_are_plain_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs the path of a Criteo TSV file"):
        load("criteo")
    with pytest.raises(DataError, match="No such file"):
        load("criteo", path=tmp_path / "missing.tsv")
    cut = tmp_path / "cut.tsv.gz"
    cut.write_bytes(gzip.compress(("\n".join(random_lines(30, seed=6)) + "\n").encode())[:-12])
    with pytest.raises(DataError, match=r"cannot read .*cut\.tsv\.gz"):
        load("criteo", path=cut)
    fake = tmp_path / "fake.gz"
    fake.write_bytes(b"not gzip at all")
    with pytest.raises(DataError, match=r"cannot read .*fake\.gz"):
        load("criteo", path=fake)
    few = tmp_path / "few.tsv"
    few.write_text(line_of() + "\n")
    with pytest.raises(DataError, match="both must be at least 1"):
        load("criteo", path=few)
    with pytest.raises(InputError, match=r"at most 2\^31 buckets"):
        load("criteo", path=few, scale=1e9)
