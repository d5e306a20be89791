"""Restricted Python to Gallina: what the trainers run becomes what the theorems are about.

The translator knows a small language and refuses everything else, with the line and the way out: it never guesses.

    module      the imports of `IMPORTS`, type aliases, TypeVars, functions with every parameter annotated
    statement   x = e    x, y = e    table[rows] = e    f(...)    for x in range(a, b) or in a list of vectors
                and one return at the end
    expression  names, numbers, e + 1, table[rows], calls, tuples, and the float64 forms of `_operation`
    closure     one `def read(rows)` in the statement before the model that it serves, and used there alone
    name        bound once in the module, and never one of Python's builtins or of the theories

Tables (`Weights`, `History`) are changed in place in Python; in Gallina a function returns those that it changes. That
is the same thing as long as no table has two names, so a table may not be renamed, or passed twice to one call.
A call that may draw (its type says `Drawn`) becomes a monadic bind, and may only be the whole right-hand side.

    python proofs/translate.py            write proofs/theories/Gen_*.v
    python proofs/translate.py --check    exit 1 where they differ from what would be written
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from samelaw.contract.errors import InputError
from samelaw.equivalence.proofs import assignment

ROOT = Path(__file__).resolve().parent.parent
THEORIES = ROOT / "proofs" / "theories"


class Refused(Exception):
    """The source holds something outside the subset."""


def refuse(node: ast.AST, why: str, place: str) -> NoReturn:
    """Raise Refused with the line and what to do about it."""
    text = ast.unparse(node)
    raise Refused(f"{place}:{getattr(node, 'lineno', '?')}: {why}: {text.splitlines()[0][:100]}")


# Types.


@dataclass(frozen=True)
class Type:
    """A Gallina type; `name` is its text for an atom."""

    name: str
    parts: tuple[Type, ...] = ()
    drawn: bool = False

    def text(self) -> str:
        if self.name == "list":
            return f"list {_paren(self.parts[0].text())}"
        if self.name == "*":
            return " * ".join(_paren(p.text()) for p in self.parts)
        if self.name == "->":
            *args, result = self.parts
            end = f"M {_paren(result.text())}" if self.drawn else _paren(result.text())
            return " -> ".join([*(_paren(a.text()) for a in args), end])
        if self.name == "Program":
            return f"Program Val {_paren(self.parts[0].text())}"
        return self.name

    def replace(self, named: dict[str, Type]) -> Type:
        if not self.parts:
            return named.get(self.name, self)
        return Type(self.name, tuple(p.replace(named) for p in self.parts), self.drawn)


def _paren(text: str) -> str:
    return f"({text})" if " " in text else text


NAT, REAL, INT = Type("nat"), Type("R"), Type("Z")
TABLE, HISTORY, UNIT = Type("Table Val"), Type("History"), Type("unit")
VAL = Type("Val")


def list_of(of: Type) -> Type:
    return Type("list", (of,))


KNOWN = {
    "samelaw.reference.rows": {
        "Weights": TABLE,
        "History": HISTORY,
        "Rows": list_of(NAT),
        "Counts": list_of(NAT),
        "Values": list_of(VAL),
    }
}
PRIMITIVES = {  # of samelaw.reference.rows, defined in Monads.v
    "distinct": Type("->", (list_of(NAT), list_of(NAT))),
    "each": Type("->", (list_of(NAT), NAT, list_of(NAT))),
}
ARRAYS = {"Float64": list_of(REAL), "Int64": list_of(INT)}
IMPORTS = {  # what may be imported, and from where; besides `import math` and `import numpy as np`
    "__future__": {"annotations"},
    "collections.abc": {"Callable"},
    "typing": {"Annotated", "TypeAlias", "TypeVar"},
    "jaxtyping": set(ARRAYS),
    "samelaw.reference.rows": {*KNOWN["samelaw.reference.rows"], *PRIMITIVES},
    "samelaw.contract.spec": {"CLIP_MARGIN"},
}
LIBRARIES = {"math": None, "numpy": "np"}
BUILTINS = frozenset(dir(builtins))
IMPORTABLE = {"math", "np"}.union(*IMPORTS.values())
RESERVED = {
    "as", "at", "bind", "cofix", "else", "end", "exists", "exists2", "fix", "for", "forall", "fun", "if", "in", "let",
    "match", "mod", "Prop", "ret", "return", "Set", "then", "Type", "using", "where", "with", "value_", "tt", "seq",
    "combine", "fold_left", "fst", "list", "map", "nat", "snd", "unit", "x", "CM", "M", "O", "R", "Rle_dec", "S", "Val",
    "Z", "Ztrunc",
}  # fmt: skip
_DEFINED = re.compile(  # definitions, constructors and fields
    r"^\s*(?:Definition|Fixpoint|Inductive|Class|Record|Lemma|Theorem|Corollary|Instance|\|)\s+(\w+)|^  (\w+) :",
    re.MULTILINE,
)


def taken() -> set[str]:
    """Names that a generated theory could capture: those of the language, and those of Monads and Float64."""
    text = "".join((THEORIES / f"{name}.v").read_text(encoding="utf-8") for name in ("Monads", "Float64"))
    return RESERVED | {a or b for a, b in _DEFINED.findall(text)}


# A module.


@dataclass
class Alias:
    """A generic type alias."""

    params: list[str]
    type: Type


@dataclass
class Function:
    """A translated function: what it takes, which of its tables it changes, and whether it may draw."""

    name: str
    params: list[tuple[str, Type]]
    result: Type | None
    changes: list[str] = field(default_factory=list[str])
    drawn: bool = False


class Module:
    """One source file on its way to Gallina."""

    def __init__(self, source: str, place: str, imported: Callable[[str, str], str | None]) -> None:
        self.place = place
        self.types: dict[str, Type] = {"int": NAT, "float": REAL}
        self.aliases: dict[str, Alias] = {}
        self.variables: list[str] = []
        self.drawn_alias = self.primitives = ""
        self.functions: dict[str, Function] = {}
        self.calls: dict[str, Type] = {}
        self.constants: dict[str, str] = {}
        self.libraries: set[str] = set()
        self.read: Type | None = None
        self.definitions: list[str] = []
        self.names: set[str] = set()
        self.gallina = taken()
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError) as error:
            raise Refused(f"{place}:{getattr(error, 'lineno', None) or '?'}: this is not Python: {error}") from None
        if re.search(r"^[ \t\f]*#.*?coding[:=]", "\n".join(source.splitlines()[:2]), re.MULTILINE):
            raise Refused(f"{place}:1: a source has no declaration of its encoding: it is UTF-8")
        for node in tree.body:
            self._top(node, imported)

    def _top(self, node: ast.stmt, imported: Callable[[str, str], str | None]) -> None:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name not in LIBRARIES or alias.asname != LIBRARIES[alias.name]:
                    refuse(node, "only `import math` and `import numpy as np` are known", self.place)
                self._fresh(node, alias.asname or alias.name, importing=True)
                self.libraries.add(alias.asname or alias.name)
        elif isinstance(node, ast.ImportFrom):
            self._import(node, imported)
        elif isinstance(node, ast.Assign) and self._is_typevar(node):
            name: str = node.targets[0].id  # type: ignore[attr-defined]  # _is_typevar saw to it that it is a name
            self._fresh(node, name)
            if name in self.gallina:
                refuse(node, f"the name {name!r} is taken in Gallina; choose another", self.place)
            self.variables.append(name)
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias" and node.value:
            self._alias(node)
        elif isinstance(node, ast.FunctionDef):
            self._fresh(node, node.name)
            self.definitions.append(_Body(self, node).text())
        else:
            refuse(node, "only imports, type aliases, TypeVars and functions may stand in the module", self.place)

    def _fresh(self, node: ast.AST, name: str, *, importing: bool = False) -> None:
        """A name may be bound once in the module, and what may be imported is bound by its import alone."""
        strange = not name.isascii() or name.startswith("_")
        if strange or name in self.names or name in BUILTINS or (name in IMPORTABLE and not importing):
            refuse(node, f"the name {name!r} is taken in Python or in this module; choose another", self.place)
        self.names.add(name)

    def _import(self, node: ast.ImportFrom, imported: Callable[[str, str], str | None]) -> None:
        module = node.module or ""
        for alias in node.names:
            name = alias.name
            if alias.asname:
                refuse(node, "an import may not rename", self.place)
            if node.level or name not in IMPORTS.get(module, ()):
                refuse(node, f"{name} of {module} is not known to the translator", self.place)
            self._fresh(node, name, importing=True)
            if name in KNOWN.get(module, {}):
                self.types[name] = KNOWN[module][name]
            elif module == "samelaw.reference.rows" and name in PRIMITIVES:
                self.calls[name] = PRIMITIVES[name]
            elif module == "samelaw.contract.spec":
                value = imported(module, name)
                if value is None:
                    refuse(node, f"{name} of {module} must be written as 2.0**-n", self.place)
                self.constants[name] = value

    def _is_typevar(self, node: ast.Assign) -> bool:
        target, call = node.targets[0], node.value
        return (
            len(node.targets) == 1
            and isinstance(target, ast.Name)
            and isinstance(call, ast.Call)
            and ast.unparse(call) == f"TypeVar('{target.id}')"
        )

    def _alias(self, node: ast.AnnAssign) -> None:
        name, value = ast.unparse(node.target), node.value
        assert value is not None
        if not isinstance(node.target, ast.Name):
            refuse(node, "a type alias has a plain name", self.place)
        self._fresh(node, name)
        if isinstance(value, ast.Subscript) and ast.unparse(value.value) == "Annotated":
            about = value.slice.elts if isinstance(value.slice, ast.Tuple) else []
            if (
                self.drawn_alias
                or len(about) != 2
                or ast.unparse(about[0]) not in self.variables
                or not _text(about[1])
            ):
                refuse(node, "there is one Annotated alias, of a TypeVar and a text", self.place)
            self.drawn_alias = name
            return
        names = [n.id for n in ast.walk(value) if isinstance(n, ast.Name) and n.id in self.variables]
        self.aliases[name] = Alias(list(dict.fromkeys(sorted(names, key=lambda n: _first(value, n)))), self.type(value))
        if name == "Read":
            self.read = self.aliases[name].type
            if self.read != Type("->", (list_of(NAT), list_of(VAL))):
                refuse(node, "Read takes Rows and gives Values", self.place)

    # Annotations.

    def type(self, node: ast.expr) -> Type:
        """The Gallina type of an annotation."""
        if isinstance(node, ast.Name):
            if node.id in self.aliases:
                return self.aliases[node.id].type
            if node.id in self.types:
                return self.types[node.id]
            if node.id in self.variables:
                return Type(node.id)
        if isinstance(node, ast.Subscript):
            head = ast.unparse(node.value)
            items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            if (
                head in ARRAYS
                and ast.unparse(items[0]) == "np.ndarray"
                and len(items) == 2
                and _text(items[1], word=True)
            ):
                return ARRAYS[head]
            if head == "list" and len(items) == 1:
                item = self.type(items[0])
                if item not in ARRAYS.values():
                    refuse(
                        node, "a list holds vectors: the translator takes a list of numbers for a vector", self.place
                    )
                return list_of(item)
            if head == "tuple":
                return Type("*", tuple(self.type(i) for i in items))
            if head == "Callable" and isinstance(items[0], ast.List) and len(items) == 2:
                return self._callable(items[0].elts, items[1])
            if head in self.aliases:
                alias = self.aliases[head]
                if len(alias.params) != len(items):
                    refuse(node, f"{head} takes the type parameters {alias.params}", self.place)
                return alias.type.replace(dict(zip(alias.params, map(self.type, items), strict=True)))
        refuse(node, "this annotation has no translation", self.place)

    def _callable(self, args: list[ast.expr], result: ast.expr) -> Type:
        drawn = isinstance(result, ast.Subscript) and ast.unparse(result.value) == self.drawn_alias
        if drawn:
            result = result.slice  # type: ignore[attr-defined]  # `drawn` says that it is a subscript
        if len(args) == 1 and ast.unparse(args[0]) == "Read" and self.read is not None:
            return Type("Program", (self.type(result),))
        return Type("->", (*(self.type(a) for a in args), self.type(result)), drawn)


def _text(node: ast.expr, *, word: bool = False) -> bool:
    """Whether it is a text; a shape must be one word, as jaxtyping evaluates what stands in braces."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and (not word or node.value.isidentifier())


