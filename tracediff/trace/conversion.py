"""Arrays by name (.npz, .safetensors, a folder of .npy) to a trace and back, so that ports in Swift, C++ and Rust can take part.

A name is ``SITE``, ``SITE/END`` or ``SITE/CALL/END``: ``encoder.0`` (its output), ``encoder.0/input[0]``, ``encoder.0/3/output`` (the
fourth call). The root of the model is ``(root)``. ``encoder.0/param[weight]`` is a parameter. Sites and ends are those of
`tracediff.site`, so ``encoder#mel/value`` is a tap. In a folder the name is the file's path below it, without ``.npy``.

The order of execution is, from what is surest: the ``records`` of a header; a number before every name (``0012-encoder.0``); the order in
which an .npz holds its arrays; else the names, their numbers read as numbers.

The header is a JSON object: the text ``tracediff`` of a .safetensors' metadata, the array ``tracediff.json`` of an .npz (uint8), the file
``tracediff.json`` of a folder. ``{"meta": {...}, "records": [{"name": ..., "stage": ..., "dtype": ...}, ...]}``; all of it may be left
out. What is written here has it, so that a trace comes back as it was, but for its noise floor.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from tracediff import dtype as dtypes
from tracediff.dtype import Array
from tracediff.errors import TracediffError, TraceExistsError, TraceNotFoundError
from tracediff.json_text import parse_json
from tracediff.outputs import exists_already
from tracediff.site import End, Site, escape, printable
from tracediff.tensors.files import StoredArray, open_npy, open_npz, open_safetensors
from tracediff.trace import schema
from tracediff.trace.reader import Param, Record, Trace, open_trace
from tracediff.trace.tables import decode, encode
from tracediff.trace.writer import TraceWriter

PathLike: TypeAlias = "str | os.PathLike[str]"

TRACES = (".h5", ".hdf5")
NPZ, SAFETENSORS, FOLDER = ".npz", ".safetensors", ""
HEADER = "tracediff.json"
METADATA = "tracediff"
ROOT = "(root)"
HALVES = ("float16", "bfloat16")
"""What a port in float32 may store its tensors in."""

_FORMS = ".npz, .safetensors and folders of .npy"
_SITE = re.compile(r"(?!\.+$)[^\[\]@^/\x00-\x1f\x7f]+")
_ORDER = re.compile(r"(\d+)-(.+)", re.DOTALL)
_ABSENT: dict[str, str | int] = {
    "call": "",
    "stage": "",
    "scope": "",
    "file": "",
    "line": 0,
    "flags": 0,
    "parent": -1,
    "producer": -1,
    "producer_how": 0,
}


def convert(source: PathLike, target: PathLike, *, impl: str = "", stored: str = "", force: bool = False) -> Path:
    """Turns arrays by name into a trace, or a trace into arrays by name, as the two names' suffixes say; returns the target.

    ``impl`` names the framework that made the arrays, such as ``swift``, for the trace's meta. ``stored``: "float16" or "bfloat16" where
    the port ran in float32 and stored its arrays so, whatever dtype the file has them in. An existing target is replaced only with
    ``force``.
    Raises TraceNotFoundError, TraceExistsError, and TracediffError for what cannot be converted: two traces, an unknown
    suffix, pickled objects, names that are none or that occur twice, nothing at all.
    """
    origin, goal = Path(source), Path(target)
    if not origin.exists():
        raise TraceNotFoundError(f"There is no {os.fspath(origin)!r} to convert.")
    if not (origin.is_file() or origin.is_dir()):
        raise TracediffError(f"{os.fspath(origin)!r} is a pipe or a device, so it cannot be converted. Save it as a file first.")
    is_from_trace, is_to_trace = _form(origin, is_source=True) in TRACES, _form(goal) in TRACES
    if is_from_trace == is_to_trace:
        both = "both are traces" if is_from_trace else "neither is a trace (.h5)"
        raise TracediffError(f"{os.fspath(origin)!r} cannot be converted to {os.fspath(goal)!r}: {both}; known are {_FORMS}.")
    if is_from_trace:
        return write_arrays(origin, goal, force=force)
    return read_arrays(origin, goal, impl=impl, stored=stored, force=force)


def _form(path: Path, *, is_source: bool = False) -> str:
    """The suffix that says what a file holds; "" is a folder."""
    suffix = path.suffix.lower()
    if path.is_dir() or (suffix == FOLDER and not is_source):
        return FOLDER
    if suffix in (*TRACES, NPZ, SAFETENSORS):
        return suffix
    raise TracediffError(f"{os.fspath(path)!r} is of no known form: known are .h5 (a trace), {_FORMS}.")


# ------------------------------------------------------------------------------------------------------------- names


@dataclass(frozen=True, slots=True)
class Name:
    """What an array's name says: where it was seen, at which call of that site, and at which end."""

    site: str
    ordinal: int
    end: str

    @classmethod
    def parse(cls, text: str) -> Name:
        """The name that a text stands for; TracediffError where it is none.

        >>> Name.parse("encoder.0"), Name.parse("encoder.0/3/input[mask]").ordinal
        (Name(site='encoder.0', ordinal=0, end='output'), 3)
        """
        site, *rest = text.split("/")
        number = rest.pop(0) if len(rest) == 2 else "0"
        end = rest.pop() if rest else "output"
        with suppress(TracediffError):
            if not rest and _SITE.fullmatch(site) and re.fullmatch(r"\d{1,9}", number) and str(End.parse(end)) == end:
                return cls("" if site == ROOT else site, int(number), end)
        raise TracediffError(
            f"{text!r} is no name of an array: it is SITE, SITE/END or SITE/CALL/END, such as 'encoder.0', 'encoder.0/input[0]' or "
            f"'encoder.0/3/output'. Inside a name a slash is written {escape('/')}, and brackets {escape('[')} and {escape(']')}."
        )

    @classmethod
    def read(cls, text: str) -> Name:
        """The name that a text stands for; where it is none of SITE, SITE/END or SITE/CALL/END, it is a site's as a whole.

        TracediffError where it holds nothing that could be a name.

        >>> Name.read("encoder/layers[0]::attn"), Name.read("encoder.0/input[0]")
        (Name(site='encoder%2Flayers%5B0%5D%3A%3Aattn', ordinal=0, end='output'), Name(site='encoder.0', ordinal=0, end='input[0]'))
        """
        try:
            found = cls.parse(text)
        except TracediffError:
            if not re.search(r"[^\W_]", text):
                raise
            return cls(escape(text), 0, "output")
        return found if not re.search(r"[:#!]", found.site) or _is_site(found.site) else cls(escape(text), 0, "output")

    def __str__(self) -> str:
        call = f"{self.ordinal}/" if self.ordinal else ""
        return f"{self.site or ROOT}/{call}{self.end}"


