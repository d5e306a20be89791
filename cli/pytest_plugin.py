"""pytest --samelaw-trainer."""
