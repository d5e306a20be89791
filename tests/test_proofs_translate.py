"""What the translator refuses beyond its language: names that mean something else, and signatures that do more."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "proofs"))

import translate

SCHEDULE, TRUNCATION = translate.TARGETS


def refused(target: translate.Target, old: str, new: str, why: str) -> None:
    text = (translate.ROOT / target.source).read_text(encoding="utf-8")
    assert old in text, "the case no longer applies"
    with pytest.raises(translate.Refused, match=why):
        translate.translate(text.replace(old, new, 1), target)


READ = "    def read(asked: Rows) -> Values:\n        settle_rows("


@pytest.mark.parametrize(
    ("new", "why"),
    [
        ("def read(asked: Rows = history.__setitem__(ahead, step) if step > 6 else None)", "defaults"),
        ("def read(asked: Rows, *rest: Rows)", "starred"),
        ("def read(asked: Rows, **rest: Rows)", "starred"),
        ("def read(asked: Rows, *, more: Rows = distinct(ahead))", "starred"),
        ("def read(asked: Rows, /)", "starred"),
        ("def read(asked: Rows, more: Rows)", "takes the rows asked for"),
        ("def read(asked)", "needs a type"),
        ("def read(asked: Values)", "is wanted"),
        ("@property\n    def read(asked: Rows)", "decorators"),
        ("def distinct(asked: Rows)", "takes one argument"),
        ("async def read(asked: Rows)", "outside the subset"),
    ],
)
def test_a_closure_has_the_plain_signature_of_a_function(new, why):
    refused(SCHEDULE, READ, READ.replace("def read(asked: Rows)", new), why)


def test_a_closure_gives_back_values_and_its_name_is_its_own():
    refused(SCHEDULE, READ, READ.replace("-> Values", "-> Rows"), "is wanted")
    refused(SCHEDULE, READ, READ.replace(" -> Values", ""), "return type")
    text = (translate.ROOT / SCHEDULE.source).read_text(encoding="utf-8")
    for name in ("each", "len", "mul64", "release_all"):
        changed = text.replace("def read(", f"def {name}(").replace("model(read)", f"model({name})")
        if name == "release_all":
            assert "serve (fun" in translate.translate(changed, SCHEDULE)
        else:
            with pytest.raises(translate.Refused, match="is taken"):
                translate.translate(changed, SCHEDULE)


@pytest.mark.parametrize(
    "line",
    [
        "distinct: TypeAlias = Rows",
        "settle_rows: TypeAlias = Rows",
        "range: TypeAlias = Rows",
        "np: TypeAlias = Rows",
        "Rows: TypeAlias = Values",
        "Float64: TypeAlias = Rows",
        "Callable: TypeAlias = Rows",
        "T = TypeVar('T')",
        "distinct = TypeVar('distinct')",
        "Val = TypeVar('Val')",
        "len = TypeVar('len')",
        "from samelaw.reference.rows import distinct",
        "from samelaw.reference.rows import each as distinct",
        "def distinct(rows: Rows) -> Rows:\n    return rows",
        "def settle_rows(rows: Rows) -> Rows:\n    return rows",
        "def range(rows: Rows) -> Rows:\n    return rows",
        "def gather(rows: Rows) -> Rows:\n    return rows",
    ],
)
def test_a_name_of_the_module_is_bound_once_and_hides_nothing(line):
    text = (translate.ROOT / SCHEDULE.source).read_text(encoding="utf-8") + "\n" + line + "\n"
    ast.parse(text)
    with pytest.raises(translate.Refused, match=r"is taken|may not rename"):
        translate.translate(text, SCHEDULE)


@pytest.mark.parametrize(
    "line",
    [
        "import samelaw.evil as np",
        "import samelaw.evil",
        "import numpy",
        "import math as np",
        "import math as m",
        "import os",
        "import math, os",
        "from math import sqrt",
        "from builtins import *",
        "from samelaw.reference.rows import *",
        "from .rows import distinct",
        "from samelaw.contract.spec import CANCELLATION_MARGIN",
        "from samelaw.evil import CLIP_MARGIN",
        "from samelaw.reference.rows import np",
    ],
)
@pytest.mark.parametrize("target", translate.TARGETS)
def test_only_the_known_imports_are_known(line, target):
    text = (translate.ROOT / target.source).read_text(encoding="utf-8") + "\n" + line + "\n"
    with pytest.raises(translate.Refused, match=r"known|rename|is taken"):
        translate.translate(text, target)


def test_an_import_that_replaces_numpy_is_refused():
    refused(TRUNCATION, "import numpy as np", "import samelaw.evil as np", "are known")
    refused(TRUNCATION, "import numpy as np\n", "", "outside the subset")
    refused(TRUNCATION, "import math\n", "", "outside the subset")


@pytest.mark.parametrize(
    "name", ["x", "range", "add_vectors", "mul64", "np", "math", "CLIP_MARGIN", "Vector", "clip_factor", "Ztrunc", "é"]
)  # fmt: skip
def test_a_parameter_or_a_local_name_hides_nothing(name):
    """`gradient * x` would be captured: the translation of a product binds x."""
    text = (translate.ROOT / TRUNCATION.source).read_text(encoding="utf-8")
    parameter = text.replace("scale: float", f"{name}: float").replace("gradient * scale)", f"gradient * {name})")
    local = text.replace("    total = nothing\n", f"    {name} = nothing\n    total = nothing\n")
    for changed in (parameter, local):
        with pytest.raises(translate.Refused, match="is taken"):
            translate.translate(changed, TRUNCATION)


def test_rows_are_not_a_list_to_loop_over():
    """In Python a loop over Rows names tables; in the theories it would name rows."""
    loop = "    for row in rows:\n        history[rows] = until\n    due = distinct(rows)\n"
    refused(SCHEDULE, "    due = distinct(rows)\n", loop, "list of vectors")
    for of in ("int", "float", "Weights"):
        refused(TRUNCATION, "list[Integers]", f"list[{of}]", "vectors|no translation")


@pytest.mark.parametrize("number", ["1e999", "1e300", "9007199254740993", "9007199254740993.0e3", "0.5", "True", "1j"])
def test_a_number_that_float64_does_not_hold_exactly_is_refused(number):
    refused(TRUNCATION, "(1 - CLIP_MARGIN)", f"({number} - CLIP_MARGIN)", "from 0 to 2")


def test_what_is_not_python_is_refused_plainly():
    for text in ("def f(:\n", "a = 'x\0'\n", "# coding: latin-1\nimport math\n"):
        with pytest.raises(translate.Refused, match=r"reference/truncation\.py:.*(not Python|encoding)"):
            translate.translate(text, TRUNCATION)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('Float64[np.ndarray, "_dim"]', "Float64[np.ndarray, print()]"),
        ('Float64[np.ndarray, "_dim"]', 'Float64[np.ndarray, "_dim", print()]'),
        ('Float64[np.ndarray, "_dim"]', 'Float64[np.ndarray, "{print()}"]'),
        ("list[Integers]", "list[Integers, print()]"),
    ],
)
def test_an_annotation_runs_nothing(old, new):
    refused(TRUNCATION, old, new, "no translation")


def test_the_clip_margin_is_bound_once_in_its_file(monkeypatch, tmp_path):
    """The theory takes the number from the text, and Python from what the text has done in the end."""
    assert translate.power_of_two("samelaw.contract.spec", "CLIP_MARGIN") == "/ 2 ^ 20"
    text = (translate.ROOT / "contract" / "spec.py").read_text(encoding="utf-8")
    (tmp_path / "contract").mkdir()
    (tmp_path / "contract" / "spec.py").write_text(text + "\nCLIP_MARGIN -= 2.0**-3\n", encoding="utf-8")
    monkeypatch.setattr(translate, "ROOT", tmp_path)
    with pytest.raises(translate.Refused, match="assigned once"):
        translate.power_of_two("samelaw.contract.spec", "CLIP_MARGIN")
