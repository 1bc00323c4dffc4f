"""The meta of a trace: one JSON object, checked once where it is read, so that whoever uses an item finds what it has to be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from tracediff.errors import TracediffError, TraceFileError, UnsafeTraceError
from tracediff.json_text import parse_json
from tracediff.trace import schema

Meta = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Items:
    """An object whose items, as far as they are there, are of these shapes; ``needed`` are there. Others may be anything.

    With ``nullable`` null stands for an item that is not there.
    """

    items: Mapping[str, Shape]
    needed: tuple[str, ...] = ()
    nullable: bool = False


@dataclass(frozen=True, slots=True)
class Each:
    """A list, or with ``by_name`` an object, of which each member is of this shape."""

    member: Shape
    by_name: bool = False


Shape: TypeAlias = "type | tuple[type, ...] | Items | Each"

_MODULE = Items(
    {
        "path": str,
        "type": str,
        "package": str,
        "file": str,
        "training": bool,
        "arguments": Each(str),
        "attrs": dict,
        "aliases": Each(str),
        "children": Each(str),
    },
    needed=("path",),
)
ITEMS: Final[Mapping[str, Shape]] = {
    "format_version": int,
    "complete": bool,
    "modules": Each(_MODULE),
    "stages": Each(str, by_name=True),
    "not_seen": Each(str),
    "warnings": Each(str),
    "blind_spots": Each(str),
    "wanted": Each(str),
    "raised": (list, str),
    "versions": Each(str, by_name=True),
    "sources": Each(str, by_name=True),
    "tokenizers": Each(str, by_name=True),
    "converted": dict,
    "repeats": bool,
    "precise": bool,
    "own_floor": bool,
    "repeats_first": Items({"site": str, "call": str, "end": str}, needed=("site", "call", "end")),
    "returned": Items({"call": str, "type": str}, needed=("call", "type")),
    "products": Items(
        {"precision": str, "error": (int, float), "rounding": str, "device": str, "settings": Each(str, by_name=True)},
        needed=("precision", "error", "device"),
    ),
    "bypassed": Each(
        Items({"module": str, "called": str, "at": str, "code": str, "by_run": bool}, needed=("module", "called", "at", "by_run"))
    ),
    "drawn": Each(str),
    "weights_from": Items({"source": str, "taken": Each(list), "left": Each(str)}, needed=("source",)),
    "observed": Items({"methods": Each(str), "functions": Each(str)}),
    "free": Items({"compared": int, "diverged": int}, needed=("compared", "diverged")),
    "left_out": int,
    "mesh": Items(
        {
            "rank": int,
            "ranks": int,
            "axes": Each(Each(int), by_name=True),
            "parameters": Each(Each(str, by_name=True), by_name=True),
            "parts": int,
        },
        needed=("rank", "ranks", "axes", "parameters", "parts"),
    ),
    "merged": Items(
        {
            "ranks": int,
            "mesh": Each(int, by_name=True),
            "differ": Each(
                Items(
                    {"site": str, "call": str, "end": str, "ranks": Each(int), "rel_l2": (int, float), "places": int},
                    needed=("site", "end", "ranks"),
                )
            ),
        },
        needed=("ranks", "differ"),
    ),
    "budget": Items({"bytes": int, "values": int, "samples": int, "statistics": int}, needed=("bytes", "values", "samples", "statistics")),
    "wall_seconds": (int, float),
    "seed": int,
    **dict.fromkeys(("impl", "dtype", "device", "mode", "mode_run", "save", "recipe", "weights"), str),
    **dict.fromkeys(("feed", "from", "random", "created", "git", "command", "platform", "cast"), str),
}
"""What is relied on of a meta object, item by item; null stands for an item that is not there."""


def dump_meta(meta: Meta) -> bytes:
    """The meta object as JSON; TypeError or ValueError where it holds what JSON cannot (NaN and infinities among it)."""
    return json.dumps(meta, allow_nan=False, separators=(",", ":")).encode()


def checked_meta(items: Mapping[str, Any]) -> Meta:
    """The items as a new object; TracediffError, naming the item, where JSON cannot hold one."""
    for name, value in items.items():
        try:
            dump_meta({name: value})
        except (TypeError, ValueError, RecursionError) as error:
            raise TracediffError(f"The meta item {name!r} cannot be stored as JSON ({error}): {value!r}.") from error
    wrong = misfit(dict(items), Items(ITEMS, nullable=True), "")
    if wrong is not None:
        raise TracediffError(f"A trace's meta has its own use for this item: {wrong}. Give it another name.")
    return dict(items)


def load_meta(blob: bytes, path: str) -> Meta:
    """The meta object that `dump_meta` wrote; raises as `check_meta` does."""
    try:
        meta = parse_json(blob)
    except ValueError as error:
        raise TraceFileError(f"/{schema.META} of {path!r} is not JSON ({error}): not a trace, or a damaged one.") from error
    return check_meta(meta, path)


def check_meta(meta: Any, path: str) -> Meta:
    """The meta object of the trace ``path``, if it is one that this program reads.

    Raises TraceFileError for none, or one of a newer format version; UnsafeTraceError, naming the item, where one is not of its shape.
    """
    version = meta.get("format_version") if isinstance(meta, dict) else None
    if not isinstance(version, int) or version < 1:
        raise TraceFileError(f"/{schema.META} of {path!r} names no format version: not a trace.")
    if version > schema.FORMAT_VERSION:
        raise TraceFileError(
            f"{path!r} has format version {version}, which is newer than this tracediff reads ({schema.FORMAT_VERSION}). "
            "Take a newer checkout of tracediff"
        )
    wrong = misfit(meta, Items(ITEMS, nullable=True), "")
    if wrong is not None:
        raise UnsafeTraceError(f"/{schema.META} of {path!r} is not sound: {wrong}.")
    return dict(meta)


def misfit(value: Any, shape: Shape, where: str) -> str | None:
    """What is wrong with a JSON value that ought to be of a shape, and where; None where nothing is."""
    if isinstance(shape, Items):
        return _items_misfit(value, shape, where)
    if isinstance(shape, Each):
        return _each_misfit(value, shape, where)
    kinds = shape if isinstance(shape, tuple) else (shape,)
    fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    return None if fits else _is_no(value, " or ".join(kind.__name__ for kind in kinds), where)


def _items_misfit(value: Any, shape: Items, where: str) -> str | None:
    if not isinstance(value, dict):
        return _is_no(value, "object", where)
    given = {name: inner for name, inner in value.items() if inner is not None} if shape.nullable else value
    missing = next((name for name in shape.needed if name not in given), None)
    if missing is not None:
        return f"{where or 'it'} has no {missing!r}"
    for name, inner in shape.items.items():
        if name in given and not _is_plainly(given[name], inner) and misfit(given[name], inner, "") is not None:
            return misfit(given[name], inner, f"{where}.{name}".lstrip("."))  # where is only spelled out for what is wrong
    return None


def _each_misfit(value: Any, shape: Each, where: str) -> str | None:
    if not isinstance(value, dict if shape.by_name else list):
        return _is_no(value, "object" if shape.by_name else "list", where)
    members = value.items() if isinstance(value, dict) else enumerate(value)
    for key, member in members:
        if not _is_plainly(member, shape.member) and misfit(member, shape.member, "") is not None:
            return misfit(member, shape.member, f"{where}[{key!r}]")
    return None


def _is_plainly(value: Any, shape: Shape) -> bool:
    """Whether a value is of the very type that its shape names, as nearly all are: the rest is looked at more closely."""
    return type(value) is shape or (type(shape) is tuple and type(value) in shape)


def _is_no(value: Any, wanted: str, where: str) -> str:
    return f"{where or 'it'} is {str(value)[:40]!r}, not {wanted}"
