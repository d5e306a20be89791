"""The bags of a table: which rows each holds, how often, and where two of them meet. docs/arithmetic.md, Clipping."""

from __future__ import annotations

import numpy as np
from numba import float64, int64, prange, uint64

from samelaw.fast.cpu.compiled import inline, kernel

SHORT = 32  # up to this many rows a linear search beats a hash table


@inline
def table_size(entries):
    """A power of two, at least twice `entries`: an open-addressing table stays at most half full."""
    size = int64(4)
    while size < 2 * entries:
        size *= 2
    return size


@inline
def first_probe(row, size):
    """Where the search for a row starts: Fibonacci hashing, top bits."""
    return int64((uint64(row) * uint64(0x9E3779B97F4A7C15)) >> uint64(32)) & (size - 1)


SOUND, BAD_ENDS = -1, -2


@kernel()
def inspect_call(ids, offsets, example_of_bag, rows):
    """(fault, largest id, largest example) of a call on a table of `rows` rows.

    The fault is SOUND; BAD_ENDS where the offsets are not bags + 1 entries from 0 to the number of ids; the index of
    the first bag whose offsets fall or whose example is negative or below the one before; or, past the bags, bags
    plus the position of the first id that is out of range.
    """
    bags, count = int64(example_of_bag.shape[0]), int64(ids.shape[0])
    largest, before = int64(-1), int64(-1)
    if offsets.shape[0] != bags + 1 or offsets[0] != 0 or offsets[bags] != count:
        return int64(BAD_ENDS), largest, before
    for bag in range(bags):
        example = example_of_bag[bag]
        if offsets[bag] > offsets[bag + 1] or example < 0 or example < before:
            return int64(bag), largest, before
        before = example
    smallest = int64(0)
    for i in range(count):
        smallest, largest = min(smallest, ids[i]), max(largest, ids[i])
    if smallest < 0 or largest >= rows:
        for i in range(count):
            if not 0 <= ids[i] < rows:
                return bags + i, largest, before
    return int64(SOUND), largest, before


@kernel()
def copy_single_ids(ids, offsets, rows, multiplicity, distinct):
    """`count_multiplicities` without weights where no bag holds more than one id; False, half done, where one does."""
    for bag in range(distinct.shape[0]):
        count = offsets[bag + 1] - offsets[bag]
        if count > 1:
            return False
        distinct[bag] = count
    for i in range(ids.shape[0]):
        rows[i] = ids[i]
        multiplicity[i] = 1.0
    return True


@kernel(parallel=True)
def count_multiplicities(ids, offsets, weights, rows, multiplicity, distinct, chunk):
    """For each bag its distinct rows in order of first occurrence, with m(r), the sum in order of their weights.

    Bag i's `distinct[i]` results lie at rows[offsets[i]:] and multiplicity[offsets[i]:].
    """
    bags = int64(offsets.shape[0] - 1)
    weighted = weights.shape[0] > 0
    for part in prange((bags + chunk - 1) // chunk):
        slots = np.empty(0, np.int64)
        for bag in range(part * chunk, min((part + 1) * chunk, bags)):
            begin, end = offsets[bag], offsets[bag + 1]
            found, size = int64(0), int64(0)
            if end - begin > SHORT:
                size = table_size(end - begin)
                if slots.shape[0] < size:
                    slots = np.empty(size, np.int64)
                slots[:size] = -1
            for i in range(begin, end):
                row = ids[i]
                weight = float64(weights[i]) if weighted else 1.0
                place = found
                if size == 0:
                    for k in range(found):
                        if rows[begin + k] == row:
                            place = int64(k)
                            break
                else:
                    probe = first_probe(row, size)
                    while slots[probe] >= 0 and rows[begin + slots[probe]] != row:
                        probe = (probe + 1) & (size - 1)
                    if slots[probe] >= 0:
                        place = slots[probe]
                    else:
                        slots[probe] = found
                if place == found:
                    rows[begin + place] = row
                    multiplicity[begin + place] = 0.0 + weight
                    found += 1
                else:
                    multiplicity[begin + place] = multiplicity[begin + place] + weight
            distinct[bag] = found


@inline
def own_overlap(multiplicity, begin, count):
    """M_pp: the sum of squared multiplicities, in order."""
    total = 0.0
    for i in range(begin, begin + count):
        total = total + multiplicity[i] * multiplicity[i]
    return total


@kernel()
def shared_overlap(rows, multiplicity, p, p_count, q, q_count):
    """M_pq of the bags at p and q: over the rows of p, in p's order, that q holds too."""
    total = 0.0
    if p_count * q_count <= SHORT * SHORT:
        for i in range(p, p + p_count):
            for k in range(q, q + q_count):
                if rows[i] == rows[k]:
                    total = total + multiplicity[i] * multiplicity[k]
                    break
        return total
    size = table_size(q_count)
    slots = np.full(size, -1, np.int64)
    for k in range(q, q + q_count):
        probe = first_probe(rows[k], size)
        while slots[probe] >= 0:
            probe = (probe + 1) & (size - 1)
        slots[probe] = k
    for i in range(p, p + p_count):
        probe = first_probe(rows[i], size)
        while slots[probe] >= 0:
            if rows[slots[probe]] == rows[i]:
                total = total + multiplicity[i] * multiplicity[slots[probe]]
                break
            probe = (probe + 1) & (size - 1)
    return total


@kernel()
def group_by_row(rows, offsets, distinct, order, slot_row, slot_group, group_row, first, last, following, bag_of_entry):
    """Link the entries (bag, row) of a batch into one list per row, in the order of the bags; returns the row count.

    An entry is a position of `rows`. Group g's row is group_row[g]; its entries start at first[g] and go on through
    following[] to -1. Rows get their groups in order of first occurrence. `order` lists the bags by example; empty
    means that they are in order already.
    """
    size = int64(slot_row.shape[0])
    slot_group[:] = -1  # free
    groups = int64(0)
    for k in range(distinct.shape[0]):
        bag = order[k] if order.shape[0] > 0 else int64(k)
        for entry in range(offsets[bag], offsets[bag] + distinct[bag]):
            row = rows[entry]
            probe = first_probe(row, size)
            while slot_group[probe] >= 0 and slot_row[probe] != row:
                probe = (probe + 1) & (size - 1)
            bag_of_entry[entry] = bag
            following[entry] = -1
            group = int64(slot_group[probe])
            if group < 0:
                slot_row[probe] = row
                slot_group[probe] = groups
                group_row[groups] = row
                first[groups] = entry
                last[groups] = entry
                groups += 1
            else:
                following[last[group]] = entry
                last[group] = entry
    return groups
