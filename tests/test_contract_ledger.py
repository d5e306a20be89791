"""The ledger: what was written is what is read, and nothing can be changed, moved, added or taken out unnoticed."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samelaw.contract.errors import LedgerError, PrivacyError
from samelaw.contract.ledger import GENESIS, Entry, Ledger, read_ledger, spent, verify_lines


def step(number: int, **changes: object) -> dict:
    return {"step": number, "examples": 5, "lr": 0.1, "noise_std": 1.0, "sampler": "keyed-poisson"} | changes


def written(path: Path, *, steps: int = 6) -> list[str]:
    """A whole small run, line by line."""
    ledger = Ledger(path)
    ledger.append("open", {"law": {}, "examples": 10})
    for number in range(steps):
        ledger.append("step", step(number))
    ledger.append("release", {"step": steps})
    ledger.close()
    return path.read_text().splitlines()


def test_entries_come_back_as_they_were_appended(tmp_path):
    lines = written(tmp_path / "ledger.jsonl")
    entries = read_ledger(tmp_path / "ledger.jsonl")
    assert [e.line() for e in entries] == lines
    assert [e.seq for e in entries] == list(range(8))
    assert entries[0].prev == GENESIS
    assert all(a.hash == b.prev for a, b in itertools.pairwise(entries))
    assert len(spent(entries).steps) == 6


def test_an_existing_ledger_is_never_overwritten(tmp_path):
    lines = written(tmp_path / "ledger.jsonl")
    with pytest.raises(LedgerError, match="never overwritten"):
        Ledger(tmp_path / "ledger.jsonl")
    assert (tmp_path / "ledger.jsonl").read_text().splitlines() == lines


def test_unknown_events_are_refused():
    with pytest.raises(LedgerError, match="event must be one of"):
        Ledger().append("refund", {})


# --- tampering --------------------------------------------------------------------------------------------------------


def rehash(line: str, **changes: object) -> str:
    """A forger's line: changed, and with a hash of its own that fits."""
    record = json.loads(line) | changes
    return Entry.make(record["seq"], record["prev"], record["event"], record["data"]).line()


def edit(lines: list[str], i: int) -> list[str]:
    return [*lines[:i], lines[i].replace('"examples":5', '"examples":4'), *lines[i + 1 :]]


def edit_with_fitting_hash(lines: list[str], i: int) -> list[str]:
    return [*lines[:i], rehash(lines[i], data=step(i - 1, examples=4)), *lines[i + 1 :]]


def change_event(lines: list[str], i: int) -> list[str]:
    return [*lines[:i], lines[i].replace('"event":"step"', '"event":"settle"'), *lines[i + 1 :]]


def remove(lines: list[str], i: int) -> list[str]:
    return [*lines[:i], *lines[i + 1 :]]


def swap(lines: list[str], i: int) -> list[str]:
    return [*lines[:i], lines[i + 1], lines[i], *lines[i + 2 :]]


def duplicate(lines: list[str], i: int) -> list[str]:
    return [*lines[: i + 1], lines[i], *lines[i + 1 :]]


def insert(lines: list[str], i: int) -> list[str]:
    record = json.loads(lines[i])
    forged = Entry.make(record["seq"], record["prev"], "step", step(i - 1, examples=9)).line()
    return [*lines[:i], forged, *lines[i:]]


def add_a_field(lines: list[str], i: int) -> list[str]:
    return [*lines[:i], lines[i][:-1] + ',"note":"x"}', *lines[i + 1 :]]


def other_schema(lines: list[str], i: int) -> list[str]:
    return [*lines[:i], lines[i].replace("samelaw.ledger/1", "samelaw.ledger/2"), *lines[i + 1 :]]


