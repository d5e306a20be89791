"""Where each check stands in two lists that reviewers know.

NIST SP 800-226, "Guidelines for Evaluating Differential Privacy Guarantees" (March 2025), asks for every layer of its
pyramid, since each rests on the ones below. Ponomareva et al., "How to DP-fy ML" (arXiv 2303.00654), list what a report
of a guarantee must state. The wording here is ours.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """One factor of the pyramid.

    Attributes:
        name: the factor.
        checks: ids of the checks that speak about it.
        says: what this audit can and cannot say there.
    """

    name: str
    checks: tuple[str, ...]
    says: str


PYRAMID = (
    Layer("Privacy parameters (epsilon, delta)", ("A1",), "Priced from the ledger of what was run, not from settings."),
    Layer(
        "Unit of privacy",
        (),
        "One example. Somebody with several examples is protected less; nothing here bounds how many anybody has.",
    ),
    Layer(
        "Algorithms and their correctness",
        ("I5", "I7", "R2", "R3", "R4", "R5", "S1", "S2", "S3", "S4"),
        "Noise and schedule are executed again or tested. That each example was clipped needs the training data: "
        "`samelaw verify` tests it.",
    ),
    Layer(
        "Utility and bias", (), "Not judged. Accuracy for small groups may suffer, and no number here speaks of that."
    ),
    Layer(
        "Query and threat model",
        ("I3", "I7", "S5"),
        "One release of one model, by a curator who is trusted with the data; whoever sees the model may know "
        "everything but the key.",
    ),
    Layer(
        "Security and access control",
        ("I1", "I4", "K1"),
        "That the key was random, secret and destroyed or kept safe is the owner's word.",
    ),
    Layer("Data collection exposure", (), "Outside of this audit: the data were there before training began."),
)

HAZARDS = (
    ("Epsilon quoted for settings instead of for what happened", ("A1", "I5")),
    ("Sampling claimed for amplification that did not take place", ("R2", "A1")),
    ("Noise that is missing, too small, or used twice", ("R3", "R4", "S1", "S2", "S3", "S4")),
    ("A second release, or a release of unfinished state", ("I1", "I3", "I7", "S5")),
    ("Noise that can be taken off again: guessable or shared keys", ("K1", "S5")),
    ("Floating-point and generator artefacts", ("S4",)),
    ("Sensitivity that is larger than claimed", ("R5",)),
    ("Side channels, such as running time", ()),
    ("Exact figures published beside the private ones", ()),
)
"""Pitfalls of the kind that the publication calls privacy hazards, and the checks that would notice each."""

REPORTING = (
    ("Setting", "Central: one curator holds the data and trains; the output is public."),
    ("Data accesses covered", "The training run in the ledger. Tuning, vocabularies and evaluation are not covered."),
    (
        "What the mechanism outputs",
        "Priced as if the model after every step were seen; what is released is the last one.",
    ),
    ("Unit of privacy", "One training example."),
    ("Neighbouring data sets", "Add or remove one example."),
    ("Accounting", "Poisson-subsampled Gaussian mechanism, composed over all steps."),
    ("Assumptions of the accounting", "Batches drawn by the keyed Poisson sampler (check R2); see the record's list."),
    ("Formal statement", "(epsilon, delta) differential privacy, as an interval whose upper end is the promise."),
    (
        "Transparency",
        "Open source; the ledger, the key in escrow and the transcript let a third party execute it again.",
    ),
)
"""The reporting list, answered for any run that samelaw trains."""
