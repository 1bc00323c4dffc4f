"""Tables by digest for runs of millions of records: some forty bytes an entry, where a dict of Python's takes two hundred.

`DigestTable` keeps every entry, `Recent` the latest ones.
"""

from __future__ import annotations

import struct
from array import array
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_SMALLEST = 64
_FULLEST = 0.8
"""The share of the places that are taken before a table grows, to one and a half times its size."""


class DigestTable:
    """A whole number (below 2**63, not negative) for each digest of 16 bytes.

    >>> table = DigestTable()
    >>> table[b"0123456789abcdef"] = 7
    >>> table.get(b"0123456789abcdef"), table.get(b"................"), len(table)
    (7, None, 1)
    >>> table.entered(b"0123456789abcdef", 8), table.entered(b"................", 9), len(table)
    (7, 9, 2)
    """

    __slots__ = ("_first", "_number", "_second", "_taken")

    def __init__(self, places: int = _SMALLEST) -> None:
        self._first, self._second = array("Q", bytes(8 * places)), array("Q", bytes(8 * places))
        self._number = array("q", bytes(8 * places))  # one more than the number; 0 where the place is free
        self._taken = 0

    def __len__(self) -> int:
        return self._taken

    def get(self, digest: bytes) -> int | None:
        """The number of a digest; None where there is none."""
        number = self._number[self._place(*_halves(digest))]
        return number - 1 if number else None

    def entered(self, digest: bytes, number: int) -> int:
        """The number of a digest, which is entered with ``number`` where there is none."""
        first, second = _halves(digest)
        place = self._place(first, second)
        if found := self._number[place]:
            return found - 1
        self._first[place], self._second[place], self._number[place] = first, second, number + 1
        self._taken += 1
        if self._taken > _FULLEST * len(self._number):
            self._grow()
        return number

    def __setitem__(self, digest: bytes, number: int) -> None:
        self._set(*_halves(digest), number + 1)
        if self._taken > _FULLEST * len(self._number):
            self._grow()

    def _set(self, first: int, second: int, number: int) -> None:
        place = self._place(first, second)
        self._taken += not self._number[place]
        self._first[place], self._second[place], self._number[place] = first, second, number

    def _place(self, first: int, second: int) -> int:
        """Where a digest is, or would be."""
        places = len(self._number)
        place = first % places
        while self._number[place] and (self._first[place] != first or self._second[place] != second):
            place = place + 1 if place + 1 < places else 0
        return place

    def _grow(self) -> None:
        larger = DigestTable(len(self._number) * 3 // 2)
        for place, number in enumerate(self._number):
            if number:
                larger._set(self._first[place], self._second[place], number)
        self._first, self._second, self._number = larger._first, larger._second, larger._number


_HALVES = struct.Struct("<2Q")


def _halves(digest: bytes) -> tuple[int, int]:
    first, second = _HALVES.unpack(digest)
    return first, second


class Recent(Generic[K, V]):
    """A mapping that forgets: it holds at least the ``latest`` entries that were entered or asked for, at most twice as many.

    >>> recent = Recent[str, int](2)
    >>> for number, name in enumerate("abcda"):
    ...     recent[name] = number
    >>> recent.get("a"), recent.get("b")
    (4, None)
    """

    __slots__ = ("_latest", "_new", "_old")

    def __init__(self, latest: int) -> None:
        self._latest = latest
        self._new: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        """The entry of a key; None where there is none any more."""
        found = self._new.get(key)
        if found is None and (found := self._old.get(key)) is not None:
            self[key] = found
        return found

    def __setitem__(self, key: K, value: V) -> None:
        if len(self._new) >= self._latest and key not in self._new:
            self._old, self._new = self._new, {}
        self._new[key] = value
