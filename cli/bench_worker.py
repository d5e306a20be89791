"""The process that a foreign Python trainer runs in: it may crash or hang, and the bench lives on.

Standard input and output carry one JSON object a line. First comes {"trainer": "MODULE:FACTORY", "path": [...]},
answered with {"abilities": {...}}; then {"in": FOLDER, "out": FOLDER} for each job, answered with {"failure": null} or
what went wrong. Whatever the trainer prints goes to standard error, and it finds nothing to read.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any, cast

from samelaw.contract.bench import Abilities, TrainerFactory
from samelaw.contract.errors import InputError
from samelaw.equivalence.bench.conduct import run_here
from samelaw.equivalence.bench.files import read_job, write_outcome


def main() -> None:
    orders = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # a trainer that reads standard input must not read our orders
    os.dup2(2, 1)

    def answer(record: dict[str, Any]) -> None:
        print(json.dumps(record), file=answers, flush=True)

    hello = json.loads(orders.readline())
    try:
        factory = find_factory(hello["trainer"], hello["path"])
    except InputError as error:
        answer({"error": str(error)})
        return
    answer({"abilities": factory.abilities.to_json()})
    for line in orders:
        order = json.loads(line)
        outcome = run_here(factory, read_job(Path(order["in"])))
        failure = outcome.failure
        if failure is None:
            write_outcome(Path(order["out"]), outcome)
        answer({"failure": None if failure is None else failure.__dict__})


def find_factory(name: str, path: list[str]) -> TrainerFactory:
    """What MODULE:FACTORY names.

    Raises:
        InputError: the module cannot be imported, or what it holds is no factory.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise InputError(f"a trainer is named MODULE:FACTORY, for instance my_trainer:MyTrainer; got {name!r}")
    sys.path[:] = path
    try:
        module = importlib.import_module(module_name)
    except Exception as cause:
        if isinstance(cause, ModuleNotFoundError) and cause.name == module_name:
            raise InputError(
                f"there is no module {module_name!r} in the current folder or installed here (the part before the "
                f"colon of {name!r} is what Python would import)"
            ) from cause
        raise InputError(f"module {module_name!r} cannot be imported:\n{traceback.format_exc()}") from cause
    factory: Any = module
    for part in attribute.split("."):
        if not hasattr(factory, part):
            raise InputError(f"module {module_name!r} has no {attribute!r}")
        factory = getattr(factory, part)
    if not callable(factory):
        raise InputError(f"{name} must be callable as FACTORY(problem, seed), got {type(factory).__name__}")
    if not isinstance(getattr(factory, "abilities", None), Abilities):
        raise InputError(
            f"{name} must have an attribute `abilities`, a samelaw.contract.bench.Abilities that says what the trainer "
            "can do: what is not declared is not assessed"
        )
    return cast(TrainerFactory, factory)


if __name__ == "__main__":
    main()
