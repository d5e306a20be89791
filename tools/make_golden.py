"""Write equivalence/golden/noise.json from the NumPy definition of the noise, or check that it is up to date.

    python tools/make_golden.py            rewrite the file
    python tools/make_golden.py --check    exit 1 when the file differs from what would be written

Every vector names the bug that it hunts: `bug` is the name of a broken implementation in tests/test_noise_golden.py,
and the test suite checks that exactly that implementation fails the vector.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from samelaw.contract.noise import NORMALS_PER_BLOCK, NoiseKey, NoiseStream, Purpose
from samelaw.reference import noise

GOLDEN = Path(__file__).resolve().parents[1] / "equivalence" / "golden" / "noise.json"

ZERO_KEY = bytes(32)
ONES_KEY = b"\xff" * 32
COUNTING_KEY = bytes(range(32))
ORDINARY_KEY = bytes.fromhex("8f0e3d61a95bc7f2d41b7e9034c6a8ff5a1207bd9e63f4c8805d2ae17396cb4e")

# What each broken implementation of tests/test_noise_golden.py gets wrong.
BUGS = {
    "always-12-rounds": "`rounds` ignored",
    "always-20-rounds": "`rounds` ignored",
    "angle-off-by-half": "the angle grid not centred: 2097152 in place of 2097151.5",
    "angle-unsigned": "the angle taken as a positive number",
    "approximate-sqrt": "a square root that is not correctly rounded",
    "big-endian-words": "words of the key or of the output read in the wrong byte order",
    "counter-64": "a 64-bit counter and a 64-bit nonce that lose the last word of the field",
    "double-rounds": "`rounds` counted as double rounds",
    "double-sum": "u + 1/2 kept in float64 instead of rounded to float32",
    "fused": "a fused multiply-add in a polynomial or a sum",
    "interleaved": "a pair's normals put side by side instead of at j and j + 8",
    "libm-angle": "library sine and cosine in place of the polynomials",
    "libm-log": "a library logarithm in place of the polynomial",
    "no-diagonal-rounds": "column rounds alone, the diagonal rounds forgotten",
    "no-feed-forward": "the start state not added after the last round",
    "no-half": "u used without the 1/2: the logarithm of zero",
    "no-purpose": "the purpose left out of the address",
    "no-swap": "bit 30 ignored",
    "positive-zero": "a radius of -0 turned into +0",
    "radius-24-bits": "the low bytes of both words left out of the radius: the tail ends sooner",
    "radius-32-bits": "the low byte of b left out of the radius: the tail ends sooner",
    "range-1-to-2": "mantissas split at 1 instead of sqrt(1/2)",
    "rotate-right": "rotations to the right",
    "round-half-up": "u + 1/2 exactly between two floats, the even one below",
    "row-32-bits": "the high 16 bits of the row dropped",
    "row-signed": "the low 32 bits of the row sign-extended into the high ones",
    "rows-by-blocks": "blocks of all rows numbered through, so that a short block shifts the next row",
    "same-block": "the block number left at 0: each 16 dimensions repeat",
    "short-block-halved": "pairs laid out over the dimensions that are left of the last block",
    "sign-on-sine": "the sign bit put on the sine",
    "step-31-bits": "the top bit of the step dropped",
    "step-float32": "the step carried through a float32",
    "swap-and-sign-exchanged": "bits 30 and 31 taken for one another",
    "table-8-bits": "the high byte of the table number dropped",
    "table-low": "the table in the low half of its word, where the row's high bits are",
    "truncate-sum": "u + 1/2 truncated to float32 instead of rounded",
    "uniform-halves-swapped": "low and high word exchanged",
    "uniform-one-a-block": "one number a block instead of eight",
    "uniform-one-row": "blocks of one row in place of rows of one block",
    "words-paired-next": "words 2j and 2j + 1 paired instead of j and j + 8",
}

# name, rounds, key, counter field, words as the publication prints them (a byte string), source, bug
PUBLISHED = (
    (
        "rfc8439-2.3.2", 20, COUNTING_KEY, "00000001 09000000 4a000000 00000000",
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e",
        "RFC 8439, section 2.3.2", "big-endian-words",
    ),
    (
        "rfc8439-a1-1", 20, ZERO_KEY, "00000000 00000000 00000000 00000000",
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586",
        "RFC 8439, appendix A.1, vector 1", "no-diagonal-rounds",
    ),
    (
        "rfc8439-a1-2", 20, ZERO_KEY, "00000001 00000000 00000000 00000000",
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f",
        "RFC 8439, appendix A.1, vector 2", "no-feed-forward",
    ),
    (
        "rfc8439-a1-3", 20, bytes(31) + b"\x01", "00000001 00000000 00000000 00000000",
        "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"
        "8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0",
        "RFC 8439, appendix A.1, vector 3", "big-endian-words",
    ),
    (
        "rfc8439-a1-4", 20, b"\x00\xff" + bytes(30), "00000002 00000000 00000000 00000000",
        "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca"
        "13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096",
        "RFC 8439, appendix A.1, vector 4", "rotate-right",
    ),
    (
        "rfc8439-a1-5", 20, ZERO_KEY, "00000000 00000000 00000000 02000000",
        "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c7"
        "8a970e0e955c14f3a88e741b97c286f75f8fc299e8148362fa198a39531bed6d",
        "RFC 8439, appendix A.1, vector 5", "counter-64",
    ),
    (
        "strombergson-tc1-8", 8, ZERO_KEY, "00000000 00000000 00000000 00000000",
        "3e00ef2f895f40d67f5bb8e81f09a5a12c840ec3ce9a7f3b181be188ef711a1e"
        "984ce172b9216f419f445367456d5619314a42a3da86b001387bfdb80e0cfe42",
        "draft-strombergson-chacha-test-vectors-01, TC1, 256-bit key, 8 rounds", "double-rounds",
    ),
    (
        "strombergson-tc1-12", 12, ZERO_KEY, "00000000 00000000 00000000 00000000",
        "9bf49a6a0755f953811fce125f2683d50429c3bb49e074147e0089a52eae155f"
        "0564f879d27ae3c02ce82834acfa8c793a629f2ca0de6919610be82f411326be",
        "draft-strombergson-chacha-test-vectors-01, TC1, 256-bit key, 12 rounds", "always-20-rounds",
    ),
)  # fmt: skip

LARGEST_FIELD = (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
ORDINARY_FIELD = (0x000003E8, 0x075BCD15, 0x00030000, 0x01000002)

# name, rounds, key, counter field, bug
BLOCKS = (
    ("all-ones-8", 8, ONES_KEY, LARGEST_FIELD, "double-rounds"),
    ("all-ones-12", 12, ONES_KEY, LARGEST_FIELD, "always-20-rounds"),
    ("all-ones-20", 20, ONES_KEY, LARGEST_FIELD, "always-12-rounds"),
    ("ordinary-8", 8, ORDINARY_KEY, ORDINARY_FIELD, "double-rounds"),
    ("ordinary-12", 12, ORDINARY_KEY, ORDINARY_FIELD, "always-20-rounds"),
    ("ordinary-20", 20, ORDINARY_KEY, ORDINARY_FIELD, "always-12-rounds"),
)

# name, a, b, bug
TRANSFORMS = (
    ("all-zero", 0x00000000, 0x00000000, "no-half"),
    ("all-ones", 0xFFFFFFFF, 0xFFFFFFFF, "positive-zero"),
    ("quadrant-0", 0x12345678, 0x0ABCDEF1, "angle-off-by-half"),
    ("quadrant-1", 0x12345678, 0x4ABCDEF1, "swap-and-sign-exchanged"),
    ("quadrant-2", 0x12345678, 0x8ABCDEF1, "sign-on-sine"),
    ("quadrant-3", 0x12345678, 0xCABCDEF1, "no-swap"),
    ("low-byte-of-b", 0x00000001, 0x000000A7, "radius-32-bits"),
    ("low-byte-of-a", 0x000000FF, 0x00000000, "radius-24-bits"),
    ("tie-down", 0x0000C0F3, 0x36F675A6, "round-half-up"),
    ("tie-up", 0x00009E57, 0xB27159A1, "truncate-sum"),
    ("long-sum", 0xB394FB36, 0x4F426DCB, "double-sum"),
    ("range-bottom", 0x002D413C, 0x13D531C0, "libm-log"),
    ("range-top", 0x0016A09E, 0xC6B0F840, "fused"),
    ("large-mantissa", 0x1F123456, 0x1DF9FD78, "range-1-to-2"),
    ("angle-first", 0x2468ACE0, 0x00000013, "angle-off-by-half"),
    ("angle-last", 0x2468ACE0, 0x3FFFFF13, "angle-off-by-half"),
    ("angle-below-zero", 0x2468ACE0, 0x1FFFFF13, "angle-unsigned"),
    ("angle-above-zero", 0x2468ACE0, 0x20000013, "angle-off-by-half"),
    ("ordinary-1", 0x62C33A4F, 0xE3151288, "libm-log"),
    ("ordinary-2", 0xC2B2AE35, 0x85EBCA6B, "libm-angle"),
    ("ordinary-3", 0xD269A9A5, 0x72158370, "fused"),
    ("ordinary-4", 0x2B0537E6, 0x9C653938, "approximate-sqrt"),
)

# Rows found by search whose block (REPLAY, table 0, step 0, counting key, 12 rounds) holds a rare pair of words, and
# the bug that only such a pair shows.
RARE = (
    ("rare-radius-zero", 1547037, "positive-zero"),  # pair 1: u + 1/2 rounds to 2^40, a radius of exactly -0
    ("rare-far-tail", 479058187, "radius-32-bits"),  # pair 5: u = 4, a radius of 7.24
    ("rare-tie-up", 16258, "truncate-sum"),  # pair 0: u + 1/2 between two floats
    ("rare-tie-down", 1718581, "round-half-up"),  # pair 5: u + 1/2 between two floats
    ("rare-angle-first", 101604, "angle-off-by-half"),  # pair 5: the first angle of the grid
    ("rare-angle-last", 533774, "angle-off-by-half"),  # pair 4: the last angle of the grid
    ("rare-angle-below-zero", 794058, "angle-unsigned"),  # pair 3: the last angle below zero
    ("rare-angle-above-zero", 273167, "angle-off-by-half"),  # pair 1: the first angle above zero
    ("rare-range-bottom", 510360, "range-1-to-2"),  # pair 5: the lowest mantissa of the logarithm's range
    ("rare-range-top", 60097, "range-1-to-2"),  # pair 4: the highest mantissa of the logarithm's range
    ("rare-power-of-two", 1118380, "double-sum"),  # pair 5: u + 1/2 rounds to a power of two
)

# name, key, rounds, purpose, table, row, step, dim, bug
_FIRST = (Purpose.REPLAY, 0, 0, 0, 16)
_LAST = (Purpose.INITIALISATION, 2**16 - 1, 2**48 - 1, 2**32 - 1, 16)
_ORDINARY = (Purpose.REPLAY, 3, 123_456_789, 1000, 64)
NORMALS = (
    ("zero-address-8", ZERO_KEY, 8, *_FIRST, "always-12-rounds"),
    ("zero-address-12", ZERO_KEY, 12, *_FIRST, "always-20-rounds"),
    ("zero-address-20", ZERO_KEY, 20, *_FIRST, "always-12-rounds"),
    ("largest-address-8", ONES_KEY, 8, *_LAST, "row-32-bits"),
    ("largest-address-12", ONES_KEY, 12, *_LAST, "step-31-bits"),
    ("largest-address-20", ONES_KEY, 20, *_LAST, "table-8-bits"),
    ("ordinary-8", ORDINARY_KEY, 8, *_ORDINARY, "words-paired-next"),
    ("ordinary-12", ORDINARY_KEY, 12, *_ORDINARY, "interleaved"),
    ("ordinary-20", ORDINARY_KEY, 20, *_ORDINARY, "same-block"),
    ("dim-1", ORDINARY_KEY, 12, Purpose.REPLAY, 3, 28, 7, 1, "fused"),
    ("dim-7", ORDINARY_KEY, 12, Purpose.REPLAY, 3, 5, 7, 7, "short-block-halved"),
    ("dim-9", ORDINARY_KEY, 12, Purpose.REPLAY, 3, 5, 7, 9, "short-block-halved"),
    ("dim-15", ORDINARY_KEY, 12, Purpose.REPLAY, 3, 5, 7, 15, "double-sum"),
    ("dim-17", ORDINARY_KEY, 12, Purpose.REPLAY, 3, 5, 7, 17, "same-block"),
    ("dim-25", ORDINARY_KEY, 12, Purpose.BRIDGE, 3, 5, 7, 25, "short-block-halved"),
    ("dim-100", ORDINARY_KEY, 12, Purpose.AGGREGATE, 3, 5, 7, 100, "same-block"),
    ("dim-100-next-row", ORDINARY_KEY, 12, Purpose.AGGREGATE, 3, 6, 7, 100, "rows-by-blocks"),
    *((f"purpose-{purpose.name.lower()}", COUNTING_KEY, 12, purpose, 1, 2, 3, 4, "no-purpose") for purpose in Purpose),
    ("row-2-32-less-1", COUNTING_KEY, 12, Purpose.REPLAY, 1, 2**32 - 1, 3, 8, "row-signed"),
    ("row-2-32", COUNTING_KEY, 12, Purpose.REPLAY, 1, 2**32, 3, 8, "row-32-bits"),
    ("row-2-47", COUNTING_KEY, 12, Purpose.REPLAY, 0, 2**47, 3, 8, "row-32-bits"),
    ("row-2-32-plus-7", COUNTING_KEY, 12, Purpose.REPLAY, 0, 2**32 + 7, 3, 8, "table-low"),
    ("table-1", COUNTING_KEY, 12, Purpose.REPLAY, 1, 7, 3, 8, "table-low"),
    ("table-256", COUNTING_KEY, 12, Purpose.REPLAY, 256, 7, 3, 8, "table-8-bits"),
    ("table-32768", COUNTING_KEY, 12, Purpose.REPLAY, 32768, 2**32 + 7, 3, 8, "table-8-bits"),
    ("step-2-31-less-1", COUNTING_KEY, 12, Purpose.REPLAY, 1, 7, 2**31 - 1, 8, "step-float32"),
    ("step-2-31", COUNTING_KEY, 12, Purpose.REPLAY, 1, 7, 2**31, 8, "step-31-bits"),
    ("step-2-32-less-1", COUNTING_KEY, 12, Purpose.REPLAY, 1, 7, 2**32 - 1, 8, "step-31-bits"),
    ("dense", COUNTING_KEY, 12, Purpose.DENSE, 2, 0, 41, 37, "same-block"),
    *((name, COUNTING_KEY, 12, Purpose.REPLAY, 0, row, 0, 16, bug) for name, row, bug in RARE),
)

# name, key, rounds, table, step, count, bug
UNIFORMS = (
    ("sampling-first", ORDINARY_KEY, 12, 0, 0, 8, "uniform-halves-swapped"),
    ("sampling-short", ORDINARY_KEY, 12, 0, 1, 3, "uniform-one-a-block"),
    ("sampling-long", ORDINARY_KEY, 12, 0, 2**32 - 1, 20, "uniform-one-row"),
)


def build() -> dict[str, Any]:
    """The golden document."""
    return {
        "schema": "samelaw.noise_vectors/1",
        "about": "Written by tools/make_golden.py from samelaw.reference.noise; docs/noise.md is the specification.",
        "blocks": [_published(*entry) for entry in PUBLISHED] + [_block(*entry) for entry in BLOCKS],
        "transforms": [_transform(*entry) for entry in TRANSFORMS],
        "normals": [_normals(*entry) for entry in NORMALS],
        "uniforms": [_uniforms(*entry) for entry in UNIFORMS],
    }


def text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1) + "\n"


def _published(
    name: str, rounds: int, key: bytes, counter: str, published: str, source: str, bug: str
) -> dict[str, Any]:
    """A vector whose words come from a publication, not from this project; the two must agree to be written."""
    field = tuple(int(word, 16) for word in counter.split())
    record = _block(name, rounds, key, field, bug, source=source)
    words = _hex(np.frombuffer(bytes.fromhex(published), dtype="<u4"))
    if record["words"] != words:
        raise SystemExit(f"{name}: the reference gives {record['words']}, {source} says {words}")
    return record


def _block(
    name: str, rounds: int, key: bytes, field: tuple[int, ...], bug: str, *, source: str = "samelaw.reference"
) -> dict[str, Any]:
    counter = np.array(field, dtype=np.uint32)
    words = noise.chacha_block(NoiseKey.from_bytes(key).array(), counter, rounds=rounds)
    return {
        **_head(name, bug),
        "source": source,
        "rounds": rounds,
        "key": key.hex(),
        "counter": _hex(counter),
        "words": _hex(words),
    }


def _transform(name: str, a: int, b: int, bug: str) -> dict[str, Any]:
    first_word, second_word = np.array([a], dtype=np.uint32), np.array([b], dtype=np.uint32)
    squared = noise.minus_two_log_uniform(first_word, second_word)
    first, second = noise.bm32(first_word, second_word)
    return {
        **_head(name, bug),
        "a": f"{a:08x}",
        "b": f"{b:08x}",
        "minus_two_log": _hex(squared),
        "radius": _hex(np.sqrt(squared)),
        "angle": _hex(noise.angle(second_word)),
        "first": _hex(first),
        "second": _hex(second),
    }


def _normals(
    name: str,
    key: bytes,
    rounds: int,
    purpose: Purpose,
    table: int,
    row: int,
    step: int,
    dim: int,
    bug: str,
) -> dict[str, Any]:
    stream = NoiseStream(NoiseKey.from_bytes(key), rounds)
    blocks = -(-dim // NORMALS_PER_BLOCK)
    rows, steps = np.array([row], dtype=np.int64), np.array([step], dtype=np.int64)
    numbers = np.arange(blocks, dtype=np.int64)
    counters = noise.address(purpose, table, rows, steps, numbers)
    words = noise.words(stream, purpose, table, rows, steps, blocks=blocks)[0]
    squared = noise.minus_two_log_uniform(words[:, :8], words[:, 8:])
    angles = noise.angle(words[:, 8:])
    return {
        **_head(name, bug),
        "key": key.hex(),
        "rounds": rounds,
        "purpose": purpose.name,
        "table": table,
        "row": row,
        "step": step,
        "dim": dim,
        "blocks": [
            {
                "counter": _hex(counters[i]),
                "words": _hex(words[i]),
                "minus_two_log": _hex(squared[i]),
                "radius": _hex(np.sqrt(squared[i])),
                "angle": _hex(angles[i]),
            }
            for i in range(blocks)
        ],
        "normals": _hex(noise.normals(stream, purpose, table, rows, steps, dim=dim)[0]),
    }


def _uniforms(name: str, key: bytes, rounds: int, table: int, step: int, count: int, bug: str) -> dict[str, Any]:
    stream = NoiseStream(NoiseKey.from_bytes(key), rounds)
    drawn = noise.uniform_words(stream, Purpose.SAMPLING, table, count, step=step)
    return {
        **_head(name, bug),
        "key": key.hex(),
        "rounds": rounds,
        "purpose": Purpose.SAMPLING.name,
        "table": table,
        "step": step,
        "words": " ".join(f"{int(word):016x}" for word in drawn),
    }


def _head(name: str, bug: str) -> dict[str, Any]:
    return {"name": name, "bug": bug, "hunts": BUGS[bug]}


def _hex(values: np.ndarray) -> str:
    return " ".join(f"{int(bits):08x}" for bits in np.ascontiguousarray(values).view(np.uint32).ravel())


def main() -> None:
    parser = argparse.ArgumentParser(description="Write or check equivalence/golden/noise.json.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the file would change")
    wanted = text(build())
    if parser.parse_args().check:
        found = GOLDEN.read_text(encoding="utf-8") if GOLDEN.exists() else ""
        if found != wanted:
            raise SystemExit(f"{GOLDEN} is not what tools/make_golden.py writes: run it and review the diff")
        sys.stdout.write(f"{GOLDEN.name} is up to date\n")
        return
    GOLDEN.write_text(wanted, encoding="utf-8")
    sys.stdout.write(f"wrote {GOLDEN}\n")


if __name__ == "__main__":
    main()
