"""Mapping files: pairs that a person states, and sites to leave out. JSON, or the same as a dict:

    {"pairs": [{"reference": "encoder.layers.*.self_attn", "port": "enc.blocks.*.attn", "layout": "(0, 2, 1)"}],
     "ignore": {"reference": ["decoder.dropout"], "port": []}}

A ``*`` stands for any text without a dot, ``**`` for any text; what it stands for on the reference's side is filled in on the port's.
``layout`` is optional: a permutation of the port's axes, used wherever it fits the shapes. Other keys are left to the editor's notes.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracediff.alignment.axes import Part, parse_permutation
from tracediff.alignment.names import nearest
from tracediff.errors import AlignmentError, TracediffError
from tracediff.json_text import parse_json
from tracediff.site import End


@dataclass(frozen=True, slots=True)
class Stated:
    """One stated pair: numbers of the two sites, the permutation of the port's axes, and the part of a fused site.

    ``ends``: which of the two sites' records are meant, ``END`` or ``CALL/END``, "" for all; None where neither name has one.
    """

    reference: int
    port: int
    permutation: tuple[int, ...] | None = None
    part: Part | None = None
    whole: str = ""
    ends: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class StatedMap:
    """What a mapping states about two traces' sites, by their numbers."""

    pairs: tuple[Stated, ...] = ()
    ignored: tuple[frozenset[int], frozenset[int]] = field(default=(frozenset(), frozenset()))


def read(mapping: str | os.PathLike[str] | Mapping[str, Any] | None, reference: Sequence[str], port: Sequence[str]) -> StatedMap:
    """The mapping, applied to the two sides' site names.

    Raises AlignmentError for a file that is no mapping, a pattern that fits no site (naming the nearest), and a site paired twice.
    """
    if mapping is None:
        return StatedMap()
    content = _load(mapping)
    known = {name: number for number, name in enumerate(reference)}, {name: number for number, name in enumerate(port)}
    pairs = [given for entry in content.get("pairs", []) for given in _expand(_checked(entry), known)]
    _no_duplicates(pairs, reference, port)
    ignore = content.get("ignore", {})
    return StatedMap(tuple(pairs), (_ignored(ignore, "reference", known[0]), _ignored(ignore, "port", known[1])))


def _load(mapping: str | os.PathLike[str] | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(mapping, Mapping):
        content: Any = mapping
        name = "the mapping"
    else:
        name = f"the mapping file {str(mapping)!r}"
        if Path(mapping).exists() and not Path(mapping).is_file():
            raise AlignmentError(f"{name[0].upper()}{name[1:]} is no file.")
        try:
            content = parse_json(Path(mapping).read_bytes())
        except OSError as error:
            raise AlignmentError(
                f"Cannot read {name}: {error.strerror or error}. Write one with: tracediff align A B --write-map FILE"
            ) from error
        except ValueError as error:
            raise AlignmentError(f"{name[0].upper()}{name[1:]} is no JSON: {error}.") from error
    if (
        not isinstance(content, Mapping)
        or not isinstance(content.get("pairs", []), list)
        or not isinstance(content.get("ignore", {}), Mapping)
    ):
        raise AlignmentError(
            f'{name[0].upper()}{name[1:]} must look like {{"pairs": [{{"reference": "a", "port": "b"}}], '
            '"ignore": {"reference": [], "port": []}}.'
        )
    return content


def _checked(entry: Any) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping) or not all(isinstance(entry.get(side), str) for side in ("reference", "port")):
        raise AlignmentError(
            f'A pair in the mapping must name a site of each side, like {{"reference": "enc.0", "port": "layers.0"}}, not {entry!r}.'
        )
    return entry


