"""What names say where each side has its own: words that abbreviate one another, and numbers by their rank among their siblings.

``enc.0.ln1`` and ``encoder.layers.0.layer_norm`` have the words of an encoder and of a norm, and the first number of each row. Where one
side counts from 0 and the other from 1, or beside other parts, ranks are equal and numbers are not.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tracediff.alignment.array_files.thresholds import THRESHOLDS
from tracediff.alignment.names import tokens
from tracediff.site import End, unescape

Words = tuple[str, ...]

_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Wording:
    """What a boundary's name says: its words without numbers, which of them say only its end, its pattern, and its numbers' ranks.

    Boundaries of one ``pattern`` differ in numbers only. A number that stands alone in its row says nothing and has no rank. ``scope`` is
    what the path stands in: all before its last part, "" where it has one part.
    """

    words: Words
    end: str
    pattern: str
    ranks: tuple[int, ...]
    scope: str = ""


def wordings(names: Sequence[tuple[str, int, str]]) -> list[Wording]:
    """What each of a side's names says; a name is a site, the number of its call, and an end."""
    paths = [unescape(site) if not ordinal else f"{unescape(site)}.{ordinal}" for site, ordinal, _ in names]
    rows: dict[str, set[int]] = defaultdict(set)
    for path in dict.fromkeys(paths):
        for before, number in _numbered(path):
            rows[before].add(number)
    order = {before: {number: rank for rank, number in enumerate(sorted(numbers))} for before, numbers in rows.items() if len(numbers) > 1}
    ranks = {path: tuple(order[before][number] for before, number in _numbered(path) if before in order) for path in rows_of(paths)}
    return [
        Wording(words(path), _end(end), f"{_NUMBER.sub('*', path)}/{end}", ranks[path], path.rpartition(".")[0])
        for path, (_, _, end) in zip(paths, names, strict=True)
    ]


def rows_of(paths: Iterable[str]) -> list[str]:
    """The paths, each once."""
    return list(dict.fromkeys(paths))


def _numbered(path: str) -> Iterable[tuple[str, int]]:
    """Each number of a path, with what stands before it: the numbers with one text before them are a row."""
    return ((path[: match.start()], int(match[0])) for match in _NUMBER.finditer(path))


def _end(end: str) -> str:
    parsed = End.parse(end)
    return {"input": "in", "output": "out"}.get(parsed.kind, parsed.kind)


@lru_cache(maxsize=1 << 16)
def words(path: str) -> Words:
    """The words of a path without numbers, in the field's own spelling; two words that have one name together are one.

    >>> words("encoder.layers.0.feed_forward"), words("blk_3/ffnNorm")
    (('enc', 'layer', 'mlp'), ('blk', 'mlp', 'norm'))
    """
    parts = [part.lower() for part in _PART.findall(path) if not part.isdecimal()]
    found: list[str] = []
    place = 0
    while place < len(parts):
        both = "".join(parts[place : place + 2])
        joined = place + 1 < len(parts) and tokens(both) != (both,)
        found.extend(tokens(both) if joined else tokens(parts[place]))
        place += 1 + joined
    return tuple(found)


class WordLikeness:
    """How alike two wordings are, 0 to 1. A word that all names of its side have in common says little."""

    def __init__(self, reference: Sequence[Wording], port: Sequence[Wording]) -> None:
        self._weights = _weights(reference), _weights(port)
        self._known: dict[tuple[Words, str, Words, str], float] = {}

    def of(self, ours: Wording, theirs: Wording) -> float:
        """The likeness of a name of the reference and one of the port."""
        key = ours.words, ours.end, theirs.words, theirs.end
        if key not in self._known:
            self._known[key] = self._measured(ours, theirs)
        return self._known[key]

    def _measured(self, ours: Wording, theirs: Wording) -> float:
        left = [(word, self._weights[0][word]) for word in ours.words] + [(ours.end, THRESHOLDS.end_weight)]
        right = [(word, self._weights[1][word]) for word in theirs.words]
        stated = next((word for word in theirs.words if word in ("in", "out")), "")
        if not stated:
            right.append((theirs.end, THRESHOLDS.end_weight))
        shared, free = 0.0, list(range(len(left)))
        for word, weight in right:
            best = max(free, key=lambda place: alike(word, left[place][0]), default=None)
            if best is not None and (how := alike(word, left[best][0])) > 0:
                shared += how * (weight + left[best][1])
                free.remove(best)
        likeness = shared / sum(weight for _, weight in (*left, *right))
        return likeness * (THRESHOLDS.other_end if (ours.end == "in") != ("in" in (stated, theirs.end)) else 1.0)


def _weights(wordings: Sequence[Wording]) -> Mapping[str, float]:
    """How much each word of a side says: the fewer names have it, the more."""
    counts = Counter(word for one in wordings for word in set(one.words))
    return {word: THRESHOLDS.common_word + math.log((1 + len(wordings)) / count) for word, count in counts.items()}


@lru_cache(maxsize=1 << 16)
def alike(one: str, other: str) -> float:
    """How likely two words are one: 1 for equal words, less for a beginning, and for a short form that leaves letters out.

    >>> alike("proj", "projection"), alike("blk", "block"), alike("q", "k")
    (0.95, 0.6, 0.0)
    """
    if one == other:
        return 1.0
    short, long = sorted((one, other), key=len)
    if len(short) < 2 or short[0] != long[0]:
        return 0.0
    if long.startswith(short):
        return THRESHOLDS.equal_words if len(short) > 2 else THRESHOLDS.short_word
    letters = iter(long)
    return THRESHOLDS.short_word if all(letter in letters for letter in short) else 0.0


def numbers_alike(ours: Wording, theirs: Wording) -> float:
    """Whether the ranks of two names' numbers agree: 1, a little where one side has fewer, 0 where neither has any, else -1."""
    a, b = ours.ranks, theirs.ranks
    if a == b:
        return 1.0 if a else 0.0
    short, long = sorted((a, b), key=len)
    if len(short) == len(long):
        return -1.0
    numbers = iter(long)
    return THRESHOLDS.fewer_numbers if all(number in numbers for number in short) else -1.0
