"""Shapes and types in annotations become checks for the whole test run.

`fast/` is left out: its functions are compiled or traced, and its entries check their arguments themselves. An int
may stand for a float, as in Python's numeric tower.
"""

import sys
import types

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

_CHECKED = ("contract", "reference", "equivalence", "accounting", "audit", "workloads")

checks = types.ModuleType("samelaw_test_checks")  # the hook takes its decorator by name
checks.typed = beartype(conf=BeartypeConf(is_pep484_tower=True))
sys.modules[checks.__name__] = checks
install_import_hook([f"samelaw.{package}" for package in _CHECKED], "samelaw_test_checks.typed")