def _is_site(text: str) -> bool:
    """Whether a text is a site as it is printed, and not a name with marks of its own (``model::layer``)."""
    return str(Site.parse(text)) == text and not re.search(r"[:#!]{2}", text)


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts names with their numbers read as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


# ------------------------------------------------------------------------------------------------- arrays to a trace


@dataclass(slots=True)
class _Arrays:
    """Arrays by name, read one at a time, in the order of their file, and the header that came with them."""

    by_name: dict[str, StoredArray]
    header: dict[str, Any]
    is_ordered: bool = False


def read_arrays(source: PathLike, to: PathLike, *, impl: str = "", stored: str = "", force: bool = False) -> Path:
    """Writes a trace of arrays by name (.npz, .safetensors or a folder of .npy) and returns its path; options as of `convert`."""
    path, target = Path(source), Path(to)
    if stored not in ("", *HALVES):
        raise TracediffError(f"What was stored is in {' or '.join(HALVES)}, not in {stored!r}.")
    openers = {NPZ: _open_npz, SAFETENSORS: _open_safetensors, FOLDER: _open_folder}
    _refuse_existing(target, force)
    arrays = openers[_form(path, is_source=True)](path)
    if not arrays.by_name:
        raise TracediffError(f"{os.fspath(path)!r} holds no arrays, so there is nothing to convert.")
    ordered = _Ordered(arrays, path)
    meta = {**_meta(ordered, path, impl), **_storage(ordered, stored)}
    _replaced(target, lambda part: _write_trace(ordered, part, meta))
    return target