def _expand(entry: Mapping[str, Any], known: tuple[Mapping[str, int], Mapping[str, int]]) -> list[Stated]:
    """The pairs that one entry states; more than one where its names hold a star."""
    (theirs, their_end), (ours, our_end) = (_site_and_end(str(entry[side])) for side in ("port", "reference"))
    ends = (our_end, their_end) if our_end or their_end else None
    permutation = parse_permutation(str(entry.get("layout") or ""))
    part, whole = _part(entry.get("part"))
    if _stars(ours) != _stars(theirs):
        raise AlignmentError(f"{ours!r} and {theirs!r} in the mapping must hold the same stars in the same order.")
    pattern = _compiled(ours)
    fits = [(name, match) for name in known[0] if (match := pattern.fullmatch(name)) is not None]
    if not fits:
        raise AlignmentError(_unknown(ours, "reference", known[0]))
    found = []
    for name, match in fits:
        target = _filled(theirs, match.groups())
        if target not in known[1]:
            raise AlignmentError(_unknown(target, "port", known[1], f" (paired with {name!r})"))
        found.append(Stated(known[0][name], known[1][target], permutation, part, whole, ends))
    return found


def _site_and_end(name: str) -> tuple[str, str]:
    """The site that a name in a mapping begins with, and what follows its slash: ``END``, or ``CALL/END``; "" where nothing does.

    Raises AlignmentError where that is no end.
    """
    site, _, end = name.partition("/")
    if not end and site == name:
        return ("" if site == "(root)" else site), ""
    number, slash, last = end.rpartition("/")
    with suppress(TracediffError):
        if (number.isdecimal() or not slash) and str(End.parse(last)) == last:
            return ("" if site == "(root)" else site), end
    raise AlignmentError(
        f"{name!r} in the mapping is no name: it is SITE, SITE/END or SITE/CALL/END, such as 'encoder.0', 'encoder.0/input[0]' or "
        "'encoder.0/3/output'. Inside a site a slash is written '%2F'."
    )


def _part(entry: Any) -> tuple[Part | None, str]:
    if entry is None:
        return None, ""
    try:
        part = Part(int(entry["axis"]), int(entry["start"]), int(entry["stop"]), int(entry.get("groups", 1)))
        whole = str(entry["of"])
        is_cut = 0 <= part.start < part.stop and part.axis >= 0 and part.groups > 0
    except (KeyError, TypeError, ValueError, AttributeError):
        is_cut = False
    if not is_cut or whole not in ("reference", "port"):
        raise AlignmentError(
            f'A part of a fused site in the mapping looks like {{"of": "port", "axis": 0, "start": 0, "stop": 64}}, not {entry!r}.'
        )
    return part, whole


def _no_duplicates(pairs: Sequence[Stated], reference: Sequence[str], port: Sequence[str]) -> None:
    whole = [given for given in pairs if given.part is None and given.ends is None]
    for side, names, sites in (
        ("reference", reference, [given.reference for given in whole]),
        ("port", port, [given.port for given in whole]),
    ):
        twice = [names[site] for site, count in Counter(sites).items() if count > 1]
        if twice:
            more = f" and {len(twice) - 1} more" if len(twice) > 1 else ""
            raise AlignmentError(f"The mapping pairs the {side}'s site {twice[0]!r} more than once{more}; a site has one partner.")


def _ignored(ignore: Mapping[str, Any], side: str, known: Mapping[str, int]) -> frozenset[int]:
    found: set[int] = set()
    listed = ignore.get(side, [])
    if not isinstance(listed, list | tuple):
        raise AlignmentError(f"What the mapping ignores of the {side} is a list of sites, not {listed!r}.")
    for text in listed:
        pattern = _compiled(str(text))
        fits = [number for name, number in known.items() if pattern.fullmatch(name)]
        if not fits:
            raise AlignmentError(_unknown(str(text), side, known))
        found.update(fits)
    return frozenset(found)


def _unknown(name: str, side: str, known: Mapping[str, int], why: str = "") -> str:
    close = nearest(name.replace("*", "0"), known)
    hint = f"; nearest: {', '.join(map(repr, close))}" if close else ""
    return (
        f"The mapping names {name!r}{why}, and no such site is in the {side} ({len(known)} sites{hint}). "
        "List them with: tracediff show FILE"
    )


def _stars(name: str) -> list[str]:
    return re.findall(r"\*\*|\*", name)


def _compiled(name: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*)", name)
    return re.compile("".join({"*": r"([^.]*)", "**": r"(.*)"}.get(part) or re.escape(part) for part in parts), re.DOTALL)


def _filled(name: str, groups: Sequence[str]) -> str:
    values = iter(groups)
    return re.sub(r"\*\*|\*", lambda _: next(values), name)
