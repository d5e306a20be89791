"""The golden vectors are right, complete, and would notice the bugs that they name.

`Page` below is an implementation of docs/noise.md in exact rational arithmetic. It takes its coefficients from that
page and nothing from samelaw.reference, so it checks the specification as well as the vectors. It can also be broken
in every way that a vector claims to notice.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import re
import struct
from fractions import Fraction
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from samelaw.contract.errors import SchemaError
from samelaw.contract.noise import NoiseStream, Purpose
from samelaw.equivalence.noise_vectors import check_backend, load_vectors, parse_vectors
from samelaw.reference import noise

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "noise.md").read_text(encoding="utf-8")
MASK = 0xFFFFFFFF
TAGS = {"REPLAY": 1, "BRIDGE": 2, "AGGREGATE": 3, "DENSE": 4, "SAMPLING": 5, "INITIALISATION": 6}


def coefficient(name: str) -> float:
    found = re.findall(rf"\| {name} \| `(-?0x[^`]+)`", PAGE)
    assert len(found) == 1, f"docs/noise.md gives {name} {len(found)} times"
    value = float.fromhex(found[0])
    assert value == round_to_float32(Fraction(value)), f"{name} is not a float32"
    return value


def round_to_float32(x: Fraction, *, how: str = "even") -> float:
    """The float32 next to x (as a Python float); x within the normal range."""
    if x == 0:
        return 0.0
    exponent = math.frexp(float(abs(x)))[1] - 24
    if abs(x) / Fraction(2) ** exponent < 2**23:  # float() may round up to a power of two
        exponent -= 1
    assert -149 < exponent < 104
    units = x / Fraction(2) ** exponent
    whole = {"even": round, "down": math.floor, "half-up": lambda v: math.floor(v + Fraction(1, 2))}[how](units)
    return float(whole * Fraction(2) ** exponent)


def add(a: float, b: float) -> float:
    if a == 0 and b == 0:
        return a + b  # only two zeros of the same sign keep it
    return round_to_float32(Fraction(a) + Fraction(b))


def mul(a: float, b: float) -> float:
    if a == 0 or b == 0:
        return math.copysign(0.0, math.copysign(1.0, a) * math.copysign(1.0, b))
    return round_to_float32(Fraction(a) * Fraction(b))


def bits(x: float) -> int:
    return int.from_bytes(struct.pack("<f", x), "little")


def from_bits(i: int) -> float:
    return struct.unpack("<f", i.to_bytes(4, "little"))[0]


class Page:
    """docs/noise.md, and the ways to get it wrong."""

    def __init__(self, bug: str | None = None) -> None:
        self.bug = bug
        self.L = [coefficient(f"L{k}") for k in range(9)]
        self.S = [coefficient(f"S{k}") for k in range(4)]
        self.C = [coefficient(f"C{k}") for k in range(4)]
        self.M, self.A = coefficient("M"), coefficient("A")

    def block(self, key: bytes, counter: list[int], rounds: int) -> list[int]:
        order = "big" if self.bug == "big-endian-words" else "little"
        start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574]
        start += [int.from_bytes(key[4 * i : 4 * i + 4], order) for i in range(8)]
        start += [*counter[:3], 0 if self.bug == "counter-64" else counter[3]]
        x = list(start)

        def quarter(a: int, b: int, c: int, d: int) -> None:
            for p, q, r, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                x[p] = (x[p] + x[q]) & MASK
                mixed = x[r] ^ x[p]
                turn = 32 - turn if self.bug == "rotate-right" else turn
                x[r] = (mixed << turn | mixed >> (32 - turn)) & MASK

        pairs = {"always-12-rounds": 6, "always-20-rounds": 10, "double-rounds": rounds}.get(
            self.bug or "", rounds // 2
        )
        for _ in range(pairs):
            for column in range(4):
                quarter(column, column + 4, column + 8, column + 12)
            if self.bug != "no-diagonal-rounds":
                for i in range(4):
                    quarter(i, (i + 1) % 4 + 4, (i + 2) % 4 + 8, (i + 3) % 4 + 12)
        if self.bug == "no-feed-forward":
            return x
        return [(a + b) & MASK for a, b in zip(x, start, strict=True)]

    def counter(self, purpose: int, table: int, row: int, step: int, block: int) -> list[int]:
        high, low = divmod(row, 2**32)
        match self.bug:
            case "row-32-bits":
                high = 0
            case "row-signed":
                high = 0xFFFF if low >= 2**31 else high
            case "table-8-bits":
                table %= 256
            case "step-31-bits":
                step %= 2**31
            case "step-float32":
                step = int(np.float32(step)) % 2**32
            case "no-purpose":
                purpose = 0
            case "same-block":
                block = 0
            case "table-low":
                return [step, low, table + high * 2**16, block + purpose * 2**24]
            case _:
                pass
        return [step, low, high + table * 2**16, block + purpose * 2**24]

    def transform(self, a: int, b: int) -> dict[str, float]:
        bug = self.bug
        a_used, b_used = (
            (a & ~255 if bug == "radius-24-bits" else a),
            (0 if bug in ("radius-24-bits", "radius-32-bits") else b),
        )
        high, low = a_used >> 8, ((a_used % 256) << 8) + b_used % 256
        half = Fraction(0 if bug == "no-half" else Fraction(1, 2))
        total = Fraction(high * 65536) + low + half
        f = round_to_float32(total, how={"round-half-up": "half-up", "truncate-sum": "down"}.get(bug or "", "even"))
        i = bits(f)
        e = (i - (0x3F800000 if bug == "range-1-to-2" else 0x3F3504F3)) >> 23
        g = from_bits((i - (e << 23)) & MASK)
        t = add(g, -1.0)
        if bug == "double-sum":
            t = round_to_float32(total / Fraction(2) ** e - 1)
        q = self.horner(self.L, t)
        tail = mul(float(e - 40), self.M)
        s = round_to_float32(Fraction(q) * Fraction(t) + Fraction(tail)) if bug == "fused" else add(mul(q, t), tail)
        if bug == "libm-log":
            s = float(np.float32(-2 * math.log(f / 2**40)))
        r = self.sqrt(s)
        k = (b >> 8) % 2**22
        w = mul(add(float(k), -2097152.0 if bug == "angle-off-by-half" else -2097151.5), self.A)
        w = abs(w) if bug == "angle-unsigned" else w
        p = mul(w, w)
        sn, cs = mul(self.horner(self.S, p), w), self.horner(self.C, p)
        if bug == "libm-angle":
            sn, cs = float(np.float32(math.sin(math.pi / 2 * w))), float(np.float32(math.cos(math.pi / 2 * w)))
        x, y = mul(r, sn), mul(r, cs)
        flip, swap = bool(b >> 31), bool(b >> 30 & 1)
        if bug == "swap-and-sign-exchanged":
            flip, swap = swap, flip
        if bug == "no-swap":
            swap = False
        if flip and bug == "sign-on-sine":
            x = -x
        elif flip:
            y = -y
        first, second = (x, y) if swap else (y, x)
        return {"minus_two_log": s, "radius": r, "angle": w, "first": first, "second": second}

    def horner(self, coefficients: list[float], t: float) -> float:
        value = coefficients[0]
        for c in coefficients[1:]:
            fused = self.bug == "fused"
            value = round_to_float32(Fraction(value) * Fraction(t) + Fraction(c)) if fused else add(mul(value, t), c)
        return value

    def sqrt(self, s: float) -> float:
        if s == 0:
            return 0.0 if self.bug == "positive-zero" else s
        if s < 0:  # only a broken logarithm gets here
            return 0.0
        if self.bug == "approximate-sqrt":  # s times a correctly rounded reciprocal square root
            return mul(s, float(np.float32(1 / math.sqrt(s))))
        # A correctly rounded float64 root rounds to the correctly rounded float32 root, since 53 >= 2 * 24 + 2.
        return round_to_float32(Fraction(math.sqrt(s)))

    def normals(
        self, key: bytes, rounds: int, purpose: int, table: int, row: int, step: int, dim: int
    ) -> tuple[list[dict[str, Any]], list[float]]:
        blocks: list[dict[str, Any]] = []
        out: list[float] = []
        offset = row * -(-dim // 16) if self.bug == "rows-by-blocks" else 0
        for number in range(-(-dim // 16)):
            counter = self.counter(purpose, table, 0 if offset else row, step, number + offset)
            words = self.block(key, counter, rounds)
            pairs = [(words[j], words[j + 8]) for j in range(8)]
            if self.bug == "words-paired-next":
                pairs = [(words[2 * j], words[2 * j + 1]) for j in range(8)]
            made = [self.transform(a, b) for a, b in pairs]
            blocks.append({"counter": counter, "words": words, "made": made})
            left = min(16, dim - 16 * number)
            used = made[: -(-left // 2)] if self.bug == "short-block-halved" else made
            ordered = [m["first"] for m in used] + [m["second"] for m in used]
            if self.bug == "interleaved":
                ordered = [m[side] for m in used for side in ("first", "second")]
            out += ordered[:left]
        return blocks, out

    def uniforms(self, key: bytes, rounds: int, purpose: int, table: int, step: int, count: int) -> list[int]:
        drawn: list[int] = []
        for i in range(count):
            row, j = divmod(i, 1 if self.bug == "uniform-one-a-block" else 8)
            row, block = (0, row) if self.bug == "uniform-one-row" else (row, 0)
            words = self.block(key, self.counter(purpose, table, row, step, block), rounds)
            low, high = words[2 * j], words[2 * j + 1]
            drawn.append(low * 2**32 + high if self.bug == "uniform-halves-swapped" else low + high * 2**32)
        return drawn


def derive(page: Page, kind: str, record: dict[str, Any]) -> dict[str, Any]:
    """What `page` computes for a golden record: the same keys, in the same notation."""

    def floats(made: list[dict[str, float]], name: str) -> str:
        return " ".join(f"{bits(m[name]):08x}" for m in made)

    if kind == "blocks":
        counter = [int(w, 16) for w in record["counter"].split()]
        words = page.block(bytes.fromhex(record["key"]), counter, record["rounds"])
        return {"words": " ".join(f"{w:08x}" for w in words)}
    if kind == "transforms":
        made = page.transform(int(record["a"], 16), int(record["b"], 16))
        return {name: f"{bits(value):08x}" for name, value in made.items()}
    start = (bytes.fromhex(record["key"]), record["rounds"], TAGS[record["purpose"]], record["table"])
    if kind == "uniforms":
        drawn = page.uniforms(*start, record["step"], len(record["words"].split()))
        return {"words": " ".join(f"{w:016x}" for w in drawn)}
    blocks, out = page.normals(*start, record["row"], record["step"], record["dim"])
    return {
        "blocks": [
            {
                "counter": " ".join(f"{w:08x}" for w in block["counter"]),
                "words": " ".join(f"{w:08x}" for w in block["words"]),
                "minus_two_log": floats(block["made"], "minus_two_log"),
                "radius": floats(block["made"], "radius"),
                "angle": floats(block["made"], "angle"),
            }
            for block in blocks
        ],
        "normals": " ".join(f"{bits(value):08x}" for value in out),
    }


def outputs(derived: dict[str, Any]) -> dict[str, Any]:
    """What an implementation shows: not its intermediate values, in which one bug can hide or stand out."""
    return {name: derived[name] for name in ("words", "first", "second", "normals") if name in derived}


DOCUMENT = load_vectors().document
RECORDS = [
    pytest.param(kind, record, id=f"{kind}-{record['name']}")
    for kind in ("blocks", "transforms", "normals", "uniforms")
    for record in DOCUMENT[kind]
]


@pytest.mark.parametrize(("kind", "record"), RECORDS)
def test_vector_agrees_with_the_page_in_exact_arithmetic(kind: str, record: dict[str, Any]):
    for name, value in derive(Page(), kind, record).items():
        assert record[name] == value, name


@pytest.mark.parametrize(("kind", "record"), RECORDS)
def test_vector_rejects_the_bug_that_it_hunts(kind: str, record: dict[str, Any]):
    broken = outputs(derive(Page(record["bug"]), kind, record))
    assert broken != {name: record[name] for name in broken}


def test_every_bug_of_the_list_is_hunted_and_every_name_is_used_once():
    records = [record for kind in ("blocks", "transforms", "normals", "uniforms") for record in DOCUMENT[kind]]
    assert {record["bug"] for record in records} == set(make_golden().BUGS)
    names = [
        (kind, record["name"]) for kind in DOCUMENT if kind not in ("schema", "about") for record in DOCUMENT[kind]
    ]
    assert len(names) == len(set(names))


def test_the_purposes_of_the_page_are_those_of_the_contract():
    table = dict(re.findall(r"^\| ([A-Z]+) \| (\d) \|", PAGE, flags=re.MULTILINE))
    assert {name: int(tag) for name, tag in table.items()} == TAGS == {p.name: int(p) for p in Purpose}


def test_the_coefficients_of_the_page_are_those_of_the_reference():
    page = Page()
    assert noise.LOG_COEFFICIENTS.tolist() == page.L
    assert noise.SIN_COEFFICIENTS.tolist() == page.S
    assert noise.COS_COEFFICIENTS.tolist() == page.C
    assert float(noise.MINUS_TWO_LN_2) == page.M
    assert float(noise.ANGLE_STEP) == page.A


def test_the_golden_file_is_what_its_script_writes():
    script = make_golden()
    assert script.text(script.build()) == script.GOLDEN.read_text(encoding="utf-8"), "run tools/make_golden.py"


def test_the_reference_passes_its_golden_vectors():
    assert check_backend(reference_normals) == []


BACKEND_BUGS = sorted({record["bug"] for record in DOCUMENT["normals"]})


@pytest.mark.parametrize("bug", BACKEND_BUGS)
def test_check_backend_names_a_vector_that_hunts_the_bug(bug: str):
    page = Page(bug)

    def broken(stream: NoiseStream, purpose: Purpose, table: int, rows: np.ndarray, steps: np.ndarray, dim: int):
        key = stream.key.to_bytes()
        drawn = [
            page.normals(key, stream.rounds, int(purpose), table, int(row), int(step), dim)[1]
            for row, step in zip(rows, steps, strict=True)
        ]
        return np.array(drawn, dtype=np.float32).reshape(len(rows), dim)

    found = check_backend(broken)
    assert found
    hunters = {record["name"] for record in DOCUMENT["normals"] if record["bug"] == bug}
    assert hunters <= {re.findall("golden vector '([^']+)'", d.where)[0] for d in found}


def test_check_backend_reports_a_wrong_type_or_shape():
    def doubles(*args: Any) -> np.ndarray:
        return reference_normals(*args).astype(np.float64)

    def short(*args: Any) -> np.ndarray:
        return reference_normals(*args)[:, :-1]

    for broken in (doubles, short):
        assert len(check_backend(broken)) == len(DOCUMENT["normals"])


def test_check_backend_compares_bits_so_the_sign_of_zero_counts():
    def unsigned_zero(*args: Any) -> np.ndarray:
        return reference_normals(*args) + np.float32(0)

    found = check_backend(unsigned_zero)
    assert len(found) == 1
    assert "rare-radius-zero" in found[0].where


@pytest.mark.parametrize(
    ("damage", "place"),
    [
        (lambda d: d.update(schema="samelaw.noise_vectors/2"), "schema"),
        (lambda d: d["normals"][0].update(normals="zz"), "normals/0/normals"),
        (lambda d: d["normals"][0].pop("hunts"), "normals/0"),
        (lambda d: d["blocks"].clear(), "blocks"),
        (lambda d: d["normals"][0].update(dim=3), "dim 3"),
    ],
)
def test_a_damaged_document_is_refused(damage: Any, place: str):
    rules = json.loads(
        resources.files("samelaw.contract").joinpath("schemas/noise_vectors.schema.json").read_text("utf-8")
    )
    document = copy.deepcopy(DOCUMENT)
    damage(document)
    with pytest.raises(SchemaError, match=place):
        parse_vectors(document, rules)


def reference_normals(
    stream: NoiseStream, purpose: Purpose, table: int, rows: np.ndarray, steps: np.ndarray, dim: int
) -> np.ndarray:
    return noise.normals(stream, purpose, table, rows, steps, dim=dim)


def make_golden() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_golden", ROOT / "tools" / "make_golden.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