def _storage(ordered: _Ordered, stated: str) -> dict[str, Any]:
    """The meta's entry of half precision in which the arrays are stored: stated, or that of all real arrays by their dtype or their grid.

    Whether the run was in it too shows beside the reference.
    """
    if stated:
        return {"stored": {"dtype": stated, "by": "stated"}}
    arrays = ordered.arrays.by_name
    kinds = {
        name: str(ordered.rows.get(name, {}).get("dtype") or (array.dtype.name if array.dtype else "")) for name, array in arrays.items()
    }
    by_dtype = next((name for name in HALVES if name in kinds.values()), None)
    if by_dtype:
        return {"stored": {"dtype": by_dtype, "by": "dtype"}}
    real = [arrays[name] for name, kind in kinds.items() if kind in ("float32", "float64")]
    on_grid = next((name for name in HALVES if real and _are_on_grid(real, dtypes.named(name).view)), None)
    return {"stored": {"dtype": on_grid, "by": "grid"}} if on_grid else {}


def _are_on_grid(arrays: Sequence[StoredArray], half: np.dtype[Any]) -> bool:
    """Whether all numbers of all arrays are numbers of a half precision, and not just whole ones."""
    some = False
    for array in arrays:
        values = array.read()
        with np.errstate(over="ignore", invalid="ignore"):
            rounded = values.astype(half).astype(values.dtype)
        if not np.array_equal(rounded, values, equal_nan=True):
            return False
        some = some or not dtypes.is_whole(values)
    return some


def _refuse_existing(target: Path, force: bool) -> None:
    """TraceExistsError where something would be overwritten; an empty folder may be filled, and one with anything else in it never is."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not force:
        raise exists_already(target)
    other = next((file for file in _files(target) if file.suffix != ".npy" and file.name != HEADER), None)
    if target.is_dir() and other is not None:
        raise TraceExistsError(f"{os.fspath(target)!r} holds {other.name!r}, which is no array; it is not replaced. Name another folder.")


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if not file.is_dir() or file.is_symlink())


class _Ordered:
    """The arrays of a file in execution order, each with its parsed name and its row of the header."""

    def __init__(self, arrays: _Arrays, path: Path) -> None:
        self.header = arrays.header
        self.arrays = arrays
        self.path = path
        rows = self.header.get("records") or []
        if not isinstance(rows, list) or not all(isinstance(row, dict) and isinstance(row.get("name"), str) for row in rows):
            raise TracediffError(f"The header of {os.fspath(path)!r} is wrong: 'records' is a list of objects that each have a 'name'.")
        self.rows: dict[str, dict[str, Any]] = {row["name"]: row for row in rows}
        absent = [name for name in self.rows if name not in arrays.by_name]
        if absent or len(self.rows) != len(rows):
            what = f"{absent[0]!r}, which the file does not hold" if absent else "one name twice"
            raise TracediffError(f"The header of {os.fspath(path)!r} names {what}.")
        self.names, self.order = self._ordered(list(arrays.by_name))
        self._check()

    def _ordered(self, names: list[str]) -> tuple[dict[str, Name], str]:
        """The names in execution order, each with what it stands for, and how the order is known."""
        if self.rows:
            rest = [name for name in names if name not in self.rows]
            return {name: Name.read(name) for name in (*self.rows, *rest)}, "header"
        numbered = [_ORDER.fullmatch(name) for name in names]
        if all(numbered):
            by_number = sorted((match for match in numbered if match), key=lambda match: int(match[1]))
            return {match[0]: Name.read(match[2]) for match in by_number}, "numbers"
        if not self.arrays.is_ordered:
            names.sort(key=_natural)
        return {name: Name.read(name) for name in names}, "file" if self.arrays.is_ordered else "names"

    def recorded(self) -> list[str]:
        """The names of the arrays that become records, as the port wrote them but for the number before them, in the trace's order."""
        names = [text for text, name in self.names.items() if End.parse(name.end).kind != "param"]
        return [_ORDER.sub(r"\2", text) for text in names] if self.order == "numbers" else names

    def _check(self) -> None:
        counts = Counter(self.names.values())
        twice = next((name for name, count in counts.items() if count > 1), None)
        if twice is not None:
            both = ", ".join(repr(text) for text, name in self.names.items() if name == twice)
            raise TracediffError(f"{os.fspath(self.path)!r} holds {str(twice)!r} more than once: {both}.")


