"""Trainers on the bench: worked examples of docs/bench.md, right and wrong ones, and Opacus by its front door.

Each module holds factories for `samelaw conform MODULE:FACTORY`. They know the contract and torch, and nothing else of
samelaw: the bench sees them as it sees anybody's.
"""
