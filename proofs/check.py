"""Check every proof, and that each is about the Python that runs. `make proofs` calls it.

1. proofs/theories/Gen_*.v are what the sources translate to.
2. Every theory holds nothing but the kinds of sentence that vernacular.py lists: nothing is assumed, loaded or switched
   off.
3. Every theory compiles, and coqchk, which shares no state with coqc, accepts the result.
4. What CPython computed on random traces is what the generated definitions compute: the kernel decides.
5. Every theorem of claims.toml has a proof, says what proofs/theories/Statements.v says in full, and rests on no axiom
   that is not on the list there. A claim that is bound to generated definitions speaks of them.
6. Every source has the digest, and every test the name, that claims.toml records; proof_status.json says the same.

    python proofs/check.py             check; exit 1 and name what is wrong
    python proofs/check.py --record    check all but the digests, then write them: to claims.toml and proof_status.json
    python proofs/check.py --libraries let coqchk check the libraries too, about a minute more

Nothing writes Statements.v: it is edited by hand when a statement is meant to change.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
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
import vernacular
from translate import ROOT, TARGETS, THEORIES, Refused

from samelaw.equivalence.proofs import source_digest

CLAIMS = ROOT / "proofs" / "claims.toml"
STATUS = ROOT / "equivalence" / "proof_status.json"
BUILD = ROOT / "build" / "proofs"
SCHEMA = "samelaw.proofs/1"
TRACES = 300
BOUND = ("generated", "by hand", "none")
STATEMENTS = "Statements"
# What `coqchk -o` prints of theories in which nothing is assumed.
COQCHK = {
    "Theory": "Set is predicative",
    "Axioms": "",
    "Constants/Inductives relying on type-in-type": "<none>",
    "Constants/Inductives relying on unsafe (co)fixpoints": "<none>",
    "Inductives whose positivity is assumed": "<none>",
}
AXIOM = re.compile(r"([A-Za-z_][\w']*(?:\.[A-Za-z_][\w']*)*)(?: :(?: .*)?)?", re.ASCII)


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
    """The text of every theory, by name.

    Raises:
        ProofError: the folder of theories holds something else.
    """
    found: dict[str, str] = {}
    for path in sorted(THEORIES.iterdir()):
        if path.suffix != ".v" or not path.is_file() or path.is_symlink():
            raise ProofError(f"proofs/theories/{path.name!a} is no theory: only plain files *.v belong there")
        try:
            found[path.stem] = path.read_bytes().decode("ascii")
        except UnicodeDecodeError as problem:
            raise ProofError(f"proofs/theories/{path.name!a} is not plain ASCII, byte {problem.start}") from problem
    return found


def check_generated() -> None:
    for target in TARGETS:
        text = translate.translate((ROOT / target.source).read_text(encoding="utf-8"), target)
        if (THEORIES / target.theory).read_text(encoding="utf-8") != text:
            raise ProofError(
                f"proofs/theories/{target.theory} is not what {target.source} translates to: run make proofs-record"
            )


def check_words(texts: dict[str, str]) -> None:
    """Refuse whatever could assume, load or switch off something."""
    for name, text in texts.items():
        if name != STATEMENTS:
            vernacular.check(name, text, [other for other in texts if other != STATEMENTS])


def check_statements(claims: Claims, texts: dict[str, str]) -> None:
    """Every claim has its full statement in Statements.v; a generated one speaks of what its source translates to."""
    pins = vernacular.pins(texts.get(STATEMENTS, ""), [name for name in texts if name != STATEMENTS])
    pinned = {pin.theorem: pin.statement for pin in pins}
    claimed = {claim.theorem for claim in claims.claims}
    if len(pinned) != len(pins) or set(pinned) != claimed:
        raise ProofError(
            f"proofs/theories/Statements.v and claims.toml name different theorems: {sorted(set(pinned) ^ claimed)}"
        )
    for claim in claims.claims:
        if claim.bound == "generated":
            generated = [t.theory.removesuffix(".v") for t in TARGETS if t.source in claim.sources]
            if not any(f"{theory}." in pinned[claim.theorem] for theory in generated):
                raise ProofError(
                    f"claims.toml: {claim.theorem} is called generated, but its statement names nothing of {generated}"
                )


def check_definitions(texts: dict[str, str]) -> None:
    """The definitions that the statements speak of are those that Statements.v was written for."""
    generated = {target.theory.removesuffix(".v") for target in TARGETS}
    recorded = dict(vernacular.DIGEST.findall(texts.get(STATEMENTS, "")))
    present = {n: vernacular.definitions(n, t) for n, t in texts.items() if n != STATEMENTS and n not in generated}
    for name in sorted(recorded.keys() | present.keys()):
        if recorded.get(name) != present.get(name):
            raise ProofError(
                f"what the theory {name} defines is not what Statements.v was written for: read it, then put this line "
                f"there by hand: (* definitions of {name}: {present.get(name, 'none; drop the line')} *)"
            )


def load(path: Path) -> ModuleType:
    """A source file as a module of its own, whatever is installed."""
    spec = importlib.util.spec_from_file_location(f"proved_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def sources() -> tuple[ModuleType, ModuleType, ModuleType]:
    """This checkout's schedule, truncation and rows: the schedule on these rows, whatever is installed."""
    reference, installed = ROOT / "reference", "samelaw.reference.rows"
    rows = load(reference / "rows.py")
    kept = importlib.import_module(installed)
    sys.modules[installed] = rows
    try:
        return load(reference / "lazy_schedule.py"), load(reference / "truncation.py"), rows
    finally:
        sys.modules[installed] = kept