def _meta(ordered: _Ordered, path: Path, impl: str) -> dict[str, Any]:
    """The meta of a trace that nobody captured: the header's, and where the arrays came from."""
    given = ordered.header.get("meta") or {}
    if not isinstance(given, dict):
        raise TracediffError(f"The header of {os.fspath(path)!r} is wrong: 'meta' is an object.")
    kept = {name: value for name, value in given.items() if name != "format_version"}
    made: dict[str, Any] = {
        "impl": impl or "converted",
        "mode_run": "free",
        "created": datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds"),
        "modules": _modules(ordered.names.values()),
        "repeats": None,
        **kept,
        "converted": {
            "from": path.name,
            "order": ordered.order,
            "names": "recorded" if "modules" in given else "stated",
            "arrays": ordered.recorded(),
        },
    }
    if impl:
        made["impl"] = impl
    if ordered.order == "names":
        made["warnings"] = [*made.get("warnings", ()), "the arrays came without an order: the trace is in the order of their names"]
    return made


def _modules(names: Iterable[Name]) -> list[dict[str, Any]]:
    """The tree of modules that the sites' paths imply."""
    paths = dict.fromkeys(path for name in names for path in _above(re.split(r"[:#!]", name.site, maxsplit=1)[0]))
    children: dict[str, list[str]] = {path: [] for path in paths}
    for path in paths:
        if path:
            children[path.rpartition(".")[0]].append(path.rpartition(".")[2])
    return [
        {"path": path, "type": "", "attrs": {}, "aliases": [], "children": inner, "training": False} for path, inner in children.items()
    ]


def _above(path: str) -> list[str]:
    """A module path and those above it, the root first."""
    parts = path.split(".") if path else []
    return [".".join(parts[:depth]) for depth in range(len(parts) + 1)]


def _write_trace(ordered: _Ordered, part: Path, meta: dict[str, Any]) -> None:
    counts: Counter[str] = Counter()
    stages = {str(row["stage"]): "" for row in ordered.rows.values() if row.get("stage")}
    with TraceWriter(part, meta={**meta, "complete": False, "stages": {**stages, **(meta.get("stages") or {})}}) as writer:
        rows = 0
        for text, name in ordered.names.items():
            row = ordered.rows.get(text, {})
            values, dtype = _typed(ordered.arrays.by_name[text], row)
            if End.parse(name.end).kind == "param":
                _add_param(writer, name, values, dtype, row)
                continue
            writer.add(values=values, dtype=dtype, site=name.site, ordinal=name.ordinal, end=name.end, **_moment(name, dtype, row, rows))
            rows += 1
            if dtypes.named(dtype).roundoff:
                counts[dtype] += values.size
        if counts and not meta.get("dtype"):
            writer.set_meta(dtype=counts.most_common(1)[0][0])
        writer.close(complete=meta.get("complete") is not False)


def _add_param(writer: TraceWriter, name: Name, values: Array, dtype: str, row: Mapping[str, Any]) -> None:
    local = ".".join(map(str, End.parse(name.end).keys))
    full = f"{name.site}.{local}" if name.site else local
    aliases = row.get("aliases") or []
    if not isinstance(aliases, list):
        raise TracediffError(f"The header says of {row['name']!r} that its aliases are {aliases!r}, which are no list of names.")
    kind: Literal["parameter", "buffer"] = "buffer" if row.get("kind") == "buffer" else "parameter"
    writer.add_param(full, values, path=name.site, kind=kind, aliases=[str(alias) for alias in aliases], store=True, dtype=dtype)


def _moment(name: Name, dtype: str, row: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The header's columns of a record besides its name. Its parent is one of the ``rows`` that were written before it."""
    moment = {column: row[column] for column in _ABSENT if column in row}
    for column, value in moment.items():
        limit = rows if column in ("parent", "producer") else 2**31
        if type(value) is not type(_ABSENT[column]) or (isinstance(value, int) and not -1 <= value < limit):
            raise TracediffError(f"The header says of {row['name']!r} that its {column} is {value!r}, which cannot be.")
    moment.setdefault("call", f"{name.site}[{name.ordinal}]")
    moment["flags"] = moment.get("flags", 0) | (schema.TEXT if dtype == "text" else 0)
    return moment | ({"note": json.dumps(row["note"])} if row.get("note") else {})


def _typed(array: StoredArray, row: Mapping[str, Any]) -> tuple[Array, str]:
    """An array's values or stored bits, and the name of their dtype: the header's, else the file's."""
    values = array.raw()
    if values.dtype.kind in "US":
        text = values.item() if values.ndim == 0 else "\n".join(map(str, values.reshape(-1).tolist()))
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8), "text"
    stated = row.get("dtype")
    if stated is None and array.dtype is None:
        raise TracediffError(f"{array.name!r} cannot be recorded: it is of dtype {values.dtype}.")
    kind = array.dtype if stated is None else dtypes.named(str(stated))
    assert kind is not None
    if values.dtype not in (kind.stored, kind.view, np.dtype(f"V{kind.itemsize}")):
        raise TracediffError(f"{array.name!r} is of {values.dtype}, which cannot be the bits of {kind.name!r}; those are {kind.stored}.")
    bits = values.view(kind.stored)
    if kind.name == "text":
        _check_text(bits, array.name)
    return bits, kind.name


