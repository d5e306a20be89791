"""Check every proof, and that each is about the Python that runs. `make proofs` calls it.

1. proofs/theories/Gen_*.v are what the sources translate to.
2. No theory assumes anything on the quiet: no Admitted, no Axiom or Parameter, no checks switched off.
3. Every theory compiles.
4. What CPython computed on random traces is what the generated definitions compute: the kernel decides.
5. Every theorem of claims.toml exists, and rests on no axiom that is not on the list there.
6. Every source has the digest, and every test the name, that claims.toml records; proof_status.json says the same.

    python proofs/check.py             check; exit 1 and name what is wrong
    python proofs/check.py --record    check all but the digests, then write them: to claims.toml and proof_status.json
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import coq
import oracle
import translate
from translate import ROOT, TARGETS, THEORIES, Refused

from samelaw.equivalence.proofs import source_digest

CLAIMS = ROOT / "proofs" / "claims.toml"
STATUS = ROOT / "equivalence" / "proof_status.json"
BUILD = ROOT / "build" / "proofs"
SCHEMA = "samelaw.proofs/1"
TRACES = 300
BOUND = ("generated", "by hand", "none")
FORBIDDEN = re.compile(
    r"\b(Admitted|admit|give_up|Axioms?|Parameters?|Conjecture|Unset\s+(Guard|Positivity|Universe)\s+Checking"
    r"|bypass_check|Unsafe|Declare\s+ML\s+Module)\b"
)


class ProofError(Exception):
    """Something is not as claimed."""


@dataclass(frozen=True)
class Claim:
    """One row of claims.toml."""

    id: str
    theorem: str
    bound: str
    says: str
    sources: tuple[str, ...]
    test: str

    @property
    def theory(self) -> str:
        return self.theorem.split(".")[0]


@dataclass(frozen=True)
class Claims:
    """claims.toml."""

    allowed: tuple[str, ...]
    claims: tuple[Claim, ...]
    digests: dict[str, str]

    @classmethod
    def read(cls) -> Claims:
        raw = tomllib.loads(CLAIMS.read_text(encoding="utf-8"))
        claims = tuple(
            Claim(c["id"], c["theorem"], c["bound"], c["says"], tuple(c["sources"]), c["test"]) for c in raw["claim"]
        )
        return cls(tuple(raw["allowed_axioms"]), claims, dict(raw.get("digests", {})))

    @property
    def sources(self) -> list[str]:
        return sorted({source for claim in self.claims for source in claim.sources})


def digest(source: str) -> str:
    """The digest of a source of this checkout, as claims.toml names it."""
    path, _, constant = source.partition("#")
    return source_digest((ROOT / path).read_bytes(), constant)


def theories() -> dict[str, str]:
    """The text of every theory, by name."""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(THEORIES.glob("*.v"))}


def check_generated() -> None:
    for target in TARGETS:
        text = translate.translate((ROOT / target.source).read_text(encoding="utf-8"), target)
        if (THEORIES / target.theory).read_text(encoding="utf-8") != text:
            raise ProofError(
                f"proofs/theories/{target.theory} is not what {target.source} translates to: run make proofs-record"
            )


def check_words(texts: dict[str, str]) -> None:
    for name, text in texts.items():
        found = FORBIDDEN.search(without_comments(text))
        if found:
            raise ProofError(f"proofs/theories/{name}.v holds {found.group(0)!r}: every statement must be proved")


def without_comments(text: str) -> str:
    """The theory without its (nested) comments."""
    out: list[str] = []
    depth, i = 0, 0
    while i < len(text):
        if text.startswith("(*", i):
            depth, i = depth + 1, i + 2
        elif text.startswith("*)", i) and depth:
            depth, i = depth - 1, i + 2
        else:
            if not depth:
                out.append(text[i])
            i += 1
    return "".join(out)


def load(path: Path) -> ModuleType:
    """A source file as a module of its own, whatever is installed."""
    spec = importlib.util.spec_from_file_location(f"proved_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def oracle_theory() -> str:
    reference = ROOT / "reference"
    schedule, truncation = load(reference / "lazy_schedule.py"), load(reference / "truncation.py")
    return oracle.goals(schedule, truncation, load(reference / "rows.py"), traces=TRACES)


def assumption_theory(claims: Claims) -> str:
    """A theory that prints what every claimed theorem rests on."""
    names = list(dict.fromkeys(c.theorem for c in claims.claims))
    lines = [f"From samelaw Require Import {t}." for t in dict.fromkeys(c.theory for c in claims.claims)]
    for name in names:
        lines.append(f'Goal True. idtac "@@ {name}". exact I. Qed.\nPrint Assumptions {name}.')
    return "\n".join(lines) + "\n"


def assumptions(printed: str) -> dict[str, list[str]]:
    """The axioms of each theorem, from what Print Assumptions printed."""
    found: dict[str, list[str]] = {}
    for part in printed.split("@@ ")[1:]:
        name, _, rest = part.partition("\n")
        name = name.strip()
        axioms = set(re.findall(r"^([A-Za-z_][\w.']*)\s*\n?\s*:", rest, flags=re.MULTILINE)) - {"Axioms"}
        if bool(axioms) == ("Closed under the global context" in rest):
            raise ProofError(f"what Print Assumptions says of {name} cannot be read: {rest[:200]}")
        found[name] = sorted(axioms)
    return found


def check_assumptions(claims: Claims, found: dict[str, list[str]]) -> None:
    for name, axioms in found.items():
        extra = [a for a in axioms if a not in claims.allowed]
        if extra:
            raise ProofError(f"{name} rests on {extra}, which claims.toml does not allow")


def check_links(claims: Claims) -> None:
    for claim in claims.claims:
        file, _, name = claim.test.partition("::")
        path = ROOT / file
        names = {
            n.name for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef)
        }
        if name not in names:
            raise ProofError(f"claims.toml: {claim.theorem} names the test {claim.test}, which does not exist")
        for source in claim.sources:
            if not (ROOT / source.partition("#")[0]).exists():
                raise ProofError(f"claims.toml: {claim.theorem} names the source {source}, which does not exist")
        if claim.bound not in BOUND or (claim.bound == "none") == bool(claim.sources):
            raise ProofError(f"claims.toml: {claim.theorem} is bound {claim.bound!r} to the sources {claim.sources}")
    translated = {t.source for t in TARGETS}
    missing = translated - set(claims.sources)
    if missing:
        raise ProofError(f"claims.toml: no claim names {sorted(missing)}, which is translated")


def check_digests(claims: Claims) -> None:
    for source in claims.sources:
        if claims.digests.get(source) != digest(source):
            raise ProofError(
                f"claims.toml records another {source} than the one that is here: read what has changed, then run make "
                "proofs-record"
            )


def status(claims: Claims, found: dict[str, list[str]], texts: dict[str, str]) -> str:
    """proof_status.json: what `samelaw verify` may say about the sources that were checked, and about no others."""
    record = {
        "schema": SCHEMA,
        "coq": coq.VERSION,
        "theories": hashlib.sha256("\0".join(f"{n}\0{texts[n]}" for n in sorted(texts)).encode()).hexdigest(),
        "theorems": [
            {
                "claim": claim.id,
                "theorem": claim.theorem,
                "bound": claim.bound,
                "says": claim.says,
                "assumes": found[claim.theorem],
                "sources": {source: digest(source) for source in claim.sources},
            }
            for claim in claims.claims
        ],
    }
    return json.dumps(record, indent=2) + "\n"


def record(claims: Claims, text: str) -> None:
    """Write the digests, after everything else has been checked."""
    old = CLAIMS.read_text(encoding="utf-8").split("\n[digests]\n")[0].rstrip("\n")
    lines = [f'"{source}" = "{digest(source)}"' for source in claims.sources]
    CLAIMS.write_text(old + "\n\n[digests]\n" + "\n".join(lines) + "\n", encoding="utf-8")
    STATUS.write_text(text, encoding="utf-8")


def table(claims: Claims, found: dict[str, list[str]]) -> str:
    """Claim, theorem, assumptions, source digest."""
    short = {a: a.rsplit(".", 1)[-1] for names in found.values() for a in names}
    rows = [("claim", "theorem", "assumptions", "sources (first digits of sha256)")]
    for claim in claims.claims:
        axioms = ", ".join(short[a] for a in found[claim.theorem]) or "none"
        about = ", ".join(f"{s} {digest(s)[:8]}" for s in claim.sources) or "mathematics alone"
        about += " (model by hand)" if claim.bound == "by hand" else ""
        rows.append((claim.id, claim.theorem, axioms, about))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    )


def check(*, recording: bool) -> int:
    start = time.monotonic()
    found_version = coq.version()
    if not found_version.startswith(coq.VERSION):
        raise ProofError(f"the proofs are for Coq {coq.VERSION}, found {found_version}")
    if recording:
        translate.main([])
    claims, texts = Claims.read(), theories()
    check_generated()
    check_words(texts)
    check_links(claims)
    if not recording:
        check_digests(claims)
    printed = coq.compile_all(BUILD, texts | {"Oracle": oracle_theory(), "Assumptions": assumption_theory(claims)})
    found = assumptions(printed["Assumptions"])
    check_assumptions(claims, found)
    text = status(claims, found, texts)
    if recording:
        record(claims, text)
    elif STATUS.read_text(encoding="utf-8") != text:
        raise ProofError(f"{STATUS.relative_to(ROOT)} does not say what was checked: run make proofs-record")
    print(table(claims, found))
    print(
        f"\n{len(claims.claims)} theorems in {len(texts)} theories, and {2 * TRACES} runs of CPython that the kernel "
        f"agrees with; Coq {found_version}, {time.monotonic() - start:.0f} s."
    )
    return 0


def main(arguments: Sequence[str]) -> int:
    try:
        return check(recording="--record" in arguments)
    except (ProofError, Refused, coq.CoqError) as problem:
        print(f"proofs: {problem}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
