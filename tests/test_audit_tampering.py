"""Folders that somebody has tampered with: each is refuted or refused; none crashes, hangs or fills the memory.

Exit status 1 is "refuted", 3 is "bad input: nothing could be judged". Cases whose name begins with "consistent" are by
a forger who writes every chain and digest anew: most of what they change only a re-execution can see.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the helpers are neighbours, whatever way pytest imports test modules
import audit_runs as runs
from audit_runs import Run
from safetensors.numpy import load_file

from samelaw.contract.ledger import GENESIS, Entry
from samelaw.contract.noise import NoiseKey
from samelaw.contract.schedule import Schedule
from samelaw.contract.spec import PrivacySpec

REFUTED, BAD_INPUT = 1, 3
Tamper = Callable[[Run], Any]


@dataclass(frozen=True)
class Case:
    """One way to tamper.

    Attributes:
        tamper: does it, to a copy of a good run.
        refuted: checks that must be refuted; None for bad input.
        replay: whether the reviewer has key and transcript.
    """

    tamper: Tamper
    refuted: frozenset[str] | None
    replay: bool = False


CASES: dict[str, Case] = {}


def case(*checks: str, replay: bool = False) -> Callable[[Tamper], Tamper]:
    """Register a function as a case, under its own name; without checks it is bad input."""

    def register(tamper: Tamper) -> Tamper:
        CASES[tamper.__name__] = Case(tamper, frozenset(checks) or None, replay)
        return tamper

    return register


def file(run: Run, name: str) -> Path:
    return run.folder / name


# The ledger.


@case("I3", "I4")
def a_step_edited(run: Run) -> None:
    lines = runs.lines(run)
    lines[3] = lines[3].replace('"lr":', '"lr":1')
    runs.write_lines(run, lines)


@case("I3", "I4")
def a_step_edited_and_its_own_hash_with_it(run: Run) -> None:
    entries = run.entries
    entries[3]["data"]["examples"] = 1
    body = [entries[3][k] for k in ("schema", "seq", "prev", "event", "data")]
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    entries[3]["hash"] = hashlib.sha256(text.encode()).hexdigest()
    runs.write_lines(run, [json.dumps(e, sort_keys=True, separators=(",", ":")) for e in entries])


@case("I3", "I4")
def the_last_lines_cut(run: Run) -> None:
    runs.write_lines(run, runs.lines(run)[:-2])


@case()
def the_last_line_torn(run: Run) -> None:
    whole = file(run, "ledger.jsonl").read_bytes()
    file(run, "ledger.jsonl").write_bytes(whole[:-20])


@case("I3", "I4")
def two_lines_swapped(run: Run) -> None:
    lines = runs.lines(run)
    lines[4], lines[5] = lines[5], lines[4]
    runs.write_lines(run, lines)


@case("I3", "I4")
def a_line_twice(run: Run) -> None:
    lines = runs.lines(run)
    runs.write_lines(run, [*lines[:5], lines[4], *lines[5:]])


@case("I3", "I4")
def old_lines_appended_again(run: Run) -> None:
    lines = runs.lines(run)
    runs.write_lines(run, lines + lines[1:4])


@case("I3", "I4")
def a_line_removed(run: Run) -> None:
    lines = runs.lines(run)
    runs.write_lines(run, lines[:4] + lines[5:])


@case("I3", "I4")
def an_unknown_event(run: Run) -> None:
    runs.write_lines(run, [line.replace('"event":"settle"', '"event":"settled"') for line in runs.lines(run)])


@case("I3", "I4")
def an_empty_ledger(run: Run) -> None:
    file(run, "ledger.jsonl").write_bytes(b"")


@case()
def a_ledger_that_is_not_utf8(run: Run) -> None:
    file(run, "ledger.jsonl").write_bytes(b'{"schema": "\xff\xfe"}\n')


@case()
def a_ledger_line_with_a_key_twice(run: Run) -> None:
    lines = runs.lines(run)
    lines[2] = lines[2].replace('"event":', '"event":"step","event":')
    runs.write_lines(run, lines)


@case()
def a_ledger_line_with_a_huge_integer(run: Run) -> None:
    lines = runs.lines(run)
    lines[2] = lines[2].replace('"examples":', '"examples":' + "9" * 4000)
    runs.write_lines(run, lines)


@case()
def a_ledger_with_one_endless_line(run: Run) -> None:
    file(run, "ledger.jsonl").write_bytes(b'{"a": "' + b"x" * (2 << 20) + b'"}\n')


@case("I4", "I6")
def the_ledger_of_another_run(run: Run) -> None:
    weights, manifest = file(run, "weights.safetensors").read_bytes(), run.manifest
    runs.rewrite_ledger(run, [(e, {**d, "examples": 401} if e == "open" else d) for e, d in runs.events(run)])
    file(run, "weights.safetensors").write_bytes(weights)
    runs.write_manifest(run, manifest)


# The weights.


@case("I4")
def one_bit_of_a_weight_flipped(run: Run) -> None:
    data = bytearray(file(run, "weights.safetensors").read_bytes())
    data[-7] ^= 1
    file(run, "weights.safetensors").write_bytes(bytes(data))


@case("I4", "I6")
def the_weights_of_another_step(run: Run) -> None:
    shutil.copy(file(run, "initial_weights.safetensors"), file(run, "weights.safetensors"))


@case("I6")
def weights_that_are_not_finite(run: Run) -> None:
    runs.rewrite_weights(run, lambda t: t["tables.item.weight"].__setitem__((3, 1), np.nan))


@case("I6")
def a_table_with_fewer_rows(run: Run) -> None:
    runs.rewrite_weights(run, lambda t: t.update({"tables.item.weight": t["tables.item.weight"][:-1]}))


@case("I6")
def a_table_more(run: Run) -> None:
    runs.rewrite_weights(run, lambda t: t.update({"tables.spy.weight": t["tables.item.weight"]}))


@case("I6")
def a_tensor_whose_name_is_a_path(run: Run) -> None:
    runs.rewrite_weights(run, lambda t: t.update({"../../../tmp/escaped": t.pop("tables.item.weight")}))


@case("I6")
def weights_that_name_another_ledger_entry(run: Run) -> None:
    runs.rewrite_weights(run, lambda t: None, head="0" * 64)


@case()
def weights_cut_short(run: Run) -> None:
    os.truncate(file(run, "weights.safetensors"), 5000)


@case()
def weights_with_a_tail(run: Run) -> None:
    with file(run, "weights.safetensors").open("ab") as out:
        out.write(b"#!/bin/sh\n")


def _raw(run: Run, header: dict[str, Any] | bytes, data: bytes = b"") -> None:
    file(run, "weights.safetensors").write_bytes(runs.raw_tensors(header, data))


@case()
def a_tensor_of_a_million_million_elements(run: Run) -> None:
    _raw(run, {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}, b"\0" * 64)


@case()
def a_tensor_whose_shape_overflows(run: Run) -> None:
    _raw(run, {"a": {"dtype": "F32", "shape": [2**62, 2**62, 4], "data_offsets": [0, 0]}})


@case()
def tensors_that_overlap(run: Run) -> None:
    one = {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}
    _raw(run, {"a": one, "b": one, "c": {**one, "data_offsets": [32, 96]}}, b"\0" * 96)


@case()
def a_negative_offset(run: Run) -> None:
    _raw(run, {"a": {"dtype": "F32", "shape": [16], "data_offsets": [-64, 0]}}, b"\0" * 64)


@case()
def a_dtype_of_objects(run: Run) -> None:
    _raw(run, {"a": {"dtype": "O", "shape": [8], "data_offsets": [0, 64]}}, b"\0" * 64)


@case()
def a_header_longer_than_the_file(run: Run) -> None:
    file(run, "weights.safetensors").write_bytes((2**63).to_bytes(8, "little") + b"{}")


@case()
def a_header_nested_without_end(run: Run) -> None:
    _raw(run, b"[" * 200_000)


@case()
def a_header_that_names_a_tensor_twice(run: Run) -> None:
    one = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    _raw(run, b'{"a":' + one + b',"a":' + one + b"}", b"\0" * 4)


@case()
def a_pickle_in_place_of_the_weights(run: Run) -> None:
    file(run, "weights.safetensors").write_bytes(_pickle(run))


# The manifest.


def edited(*checks: str) -> Callable[[Callable[[dict[str, Any]], Any]], Any]:
    """A case that edits the manifest."""

    def register(edit: Callable[[dict[str, Any]], Any]) -> Any:
        def tamper(run: Run) -> None:
            runs.edit_manifest(run, edit)

        CASES[edit.__name__] = Case(tamper, frozenset(checks))
        return edit

    return register


@edited("A1")
def a_smaller_epsilon_promised(manifest: dict[str, Any]) -> None:
    statement = manifest["statement"]
    statement.update({name: statement[name] / 2 for name in ("lower", "estimate", "upper")})


@edited("A1")
def an_epsilon_smaller_by_a_thousandth(manifest: dict[str, Any]) -> None:
    statement = manifest["statement"]
    statement.update({name: statement[name] * 0.999 for name in ("lower", "estimate", "upper")})


@edited("A1")
def an_epsilon_at_a_larger_delta(manifest: dict[str, Any]) -> None:
    manifest["statement"]["delta"] = 0.5


@edited("I2")
def an_epsilon_below_zero(manifest: dict[str, Any]) -> None:
    manifest["statement"]["lower"] = -1.0


@edited("A1")
def a_delta_without_the_generators_share(manifest: dict[str, Any]) -> None:
    manifest["statement"]["total_delta"] = manifest["statement"]["delta"]


@edited("I2")
def no_total_delta(manifest: dict[str, Any]) -> None:
    del manifest["statement"]["total_delta"]


@edited("A1")
def a_statement_about_fewer_steps(manifest: dict[str, Any]) -> None:
    manifest["statement"]["mechanism"]["steps"] = 1


@edited("I5")
def another_law_than_the_ledgers(manifest: dict[str, Any]) -> None:
    manifest["law"]["noise_multiplier"] = 4.0


@edited("I5")
def another_key_commitment_than_the_ledgers(manifest: dict[str, Any]) -> None:
    manifest["key"]["commitment"] = "0" * 64


@edited("I4")
def a_file_unbound(manifest: dict[str, Any]) -> None:
    del manifest["files"]["ledger.jsonl"]


@edited("I4")
def a_file_bound_outside_of_the_folder(manifest: dict[str, Any]) -> None:
    manifest["files"]["../../etc/passwd"] = "0" * 64


@edited("I2")
def a_seed_in_the_options(manifest: dict[str, Any]) -> None:
    manifest["options"]["seed"] = 5


@edited("I2")
def a_field_that_no_schema_knows(manifest: dict[str, Any]) -> None:
    manifest["approved"] = True


@edited("I2", "I4", "I5", "A1")
def a_manifest_without_anything(manifest: dict[str, Any]) -> None:
    manifest.clear()


@edited("I2", "I4", "I5", "A1")
def a_manifest_of_wrong_types(manifest: dict[str, Any]) -> None:
    manifest.update({name: [1] for name in manifest})


@case()
def a_manifest_that_is_a_list(run: Run) -> None:
    file(run, "manifest.json").write_text("[]")


@case()
def a_manifest_nested_without_end(run: Run) -> None:
    file(run, "manifest.json").write_text('{"a":' * 100_000)


@case()
def a_manifest_with_a_number_beyond_all_bounds(run: Run) -> None:
    file(run, "manifest.json").write_text('{"a": 1e999}')


@case()
def a_manifest_with_nan(run: Run) -> None:
    file(run, "manifest.json").write_text('{"a": NaN}')


@case()
def a_manifest_that_is_utf16(run: Run) -> None:
    file(run, "manifest.json").write_text("{}", encoding="utf-16")


@case()
def a_manifest_with_a_key_twice(run: Run) -> None:
    file(run, "manifest.json").write_text('{"files": {}, "files": {}}')


# The folder.


def _pickle(run: Run) -> bytes:
    """A pickle that leaves a mark when it is executed."""
    mark = run.folder.parent / "executed"
    return b"cbuiltins\nexec\n(V" + f"open({str(mark)!r},'w')".encode() + b"\ntR."


@case("I1")
def a_pickle_beside_the_weights(run: Run) -> None:
    file(run, "model.pkl").write_bytes(_pickle(run))


@case("I1")
def a_module_that_shadows_an_import(run: Run) -> None:
    file(run, "numpy.py").write_text(f"open({str(run.folder.parent / 'executed')!r}, 'w')")


@case("I1")
def a_checkpoint_left_behind(run: Run) -> None:
    file(run, "checkpoint").mkdir()


@case("I1")
def the_key_in_the_folder(run: Run) -> None:
    shutil.copy(run.key, file(run, "noise.key"))


@case("I1")
def a_name_with_control_characters(run: Run) -> None:
    file(run, "\x1b[31m\nPROVED <script>").touch()


@case()
def weights_that_are_a_link(run: Run) -> None:
    file(run, "weights.safetensors").rename(run.folder.parent / "elsewhere")
    file(run, "weights.safetensors").symlink_to(run.folder.parent / "elsewhere")


@case()
def a_ledger_that_is_a_link_to_itself(run: Run) -> None:
    file(run, "ledger.jsonl").unlink()
    file(run, "ledger.jsonl").symlink_to("ledger.jsonl")


@case()
def a_manifest_that_is_a_pipe(run: Run) -> None:
    file(run, "manifest.json").unlink()
    os.mkfifo(file(run, "manifest.json"))


@case()
def weights_that_are_an_endless_device(run: Run) -> None:
    file(run, "weights.safetensors").unlink()
    file(run, "weights.safetensors").symlink_to("/dev/zero")


@case()
def a_ledger_that_is_a_folder(run: Run) -> None:
    file(run, "ledger.jsonl").unlink()
    file(run, "ledger.jsonl").mkdir()


@case()
def weights_of_a_million_million_bytes(run: Run) -> None:
    os.truncate(file(run, "weights.safetensors"), 10**12)


@case()
def a_ledger_of_a_million_million_bytes(run: Run) -> None:
    os.truncate(file(run, "ledger.jsonl"), 10**12)


@case()
def a_manifest_of_a_hundred_million_bytes(run: Run) -> None:
    os.truncate(file(run, "manifest.json"), 10**8)


@case()
def no_weights(run: Run) -> None:
    file(run, "weights.safetensors").unlink()


# Numbers, names and sizes that a careless reader trips over.


@case()
def an_empty_tensor_of_a_million_million_rows(run: Run) -> None:
    _raw(run, {"a": {"dtype": "F32", "shape": [10**12, 0], "data_offsets": [0, 0]}})


@case()
def a_tensor_of_float64(run: Run) -> None:
    _raw(run, {"a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}, b"\0" * 8)


@case()
def a_manifest_of_one_string_that_never_ends(run: Run) -> None:
    file(run, "manifest.json").write_bytes(b'"' + b'\\"' * 400_000)


@case()
def a_manifest_that_binds_a_hundred_thousand_files(run: Run) -> None:
    runs.edit_manifest(run, lambda m: m.update(files={str(i): i for i in range(10**5)}))


@case("I2", "I4")
def a_manifest_that_binds_three_thousand_files(run: Run) -> None:
    runs.edit_manifest(run, lambda m: m.update(files={str(i): i for i in range(3000)}))


@case()
def infinity_in_the_manifest(run: Run) -> None:
    runs.edit_manifest(run, lambda m: m["statement"].update(upper=float("inf")))


@case()
def two_to_the_63_in_the_manifest(run: Run) -> None:
    runs.edit_manifest(run, lambda m: m["ledger"].update(entries=2**63))


@edited("I2")
def a_manifest_of_a_later_schema(manifest: dict[str, Any]) -> None:
    manifest["schema"] = "samelaw.manifest/2"


@case("I3", "I4")
def a_ledger_of_a_later_schema(run: Run) -> None:
    runs.write_lines(run, [line.replace("samelaw.ledger/1", "samelaw.ledger/2") for line in runs.lines(run)])


@case("I3", "I4")
def a_ledger_whose_lines_are_objects_without_end(run: Run) -> None:
    runs.write_lines(run, [Entry.make(0, GENESIS, "spend", {"x": [[]] * 100_000}).line(), *runs.lines(run)[1:]])


@case("I6")
def a_table_whose_name_only_looks_the_same(run: Run) -> None:
    runs.relaw(run, lambda d: d.update(tables={_alike(name): size for name, size in d["tables"].items()}))


def _alike(name: str) -> str:
    return name.replace("item", "\u0456tem")  # a Cyrillic letter


@case("I6")
def consistent_a_row_wider_than_any_noise_address(run: Run) -> None:
    runs.relaw(run, lambda d: d["tables"].update({"tables.wide": [1, 2**50, None]}))


@case()
def a_folder_that_is_a_link_to_itself(run: Run) -> None:
    shutil.rmtree(run.folder)
    run.folder.symlink_to(run.folder)


@case(replay=True)
def a_key_file_with_a_byte_order_mark(run: Run) -> None:
    text = run.key.read_bytes()
    run.key.write_bytes(b"\xef\xbb\xbf" + text)


# Key and transcript.


@case("K1", replay=True)
def the_key_of_another_run(run: Run) -> None:
    run.key.unlink()
    runs.OTHER_KEY.save(run.key)


@case("K1", replay=True)
def a_key_with_one_bit_flipped(run: Run) -> None:
    raw = bytearray(runs.KEY.to_bytes())
    raw[5] ^= 1
    run.key.unlink()
    NoiseKey.from_bytes(bytes(raw)).save(run.key)


@case(replay=True)
def a_key_file_of_garbage(run: Run) -> None:
    run.key.write_text("not a key")


@case(replay=True)
def a_key_file_that_is_an_endless_device(run: Run) -> None:
    run.key.unlink()
    run.key.symlink_to("/dev/zero")


@case(replay=True)
def one_bit_of_the_transcript_flipped(run: Run) -> None:
    data = bytearray(run.transcript.read_bytes())
    data[len(data) // 2] ^= 1
    run.transcript.write_bytes(bytes(data))


@case(replay=True)
def the_transcript_cut_short(run: Run) -> None:
    os.truncate(run.transcript, run.transcript.stat().st_size // 2)


@case(replay=True)
def a_transcript_frame_that_claims_more_than_there_is(run: Run) -> None:
    run.transcript.write_bytes((100).to_bytes(4, "little") + (2**40).to_bytes(8, "little") + b"{}")


@case(replay=True)
def something_after_the_transcript(run: Run) -> None:
    with run.transcript.open("ab") as out:
        out.write(b"more")


@case("R1", replay=True)
def a_transcript_with_other_sums_and_a_chain_of_its_own(run: Run) -> None:
    _forge_transcript(run, lambda step, sums: sums.__setitem__(0, 0) if step == 5 and sums.size else None)


def _forge_transcript(run: Run, edit: Callable[[int, np.ndarray], Any]) -> str:
    """Edit the item table's sums, and chain the frames anew; returns the hash of the last one."""
    data, place, prev, out = run.transcript.read_bytes(), 0, "0" * 64, b""
    while place < len(data):
        header = int.from_bytes(data[place : place + 4], "little")
        payload = int.from_bytes(data[place + 4 : place + 12], "little")
        record = json.loads(data[place + 12 : place + 12 + header])
        body = bytearray(data[place + 12 + header : place + 12 + header + payload])
        if record["kind"] == "step" and record["tables"] and record["tables"][0][0] == "tables.item":
            _, rows, dim = record["tables"][0]
            sums = np.frombuffer(body, dtype="<i8", count=rows * dim, offset=8 * rows)
            edit(record["step"], sums)
        text = json.dumps({**record, "prev": prev}, sort_keys=True, separators=(",", ":")).encode()
        frame = len(text).to_bytes(4, "little") + payload.to_bytes(8, "little") + text + bytes(body)
        prev = hashlib.sha256(frame).hexdigest()
        out += frame
        place += 12 + header + payload
    run.transcript.write_bytes(out)
    return prev