def _check_text(bits: Array, name: str) -> None:
    try:
        decode(bits.tobytes())
    except UnicodeDecodeError as error:
        raise TracediffError(f"The header says that {name!r} is a text, and its bytes are none ({error.reason}).") from error


# -- the three forms, opened


def _open_npz(path: Path) -> _Arrays:
    """The arrays of an .npz."""
    file = open_npz(path)
    if file.foreign:
        raise TracediffError(f"{file.foreign[0]!r} in {os.fspath(path)!r} is no array, so it cannot be converted; remove it.")
    by_name = {array.name: array for array in file.arrays}
    own = by_name.pop(HEADER, None)
    return _Arrays(by_name, {} if own is None else _header(own.raw().tobytes(), path), is_ordered=True)


def _open_folder(path: Path) -> _Arrays:
    """The arrays of a folder of .npy files, subfolders included, named by their paths in it."""
    header = path / HEADER
    files = {file.relative_to(path).with_suffix("").as_posix(): file for file in sorted(path.rglob("*.npy")) if file.is_file()}
    by_name = {name: open_npy(file, name, path) for name, file in files.items()}
    return _Arrays(by_name, _header(header.read_bytes(), path) if header.is_file() else {})


def _open_safetensors(path: Path) -> _Arrays:
    """The arrays of a .safetensors file, in the dtypes that it names."""
    file = open_safetensors(path)
    unknown = next((array.name for array in file.arrays if array.dtype is None), None)
    if unknown is not None:
        raise TracediffError(f"{unknown!r} in {os.fspath(path)!r} has a dtype that no trace holds.")
    header = _header(encode(str(file.metadata[METADATA])), path) if METADATA in file.metadata else {}
    return _Arrays({array.name: array for array in file.arrays}, header)


def _header(blob: bytes, path: Path) -> dict[str, Any]:
    try:
        header = parse_json(blob)
    except ValueError as error:
        raise TracediffError(f"The header {HEADER!r} of {os.fspath(path)!r} is no JSON: {error}.") from error
    if not isinstance(header, dict):
        raise TracediffError(f"The header {HEADER!r} of {os.fspath(path)!r} is no JSON object.")
    return header


# ------------------------------------------------------------------------------------------------- a trace to arrays


def write_arrays(source: PathLike, to: PathLike, *, force: bool = False) -> Path:
    """Writes the values of a trace as arrays by name (.npz, .safetensors, or a folder of .npy) and returns where.

    Parameters are written where their values were stored. Raises TracediffError where records hold statistics only.
    """
    target = Path(to)
    form = _form(target)
    _refuse_existing(target, force)
    with open_trace(source) as trace:
        bare = sum(not record.stored for record in trace.records)
        if bare or not len(trace.records):
            what = f"{bare:,} of {len(trace.records):,} records of" if bare else "no record of"
            raise TracediffError(f"{what} {os.fspath(trace.path)!r} hold values: capture it with --save full.")
        _write_items(target, form, dict(_items(trace)), dict(trace.meta))
    return target


@dataclass(frozen=True, slots=True)
class NamedArray:
    """An array to write, made only when it is read: its dtype by name, its shape, and what makes it (values, or stored bits)."""

    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], Array]

    @property
    def nbytes(self) -> int:
        """The bytes of its values."""
        return math.prod(self.shape) * dtypes.named(self.dtype).itemsize

    def read(self) -> Array:
        """The array."""
        return self.make()


