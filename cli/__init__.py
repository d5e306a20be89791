"""The `samelaw` command: wiring only. What it wires is in the packages that it imports."""
