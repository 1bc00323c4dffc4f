"""Damaged and hostile inputs of every reader: made from a corpus of good files by mutations that know the format.

    python tests/fuzzing.py --inputs 1000000            # every format in turn; a line for each input that ended wrongly
    python tests/fuzzing.py --formats trace npz --seed 7

An input may be read or refused with a `TracediffError`. Wrong is any other exception, more than `SECONDS` of processor time, and (from the
command line, where the process is limited) a process that dies, a file opened outside of the folder, or memory above `MEMORY`.

Each input is read at the border: opened, and all that it holds read. One in `WHOLE` is used whole besides: compared, explained, shown,
converted and recovered, as people do with it. That takes a hundred times as long. A good file's bytes, tables and weights are read once a
process, and the folder is best in memory (``TMPDIR=/dev/shm``).
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import mmap
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import h5py
import numpy as np
from judging import Run, bumped, inputs, weights

import tracediff as td
from tracediff.alignment import mapping as mappings
from tracediff.api import listing
from tracediff.errors import TracediffError
from tracediff.parameters.sources import Weights, open_weights
from tracediff.trace import Trace, TraceWriter, journal, schema
from tracediff.trace.journal import journal_of
from tracediff.trace.tables import pack_strings, unpack_strings

SECONDS = 5
MEMORY = 6 << 30
WHOLE = 50
SLOW, OFTEN = ("trace", "tables"), 3  # the other formats have so many inputs for each of these
BATCH = 2_000
MINUTE = 60  # seconds between two lines of progress
EXTREMES = (0, 1, -1, 2, 7, 255, 256, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
FLOATS = (0.0, -1.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), -float("inf"), 1e-30)
TEXTS = ("", "x", "..", "../..", "/", "\x00", "\x1b]0;owned\x07", "\u202e", "\udcff", "a" * 5000, "[0]", "#", "!", "enc[", "1e999", "-1")
ODD: tuple[Any, ...] = (None, True, False, *EXTREMES, 0.5, 1e400, -1e400, *TEXTS, [], {}, [[]], [None], {"": None}, [1, "a", {}])


class TooSlowError(Exception):
    """An input took more processor time than an input may."""


# -- mutations ---------------------------------------------------------------------------------------------------------


def bytes_of(drawn: random.Random, blob: bytes) -> bytes:
    """Flipped, cut, doubled or exchanged bytes."""
    damaged = bytearray(blob)
    for _ in range(drawn.choice((1, 1, 1, 3, 20))):
        if not damaged:
            break
        at, kind = drawn.randrange(len(damaged)), drawn.randrange(6)
        size = drawn.choice((1, 4, 8, 64))
        if kind <= 2:
            damaged[at] ^= 1 << drawn.randrange(8)
        elif kind == 3:
            damaged[at : at + size] = drawn.choice((b"\0", b"\xff")) * size
        elif kind == 4:
            del damaged[at : at + drawn.choice((size, len(damaged)))]
        else:
            damaged[at:at] = damaged[at : at + size]
    return bytes(damaged)


def json_of(drawn: random.Random, value: Any) -> Any:
    """A JSON value in which some nodes became something else, went, or were doubled; sometimes very deep."""
    value = copy.deepcopy(value)
    for _ in range(drawn.choice((1, 1, 2, 4))):
        places = list(_places(value))
        if not places:
            return drawn.choice(ODD)
        holder, key = drawn.choice(places)
        kind = drawn.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[drawn.choice(TEXTS)] = holder.pop(key)
        elif kind == 2 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        else:
            holder[key] = copy.deepcopy(drawn.choice(ODD))
    if drawn.random() < 0.02:
        holder, key = drawn.choice(list(_places(value)) or [([value], 0)])
        for _ in range(drawn.choice((50, 3000))):
            holder[key] = [holder[key]] if drawn.random() < 0.5 else {"a": holder[key]}
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every node but the root, as what holds it and its key there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def dumped(value: Any) -> bytes:
    """A JSON value as a hostile file has it: infinities and lone surrogates as they come, whatever its depth."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)
    try:
        return json.dumps(value).encode("utf-8", "surrogatepass")
    finally:
        sys.setrecursionlimit(limit)