# A forger who writes every chain and every digest anew.


@case("R3", replay=True)
def consistent_one_weight_nudged(run: Run) -> None:
    def edit(tensors: dict[str, np.ndarray]) -> None:
        table = tensors["tables.item.weight"]
        table[299, 7] = np.nextafter(table[299, 7], np.float32(9), dtype=np.float32)

    runs.rewrite_weights(run, edit)


@case("R4", replay=True)
def consistent_one_dense_weight_nudged(run: Run) -> None:
    def edit(tensors: dict[str, np.ndarray]) -> None:
        name = next(name for name in sorted(tensors) if not name.startswith("tables."))
        tensors[name].flat[0] += np.float32(1e-3)

    runs.rewrite_weights(run, edit)


@case("R3", replay=True)
def consistent_two_rows_swapped(run: Run) -> None:
    def edit(tensors: dict[str, np.ndarray]) -> None:
        table = tensors["tables.item.weight"]
        table[[10, 11]] = table[[11, 10]]

    runs.rewrite_weights(run, edit)


@case("R3", replay=True)
def consistent_other_initial_weights(run: Run) -> None:
    rng = np.random.default_rng(1)
    runs.rewrite_weights(
        run,
        lambda t: t.update({k: rng.normal(size=v.shape).astype(np.float32) for k, v in t.items()}),
        name="initial_weights.safetensors",
    )