def _first(node: ast.AST, name: str) -> tuple[int, int]:
    return min((n.lineno, n.col_offset) for n in ast.walk(node) if isinstance(n, ast.Name) and n.id == name)


# A function.


class _Body:
    """One function: first what it changes, then its text."""

    def __init__(self, module: Module, node: ast.FunctionDef) -> None:
        self.module, self.node, self.place = module, node, module.place
        self._plain(node)
        params = [(arg.arg, self._annotated(arg)) for arg in node.args.args]
        self.read_closure: ast.FunctionDef | None = None
        none = node.returns is None or ast.unparse(node.returns) == "None"
        # The ignored type: `none` says that there is an annotation.
        self.function = Function(node.name, params, None if none else module.type(node.returns))  # type: ignore[arg-type]
        if node.name in self.module.gallina:
            refuse(node, f"the name {node.name!r} is taken in Gallina; choose another", self.place)
        for name, _ in params:
            self._name(node, name)
        self.tables = [p for p, t in params if t in (TABLE, HISTORY)]
        body = _without_docstring(node.body)
        changed = self._changed(body)
        self.function.changes = [p for p in self.tables if p in changed]
        self.function.drawn = self._draws(body, dict(params))
        self.body = body
        module.functions[node.name] = self.function

    def _plain(self, node: ast.FunctionDef) -> None:
        a = node.args
        starred = a.kwonlyargs or a.vararg or a.kwarg or a.posonlyargs or a.kw_defaults
        if a.defaults or starred or node.decorator_list or getattr(node, "type_params", None):
            refuse(
                node,
                "a function may not have defaults, keyword-only or starred parameters, type parameters or decorators",
                self.place,
            )

    def _annotated(self, arg: ast.arg) -> Type:
        if arg.annotation is None:
            refuse(arg, "every parameter needs a type", self.place)
        return self.module.type(arg.annotation)

    def _name(self, node: ast.AST, name: str) -> None:
        m = self.module
        strange = not name.isascii() or name.startswith("_")
        if strange or name in m.gallina or name in m.names or name in BUILTINS or name in IMPORTABLE:
            refuse(node, f"the name {name!r} is taken in Gallina or in this module; choose another", self.place)

    # What a body does.

    def _changed(self, body: Sequence[ast.stmt]) -> set[str]:
        """Tables that a body assigns to, itself or through a call."""
        found: set[str] = set()
        for node in body:
            for n in ast.walk(node):
                if isinstance(n, ast.Assign):
                    found |= {ast.unparse(t.value) for t in n.targets if isinstance(t, ast.Subscript)}
                if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id in self.module.functions:
                    callee = self.module.functions[n.func.id]
                    given = dict(zip((p for p, _ in callee.params), n.args, strict=False))
                    found |= {ast.unparse(given[c]) for c in callee.changes if c in given}
        return found

    def _draws(self, body: Sequence[ast.stmt], types: dict[str, Type]) -> bool:
        for node in body:
            for n in ast.walk(node):
                if isinstance(n, ast.Call) and isinstance(n.func, ast.Name):
                    of = types.get(n.func.id)
                    if of is not None and (of.drawn or of.name == "Program"):
                        return True
                    if n.func.id in self.module.functions and self.module.functions[n.func.id].drawn:
                        return True
        return False

    # Its text.

    def text(self) -> str:
        f = self.function
        parts = [TABLE if t == TABLE else HISTORY for p, t in f.params if p in f.changes]
        if f.result is not None:
            parts.append(f.result)
        if not parts:
            refuse(self.node, "a function must change a table or return something", self.place)
        result = " * ".join(_paren(p.text()) if len(parts) > 1 else p.text() for p in parts)
        if f.drawn:
            result = f"M {_paren(result)}"
        head = f"Definition {f.name}" + "".join(f"\n    ({p} : {t.text()})" for p, t in f.params) + f"\n  : {result} :="
        return head + "\n" + self._statements(self.body, dict(f.params), "  ", None) + "."

    def _result(self, value: str | None) -> str:
        items = [*self.function.changes, *([value] if value is not None else [])]
        text = _tuple(items)
        return f"ret {_paren_call(text)}" if self.function.drawn else text

    def _statements(self, body: Sequence[ast.stmt], env: dict[str, Type], ind: str, tail: str | None) -> str:
        """Gallina of a body; `tail` is what the body of a loop ends with."""
        if not body:
            if tail is not None:
                return ind + tail
            if self.function.result is not None:
                refuse(self.node, "the function must end with a return", self.place)
            return ind + self._result(None)
        node, rest = body[0], body[1:]
        if isinstance(node, ast.Return):
            return ind + self._return(node, rest, env, tail)
        if isinstance(node, ast.FunctionDef):
            if not rest or self.read_closure is not None or isinstance(self, _Closure):
                refuse(node, "a closure must stand right before the model that it serves", self.place)
            self.read_closure = node
            text = self._assign_or_call(rest[0], rest[1:], env, ind, tail)
            if self.read_closure is not None:
                refuse(node, "the closure is not used by the next statement", self.place)
            return text
        if isinstance(node, ast.For):
            return self._for(node, rest, env, ind, tail)
        return self._assign_or_call(node, rest, env, ind, tail)

    def _return(self, node: ast.Return, rest: Sequence[ast.stmt], env: dict[str, Type], tail: str | None) -> str:
        if rest or tail is not None:
            refuse(node, "return must be the last statement, outside loops", self.place)
        if node.value is None or self.function.result is None:
            refuse(node, "a return needs a value and an annotation", self.place)
        text, of = self.expression(node.value, env)
        self._same(node, of, self.function.result)
        return self._result(text)

    def _assign_or_call(
        self, node: ast.stmt, rest: Sequence[ast.stmt], env: dict[str, Type], ind: str, tail: str | None
    ) -> str:
        if isinstance(node, ast.Expr):
            target: ast.expr | None = None
            value = node.value
            if not isinstance(value, ast.Call):
                refuse(node, "an expression alone does nothing", self.place)
        elif isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
        else:
            refuse(node, "this statement is outside the subset", self.place)
        effect = self._effect(value, env)
        if effect is not None:
            text, changes, of, drawn = effect
        else:
            text, of = self.expression(value, env)
            changes, drawn = [], False
            if target is None:
                refuse(node, "a call that changes nothing does nothing", self.place)
            if of in (TABLE, HISTORY):
                refuse(node, "a table may have one name only", self.place)
        env = dict(env)
        pattern, after = self._target(node, target, of, env, ind)
        if changes or effect is not None:
            served = effect is not None and changes == ["_"]
            pieces = ["_"] if served else [*changes]
            whole = _tuple([*pieces, *([pattern] if pattern else [])])
            if "," in whole or whole.startswith("("):
                whole = f"'{whole}" if whole.startswith("(") else f"'({whole})"
        else:
            whole = f"'{pattern}" if pattern.startswith("(") else pattern
        end = self._statements(rest, env, ind, tail)
        if drawn:
            return f"{ind}bind {_paren(text)} (fun {whole} =>\n{after}{end})"
        return f"{ind}let {whole} := {text} in\n{after}{end}"

    def _target(
        self, node: ast.stmt, target: ast.expr | None, of: Type | None, env: dict[str, Type], ind: str
    ) -> tuple[str, str]:
        """The pattern that takes a value, and what has to follow it."""
        if target is None:
            if of is not None:
                refuse(node, "the result of this call is thrown away", self.place)
            return "", ""
        if of is None:
            refuse(node, "this call returns nothing", self.place)
        if isinstance(target, ast.Name):
            self._bind_name(node, target.id, of, env)
            return target.id, ""
        if isinstance(target, ast.Tuple) and of.name == "*" and len(target.elts) == len(of.parts):
            names: list[str] = []
            for item, part in zip(target.elts, of.parts, strict=True):
                if not isinstance(item, ast.Name):
                    refuse(node, "only names may be unpacked into", self.place)
                self._bind_name(node, item.id, part, env)
                names.append(item.id)
            if len(set(names)) != len(names):
                refuse(node, "a name is bound twice", self.place)
            return _tuple(names), ""
        if isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name):
            table = target.value.id
            rows, rows_type = self.expression(target.slice, env)
            self._same(target, rows_type, list_of(NAT))
            if env.get(table) == TABLE:
                self._same(node, of, list_of(VAL))
                return "value_", f"{ind}let {table} := scatter {table} {rows} value_ in\n"
            if env.get(table) == HISTORY:
                self._same(node, of, NAT)
                return "value_", f"{ind}let {table} := fill {table} {rows} value_ in\n"
        refuse(node, "this cannot be assigned to", self.place)

    def _bind_name(self, node: ast.AST, name: str, of: Type, env: dict[str, Type]) -> None:
        self._name(node, name)
        if name in env:
            self._same(node, of, env[name])
        if of in (TABLE, HISTORY):
            refuse(node, "a table may have one name only", self.place)
        env[name] = of

    def _effect(self, value: ast.expr, env: dict[str, Type]) -> tuple[str, list[str], Type | None, bool] | None:
        """(text, tables changed, type of the result, whether it draws) of a call that draws or changes tables."""
        if not (isinstance(value, ast.Call) and isinstance(value.func, ast.Name)):
            return None
        name = value.func.id
        of = env.get(name)
        if of is not None and of.name == "Program":
            return self._serve(value, of, env)
        if of is not None and of.drawn:
            return self._call(value, of, env), [], of.parts[-1], True
        if name in self.module.functions and name not in env:
            f = self.module.functions[name]
            if not (f.drawn or f.changes):
                return None
            return self._own(value, f, env)
        return None

    def _own(self, value: ast.Call, f: Function, env: dict[str, Type]) -> tuple[str, list[str], Type | None, bool]:
        """A call of a function of this module; its type variables take the types that the arguments have."""
        if value.keywords or len(value.args) != len(f.params):
            refuse(value, f"{f.name} takes {len(f.params)} positional arguments", self.place)
        texts: list[str] = []
        given: dict[str, str] = {}
        for (param, wanted), arg in zip(f.params, value.args, strict=True):
            text, of = self.expression(arg, env)
            self._same(arg, of, wanted)
            if of in (TABLE, HISTORY):
                if text in given.values():
                    refuse(value, "a table is passed twice: the two parameters would be one table", self.place)
                given[param] = text
            texts.append(_paren_call(text))
        return f"{f.name} {' '.join(texts)}", [given[c] for c in f.changes], f.result, f.drawn

    def _serve(self, value: ast.Call, of: Type, env: dict[str, Type]) -> tuple[str, list[str], Type | None, bool]:
        """A model call: its reads are served by the closure defined just before."""
        closure = self.read_closure
        if closure is None or value.keywords or [ast.unparse(a) for a in value.args] != [closure.name]:
            refuse(value, "a model takes one argument: the closure defined right before", self.place)
        self.read_closure = None
        self._plain(closure)
        self._name(closure, closure.name)
        if len(closure.args.args) != 1 or self.module.read is None:
            refuse(closure, "a closure that serves reads takes the rows asked for", self.place)
        asked = closure.args.args[0]
        self._name(closure, asked.arg)
        if asked.arg in env or closure.name in env:
            refuse(closure, "the closure and its parameter need names of their own", self.place)
        rows, values = self.module.read.parts
        self._same(closure, self._annotated(asked), rows)
        if closure.returns is None:
            refuse(closure, "the closure needs a return type", self.place)
        self._same(closure, self.module.type(closure.returns), values)
        body = _without_docstring(closure.body)
        changed = [t for t in self.tables if t in self._changed(body)]
        state = _tuple(changed) if changed else "tt"
        inner = _Closure(self, closure, changed)
        text = inner._statements(body, {**env, asked.arg: rows}, "      ", None)
        pattern = state if not changed else (f"'{state}" if len(changed) > 1 else state)
        # The ignored type: the callee of a served model is a name, which the caller has checked.
        call = f"serve (fun {pattern if changed else '_'} {asked.arg} =>\n{text}) {value.func.id} {_paren_call(state)}"  # type: ignore[attr-defined]
        whole = [_tuple(changed)] if changed else ["_"]
        return call, whole, of.parts[0], True

    def _for(self, node: ast.For, rest: Sequence[ast.stmt], env: dict[str, Type], ind: str, tail: str | None) -> str:
        if node.orelse or not isinstance(node.target, ast.Name):
            refuse(node, "a loop has one variable and no else", self.place)
        if node.target.id in env:
            refuse(node, "the loop variable must be a new name", self.place)
        if isinstance(node.iter, ast.Call) and ast.unparse(node.iter.func) == "range" and len(node.iter.args) == 2:
            (a, of_a), (b, of_b) = (self.expression(x, env) for x in node.iter.args)
            self._same(node, of_a, NAT)
            self._same(node, of_b, NAT)
            over, item = f"(seq {a} ({b} - {a}))", NAT
        else:
            over, of = self.expression(node.iter, env)
            if of.name != "list" or of.parts[0].name != "list" or not isinstance(node.iter, ast.Name):
                refuse(node, "a loop runs over range(a, b) or over a list of vectors that has a name", self.place)
            item = of.parts[0]
        live = [n for n in env if n in self._assigned(node.body)]
        if not live:
            refuse(node, "the loop changes nothing", self.place)
        drawn = self._draws(node.body, env)
        state = _tuple(live)
        pattern = f"'{state}" if len(live) > 1 else state
        inner = dict(env)
        self._bind_name(node, node.target.id, item, inner)
        end = f"ret {_paren_call(state)}" if drawn else state
        body = self._statements(node.body, inner, ind + "    ", end)
        loop = f"{'foldM' if drawn else 'fold_left'} (fun {pattern} {node.target.id} =>\n{body}) {over} {state}"
        after = self._statements(rest, env, ind, tail)
        if drawn:
            return f"{ind}bind ({loop}) (fun {pattern} =>\n{after})"
        return f"{ind}let {pattern} := {loop} in\n{after}"

    def _assigned(self, body: Sequence[ast.stmt]) -> set[str]:
        found = self._changed(body)
        for node in body:
            for n in ast.walk(node):
                if isinstance(n, ast.Assign):
                    found |= {
                        m.id
                        for t in n.targets
                        for m in ast.walk(t)
                        if isinstance(m, ast.Name) and not isinstance(t, ast.Subscript)
                    }
        return found

    # Expressions.

    def expression(self, node: ast.expr, env: dict[str, Type]) -> tuple[str, Type]:
        """(text, type) of an expression that neither draws nor changes anything."""
        if isinstance(node, ast.Name):
            if node.id in env:
                return node.id, env[node.id]
            if node.id in self.module.constants:
                return node.id, REAL
            refuse(node, "this name is not bound on every way here", self.place)
        if isinstance(node, ast.Constant):
            if type(node.value) is int and 0 <= node.value <= 2**53:
                return str(node.value), NAT
            if type(node.value) is float and 0 <= node.value <= 2**53 and node.value.is_integer():
                return str(int(node.value)), REAL
            refuse(node, "only whole numbers from 0 to 2^53 are known", self.place)
        if isinstance(node, ast.Tuple):
            items = [self.expression(e, env) for e in node.elts]
            return _tuple([t for t, _ in items]), Type("*", tuple(of for _, of in items))
        if isinstance(node, ast.Subscript):
            return self._subscript(node, env)
        if isinstance(node, ast.BinOp):
            return self._operation(node, env)
        if isinstance(node, ast.IfExp):
            return self._choice(node, env)
        if isinstance(node, ast.Call):
            return self._pure_call(node, env)
        refuse(node, "this expression is outside the subset", self.place)

    def _subscript(self, node: ast.Subscript, env: dict[str, Type]) -> tuple[str, Type]:
        table, of = self.expression(node.value, env)
        rows, rows_type = self.expression(node.slice, env)
        self._same(node, rows_type, list_of(NAT))
        if of == TABLE:
            return f"(gather {table} {rows})", list_of(VAL)
        if of == HISTORY:
            return f"(gather {table} {rows})", list_of(NAT)
        refuse(node, "only tables and histories are indexed", self.place)

    def _operation(self, node: ast.BinOp, env: dict[str, Type]) -> tuple[str, Type]:
        (a, of_a), (b, of_b) = self.expression(node.left, env), self.expression(node.right, env)
        if REAL in (of_a, of_b) and isinstance(node.left if of_b == REAL else node.right, ast.Constant):
            of_a = of_b = REAL
        kind = (type(node.op).__name__, of_a, of_b)
        reals, integers = list_of(REAL), list_of(INT)
        forms = {
            ("Add", NAT, NAT): (f"({a} + {b})", NAT),
            ("Sub", REAL, REAL): (f"(sub64 {a} {b})", REAL),
            ("Mult", REAL, REAL): (f"(mul64 {a} {b})", REAL),
            ("Div", REAL, REAL): (f"(div64 {a} {b})", REAL),
            ("Mult", reals, REAL): (f"(map (fun x => mul64 x {b}) {a})", reals),
            ("Add", integers, integers): (f"(add_vectors {a} {b})", integers),
        }
        if kind not in forms:
            refuse(node, f"{kind[0]} of {of_a.text()} and {of_b.text()} has no translation", self.place)
        return forms[kind]

    def _choice(self, node: ast.IfExp, env: dict[str, Type]) -> tuple[str, Type]:
        test = node.test
        if not (isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.LtE)):
            refuse(node, "the only test is a <= b", self.place)
        (a, of_a), (b, of_b) = self.expression(test.left, env), self.expression(test.comparators[0], env)
        (x, of_x), (y, of_y) = self.expression(node.body, env), self.expression(node.orelse, env)
        self._same(node, of_a, REAL)
        self._same(node, of_b, REAL)
        self._same(node, of_x, of_y)
        return f"(if Rle_dec {a} {b} then {x} else {y})", of_x

    def _pure_call(self, node: ast.Call, env: dict[str, Type]) -> tuple[str, Type]:
        text = ast.unparse(node.func)
        if isinstance(node.func, ast.Name):
            of = env.get(text) or self.module.calls.get(text)
            if of is not None and of.name == "->" and not of.drawn:
                return f"({self._call(node, of, env)})", of.parts[-1]
            refuse(node, "a call that draws or changes tables must be a whole right-hand side", self.place)
        if text == "math.sqrt" and "math" in self.module.libraries and len(node.args) == 1 and not node.keywords:
            arg, of = self.expression(node.args[0], env)
            self._same(node, of, REAL)
            return f"(sqrt64 {arg})", REAL
        inner = node.func.value if isinstance(node.func, ast.Attribute) and node.func.attr == "astype" else None
        if (
            isinstance(inner, ast.Call)
            and "np" in self.module.libraries
            and ast.unparse(inner.func) == "np.trunc"
            and [ast.unparse(a) for a in node.args] == ["np.int64"]
            and len(inner.args) == 1
            and not node.keywords
            and not inner.keywords
        ):
            arg, of = self.expression(inner.args[0], env)
            self._same(node, of, list_of(REAL))
            return f"(map Ztrunc {arg})", list_of(INT)
        refuse(node, "this call is outside the subset", self.place)

    def _call(self, node: ast.Call, of: Type, env: dict[str, Type]) -> str:
        *wanted, _ = of.parts
        if node.keywords or len(wanted) != len(node.args):
            refuse(node, f"{len(wanted)} positional arguments are wanted", self.place)
        texts = [ast.unparse(node.func)]
        for arg, want in zip(node.args, wanted, strict=True):
            text, found = self.expression(arg, env)
            self._same(arg, found, want)
            texts.append(_paren_call(text))
        return " ".join(texts)

    def _same(self, node: ast.AST, found: Type | None, wanted: Type) -> None:
        if found != wanted:
            refuse(node, f"{'nothing' if found is None else found.text()} where {wanted.text()} is wanted", self.place)


