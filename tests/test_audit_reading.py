"""Reading what somebody else wrote: strict JSON, bounded files, safetensors, transcripts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from samelaw.audit.tensors import TensorFile
from samelaw.contract.errors import InputError, UntrustedFileError
from samelaw.contract.run import StepRecord
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import PrivacySpec
from samelaw.contract.transcript import TranscriptReader, TranscriptWriter
from samelaw.contract.untrusted import BoundedFile, strict_json, whole_lines

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip
OPENED = {"law": {}, "key_commitment": "a", "key_origin": "os"}


@settings(max_examples=25, deadline=None)
@given(value=VALUES)
def test_strict_json_reads_what_json_writes(value):
    assert strict_json(json.dumps(value).encode(), where="here") == value
    assert strict_json(json.dumps(value, ensure_ascii=False).encode(), where="here") == value


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"{} {}", b"NaN", b"[Infinity]", b"[1e999]", b'{"a":1,"a":1}', b'{"a":{"b":1,"b":2}}', b"\xff",
        b"[9223372036854775808]", b"[" + b"9" * 5000 + b"]", b"[" * 33 + b"]" * 33, b"[" * 100_000,
        b'["]]]]]]]]", ' + b"[" * 40 + b"]" * 40 + b"]", "{}".encode("utf-16"), b"'a'", b"[1,]",
    ],
)  # fmt: skip
def test_strict_json_refuses_everything_else_in_plain_words(text):
    with pytest.raises(UntrustedFileError, match="here"):
        strict_json(text, where="here")


def test_brackets_inside_of_strings_are_no_nesting():
    assert strict_json(b'["' + b"[" * 1000 + b'\\"["]', where="here") == ["[" * 1000 + '"[']


def test_a_bounded_file_is_a_plain_file_within_its_bound(tmp_path):
    plain, link, pipe = tmp_path / "plain", tmp_path / "link", tmp_path / "pipe"
    plain.write_bytes(b"0123456789")
    link.symlink_to(plain)
    os.mkfifo(pipe)
    for path, most in ((link, 100), (pipe, 100), (tmp_path, 100), (tmp_path / "none", 100), (plain, 9)):
        with pytest.raises(UntrustedFileError):
            BoundedFile(path, most_bytes=most)
    with BoundedFile(plain, most_bytes=10) as file:
        assert file.read(2, 3) == b"234"
        for start, count in ((8, 3), (-1, 2), (0, -1), (11, 0)):
            with pytest.raises(UntrustedFileError):
                file.read(start, count)
        file.check_unchanged()
        plain.write_bytes(b"01234")
        with pytest.raises(UntrustedFileError):
            file.read(0, 10)
        with pytest.raises(UntrustedFileError):
            file.check_unchanged()


def test_lines_are_whole_and_bounded():
    assert list(whole_lines(b"a\n\nb\n", where="here", longest=2)) == [b"a", b"", b"b"]
    for data in (b"a\nb", b"abc\n"):
        with pytest.raises(UntrustedFileError):
            list(whole_lines(data, where="here", longest=2))


def test_tensors_are_read_as_they_were_written_whole_and_by_row(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {"t": rng.normal(size=(50, 3)).astype(np.float32), "d": rng.normal(size=5).astype(np.float32)}
    save_file(tensors, tmp_path / "w", metadata={"step": "3"})
    with BoundedFile(tmp_path / "w", most_bytes=1 << 20) as file:
        read = TensorFile(file)
        assert read.metadata == {"step": "3"}
        assert all((read.whole(name) == value).all() for name, value in tensors.items())
        assert (read.rows("t", 7, 9) == tensors["t"][7:9]).all()
        for rows in ([], [0], [3, 4, 5, 9, 49], list(range(50))):
            chosen = np.array(rows, dtype=np.int64)
            assert (read.take("t", chosen) == tensors["t"][chosen]).all()


def spec(steps: int = 3) -> PrivacySpec:
    return PrivacySpec(1.0, 1.0, 0.5, 4.0, 1e-5, Schedule.piecewise([1], [1.0, 0.5], steps=steps))


def step(number: int, *, rows: tuple[int, ...] = (1, 4)) -> StepRecord:
    ids = np.array(rows, dtype=np.int64)
    sums = np.arange(2 * ids.size, dtype=np.int64).reshape(-1, 2) - number
    return StepRecord(number, 2, {"t": ids}, {}, {"t": sums}, {"d": np.full((2, 2), number, np.float32)}, None)


def write(path: Path, steps: int = 3) -> TranscriptWriter:
    writer = TranscriptWriter(path, spec(), OPENED)
    for number in range(steps):
        writer.step(step(number), f"entry {number}")
    return writer


def test_a_transcript_is_read_as_it_was_written(tmp_path):
    writer = write(tmp_path / "t")
    writer.close("release")
    assert (tmp_path / "t").stat().st_mode & 0o077 == 0
    with TranscriptReader(tmp_path / "t") as reader:
        found = list(reader.steps())
        assert reader.schedule == spec().schedule
        assert (reader.opened, reader.release) == (OPENED, "release")
        assert (reader.head, reader.frames) == (writer.head, writer.frames)
    for number, record in enumerate(found):
        assert (record.step, record.examples, record.entry) == (number, 2, f"entry {number}")
        assert (record.rows["t"] == [1, 4]).all()
        assert (record.sums["t"] == step(number).sums["t"]).all()
        assert (record.dense_sum["d"] == number).all()


def test_two_transcripts_of_the_same_steps_have_different_heads(tmp_path):
    """The head is public: without a salt it would confirm a guess about the data."""
    assert write(tmp_path / "a").head != write(tmp_path / "b").head


def test_a_transcript_goes_on_where_the_run_does(tmp_path):
    write(tmp_path / "t").sync()
    writer = TranscriptWriter.reopen(tmp_path / "t", OPENED, step=1)
    for number in (1, 2):
        writer.step(step(number), f"again {number}")
    writer.close("release")
    with TranscriptReader(tmp_path / "t") as reader:
        assert [record.entry for record in reader.steps()] == ["entry 0", "again 1", "again 2"]
    with pytest.raises(InputError, match="another run"):
        TranscriptWriter.reopen(tmp_path / "t", {**OPENED, "key_commitment": "b"}, step=1)
    with pytest.raises(InputError, match="ends before step 4"):
        TranscriptWriter.reopen(tmp_path / "t", OPENED, step=4)
    with pytest.raises(InputError, match="exists"):
        TranscriptWriter(tmp_path / "t", spec(), OPENED)


def test_a_flipped_bit_anywhere_in_a_transcript_is_seen(tmp_path):
    """In the last frame too, whose hash only the manifest holds: there the head differs."""
    writer = write(tmp_path / "t")
    writer.close("release")
    whole = (tmp_path / "t").read_bytes()
    for place in range(0, len(whole), 53):
        changed = bytearray(whole)
        changed[place] ^= 1 << (place % 8)
        (tmp_path / "t").write_bytes(bytes(changed))
        try:
            with TranscriptReader(tmp_path / "t") as reader:
                list(reader.steps())
                assert reader.head != writer.head
        except InputError:
            continue


@pytest.mark.parametrize("rows", [(4, 1), (1, 1), (-1, 3)])
def test_rows_of_a_transcript_ascend(tmp_path, rows):
    writer = TranscriptWriter(tmp_path / "t", spec(), OPENED)
    writer.step(step(0, rows=rows), "entry")
    writer.close("release")
    with TranscriptReader(tmp_path / "t") as reader, pytest.raises(UntrustedFileError, match="ascending"):
        list(reader.steps())


@pytest.mark.timeout(20)
@pytest.mark.parametrize("ending", [b"", b'"x', b"\\"])
def test_a_text_of_quotes_that_never_end_takes_time_in_proportion_to_its_length(ending):
    with pytest.raises(UntrustedFileError):
        strict_json(b'"' + b'\\"' * 500_000 + b"[" + ending, where="x")


def test_brackets_inside_strings_are_not_nesting():
    assert strict_json(b'["' + b"[" * 100 + b'\\"' + b"{" * 100 + b'"]', where="x") == ["[" * 100 + '"' + "{" * 100]


def test_a_file_whose_time_of_writing_was_set_back_is_seen_to_have_changed(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    times = path.stat()
    with BoundedFile(path, most_bytes=10) as file:
        path.write_bytes(b"two")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(UntrustedFileError, match="changed while it was read"):
            file.check_unchanged()