@case("R3", replay=True)
def consistent_other_sums(run: Run) -> None:
    head = _forge_transcript(run, lambda step, sums: sums.__setitem__(slice(None), 0))
    runs.edit_manifest(run, lambda m: m["transcript"].update(head=head))


@case("S1", "S2", "S3")
def consistent_rows_put_back_to_their_initial_values(run: Run) -> None:
    start = load_file(file(run, "initial_weights.safetensors"))["tables.item.weight"]
    runs.rewrite_weights(run, lambda t: t["tables.item.weight"].__setitem__(slice(100, 300), start[100:300]))


@case("S2")
def consistent_one_draw_for_two_rows(run: Run) -> None:
    start = load_file(file(run, "initial_weights.safetensors"))["tables.item.weight"]

    def edit(tensors: dict[str, np.ndarray]) -> None:
        table = tensors["tables.item.weight"]
        table[250] = start[250] + (table[251] - start[251])

    runs.rewrite_weights(run, edit)


@case("R2", replay=True)
def consistent_a_smaller_batch_in_the_ledger(run: Run) -> None:
    events = runs.events(run)
    event, data = events[4]
    events[4] = (event, {**data, "examples": data["examples"] - 1})
    runs.rewrite_ledger(run, events)


@case("R1", replay=True)
def consistent_steps_left_out(run: Run) -> None:
    events = runs.events(run)
    runs.rewrite_ledger(run, events[:6] + [(e, {**d, "step": 5}) for e, d in events if e in ("settle", "release")])
    runs.edit_manifest(run, lambda m: m["statement"]["mechanism"].update(steps=5))