class _Closure(_Body):
    """The body of a closure that serves reads: it ends by giving back the tables that it changed, and the values."""

    def __init__(self, outer: _Body, node: ast.FunctionDef, changed: list[str]) -> None:
        self.module, self.node, self.place, self.tables = outer.module, node, outer.place, outer.tables
        self.read_closure = None
        assert outer.module.read is not None
        self.function = Function(node.name, [], outer.module.read.parts[-1], changed, drawn=True)

    def _result(self, value: str | None) -> str:
        state = _tuple(self.function.changes) if self.function.changes else "tt"
        return f"ret ({state}, {value})"


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return body[1:]
    return body


def _tuple(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"({', '.join(items)})"


def _paren_call(text: str) -> str:
    return text if text.startswith("(") or " " not in text else f"({text})"


# Files.


@dataclass(frozen=True)
class Target:
    """A source file, the theory that is generated from it, and how that theory begins."""

    source: str
    theory: str
    header: str


SCHEDULE_HEADER = """Require Import List Arith.
Import ListNotations.
From samelaw Require Import Monads.

Section Generated.
Context {M : Set -> Type} {CM : CommMonad M} {Val Gradient Side : Set}."""
TRUNCATION_HEADER = """Require Import Reals ZArith List.
From Flocq Require Import Core.
From samelaw Require Import Float64.
Import ListNotations.
Open Scope R_scope.

Section Generated."""

TARGETS = (
    Target("reference/lazy_schedule.py", "Gen_schedule.v", SCHEDULE_HEADER),
    Target("reference/truncation.py", "Gen_truncation.v", TRUNCATION_HEADER),
)


def power_of_two(module: str, name: str) -> str | None:
    """The value of an imported constant that is written as 2.0**-n, as a real number.

    Raises:
        Refused: its file binds the name in any other way as well.
    """
    path = ROOT.joinpath(*module.removeprefix("samelaw.").split(".")).with_suffix(".py")
    if not module.startswith("samelaw.") or not path.exists():
        return None
    try:
        text = ast.unparse(assignment(path.read_bytes(), name).value)
    except InputError as error:
        raise Refused(f"{path.relative_to(ROOT)}: {error}") from None
    digits = text.removeprefix("2.0 ** (-").removesuffix(")") if "(" in text else text.removeprefix("2.0 ** -")
    return f"/ 2 ^ {int(digits)}" if digits.isdigit() else None


def translate(text: str, target: Target) -> str:
    """The generated theory of a source text.

    Raises:
        Refused: something in it is outside the subset.
    """
    module = Module(text, target.source, power_of_two)
    sha = hashlib.sha256(text.encode()).hexdigest()
    constants = [f"Definition {name} : R := ({value})%R." for name, value in module.constants.items()]
    return "\n\n".join(
        [
            f"(* GENERATED by proofs/translate.py; do not edit.\n   source {target.source}\n   sha256 {sha} *)\n"
            + target.header,
            *constants,
            *module.definitions,
            "End Generated.\n",
        ]
    )


def main(arguments: Sequence[str]) -> int:
    stale = 0
    for target in TARGETS:
        text = translate((ROOT / target.source).read_text(encoding="utf-8"), target)
        path = THEORIES / target.theory
        if "--check" in arguments:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                print(f"{path.relative_to(ROOT)} is not what {target.source} translates to: run make proofs-generate")
                stale = 1
        else:
            path.write_text(text, encoding="utf-8")
    return stale


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Refused as refused:
        sys.exit(f"outside the translated subset: {refused}")