def oracle_theory() -> str:
    """The goals of the traces."""
    schedule, truncation, rows = sources()
    return oracle.goals(schedule, truncation, rows, traces=TRACES)


def assumption_theory(claims: Claims) -> str:
    """A theory that prints what every claimed theorem rests on, and what it is."""
    names = list(dict.fromkeys(c.theorem for c in claims.claims))
    files = " ".join(dict.fromkeys(c.theory for c in claims.claims))
    lines = [f"From samelaw Require {files} {STATEMENTS}."]
    for name in names:
        lines.append(f'Goal True. idtac "@@ {name}". exact I. Qed.\nPrint Assumptions samelaw.{name}.')
        lines.append(f'Goal True. idtac "@@ about {name}". exact I. Qed.\nAbout samelaw.{name}.')
    return "\n".join(lines) + "\n"


def assumptions(printed: str) -> dict[str, list[str]]:
    """The axioms of each theorem, from what Print Assumptions and About printed. Every line must be understood.

    Raises:
        ProofError: a line is not, or a theorem is not one that was proved and closed with Qed.
    """
    parts = re.split(r"^@@ (.+)\n", printed, flags=re.MULTILINE)
    if parts[0].strip() or len(parts) % 4 != 1:
        raise ProofError(f"what Print Assumptions says cannot be read: {printed[:200]!a}")
    found: dict[str, list[str]] = {}
    for name, rest, about, said in zip(*(parts[i::4] for i in (1, 2, 3, 4)), strict=True):
        if about != f"about {name}" or name in found:
            raise ProofError(f"what Print Assumptions says of {name} cannot be read: {about!a} follows")
        found[name] = _axioms(name, rest)
        if not " ".join(said.split()).endswith(f" {name} is opaque Expands to: Constant samelaw.{name}"):
            raise ProofError(f"{name} is not a theorem of its theory that Qed closed: {said[-300:]!a}")
    return found


def _axioms(name: str, rest: str) -> list[str]:
    """The names below Axioms, each with its type: nothing else may stand there."""
    lines = [line for line in rest.splitlines() if line]
    if lines == ["Closed under the global context"]:
        return []
    axioms: list[str] = []
    for i, line in enumerate(lines):
        if i == 0 and line == "Axioms:":
            continue
        named = AXIOM.fullmatch(line)
        typed = ":" in line or (i + 1 < len(lines) and lines[i + 1].startswith("  : "))
        if i and line.startswith("  ") and axioms:
            continue
        if i == 0 or not named or not typed:
            raise ProofError(f"what Print Assumptions says of {name} cannot be read: {line[:200]!a}")
        axioms.append(named[1])
    if not axioms:
        raise ProofError(f"what Print Assumptions says of {name} cannot be read: {rest[:200]!a}")
    return sorted(axioms)


def check_coqchk(claims: Claims, said: str, *, libraries: bool) -> None:
    """What coqchk says that the theories rest on: sealed modules and axioms of the libraries, and nothing of ours."""
    heading, sections = "", dict.fromkeys(COQCHK, "")
    for line in said.split("===============\n", 1)[-1].splitlines():
        if line.startswith("* "):
            heading, colon, rest = line[2:].partition(":")
            if not colon or heading not in sections:
                raise ProofError(f"what coqchk says cannot be read: {line[:200]!a}")
            sections[heading] = rest
        elif heading:
            sections[heading] += "\n" + line
    stated = {heading: text.split() for heading, text in sections.items()}
    axioms = stated.pop("Axioms")
    allowed = tuple(f".{axiom}" for axiom in claims.allowed)
    extra = [a for a in axioms if not (a.startswith("Coq.") and (a.endswith(allowed) or not libraries))]
    if extra or stated != {h: w.split() for h, w in COQCHK.items() if h != "Axioms"}:
        raise ProofError(f"coqchk: the theories rest on {extra or sections}")


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


def check(*, recording: bool, libraries: bool = False) -> int:
    start = time.monotonic()
    unusable = coq.unusable()
    if unusable:
        raise ProofError(unusable)
    if recording:
        translate.main([])
    claims, texts = Claims.read(), theories()
    check_generated()
    check_words(texts)
    check_links(claims)
    check_statements(claims, texts)
    check_definitions(texts)
    if not recording:
        check_digests(claims)
    printed = coq.compile_all(BUILD, texts | {"Oracle": oracle_theory(), "Assumptions": assumption_theory(claims)})
    found = assumptions(printed["Assumptions"])
    if set(found) != {claim.theorem for claim in claims.claims}:
        raise ProofError("Print Assumptions does not speak of every claimed theorem")
    check_assumptions(claims, found)
    check_coqchk(claims, coq.recheck(BUILD, texts, libraries=libraries), libraries=libraries)
    text = status(claims, found, texts)
    if recording:
        record(claims, text)
    elif STATUS.read_text(encoding="utf-8") != text:
        raise ProofError(f"{STATUS.relative_to(ROOT)} does not say what was checked: run make proofs-record")
    print(table(claims, found))
    print(
        f"\n{len(claims.claims)} theorems in {len(texts)} theories, and {2 * TRACES} runs of CPython that the kernel "
        f"agrees with; Coq {coq.version()}, {time.monotonic() - start:.0f} s."
    )
    return 0


def main(arguments: Sequence[str]) -> int:
    try:
        return check(recording="--record" in arguments, libraries="--libraries" in arguments)
    except (ProofError, Refused, vernacular.TheoryError, coq.CoqError) as problem:
        print(f"proofs: {problem}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