@case("I7")
def consistent_no_settlement_in_the_ledger(run: Run) -> None:
    runs.rewrite_ledger(run, [(e, d) for e, d in runs.events(run) if e != "settle"])


@case("I7")
def consistent_a_settlement_of_fewer_rows(run: Run) -> None:
    runs.rewrite_ledger(
        run,
        [(e, {**d, "rows": {**d["rows"], "tables.item": 3}} if e == "settle" else d) for e, d in runs.events(run)],
    )


@case("I3")
def consistent_two_releases(run: Run) -> None:
    events = runs.events(run)
    runs.rewrite_ledger(run, [*events, events[-1]])


@case("I5")
def consistent_a_learning_rate_of_its_own(run: Run) -> None:
    events = runs.events(run)
    event, data = events[3]
    events[3] = (event, {**data, "lr": data["lr"] * 2})
    runs.rewrite_ledger(run, events)


@case("I5", "A1")
def consistent_less_noise_in_one_step(run: Run) -> None:
    events = runs.events(run)
    event, data = events[3]
    events[3] = (event, {**data, "noise_std": data["noise_std"] * 0.9})
    runs.rewrite_ledger(run, events)


@case("A1")
def consistent_batches_from_outside(run: Run) -> None:
    runs.rewrite_ledger(run, [(e, {**d, "sampler": "external"} if e == "step" else d) for e, d in runs.events(run)])


