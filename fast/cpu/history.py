"""The settlement history: which of a batch's rows owe noise. The history itself removes the duplicates."""

from __future__ import annotations

from samelaw.fast.cpu.compiled import kernel
from samelaw.fast.cpu.lanes import prefetch

_AHEAD = 32  # ids between the prefetch of a history entry and its use


@kernel()
def take_due(history, ids, until, found):
    """The distinct ids whose history is below `until`, into found[:], and that history, into found[len(ids):].

    Marks them paid and returns how many they are; or, if an id is out of range, -1 without touching anything.
    """
    rows, size, worst = history.shape[0], ids.shape[0], 0
    for i in range(size):
        worst |= ids[i] | (rows - 1 - ids[i])  # negative if either is
    if worst < 0:
        return -1
    count = 0
    for i in range(size):
        if i + _AHEAD < size:
            prefetch(history, ids[i + _AHEAD])
        paid = history[ids[i]]
        if paid < until:
            found[count] = ids[i]
            found[size + count] = paid
            history[ids[i]] = until
            count += 1
    return count
