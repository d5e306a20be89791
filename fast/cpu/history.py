"""The settlement history: which of a batch's rows owe noise. The history itself removes the duplicates."""

from __future__ import annotations

from samelaw.fast.cpu.compiled import kernel
from samelaw.fast.cpu.lanes import prefetch

_AHEAD = 32  # ids between the prefetch of a history entry and its use


@kernel()
def first_out_of_range(ids, rows):
    """Position of the first id outside 0..rows-1, or -1."""
    worst = 0
    for i in range(ids.shape[0]):
        worst |= ids[i] | (rows - 1 - ids[i])  # negative if either is
    if worst >= 0:
        return -1
    for i in range(ids.shape[0]):
        if not 0 <= ids[i] < rows:
            return i
    return -1


@kernel()
def take_due(history, ids, until, rows, since):
    """Write the distinct ids whose history is below `until`, and that history; returns how many. Marks them paid."""
    count = 0
    for i in range(ids.shape[0]):
        if i + _AHEAD < ids.shape[0]:
            prefetch(history, ids[i + _AHEAD])
        paid = history[ids[i]]
        if paid < until:
            rows[count] = ids[i]
            since[count] = paid
            history[ids[i]] = until
            count += 1
    return count