@case("K1")
def consistent_a_key_from_a_small_seed(run: Run) -> None:
    commitment = NoiseKey.from_seed(17).commitment()
    runs.rewrite_ledger(
        run, [(e, {**d, "key_commitment": commitment} if e == "open" else d) for e, d in runs.events(run)]
    )
    runs.edit_manifest(run, lambda m: m["key"].update(commitment=commitment))


@case("I5", "A1")
def consistent_a_law_that_no_run_can_have(run: Run) -> None:
    def changed(data: dict[str, Any]) -> dict[str, Any]:
        law = {**data["law"], "clip_norm": 0.0}
        text = json.dumps(law, sort_keys=True, separators=(",", ":"))
        return {**data, "law": law, "law_digest": hashlib.sha256(text.encode()).hexdigest()}

    runs.rewrite_ledger(run, [(e, changed(d) if e == "open" else d) for e, d in runs.events(run)])
    opened = run.entries[0]["data"]
    runs.edit_manifest(run, lambda m: m.update(law=opened["law"], law_digest=opened["law_digest"]))


@case("A1")
def consistent_a_delta_of_its_own(run: Run) -> None:
    runs.relaw(run, lambda d: d["law"].update(delta=0.01))


@case("A1")
def consistent_noise_of_minus_zero(run: Run) -> None:
    runs.relaw(
        run,
        lambda d: d["law"].update(noise_multiplier=-0.0),
        lambda event, data: {**data, "noise_std": -0.0} if event == "step" else data,
    )


