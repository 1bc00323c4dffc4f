"""Which record a tensor comes from, told by its identity or else by its content."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tracediff.dtype import Array
from tracediff.observe.types import Tensor
from tracediff.trace import schema
from tracediff.trace.digest_table import DigestTable

LEAST_TRACED = 32
"""Bytes below which equal content is no evidence that one record produced another."""

Producer = tuple[int, int]
"""A row of the trace, -1 for none, and how it is known: one of ``schema.PRODUCER_*``."""


@dataclass(slots=True)
class _Known:
    """A live tensor, its digest when it was last met, and its producer: the record that made it, else the first into which it went."""

    tensor: Callable[[], Any]
    digest: bytes
    producer: Producer


class Producers:
    """The producers of the tensors that a run has shown so far; a tensor that is freed is forgotten."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._made = DigestTable()

    def of(self, tensor: Tensor, digest: bytes, array: Array, *, is_made: bool) -> Producer:
        """The producer of a tensor with this content; of one that a record has just made, only an earlier record of the same object."""
        known = self._known.get(id(tensor))
        if known is not None and known.tensor() is tensor and known.digest == digest:
            return known.producer
        if is_made or array.nbytes < LEAST_TRACED:
            return -1, schema.PRODUCER_NONE
        made = self._made.get(digest)
        if made is None or _is_constant(array):
            return -1, schema.PRODUCER_NONE
        return made, schema.PRODUCER_DIGEST

    def recorded(self, tensor: Tensor, digest: bytes, row: int, producer: Producer, *, is_made: bool) -> None:
        """Notes that a tensor was recorded in a row; ``producer`` is what `of` gave for it."""
        if is_made or producer[0] < 0:
            self.remember(tensor, digest, (row, schema.PRODUCER_IDENTITY), is_made=is_made)
        elif producer[1] == schema.PRODUCER_DIGEST:
            self.remember(tensor, digest, producer, is_made=False)

    def remember(self, tensor: Tensor, digest: bytes, producer: Producer, *, is_made: bool) -> None:
        """Notes where a live tensor comes from; with ``is_made``, where its content comes from too."""
        if is_made:
            self._made[digest] = producer[0]
        key = id(tensor)
        try:
            forget = partial(self._known.pop, key)  # in C: an interrupt in a callback of a weak reference would be lost
            self._known[key] = _Known(weakref.ref(tensor, forget), digest, producer)
        except TypeError:  # an object that takes no weak references
            self._known.pop(key, None)

    def clear(self) -> None:
        """Forgets all live tensors."""
        self._known.clear()


def _is_constant(array: Array) -> bool:
    flat = array.reshape(-1)
    return bool((flat == flat[0]).all())