def tear(lines: list[str], i: int) -> list[str]:
    return [*lines[:i], lines[i][: len(lines[i]) // 2], *lines[i + 1 :]]


def blank(lines: list[str], i: int) -> list[str]:
    return [*lines[:i], "", *lines[i:]]


def head_cut(lines: list[str], i: int) -> list[str]:
    return lines[i:]


TAMPERING = [
    edit,
    edit_with_fitting_hash,
    change_event,
    remove,
    swap,
    duplicate,
    insert,
    add_a_field,
    other_schema,
    tear,
    blank,
    head_cut,
]


@pytest.mark.parametrize("tamper", TAMPERING, ids=[t.__name__ for t in TAMPERING])
@pytest.mark.parametrize("place", [1, 3, 5])
def test_tampering_is_noticed_and_the_place_is_named(tamper, place, tmp_path):
    lines = tamper(written(tmp_path / "ledger.jsonl"), place)
    path = tmp_path / "forged.jsonl"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(LedgerError, match=r"forged\.jsonl, line \d+"):
        read_ledger(path)
    with pytest.raises(LedgerError):
        Ledger.reopen(path)
    assert path.read_text().splitlines() == lines, "a ledger that does not verify must not be changed"


@given(position=st.integers(0, 10_000), replacement=st.integers(32, 126))
@settings(max_examples=200, deadline=None)
def test_no_single_character_can_be_changed(position, replacement):
    ledger = Ledger()
    ledger.append("open", {"examples": 10, "rate": 0.25})
    ledger.append("step", step(0))
    ledger.append("release", {"step": 1})
    text = "".join(entry.line() + "\n" for entry in ledger.entries)
    position %= len(text)
    changed = text[:position] + chr(replacement) + text[position + 1 :]
    if changed == text or (position == len(text) - 1 and chr(replacement) == " "):
        return  # a space in place of the last newline changes no entry
    with pytest.raises(LedgerError):
        list(verify_lines(changed, where="text"))


def test_a_cut_tail_verifies_but_its_head_is_another(tmp_path):
    """Whoever drops whole last lines leaves a valid chain: that is why a manifest records the head."""
    lines = written(tmp_path / "ledger.jsonl")
    entries = list(verify_lines("\n".join(lines[:-1]), where="cut"))
    assert entries[-1].hash != json.loads(lines[-1])["hash"]


@pytest.mark.parametrize("text", ["[]\n", "null\n", "3\n", "{}\n", "{\n", '"text"\n'])
def test_lines_that_are_no_entries_are_refused(text):
    with pytest.raises(LedgerError, match="line 1"):
        list(verify_lines(text, where="text"))


def test_a_missing_or_binary_file_is_a_ledger_error(tmp_path):
    with pytest.raises(LedgerError, match="cannot read"):
        read_ledger(tmp_path / "nothing.jsonl")
    with pytest.raises(LedgerError, match="cannot read"):
        Ledger.reopen(tmp_path / "nothing.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00\n")
    with pytest.raises(LedgerError, match="cannot read"):
        read_ledger(tmp_path / "binary.jsonl")
    with pytest.raises(LedgerError, match="cannot read"):
        Ledger.reopen(tmp_path / "binary.jsonl")


@pytest.mark.parametrize("content", [b"", b'{"mine": 1}', b"\xff\xfe\x00", b'{"schema":"samelaw.led'])
def test_a_file_without_a_whole_entry_is_neither_resumed_nor_emptied(content, tmp_path):
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="no whole ledger entry"):
        Ledger.reopen(path)
    assert path.read_bytes() == content


def test_numbers_that_json_cannot_hold_are_not_written(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(ValueError, match="JSON compliant"):
        ledger.append("step", step(0, lr=float("nan")))
    assert ledger.entries == []
    assert (tmp_path / "ledger.jsonl").read_text() == ""


# --- crashes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_a_torn_last_line_is_dropped_and_the_run_goes_on(kept, tmp_path):
    path = tmp_path / "ledger.jsonl"
    lines = written(path)
    whole = "\n".join(lines[:-1]) + "\n"
    path.write_text(whole + lines[-1][:kept])
    ledger = Ledger.reopen(path)
    assert len(ledger.entries) == 7
    ledger.append("release", {"step": 6})
    ledger.close()
    assert path.read_text().splitlines() == lines


def test_reopening_a_whole_ledger_goes_on_where_it_ended(tmp_path):
    path = tmp_path / "ledger.jsonl"
    lines = written(path)
    ledger = Ledger.reopen(path)
    entry = ledger.append("resume", {"step": 6})
    ledger.close()
    assert entry.seq == 8
    assert entry.prev == json.loads(lines[-1])["hash"]
    assert len(read_ledger(path)) == 9


def test_a_killed_process_loses_no_entry(tmp_path):
    path = tmp_path / "ledger.jsonl"
    program = (
        "import os, signal, sys\n"
        "from samelaw.contract.ledger import Ledger\n"
        "ledger = Ledger(sys.argv[1])\n"
        "ledger.append('open', {})\n"
        "for i in range(50): ledger.append('step', {'step': i})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert len(read_ledger(path)) == 51


# --- what was spent ---------------------------------------------------------------------------------------------------


def ledger_of(*events: tuple[str, dict]) -> list[Entry]:
    ledger = Ledger()
    for event, data in events:
        ledger.append(event, data)
    return ledger.entries


OPEN = ("open", {"examples": 10})


def test_a_step_run_again_after_a_resume_counts_once():
    entries = ledger_of(
        OPEN, ("step", step(0)), ("step", step(1)), ("step", step(2)), ("resume", {"step": 1}), ("step", step(1)),
        ("step", step(2)), ("step", step(3)), ("release", {"step": 4}),
    )  # fmt: skip
    found = spent(entries)
    assert found.steps == [step(i) for i in range(4)]
    assert (found.resumes, found.releases) == (1, [{"step": 4}])


@pytest.mark.parametrize(
    "change", [{"examples": 6}, {"lr": 0.2}, {"noise_std": 2.0}, {"sampler": "external"}, {"digest": "x"}]
)
def test_a_step_run_again_differently_is_an_error(change):
    entries = ledger_of(OPEN, ("step", step(0)), ("resume", {"step": 0}), ("step", step(0, **change)))
    with pytest.raises(LedgerError, match="again, and differently"):
        spent(entries)


@pytest.mark.parametrize(
    "events",
    [
        [],
        [("step", step(0))],
        [OPEN, OPEN],
        [OPEN, ("step", step(1))],
        [OPEN, ("step", step(0)), ("step", step(0))],
        [OPEN, ("step", step(0)), ("step", step(2))],
        [OPEN, ("resume", {"step": 1})],
        [OPEN, ("step", step(0)), ("resume", {"step": -1})],
        [OPEN, ("release", {"step": 1})],
        [OPEN, ("step", step(0)), ("step", step(1)), ("resume", {"step": 1}), ("release", {"step": 1})],
    ],
)
def test_a_ledger_that_tells_no_possible_run_is_refused(events):
    with pytest.raises(LedgerError):
        spent(ledger_of(*events))


def test_ledger_errors_are_privacy_errors():
    assert issubclass(LedgerError, PrivacyError)