@case("R3", "R4", "S4", replay=True)
def consistent_another_schedule(run: Run) -> None:
    other = Schedule.constant(0.5, steps=runs.STEPS)

    def schedule(header: dict[str, Any], payload: bytes) -> bytes | None:
        if header["kind"] != "open":
            return None
        header.update(name=other.name, steps=other.steps, segments=1)
        return np.array(other.starts, dtype="<i8").tobytes() + np.array(other.rates, dtype="<f8").tobytes()

    runs.relaw(
        run,
        lambda d: d["law"].update(schedule=_with(d["law"], other)),
        lambda event, data: {**data, "lr": 0.5} if event == "step" else data,
    )
    runs.rewrite_transcript(run, schedule)


def _with(law: dict[str, Any], schedule: Schedule) -> dict[str, Any]:
    names = ("clip_norm", "noise_multiplier", "sampling_rate", "expected_batch_size", "delta")
    return PrivacySpec(**{name: law[name] for name in names}, schedule=schedule).to_json()["schedule"]


@case("R2", replay=True)
def consistent_more_examples_than_can_be_drawn(run: Run) -> None:
    runs.relaw(run, lambda d: d.update(examples=2**50))
    runs.rewrite_transcript(run)


@case("R2", replay=True)
def consistent_all_of_more_examples_than_fit_in_memory(run: Run) -> None:
    def everybody(data: dict[str, Any]) -> None:
        data["examples"] = 2**60
        data["law"]["sampling_rate"] = 1.0

    runs.relaw(run, everybody)
    runs.rewrite_transcript(run)