def cells_of(drawn: random.Random, table: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A table in which one to three cells hold something extreme, or another row's value."""
    table = table.copy()
    for _ in range(drawn.choice((1, 1, 2, 3)) if table.size else 0):
        row = drawn.randrange(table.size)
        column = drawn.choice(table.dtype.names) if table.dtype.names else None
        cells = table[column] if column else table
        if drawn.random() < 0.3:
            cells[row] = cells[drawn.randrange(table.size)]
        elif cells.dtype.kind == "f":
            cells[row] = drawn.choice(FLOATS)
        else:
            span = np.iinfo(cells.dtype)
            cells[row] = min(max(drawn.choice((*EXTREMES, drawn.randrange(40))), int(span.min)), int(span.max))
    return table


# -- formats -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """One kind of input: ``make`` writes a mutated file into the corpus's folder; ``open`` reads all of it, ``use`` does what people do."""

    make: Callable[[random.Random, Path], Path]
    open: Callable[[Path], object]
    use: Callable[[Path], object]


LAYERS = ("first", "second", "third", "last")
BARE, KILLED = "bare.h5", "killed.h5"


def corpus(folder: Path) -> Path:
    """The good files that all inputs are made from."""
    described = {"type": "Layer", "attrs": {"width": 16}, "aliases": [], "children": [], "training": False}
    said: dict[str, Any] = {"modules": [{"path": layer, **described} for layer in LAYERS], "blind_spots": ["none"], "not_seen": ["x"]}
    for name, faults in (("ref", {}), ("port", {"third": bumped})):
        run = Run(folder / f"{name}.h5", faults=faults, **said)
        value, layers = inputs(), weights(len(LAYERS))
        for layer, weight in zip(LAYERS, layers, strict=True):
            run.writer.add_param(f"{layer}.weight", weight, path=layer, kind="parameter", store=True)
            value = run.layer(layer, value, weight)
        run.tap("ids", np.arange(5))
        run.close().close()
    arrays = {f"{layer}.weight": weight for layer, weight in zip(LAYERS, weights(len(LAYERS)), strict=True)}
    np.savez(folder / "weights.npz", **arrays)
    _safetensors(folder / "weights.safetensors", arrays)
    td.convert(folder / "ref.h5", folder / "ref.npz")
    td.convert(folder / "ref.h5", folder / "ref.safetensors")
    (folder / "map.json").write_text(json.dumps(td.align(folder / "ref.h5", folder / "port.h5").to_map()))
    shutil.copy(folder / "port.h5", folder / BARE)
    with h5py.File(folder / BARE, "r+") as file:
        del file[schema.DIGEST]
    _kill_writer(folder / KILLED)
    if find_spec("torch"):
        import torch

        torch.save({"state_dict": {f"{layer}.weight": torch.ones(3, 3) for layer in LAYERS}, "epoch": 3}, folder / "weights.pt")
    return folder


def _safetensors(path: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    from safetensors.numpy import save_file

    save_file(arrays, path)


def _kill_writer(path: Path) -> None:
    """A trace and its journal, as a killed writer leaves them."""
    writer = TraceWriter(path, meta={"modules": [{"path": "enc", "type": "Encoder"}], "mode_run": "free"})
    for row in range(6):
        writer.add(site=f"enc.{row % 3}", call=f"enc.{row % 3}[0]", ordinal=0, end="output", values=np.arange(4.0, dtype="f4") + row)
    writer.add_param("w", np.ones((3, 2), "f4"), path="enc.0", kind="parameter", store=True)
    writer.flush()
    writer._abandon()


@cache
def _good(path: Path) -> bytes:
    """A good file's bytes."""
    return path.read_bytes()


@cache
def _trace(path: Path) -> Trace:
    """A good trace, open."""
    return td.open_trace(path)


@cache
def _weights(path: Path) -> Weights:
    """A good trace's weights."""
    return open_weights(_trace(path))


@cache
def _tables(path: Path) -> dict[str, tuple[int, np.ndarray[Any, Any]]]:
    """The tables of a good trace by their names, each with where it lies in the file."""
    with h5py.File(path) as file:
        return {name: (item.id.get_offset(), item[...]) for name, item in file.items() if isinstance(item, h5py.Dataset)}


@cache
def _said(path: Path) -> Any:
    """The content of a good JSON file."""
    return json.loads(path.read_bytes())


@cache
def _header(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a good .safetensors file, and the bytes after it."""
    blob = _good(path)
    size = struct.unpack_from("<Q", blob)[0]
    return json.loads(blob[8 : 8 + size]), blob[8 + size :]


@cache
def _members(path: Path) -> dict[str, bytes]:
    """What a good .npz file holds, by name."""
    with zipfile.ZipFile(path) as good:
        return {name: good.read(name) for name in good.namelist()}


def _opened(path: Path) -> None:
    """All that a trace holds, read once."""
    with td.open_trace(path) as trace:
        for record in trace.records:
            assert record.note is not None
            if record.stored:
                record.read()
        for param in trace.params.values():
            if param.stored:
                param.read()
        assert trace.calls is not None
        for rows in ({}, {"modules": True}, {"params": True}):
            listing(trace, **rows)


def _used(path: Path) -> None:
    """All that people do with a trace."""
    reference, port = _trace(path.with_name("ref.h5")), _trace(path.with_name("port.h5"))
    with td.open_trace(path) as trace:
        trace.to_frame()
    for first, second in ((reference, path), (path, port)):
        report = td.bisect(first, second, scan=True)
        str(report)
        report.to_json()
    str(td.status(reference, path))
    str(td.weights(reference, path))
    td.convert(path, path.with_name("arrays.npz"))


def _trace_bytes(drawn: random.Random, folder: Path) -> Path:
    path = folder / "x.h5"
    path.write_bytes(bytes_of(drawn, _good(folder / "port.h5")))
    return path


def _trace_cells(drawn: random.Random, folder: Path) -> Path:
    """Hostile cells, texts and meta in a file whose tables have no digest, or (in one of ten) the old one."""
    path, source = folder / "x.h5", folder / (BARE if drawn.random() < 0.9 else "port.h5")
    name = drawn.choice((schema.INDEX_TABLE, schema.INDEX_TABLE, schema.PARAM_TABLE, schema.META, schema.STRINGS, schema.SKETCHES))
    blob, (offset, table) = _good(source), _tables(source)[name]
    if name not in (schema.META, schema.STRINGS):
        cells = cells_of(drawn, table).tobytes()
        path.write_bytes(blob[:offset] + cells + blob[offset + len(cells) :])
        return path
    path.write_bytes(blob)
    with h5py.File(path, "r+") as file:
        if name == schema.META:
            del file[name]
            file[name] = np.frombuffer(dumped(json_of(drawn, json.loads(table.tobytes()))), np.uint8)
        else:
            _replace_strings(drawn, file, unpack_strings(table, file[schema.STRING_ENDS][...], "the corpus"))
    return path


def _replace_strings(drawn: random.Random, file: h5py.File, texts: list[str]) -> None:
    for _ in range(drawn.choice((1, 2, 5))):
        at = drawn.randrange(1, len(texts))
        texts[at] = drawn.choice((*TEXTS, texts[drawn.randrange(len(texts))], texts[at] + drawn.choice(TEXTS), "3,4", "9,9,9,999999999"))
    for name, table in zip((schema.STRINGS, schema.STRING_ENDS), pack_strings(texts), strict=True):
        del file[name]
        file[name] = table


def _journal(drawn: random.Random, folder: Path) -> Path:
    """The journal of a killed writer whose frames are well made and say something else."""
    path = folder / "x.h5"
    path.write_bytes(_good(folder / KILLED))
    frames = list(journal.frames(_good(journal_of(folder / KILLED))))
    for _ in range(drawn.choice((1, 1, 3))):
        at = drawn.randrange(len(frames))
        kind, payload = frames[at]
        how = drawn.randrange(5)
        if how == 0:
            del frames[at]
        elif how == 1:
            frames.insert(drawn.randrange(len(frames)), frames[at])
        elif kind in (journal.HEADER, journal.META) and how <= 3:
            with suppress(ValueError):  # its bytes were changed before
                frames[at] = kind, dumped(json_of(drawn, json.loads(payload)))
        elif kind == journal.SEGMENT and how <= 3:
            place = struct.pack("<QQ", *(drawn.choice((*EXTREMES[:2], 64, 2**63 - 1, 2**64 - 1)) for _ in range(2)))
            frames[at] = kind, place + drawn.choice((payload[16:], b"<f4|9999999999,9999999999", b"|V9|3", b"<f4|"))
        else:
            frames[at] = (kind if how else drawn.randrange(256)), bytes_of(drawn, payload)
        if not frames:
            break
    journal_of(path).write_bytes(journal.MAGIC + b"".join(journal.frame(kind, payload) for kind, payload in frames))
    return path


def _recovered(path: Path) -> None:
    """What people do with the trace of a killed writer."""
    td.recover(path, path.with_name("recovered.h5")).close()
    td.recover(path).close()


def _safetensors_file(drawn: random.Random, folder: Path) -> Path:
    path, source = folder / "x.safetensors", folder / drawn.choice(("weights.safetensors", "ref.safetensors"))
    if drawn.random() < 0.2:
        path.write_bytes(bytes_of(drawn, _good(source)))
        return path
    header, data = _header(source)
    if "__metadata__" in header and drawn.random() < 0.5:
        said = json.loads(header["__metadata__"]["tracediff"])
        header = header | {"__metadata__": {"tracediff": dumped(json_of(drawn, said)).decode("utf-8", "replace")}}
    else:
        header = json_of(drawn, header)
    text = dumped(header)
    path.write_bytes(struct.pack("<Q", drawn.choice((len(text),) * 9 + (0, 1, 255, 2**31, 2**63, 2**64 - 1))) + text + data)
    return path


def _npz_file(drawn: random.Random, folder: Path) -> Path:
    """Bytes anywhere, or well packed members whose headers or contents are something else."""
    path, source = folder / "x.npz", folder / drawn.choice(("weights.npz", "ref.npz"))
    if drawn.random() < 0.3:
        path.write_bytes(bytes_of(drawn, _good(source)))
        return path
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", drawn.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as bad:
        members = _members(source)
        chosen = drawn.choice(list(members))
        for name, content in members.items():
            if name == chosen:
                content = _other_member(drawn, name, content)
                name = drawn.choice((name,) * 4 + ("../../x.npy", "/x.npy", " ", "x", "\x1b[2J.npy", next(iter(members))))
            bad.writestr(name, content)
    path.write_bytes(packed.getvalue())
    return path


def _other_member(drawn: random.Random, name: str, content: bytes) -> bytes:
    if name.startswith("tracediff") and drawn.random() < 0.7:
        array = np.frombuffer(content[128:], np.uint8)
        said = json.loads(array.tobytes()) if array.size else {}
        return _npy(np.frombuffer(dumped(json_of(drawn, said)), np.uint8))
    how = drawn.randrange(4)
    if how == 0:
        return bytes_of(drawn, content[:128]) + content[128:]
    if how == 1:
        shape = drawn.choice(("(99999999999,)", "(-1,)", "(2**40,)", "('a',)", "()", "(3, 3", "[" * 3000, "(1,)*70", "(True,)"))
        kind = drawn.choice(("<f4", "|O", "<f16", "|V4", "<U9", "[('a','<f4')]", "", "<M8[ns]", ">c8"))
        text = f"{{'descr': '{kind}', 'fortran_order': {drawn.choice(('False', 'True', '9'))}, 'shape': {shape}, }}\n".encode()
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) & 0xFFFF) + text + content[128:]
    return bytes_of(drawn, content)


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _read_weights(path: Path) -> None:
    """Each tensor of a weights file."""
    for weight in open_weights(path).values():
        weight.read()


def _traced(path: Path) -> None:
    """A trace of arrays; what was written can be read."""
    made = path.with_name("made.h5")
    td.convert(path, made)
    with td.open_trace(made) as trace:
        listing(trace)


def _converted(path: Path) -> None:
    """What people do with arrays: compare them as weights, and as a trace."""
    with suppress(TracediffError):  # weights share no site with the run
        str(td.bisect(_trace(path.with_name("ref.h5")), path.with_name("made.h5")))
    _read_weights(path)
    _weighed(path)


def _index_file(drawn: random.Random, folder: Path) -> Path:
    files = {f"{layer}.weight": "weights.safetensors" for layer in LAYERS}
    whole: Any = json_of(drawn, {"metadata": {"total_size": 4096}, "weight_map": files})
    (folder / "shards").mkdir()
    (folder / "shards" / "weights.safetensors").write_bytes(_good(folder / "weights.safetensors"))
    path = folder / "shards" / "model.safetensors.index.json"
    path.write_bytes(dumped(whole) if drawn.random() < 0.9 else bytes_of(drawn, dumped(whole)))
    return path.parent


def _mapping(drawn: random.Random, folder: Path) -> Path:
    said = copy.deepcopy(_said(folder / "map.json"))
    said["pairs"][0] |= {"layout": "(1, 0)"}
    said["pairs"].append({"reference": "first", "port": "first", "part": {"of": "port", "axis": 0, "start": 0, "stop": 2, "groups": 1}})
    said["ignore"] = {"reference": ["la*"], "port": []}
    path = folder / "x.json"
    text = dumped(json_of(drawn, said))
    path.write_bytes(text if drawn.random() < 0.8 else bytes_of(drawn, text))
    return path


def _sides(path: Path) -> tuple[Trace, Trace]:
    return _trace(path.with_name("ref.h5")), _trace(path.with_name("port.h5"))


def _torch_file(drawn: random.Random, folder: Path) -> Path:
    path = folder / "x.pt"
    path.write_bytes(bytes_of(drawn, _good(folder / "weights.pt")))
    return path


def _weighed(path: Path) -> None:
    str(td.weights(_weights(path.with_name("ref.h5")), path))


FORMATS: dict[str, Format] = {
    "trace": Format(_trace_bytes, _opened, _used),
    "tables": Format(_trace_cells, _opened, _used),
    "journal": Format(_journal, _opened, _recovered),
    "safetensors": Format(_safetensors_file, _traced, _converted),
    "npz": Format(_npz_file, _traced, _converted),
    "index": Format(_index_file, _read_weights, _weighed),
    "mapping": Format(
        _mapping,
        lambda path: mappings.read(path, *(list(trace.sites) for trace in _sides(path))),
        lambda path: td.align(*_sides(path), mapping=path),
    ),
    "torch": Format(_torch_file, _read_weights, _weighed),
}
"""Every format that is read from files, by name."""


# -- running -----------------------------------------------------------------------------------------------------------


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raises TooSlowError in the block once it has taken so much processor time, or waited for ten times as long."""

    def stop(*_: Any) -> None:
        raise TooSlowError

    before = [signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 10 * seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)


@contextmanager
def cleared(folder: Path) -> Iterator[None]:
    """What the block makes in a folder is removed afterwards."""
    before = set(os.listdir(folder))
    try:
        yield
    finally:
        for name in set(os.listdir(folder)) - before:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def tried(name: str, seed: int, good: Path, *, whole: bool | None = None) -> str:
    """How one input ended: "read", "refused", or what went wrong and where. It is the same for the same format and seed.

    ``whole``: whether it is used as people do once it was read; None draws that.
    """
    made, drawn = FORMATS[name], random.Random(f"{name} {seed}")
    if whole is None:
        whole = drawn.random() < 1 / WHOLE
    with cleared(good):
        path = made.make(drawn, good)
        try:
            with at_most(SECONDS), np.errstate(all="ignore"):
                outcomes = [_read_or_refused(way, path) for way in (made.open, made.use)[: 1 + whole]]
            return "refused" if "refused" in outcomes else "read"
        except (Exception, TooSlowError) as error:
            at = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in at if "tracediff/" in frame.filename] or at
            return f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].name}: {str(error)[:100]!r}"


