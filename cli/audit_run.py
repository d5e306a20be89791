"""What `samelaw audit RUN_DIR` does, once its options are read."""

from __future__ import annotations

import argparse
import json
import math
import sys
import textwrap
from pathlib import Path

from samelaw.audit.auditing import Audit, Request, Rows, audit
from samelaw.audit.findings import Finding, Verdict
from samelaw.audit.junit import junit
from samelaw.audit.record import private_evidence, public_record
from samelaw.audit.report_page import headline, page
from samelaw.cli.audit_command import BAD_INPUT, INCONCLUSIVE, NOT_REFUTED, REFUTED
from samelaw.cli.runfolder import write_text
from samelaw.contract.errors import InputError, NoiseKeyError, SamelawError
from samelaw.contract.noise import NoiseKey
from samelaw.contract.untrusted import BoundedFile

_LARGEST_KEY = 1024
_WIDTH = 110
_STATUS = {Verdict.REFUTED: REFUTED, Verdict.NOT_ASSESSED: INCONCLUSIVE}


def run_audit(options: argparse.Namespace) -> int:
    """Audit, write what was asked for, say the outcome."""
    try:
        _check_outputs(options)
        request = Request(
            key=None if options.key is None else _key(options.key),
            transcript=options.transcript,
            rows=None if options.replay is None else Rows(options.replay),
            confidence=options.confidence,
            other=options.other,
            sample_rows=options.sample_rows,
            largest_weights=_bytes(options.largest_weights),
        )
        found = audit(options.run, request)
        record = public_record(found)
        _write(options, found, record)
    except (SamelawError, OSError) as error:
        print(f"samelaw audit: {error}", file=sys.stderr)
        print("samelaw audit: nothing was concluded", file=sys.stderr)
        return BAD_INPUT
    if options.json:
        print(json.dumps(record, indent=2, sort_keys=True))
    else:
        for finding in found.findings:
            print(text_of(finding))
    print(headline(record), file=sys.stderr)
    return _STATUS.get(found.verdict, NOT_REFUTED)


def text_of(finding: Finding) -> str:
    """A finding in a few lines of a terminal."""
    gap = f" Would have been seen: {finding.detectable}." if finding.detectable else ""
    margin = " " * 18
    lines = textwrap.wrap(finding.said + gap, _WIDTH, initial_indent=margin, subsequent_indent=margin)
    return "\n".join([f"{finding.check}  {finding.verdict:<12}  {finding.title}", *lines])


def _key(path: Path) -> NoiseKey:
    """The key file, bounded like every other.

    Raises:
        NoiseKeyError: it holds no key.
    """
    with BoundedFile(path, most_bytes=_LARGEST_KEY) as file:
        raw = file.read(0, file.size)
    try:
        return NoiseKey.from_bytes(bytes.fromhex(raw.decode("ascii").strip()))
    except ValueError as cause:
        raise NoiseKeyError(f"--key {path} must hold 64 hexadecimal digits, as `samelaw train` writes them") from cause


def _bytes(gib: float) -> int:
    if not 0 < gib < math.inf:
        raise InputError(f"--largest-weights must be a finite number of GiB > 0, got {gib}")
    return int(gib * 2**30)


def _check_outputs(options: argparse.Namespace) -> None:
    """Nothing is written into the folder that is judged."""
    for name, path in (("--out", options.out), ("--junit", options.junit)):
        if path is None:
            continue
        try:
            inside = path.resolve().is_relative_to(options.run.resolve())
        except RuntimeError as cause:  # a link that leads to itself, up to Python 3.12
            raise InputError(f"{name} {path} or {options.run} cannot be followed: {cause}") from cause
        if inside:
            raise InputError(f"{name} {path} lies in the run folder, which an audit leaves as it is; write elsewhere")
        if not path.absolute().parent.is_dir():
            raise InputError(f"{name} {path}: there is no folder {path.parent}")
    if options.out is not None and options.out.suffix != ".html":
        raise InputError(f"--out {options.out} must end in .html; record and evidence are written beside it")


def _write(options: argparse.Namespace, found: Audit, record: dict[str, object]) -> None:
    if options.out is not None:
        write_text(options.out, page(record))
        text = json.dumps(record, indent=2, sort_keys=True) + "\n"
        write_text(options.out.with_suffix(".record.json"), text)
        evidence = json.dumps(private_evidence(found), indent=2, sort_keys=True, allow_nan=False) + "\n"
        write_text(options.out.with_suffix(".evidence.json"), evidence, private=True)
    if options.junit is not None:
        write_text(options.junit, junit(record))