def _item_table(change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]], only: int | None) -> Any:
    """An edit of the rows and sums of the item table, at one step or all."""

    def edit(header: dict[str, Any], payload: bytes) -> bytes | None:
        if header["kind"] != "step" or only not in (None, header["step"]):
            return None
        name, count, dim = header["tables"][0]
        assert name == "tables.item"
        rows = np.frombuffer(payload, "<i8", count)
        sums = np.frombuffer(payload, "<i8", count * dim, 8 * count).reshape(count, dim)
        rows, sums = change(rows, sums)
        header["tables"][0] = [name, rows.size, dim]
        return rows.astype("<i8").tobytes() + sums.astype("<i8").tobytes() + payload[8 * count * (1 + dim) :]

    return edit


@case("R3", replay=True)
def consistent_sums_negated(run: Run) -> None:
    runs.rewrite_transcript(run, _item_table(lambda rows, sums: (rows, -sums), None))


@case("R3", "R5", replay=True)
def consistent_sums_that_no_integer_can_negate(run: Run) -> None:
    runs.rewrite_transcript(run, _item_table(lambda rows, sums: (rows, np.full_like(sums, -(2**63))), None))


@case("R3", replay=True)
def consistent_a_read_dropped_so_that_its_noise_is_dated_otherwise(run: Run) -> None:
    runs.rewrite_transcript(run, _item_table(lambda rows, sums: (rows[1:], sums[1:]), 4))