def _read_or_refused(way: Callable[[Path], object], path: Path) -> str:
    try:
        way(path)
    except TracediffError as error:
        str(error).encode()  # a message that cannot be printed is none
        return "refused"
    return "read"


def load(good: Path) -> None:
    """Loads what is loaded once, so that no input is charged with it."""
    with cleared(good):
        _used(Path(shutil.copy(good / "port.h5", good / "x.h5")))
    for name in FORMATS:
        if name != "torch" or find_spec("torch"):
            tried(name, -1, good, whole=True)


def watch(folder: Path) -> None:
    """Ends the process where a file outside of the temporary folder, Python and the package is opened to be read."""
    ours = (folder, Path(td.__file__).parent.parent, sys.prefix, sys.base_prefix)
    allowed = (*map(str, ours), "/proc", "/sys", "/dev/urandom", "/etc", "/usr")

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event in ("os.system", "subprocess.Popen", "os.exec"):
            raise AssertionError(f"a process was started: {given!r}")
        is_path = event == "open" and isinstance(given[0], str) and os.path.isabs(given[0])
        is_plain = is_path and ".." not in given[0] and given[0].startswith(allowed)  # no input makes a link
        if is_path and not is_plain and not os.path.realpath(given[0]).startswith(allowed):
            raise AssertionError(f"a file outside was opened: {given[0]!r}")

    sys.addaudithook(hook)


