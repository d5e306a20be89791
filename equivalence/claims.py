"""The claim suite: every function here takes what trainers leave behind and returns Evidence.

E1 replay           two transcripts, to the bit                                  exact.py
E2 bridge           two transcripts, within the derived bound                    exact.py
L1 aggregate        one transcript against the law of its noise                  noise_law.py
S1 sensitivity      one example's contribution against the clip norm             gradients.py
M1 same_gradients   two models' per-example gradients in float64                 gradients.py
R1 settled          every row at release                                         releases.py
N1 noise_vectors    the golden vectors on this machine and device                here
A1 accounted        the quoted epsilon against the ledger                        privacy.py
"""

from __future__ import annotations

from collections.abc import Sequence

from samelaw.contract.evidence import Disagreement, Evidence, Verdict
from samelaw.equivalence.exact import bridge, replay
from samelaw.equivalence.gradients import same_gradients, sensitivity
from samelaw.equivalence.noise_law import aggregate, measure
from samelaw.equivalence.noise_vectors import NoiseVectors, Normals, check_backend, load_vectors
from samelaw.equivalence.privacy import accounted
from samelaw.equivalence.releases import settled

__all__ = [
    "accounted",
    "aggregate",
    "bridge",
    "measure",
    "noise_vectors",
    "replay",
    "same_gradients",
    "sensitivity",
    "settled",
    "suite_holds",
]

N1 = "On this machine and device the noise generator gives the published golden vectors."


def noise_vectors(normals: Normals, *, backend: str, vectors: NoiseVectors | None = None) -> Evidence:
    """N1: every golden vector, to the bit.

    Args:
        normals: the backend's generator, as noise_vectors.Normals.
        backend: its name and device, in the report's words.
        vectors: the golden vectors, read before; they are read now by default.
    """
    vectors = load_vectors() if vectors is None else vectors
    wrong: list[Disagreement] = check_backend(normals, vectors)
    total = len(vectors.normals)
    values = sum(vector.dim for vector in vectors.normals)
    numbers = {"vectors": total, "values": values, "wrong_vectors": len(wrong)}
    if wrong:
        summary = f"{len(wrong)} of {total} golden vectors differ; first: {wrong[0]}."
        return Evidence("N1", N1, Verdict.REFUTED, summary, backend, wrong[0], (), numbers)
    summary = f"All {total} golden vectors ({values} normals) agree to the bit."
    return Evidence("N1", N1, Verdict.EQUAL, summary, backend, None, (), numbers)


def suite_holds(evidence: Sequence[Evidence]) -> bool:
    """Whether no claim was refuted. An empty suite holds nothing."""
    return bool(evidence) and all(e.verdict.holds for e in evidence)
