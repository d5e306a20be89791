"""An audit as a JUnit file, for systems that gate on test results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree


def junit(record: Mapping[str, Any]) -> str:
    """One test case a check: REFUTED fails, NOT ASSESSED is skipped, or an error where the check is required."""
    checks = record["checks"]
    failures = sum(c["verdict"] == "REFUTED" for c in checks)
    unassessed = [c for c in checks if c["verdict"] == "NOT ASSESSED"]
    errors = sum(c["required"] for c in unassessed)
    suite = ElementTree.Element(
        "testsuite", name="samelaw audit", tests=str(len(checks)), failures=str(failures), errors=str(errors),
        skipped=str(len(unassessed) - errors),
    )  # fmt: skip
    for c in checks:
        case = ElementTree.SubElement(suite, "testcase", classname=f"samelaw.audit.{c['check']}", name=c["title"])
        if c["verdict"] == "REFUTED":
            ElementTree.SubElement(case, "failure", message=c["said"], type="REFUTED")
        elif c["verdict"] == "NOT ASSESSED":
            kind = "error" if c["required"] else "skipped"
            ElementTree.SubElement(case, kind, message=c["said"])
        else:
            ElementTree.SubElement(case, "system-out").text = f"{c['verdict']}: {c['said']}"
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"
