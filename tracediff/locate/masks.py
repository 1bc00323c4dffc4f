"""Which tensors may be masks, and when two masks of different conventions mean the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracediff import dtype as dtypes
from tracediff.dtype import MASKED
from tracediff.locate.pairs import Pairs
from tracediff.site import Site
from tracediff.trace import Record, Trace


def may_mask(record: Record) -> bool:
    """Whether something that a call was handed may be a mask, by its name or its values."""
    return "mask" in record.end or "causal" in record.end or record.dtype == "bool" or record.stats.min <= MASKED


def has_two_conventions(pairs: Pairs, i: int) -> bool:
    """Whether a mask says true or false on one side and is added on the other, and both let the same through, as far as that is known.

    What true means is known only of attention's own mask: that something may be seen. Two added masks that hide the same may differ in what
    is added elsewhere (slopes of ALiBi), where the reference's call is handed something besides that the port's is not. Where one side's
    attention is told to be causal, the other's may be handed a mask that hides what comes later.
    """
    left, right = pairs.records(i)
    if left.end == "attr[causal]":
        return any(_is_handed_a_causal_mask(trace, row) for trace, row in _without_flag(pairs, i))
    if (left.dtype == "bool") == (right.dtype == "bool"):
        return _holds_what_is_handed_apart(pairs, i)
    added = right if left.dtype == "bool" else left
    if dtypes.named(added.dtype).is_exact or not _is_added_mask(added):
        return False
    if pairs[i].layout is None or not pairs.is_stored(i):
        return True
    ours, theirs = (values if values.dtype == bool else values > MASKED for values in pairs.values(i))
    is_turned = Site.parse(left.site).kind != "function" and np.array_equal(ours, ~theirs)
    return bool(np.array_equal(ours, theirs) or is_turned)


def _holds_what_is_handed_apart(pairs: Pairs, i: int) -> bool:
    """Whether the port adds more than what hides, a plain mask in the reference, whose call is handed numbers that have no partner."""
    left, right = pairs.records(i)
    if pairs[i].layout is None or not pairs.is_stored(i) or not (_is_added_mask(left) and right.stats.min <= MASKED):
        return False
    ours, theirs = pairs.values(i)
    if ours[ours > MASKED].any() or not np.array_equal(ours > MASKED, theirs > MASKED):
        return False
    others = (pairs.reference.records[row] for row in pairs.reference.calls.inputs(int(pairs.reference.calls.of_row[left.row])))
    return any(one.row not in pairs.rows and not dtypes.named(one.dtype).is_exact for one in others)


def _without_flag(pairs: Pairs, i: int) -> Iterator[tuple[Trace, int]]:
    """The sides whose attention is not told to be causal, each with the row that says so."""
    for trace, rows in ((pairs.reference, pairs[i].reference), (pairs.port, pairs[i].port)):
        record = trace.records[rows[0]]
        if record.stored and not record.read().any():
            yield trace, rows[0]


def _is_handed_a_causal_mask(trace: Trace, row: int) -> bool:
    """Whether the call of a record is handed a mask (..., queries, keys) that hides from each query all keys behind it."""
    records = (trace.records[one] for one in trace.calls.inputs(int(trace.calls.of_row[row])))
    masks = [record for record in records if record.end == "input[mask]" and record.stored and len(record.shape) > 1]
    if len(masks) != 1:
        return False
    values = masks[0].read()
    seen = values if values.dtype == bool else values > MASKED
    queries, keys = seen.shape[-2:]
    return bool(queries > 1 and not seen[..., ~np.tri(queries, keys, keys - queries, dtype=np.bool_)].any())


def _is_added_mask(record: Record) -> bool:
    """Whether numbers may be a mask that is added: nothing but what masks and, where it lets all through, zeros."""
    return record.stats.max <= 0 and (record.stats.min <= MASKED or record.stats.min == record.stats.max == 0)
