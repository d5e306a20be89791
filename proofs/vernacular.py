"""The theories as text: the sentences that Coq reads in them, and the few kinds of sentence that a theory may hold.

A theory is refused unless every sentence is of a kind that is listed here. So nothing is loaded from elsewhere, no
check of the kernel is switched off, and nothing is assumed except inside a section, where it becomes a hypothesis.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass

# What a theory may require, by the library that it is from.
LIBRARIES: dict[str, set[str]] = {
    "Coq": {"Arith", "Bool", "FunctionalExtensionality", "Lia", "List", "Lra", "Morphisms", "Permutation", "Psatz"}
    | {"QArith", "Reals", "Setoid", "ZArith"},
    "Flocq": {"Binary", "Bits", "Core", "Plus_error", "Relative"},
    "Coquelicot": {"Coquelicot"},
}
IMPORTS = ("ListNotations",)
# What Statements.v holds beside statements.
PREAMBLE = (
    'Set Warnings ""',
    "Import ListNotations",
    "#[local] Existing Instances Monads.Identity FiniteLaws.FiniteLaw",
    "Open Scope R_scope",
)
ATTRIBUTES = ("export", "local")
STATED = ("Lemma", "Theorem", "Corollary")
DEFINING = ("Class", "Definition", "Fixpoint", "Inductive", "Instance", "Let", "Record")
WITHIN_SECTIONS = ("Context", "Hypotheses", "Hypothesis", "Variable", "Variables")
NAMING = ("Arguments", "Existing", "Infix", "Ltac", "Notation", "Open Scope", 'Set Warnings ""')
PROVING = ("Defined", "Proof", "Qed")
KINDS = (*STATED, *DEFINING, *NAMING, *PROVING)
FORBIDDEN = re.compile(
    r"\b(Admitted|admit|give_up|Axioms?|Parameters?|Conjectures?|Primitive|Symbol|Unset|bypass_check|Unsafe|Load|Cd|Redirect"
    r"|Extraction|LoadPath|Declare|Module|Export|Global|Universe\s+Checking|Guard\s+Checking|Positivity\s+Checking)\b"
)
LABEL = re.compile(r"(?:[-+*]+\s*|[{}]\s*|(?:\d+|all|\[\w+\])\s*:\s*(?=\{))+")
REQUIRE = re.compile(r"(?:From\s+(\w+)\s+)?Require\s+(Import\s+)?(\w+(?:\s+\w+)*)$")
PIN = re.compile(r"Definition (\w+?)__(\w+)\s*:\s(.*):=\s*@samelaw\.(\w+)\.(\w+)$", re.DOTALL)
DIGEST = re.compile(r"^\(\* definitions of (\w+): ([0-9a-f]{64}) \*\)$", re.MULTILINE)


class TheoryError(Exception):
    """A theory holds something that no theory may hold."""


@dataclass(frozen=True)
class Pin:
    """A statement that Statements.v gives in full."""

    theorem: str
    statement: str


def code(name: str, text: str) -> str:
    """The theory with a blank for each comment and nothing in its strings.

    Raises:
        TheoryError: where a reader and Coq could disagree about what is a comment, a string or the end of a sentence.
    """
    odd = re.search(r"[^ -~\n]", text)
    if odd:
        raise TheoryError(f"proofs/theories/{name}.v holds the character {odd.group(0)!a}: theories are plain ASCII")
    out: list[str] = []
    depth = i = 0
    while i < len(text):
        pair = text[i : i + 2]
        if pair == "(*":
            depth, i = depth + 1, i + 2
        elif pair == "*)" and depth:
            depth, i = depth - 1, i + 2
            out.append("" if depth else " ")
        elif text[i] == '"':
            end = text.find('"', i + 1)
            inside = text[i + 1 : end]
            if end < 0 or re.search(r"\(\*|\*\)|\.(\s|$)", inside) or text[end + 1 : end + 2] == '"':
                raise TheoryError(
                    f"proofs/theories/{name}.v, line {text.count(chr(10), 0, i) + 1}: a string with no end, or with a "
                    "quote, a full stop or a comment's mark in it"
                )
            out.append("" if depth else '""')
            i = end + 1
        else:
            out.append("" if depth else text[i])
            i += 1
    if depth:
        raise TheoryError(f"proofs/theories/{name}.v: a comment with no end")
    return "".join(out)


def sentences(name: str, text: str) -> list[str]:
    """What Coq runs one by one: each ends in a full stop before a blank. Bullets, braces and selectors are left out."""
    parts = re.split(r"\.(?=\s|$)", code(name, text))
    if parts[-1].strip():
        raise TheoryError(f"proofs/theories/{name}.v: the last sentence has no end")
    bare = (
        LABEL.sub("", part.strip(), count=1) if re.match(r"[-+*{}\d\[a]", part.strip()) else part.strip()
        for part in parts[:-1]
    )
    return [sentence for sentence in bare if sentence]


def requirements(name: str, text: str) -> list[str]:
    """The theories of this project that a theory requires."""
    found = (REQUIRE.match(sentence) for sentence in sentences(name, text))
    return [theory for match in found if match and match[1] == "samelaw" for theory in match[3].split()]


def check(name: str, text: str, theories: Collection[str]) -> None:
    """Refuse a theory that could assume, load or switch off anything.

    Raises:
        TheoryError: naming the theory and the sentence.
    """
    where = f"proofs/theories/{name}.v"
    if not re.fullmatch(r"[A-Z][A-Za-z0-9_]*", name) or any(name in modules for modules in LIBRARIES.values()):
        raise TheoryError(f"{where}: a theory has an ASCII name, of its own, that starts with a capital")
    opened: list[str] = []
    for sentence in sentences(name, text):
        shown = " ".join(sentence.split())[:80]
        found = FORBIDDEN.search(sentence)
        if found:
            raise TheoryError(f"{where} holds {found.group(0)!r}, which no theory may: {shown}")
        sentence = _bare(where, sentence)
        head = sentence.split()[0] if sentence else ""
        if not head[:1].isupper():
            # A tactic; Coq accepts it inside a proof alone.
            if re.match(r"[a-z(\[\d>;|!]|$", head):
                continue
            raise TheoryError(f"{where}: a sentence of no known kind: {shown}")
        if head == "Section":
            opened.append(sentence.split()[1])
        elif head == "End":
            if not opened or sentence.split()[1:] != [opened.pop()]:
                raise TheoryError(f"{where}: an End without its Section: {shown}")
        elif head in ("From", "Require"):
            _check_require(where, sentence, theories)
        elif head == "Import":
            if not set(sentence.split()[1:]) <= set(IMPORTS):
                raise TheoryError(f"{where}: only {', '.join(IMPORTS)} may be imported: {shown}")
        elif head in WITHIN_SECTIONS:
            if not opened:
                raise TheoryError(f"{where}: {head} outside a section assumes something: {shown}")
        elif not any(re.match(rf"{re.escape(kind)}(?![\w'])", " ".join(sentence.split())) for kind in KINDS):
            raise TheoryError(f"{where}: a sentence that no theory may hold: {shown}")


def _bare(where: str, sentence: str) -> str:
    """The sentence without its attributes."""
    while match := re.match(r"#\[\s*(\w+)\s*\]\s*|(Local)\s+", sentence):
        if match[1] and match[1] not in ATTRIBUTES:
            raise TheoryError(f"{where}: the attribute {match[1]} may not be used")
        sentence = sentence[match.end() :]
    return sentence


def _check_require(where: str, sentence: str, theories: Collection[str]) -> None:
    match = REQUIRE.match(sentence)
    known = theories if match and match[1] == "samelaw" else LIBRARIES.get((match and match[1]) or "Coq", set())
    if not match or not set(match[3].split()) <= set(known):
        raise TheoryError(f"{where}: it may not require this: {' '.join(sentence.split())[:80]}")


def definitions(name: str, text: str) -> str:
    """The digest of what a theory states outside its opaque proofs, apart from its lemmas and theorems."""
    kept: list[str] = []
    proof: list[str] | None = None
    statement = ""
    for sentence in sentences(name, text):
        plain = " ".join(sentence.split())
        if plain == "Qed":
            proof = None
        elif plain == "Defined":
            kept += [statement, *(proof or [])]
            proof = None
        elif plain == "Proof":
            proof = []
        elif plain.startswith(STATED):
            statement = plain
        elif proof is None or not re.match(r"[a-z(\[\d]", plain):
            kept.append(plain)
        else:
            proof.append(plain)
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()


def pins(text: str, theories: Collection[str]) -> list[Pin]:
    """The statements of Statements.v.

    Raises:
        TheoryError: it holds something else, or imports a theory, whose notations could change what a statement means.
    """
    found: list[Pin] = []
    where = "proofs/theories/Statements.v"
    for sentence in sentences("Statements", text):
        plain = " ".join(sentence.split())
        match = PIN.match(sentence)
        require = REQUIRE.match(sentence)
        if FORBIDDEN.search(sentence):
            raise TheoryError(f"{where} holds a word that no theory may: {plain[:80]}")
        if match and (match[1], match[2]) == (match[4], match[5]):
            found.append(Pin(f"{match[1]}.{match[2]}", match[3].strip()))
        elif require and not (require[1] == "samelaw" and require[2]):
            _check_require(where, sentence, theories)
        elif plain not in PREAMBLE:
            raise TheoryError(f"{where}: not a statement that is pinned: {plain[:80]}")
    return found
