"""Shapes and types in annotations become checks for the whole test run.

`fast/` is left out: its functions are compiled or traced, and its entries check their arguments themselves.
"""

from jaxtyping import install_import_hook

_CHECKED = ("contract", "reference", "equivalence", "accounting", "workloads")
install_import_hook([f"samelaw.{package}" for package in _CHECKED], "beartype.beartype")