def batch(inputs: list[tuple[str, int]], good: Path) -> Counter[str]:
    """How inputs ended that a process of its own reads; one at which the process dies has ended in that."""
    ended = Counter[str]()
    while inputs:
        told, found = mmap.mmap(-1, 8), mmap.mmap(-1, 1 << 20)
        child = os.fork()
        if not child:
            counted = Counter[str]()
            for number, (name, seed) in enumerate(inputs):
                told[:] = number.to_bytes(8, "little")
                how = tried(name, seed, good)
                if how not in ("read", "refused"):
                    print(f"{name} {seed}: {how}", flush=True)
                counted[f"{name}: {how}"] += 1
                found.seek(0)
                found.write(pickle.dumps(counted))
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        number = int.from_bytes(told[:], "little")
        if number or not status:
            ended += pickle.loads(found[:])
        if not status:
            break
        name, seed = inputs[number]
        print(f"{name} {seed}: the process died ({os.waitstatus_to_exitcode(status)})", flush=True)
        ended[f"{name}: the process died"] += 1
        inputs = inputs[number + 1 :]
    return ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--inputs", type=int, default=10_000, help="of all formats together")
    parser.add_argument("--seed", type=int, default=0, help="of the first input; the others follow")
    asked = parser.parse_args()
    turns = [name for turn in range(OFTEN) for name in asked.formats if not turn or name not in SLOW]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory(prefix="fuzzing-") as text:
        good, ended, began = corpus(Path(text)), Counter[str](), time.monotonic()
        before = {path: path.read_bytes() for path in good.iterdir()}
        load(good)
        watch(Path(tempfile.gettempdir()))
        said = began
        for start in range(0, asked.inputs, BATCH):
            numbers = range(start, min(start + BATCH, asked.inputs))
            ended += batch([(turns[number % len(turns)], asked.seed + number) for number in numbers], good)
            if time.monotonic() > said + MINUTE:
                said = time.monotonic()
                print(f"{ended.total():,} inputs in {said - began:,.0f} s", flush=True)
        assert before == {path: path.read_bytes() for path in good.iterdir()}, "a good file was changed"
    for how, count in sorted(ended.items()):
        print(f"{count:9,} {how}")
    print(f"{ended.total():,} inputs in {time.monotonic() - began:,.0f} s")
    if any(not how.endswith((": read", ": refused")) for how in ended):
        sys.exit(1)


if __name__ == "__main__":
    main()