def write_named(arrays: Mapping[str, NamedArray], to: PathLike, *, meta: Mapping[str, Any], force: bool = False) -> Path:
    """Writes arrays by name (.npz, .safetensors, or a folder of .npy) and returns where; the header says their order and their dtypes.

    Raises TraceExistsError for a target that exists, TracediffError for a dtype that the form has not, and for an unknown form.
    """
    target = Path(to)
    form = _form(target)
    if form in TRACES:
        raise TracediffError(f"{os.fspath(target)!r} is a trace's name; arrays by name are {_FORMS}.")
    _refuse_existing(target, force)
    items = {name: ({"name": name, "dtype": array.dtype}, array) for name, array in arrays.items()}
    _write_items(target, form, items, meta)
    return target


def _write_items(target: Path, form: str, items: Items, meta: Mapping[str, Any]) -> None:
    header = json.dumps({"meta": dict(meta), "records": [row for row, _ in items.values()]}, allow_nan=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    writers: dict[str, Callable[[Path, Items, str], None]] = {NPZ: _write_npz, SAFETENSORS: _write_safetensors, FOLDER: _write_folder}
    _replaced(target, lambda part: writers[form](part, items, header))


Items: TypeAlias = "Mapping[str, tuple[dict[str, Any], Record | Param | NamedArray]]"


def _items(trace: Trace) -> Iterator[tuple[str, tuple[dict[str, Any], Record | Param]]]:
    """Every array to write by its name: its row of the header, and the record or parameter that it is."""
    for record in trace.records:
        name = _safe(Name(record.site, record.ordinal, record.end), trace)
        row = {"name": name, "dtype": record.dtype}
        row |= {column: value for column in _ABSENT if (value := getattr(record, column)) != _ABSENT[column]}
        yield name, (row | ({"note": record.note} if record.note else {}), record)
    for param in trace.params.values():
        if param.stored:
            local = param.name[len(param.path) + 1 :] if param.path else param.name
            name = _safe(Name(param.path, 0, str(End("param", (local,)))), trace)
            yield name, ({"name": name, "dtype": param.dtype, "kind": param.kind, "aliases": param.aliases}, param)


def _safe(name: Name, trace: Trace) -> str:
    """A record's name as part of a path. Refuses names that no capture gives: a stranger's trace could hold one that leads elsewhere."""
    with suppress(TracediffError):
        if Name.parse(str(name)) == name and printable(str(name)) == str(name):
            return str(name)
    raise TracediffError(
        f"{os.fspath(trace.path)!r} holds {str(name)!r}, which is no name that a capture gives; it is not written to a file."
    )


def _replaced(target: Path, write: Callable[[Path], None]) -> None:
    """Writes a file beside the target, and moves it to the target's place once it is whole."""
    part = target.with_name(f".{target.name}.new")
    _remove(part)
    try:
        write(part)
        _remove(target)
        os.replace(part, target)
    finally:
        _remove(part)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _bits(item: Record | Param | NamedArray) -> Array:
    """An array's values in a dtype that NumPy's own files know: bfloat16 and float8 as their bits."""
    kind = dtypes.named(item.dtype)
    values = item.read()
    return values.view(kind.stored) if values.dtype != kind.stored else values


def _write_npz(part: Path, items: Items, header: str) -> None:
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, (_, item) in items.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, _bits(item), allow_pickle=False)
        with archive.open(f"{HEADER}.npy", "w") as stream:
            np.lib.format.write_array(stream, np.frombuffer(header.encode(), np.uint8), allow_pickle=False)


def _write_folder(part: Path, items: Items, header: str) -> None:
    part.mkdir()
    for name, (_, item) in items.items():
        file = part / f"{name}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            raise TracediffError(
                f"Two arrays would share the file {f'{name}.npy'!r} on this disk, which ignores case; write an .npz instead."
            )
        np.save(file, _bits(item), allow_pickle=False)
    (part / HEADER).write_text(header, encoding="utf-8")


def _write_safetensors(part: Path, items: Items, header: str) -> None:
    head: dict[str, Any] = {"__metadata__": {METADATA: header}}
    offset = 0
    for name, (_, item) in items.items():
        code = dtypes.named(item.dtype).safetensors
        if not code:
            raise TracediffError(f"{name!r} is of {item.dtype}, which .safetensors files cannot hold; write an .npz instead.")
        head[name] = {"dtype": code, "shape": list(item.shape), "data_offsets": [offset, offset + item.nbytes]}
        offset += item.nbytes
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with part.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for _, item in items.values():
            stream.write(_bits(item).tobytes())