@case("R3", replay=True)
def consistent_a_read_made_up_without_a_gradient(run: Run) -> None:
    def more(rows: np.ndarray, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert rows[-1] < 299
        return np.append(rows, 299), np.vstack([sums, np.zeros_like(sums[:1])])

    runs.rewrite_transcript(run, _item_table(more, 4))


@case("R3", replay=True)
def consistent_a_table_renamed_everywhere_draws_from_another_number(run: Run) -> None:
    def settled(event: str, data: dict[str, Any]) -> dict[str, Any]:
        renamed = {_alike(name): rows for name, rows in data["rows"].items()} if event == "settle" else None
        return data if renamed is None else {**data, "rows": renamed}

    def frames(header: dict[str, Any], payload: bytes) -> None:
        if header["kind"] == "step":
            header["tables"] = [[_alike(name), rows, dim] for name, rows, dim in header["tables"]]

    runs.relaw(run, lambda d: d.update(tables={_alike(name): size for name, size in d["tables"].items()}), settled)
    for name in ("weights.safetensors", "initial_weights.safetensors"):
        runs.rewrite_weights(
            run, lambda t: t.update({_alike("tables.item.weight"): t.pop("tables.item.weight")}), name=name
        )
    runs.rewrite_transcript(run, frames)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return runs.make_run(tmp_path_factory.mktemp("good"))


def test_there_are_as_many_cases_as_were_promised():
    assert len(CASES) >= 40


def test_a_good_run_passes_what_the_cases_fail(good, tmp_path):
    assert runs.audit(good.copy(tmp_path), replay=True) == 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", CASES)
def test_tampering_is_refuted_or_refused(name, good, tmp_path, capsys):
    told = CASES[name]
    run = good.copy(tmp_path)
    told.tamper(run)
    out = tmp_path / "a.html"
    status = runs.audit(run, "--out", out, replay=told.replay)
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert not (tmp_path / "executed").exists()
    if told.refuted is None:
        assert status == BAD_INPUT
        assert "nothing was concluded" in said.err
        assert not out.exists()
        return
    assert status == REFUTED
    checks = json.loads(out.with_suffix(".record.json").read_text())["checks"]
    assert told.refuted <= {check["check"] for check in checks if check["verdict"] == "REFUTED"}


HUNGRY = [
    "an_empty_tensor_of_a_million_million_rows",
    "a_tensor_of_a_million_million_elements", "a_tensor_whose_shape_overflows", "a_header_longer_than_the_file",
    "weights_of_a_million_million_bytes", "a_ledger_of_a_million_million_bytes",
    "a_transcript_frame_that_claims_more_than_there_is", "a_header_nested_without_end",
    "weights_that_are_an_endless_device",
]  # fmt: skip


@pytest.mark.parametrize("name", HUNGRY)
def test_what_claims_to_be_large_takes_no_memory(name, good, tmp_path):
    run = good.copy(tmp_path)
    CASES[name].tamper(run)
    tracemalloc.start()
    try:
        assert runs.audit(run, replay=CASES[name].replay) == BAD_INPUT
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


# Whatever else somebody may write there.

ODD = [None, True, -1, 0, 1, 2**62, 1e-320, 1e308, -0.5, "", "a" * 64, "replay", [], [1, 2, 3], {}, {"a": {}}]


def _mutate(value: Any, rng: np.random.Generator) -> Any:
    """A JSON value with one place, chosen at random, replaced, removed or doubled."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        copy = value.copy()
        key = list(value)[rng.integers(len(value))] if isinstance(value, dict) else int(rng.integers(len(value)))
        if rng.random() < 0.1:
            del copy[key]
        else:
            copy[key] = _mutate(value[key], rng)
        return copy
    return ODD[rng.integers(len(ODD))]


@pytest.mark.parametrize(
    "seed", [0, 1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_a_ledger_of_any_values_that_is_bound_consistently_never_crashes_the_audit(good, tmp_path, seed):
    rng = np.random.default_rng(seed)
    told = runs.events(good)
    for number in range(10 if seed < 2 else 100):
        place = tmp_path / str(number)
        place.mkdir()
        run = good.copy(place)
        events = list(told)
        chosen = int(rng.choice([0, 0, 0, rng.integers(len(events))]))
        event, data = events[chosen]
        changed = _mutate(data, rng)
        events[chosen] = (event, changed if isinstance(changed, dict) else {})
        if chosen == 0 and isinstance(events[0][1].get("law"), dict) and rng.random() < 0.7:
            text = json.dumps(events[0][1]["law"], sort_keys=True, separators=(",", ":"))
            events[0] = (event, {**events[0][1], "law_digest": hashlib.sha256(text.encode()).hexdigest()})
        runs.rewrite_ledger(run, events)
        opened = events[0][1]
        runs.edit_manifest(run, lambda m, o=opened: m.update(law=o.get("law"), law_digest=o.get("law_digest")))
        assert runs.audit(run, replay=number % 5 == 0) in (0, 1, 2, 3)
        shutil.rmtree(place)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_manifest_of_any_values_never_crashes_the_audit(good, tmp_path, seed):
    rng = np.random.default_rng(seed)
    run = good.copy(tmp_path)
    told = run.manifest
    for _ in range(15 if seed == 0 else 150):
        runs.write_manifest(run, _mutate(_mutate(told, rng), rng))
        assert runs.audit(run) in (0, 1, 2, 3)


@pytest.mark.parametrize(
    "name", ["ledger.jsonl", "weights.safetensors", "initial_weights.safetensors", "manifest.json"]
)
def test_bytes_changed_anywhere_never_crash_the_audit(good, tmp_path, name):
    rng = np.random.default_rng(11)
    run = good.copy(tmp_path)
    whole = file(run, name).read_bytes()
    for _ in range(12):
        start, length = int(rng.integers(len(whole))), int(rng.integers(1, 60))
        change = [bytes(rng.integers(0, 256, length, dtype=np.uint8)), b"", whole[start : start + length] * 2]
        file(run, name).write_bytes(whole[:start] + change[rng.integers(3)] + whole[start + length :])
        assert runs.audit(run) in ((0, 1, 3) if name == "manifest.json" else (1, 3))


@pytest.mark.slow
def test_a_transcript_of_any_bytes_never_crashes_the_audit(good, tmp_path):
    rng = np.random.default_rng(12)
    run = good.copy(tmp_path)
    whole = run.transcript.read_bytes()
    for _ in range(60):
        start, length = int(rng.integers(len(whole))), int(rng.integers(1, 60))
        change = [bytes(rng.integers(0, 256, length, dtype=np.uint8)), b"", whole[start : start + length] * 2]
        run.transcript.write_bytes(whole[:start] + change[rng.integers(3)] + whole[start + length :])
        assert runs.audit(run, replay=True) in (1, 3)
