"""`samelaw workloads`: what there is to train on."""

from __future__ import annotations

import argparse
import json

from samelaw.workloads import available


def run_workloads(options: argparse.Namespace) -> int:
    entries = available()
    if options.json:
        print(json.dumps([{"name": name, "about": about} for name, about in entries], indent=2))
        return 0
    width = max(len(name) for name, _ in entries)
    for name, about in entries:
        print(f"{name:<{width}}  {about}")
    return 0
