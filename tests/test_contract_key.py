"""The noise key: secret on disk and on paper, never overwritten, never out of range."""

from __future__ import annotations

import copy
import os
import pickle
import stat

import numpy as np
import pytest

from samelaw.contract.errors import AddressError, InputError, NoiseKeyError
from samelaw.contract.noise import LARGEST_DIM, NoiseKey, NoiseStream, check_address

KEY = NoiseKey.from_bytes(bytes(range(32)))


def forms_of(key: NoiseKey) -> list[str]:
    """Ways in which a key could show: decimal words, hexadecimal words, hexadecimal bytes."""
    return [*(str(w) for w in key.words), *(f"{w:x}" for w in key.words), key.to_bytes().hex()]


def test_words_are_little_endian():
    assert KEY.words[0] == 0x03020100
    assert KEY.to_bytes() == bytes(range(32))
    assert KEY.array().dtype == np.uint32


def test_nothing_that_prints_shows_the_key():
    key = NoiseKey.from_os()
    for text in (repr(key), str(key), f"{key}", repr(NoiseStream(key)), repr({"key": key}), repr([key])):
        assert not any(form in text for form in forms_of(key))
    assert "os" in repr(key)


def test_errors_do_not_show_the_key():
    with pytest.raises(InputError) as caught:
        NoiseKey((1 << 32, 424242424, 3, 4, 5, 6, 7, 8))
    assert "424242424" not in str(caught.value)


def test_the_commitment_is_not_the_key_and_tells_keys_apart():
    assert KEY.commitment() == NoiseKey.from_bytes(bytes(range(32))).commitment()
    assert KEY.commitment() != NoiseKey.from_seed(0).commitment()
    assert not any(form in KEY.commitment() for form in forms_of(KEY))
    assert len(KEY.commitment()) == 64


def test_keys_from_the_operating_system_differ_and_seeds_repeat():
    assert NoiseKey.from_os().words != NoiseKey.from_os().words
    assert NoiseKey.from_seed(3) == NoiseKey.from_seed(3)
    assert NoiseKey.from_seed(3).words != NoiseKey.from_seed(4).words
    assert [k.origin for k in (NoiseKey.from_os(), NoiseKey.from_seed(1), KEY)] == ["os", "seed", "file"]
    with pytest.raises(InputError, match="seed must be >= 0"):
        NoiseKey.from_seed(-1)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_key_file_is_readable_by_its_owner_alone(tmp_path, umask):
    before = os.umask(umask)
    try:
        KEY.save(tmp_path / "noise.key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "noise.key").stat().st_mode) == 0o600
    loaded = NoiseKey.load(tmp_path / "noise.key")
    assert (loaded.words, loaded.origin) == (KEY.words, "file")


def test_a_key_file_is_never_overwritten(tmp_path):
    path = tmp_path / "noise.key"
    KEY.save(path)
    with pytest.raises(NoiseKeyError, match="never overwritten"):
        NoiseKey.from_seed(1).save(path)
    assert NoiseKey.load(path).words == KEY.words
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NoiseKeyError):
        KEY.save(tmp_path / "link")
    assert (tmp_path / "elsewhere").read_text() == "mine"


@pytest.mark.parametrize("text", ["", "abcd", "zz" * 32, "00" * 31, "00" * 33, "é" * 64])
def test_a_damaged_key_file_is_refused_without_showing_it(tmp_path, text):
    (tmp_path / "noise.key").write_text(text, encoding="utf-8")
    with pytest.raises(NoiseKeyError) as caught:
        NoiseKey.load(tmp_path / "noise.key")
    assert not text or text not in str(caught.value)


def test_a_missing_key_file_is_a_key_error(tmp_path):
    with pytest.raises(NoiseKeyError, match="cannot read"):
        NoiseKey.load(tmp_path / "none.key")


def test_keys_survive_copying_within_a_process():
    assert copy.deepcopy(KEY) == KEY
    assert pickle.loads(pickle.dumps(NoiseStream(KEY))) == NoiseStream(KEY)


@pytest.mark.parametrize("words", [(1,) * 7, (1,) * 9, (1 << 32, *(1,) * 7), (-1, *(1,) * 7)])
def test_words_out_of_range_are_refused(words):
    with pytest.raises(InputError, match="eight words"):
        NoiseKey(words)


@pytest.mark.parametrize("rounds", [0, 7, 10, 16, 24])
def test_rounds_are_8_12_or_20(rounds):
    with pytest.raises(InputError, match="rounds"):
        NoiseStream(KEY, rounds)


ADDRESS = {"table": 0, "largest_row": 0, "largest_step": 0, "dim": 1}


@pytest.mark.parametrize(
    ("name", "largest"),
    [("table", (1 << 16) - 1), ("largest_row", (1 << 48) - 1), ("largest_step", (1 << 32) - 1), ("dim", LARGEST_DIM)],
)
def test_addresses_end_where_their_fields_do(name, largest):
    check_address(**(ADDRESS | {name: largest}))
    for wrong in (largest + 1, -1, largest << 8):
        with pytest.raises(AddressError):
            check_address(**(ADDRESS | {name: wrong}))
