"""`samelaw train --transcript`: the steps of a run, written to a private file as they happen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samelaw.contract.errors import InputError
from samelaw.contract.spec import PrivacySpec
from samelaw.contract.transcript import TranscriptWriter
from samelaw.fast.trainer import LazyTrainer


class Recorder:
    """Hands each step of a recording trainer to the transcript, and lets the trainer forget it.

    Args:
        path: the transcript: a new file, or that of the run when it resumes.
        trainer: made with record=True; before its first step, or just resumed.
    """

    def __init__(self, path: Path, trainer: LazyTrainer, spec: PrivacySpec, *, resume: bool) -> None:
        opened = trainer.ledger.entries[0].data
        if resume:
            self._writer = TranscriptWriter.reopen(path, opened, step=trainer.step_index)
        else:
            self._writer = TranscriptWriter(path, spec, opened)
        assert trainer.transcript is not None
        trainer.transcript.initial_tables.clear()  # the run folder holds them; here they would double the memory
        self._trainer = trainer

    def note(self) -> None:
        """Write the step that was just made."""
        transcript, last = self._trainer.transcript, self._trainer.ledger.entries[-1]
        assert transcript is not None
        assert len(transcript.steps) == 1
        assert last.event == "step"
        self._writer.step(transcript.steps.pop(), last.hash)

    def sync(self) -> None:
        """Force what was written to disk: before a checkpoint relies on it."""
        self._writer.sync()

    def close(self, release: str) -> dict[str, Any]:
        """End the transcript; returns what the manifest says of it."""
        self._writer.close(release)
        return {"head": self._writer.head, "frames": self._writer.frames}


def check_transcript(path: Path | None, folder: Path | None, *, resume: bool) -> None:
    """Refuse a transcript that would be overwritten, or shown with the run folder.

    Raises:
        InputError: it exists, lies in the run folder, or has no folder to lie in; on resume, it is not there.
    """
    if path is None:
        return
    if folder is not None and path.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"--transcript {path} lies in the run folder {folder}, which is made to be shown: the transcript holds "
            "gradient sums without noise. Keep it elsewhere"
        )
    if not path.absolute().parent.is_dir():
        raise InputError(f"--transcript {path}: there is no folder {path.parent}")
    if not resume and path.exists():
        raise InputError(f"--transcript {path} exists; a run never overwrites another: name a new file")
    if resume and not path.is_file():
        raise InputError(f"--transcript {path}: a run that resumes goes on with its own transcript, which is not there")
