"""Damaged and hostile inputs of every reader: made from a corpus of good files by mutations that know the format.

    python tests/fuzzing.py --inputs 1000000            # every format in turn; a line for each input that ended wrongly
    python tests/fuzzing.py --formats trace npz --seed 7

An input may be read or refused with a `TracediffError`. Wrong is any other exception, more than `SECONDS` of processor time, and (from the
command line, where the process is limited) a file opened outside of the folder, or memory above `MEMORY`.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
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
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import h5py
import numpy as np
from judging import Run, bumped, inputs, weights

import tracediff as td
from tracediff.api import listing
from tracediff.errors import TracediffError
from tracediff.trace import TraceWriter, journal, schema
from tracediff.trace.journal import journal_of
from tracediff.trace.tables import pack_strings, unpack_strings

SECONDS = 5
MEMORY = 6 << 30
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
    """One kind of input: ``make`` writes a mutated file into an empty folder that holds the corpus, ``read`` uses it as people do."""

    make: Callable[[random.Random, Path], Path]
    read: Callable[[Path], object]


LAYERS = ("first", "second", "third", "last")


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
    return folder


def _safetensors(path: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    from safetensors.numpy import save_file

    save_file(arrays, path)


def _used(path: Path) -> None:
    """All that people do with a trace."""
    reference = path.with_name("ref.h5")
    with td.open_trace(path) as trace:
        listing(trace)
        listing(trace, modules=True)
        listing(trace, params=True)
        trace.to_frame()
        for record in trace.records:
            assert record.note is not None
            if record.stored:
                record.read()
    for first, second in ((reference, path), (path, path.with_name("port.h5"))):
        report = td.bisect(first, second, scan=True)
        str(report)
        report.to_json()
    str(td.status(reference, path))
    str(td.weights(reference, path))
    td.convert(path, path.with_name("arrays.npz"))


def _trace_bytes(drawn: random.Random, folder: Path) -> Path:
    path = folder / "x.h5"
    path.write_bytes(bytes_of(drawn, (folder / "port.h5").read_bytes()))
    return path


def _trace_cells(drawn: random.Random, folder: Path) -> Path:
    """Hostile cells, texts and meta in a file whose tables have no digest, or (in one of ten) the old one."""
    path = folder / "x.h5"
    shutil.copy(folder / "port.h5", path)
    with h5py.File(path, "r+") as file:
        name = drawn.choice((schema.INDEX_TABLE, schema.INDEX_TABLE, schema.PARAM_TABLE, schema.META, schema.STRINGS, schema.SKETCHES))
        table = file[name][...]
        if name == schema.META:
            table = np.frombuffer(dumped(json_of(drawn, json.loads(table.tobytes()))), np.uint8)
        elif name == schema.STRINGS:
            _replace_strings(drawn, file, unpack_strings(table, file[schema.STRING_ENDS][...], "the corpus"))
        else:
            table = cells_of(drawn, table)
        if name != schema.STRINGS:
            del file[name]
            file[name] = table
        if drawn.random() < 0.9:
            del file[schema.DIGEST]
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
    writer = TraceWriter(path)
    for row in range(6):
        writer.add(site=f"enc.{row % 3}", call=f"enc.{row % 3}[0]", ordinal=0, end="output", values=np.arange(4.0, dtype="f4") + row)
    writer.add_param("w", np.ones((3, 2), "f4"), path="enc.0", kind="parameter", store=True)
    writer.flush()
    writer._abandon()
    log = journal_of(path)
    frames = list(journal.frames(log.read_bytes()))
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
    log.write_bytes(journal.MAGIC + b"".join(journal.frame(kind, payload) for kind, payload in frames))
    return path


def _recovered(path: Path) -> None:
    """What people do with the trace of a killed writer."""
    with td.open_trace(path) as trace:
        for record in trace.records:
            if record.stored:
                record.read()
    td.recover(path, path.with_name("recovered.h5")).close()
    td.recover(path).close()


def _safetensors_file(drawn: random.Random, folder: Path) -> Path:
    path = folder / "x.safetensors"
    blob = (folder / drawn.choice(("weights.safetensors", "ref.safetensors"))).read_bytes()
    size = struct.unpack_from("<Q", blob)[0]
    header, data = json.loads(blob[8 : 8 + size]), blob[8 + size :]
    if drawn.random() < 0.2:
        path.write_bytes(bytes_of(drawn, blob))
        return path
    if "__metadata__" in header and drawn.random() < 0.5:
        said = json.loads(header["__metadata__"]["tracediff"])
        header["__metadata__"]["tracediff"] = dumped(json_of(drawn, said)).decode("utf-8", "replace")
    else:
        header = json_of(drawn, header)
    text = dumped(header)
    path.write_bytes(struct.pack("<Q", drawn.choice((len(text),) * 9 + (0, 1, 255, 2**31, 2**63, 2**64 - 1))) + text + data)
    return path


def _npz_file(drawn: random.Random, folder: Path) -> Path:
    """Bytes anywhere, or well packed members whose headers or contents are something else."""
    path, source = folder / "x.npz", folder / drawn.choice(("weights.npz", "ref.npz"))
    if drawn.random() < 0.3:
        path.write_bytes(bytes_of(drawn, source.read_bytes()))
        return path
    with zipfile.ZipFile(source) as good, zipfile.ZipFile(path, "w", drawn.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as bad:
        members = good.namelist()
        chosen = drawn.choice(members)
        for name in members:
            content = good.read(name)
            if name == chosen:
                content = _other_member(drawn, name, content)
                name = drawn.choice((name,) * 4 + ("../../x.npy", "/x.npy", " ", "x", "\x1b[2J.npy", members[0]))
            bad.writestr(name, content)
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
    from io import BytesIO

    stream = BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _converted(path: Path) -> None:
    """What people do with arrays: compare them as weights, and turn them into a trace."""
    said: TracediffError | None = None
    try:
        str(td.weights(path.with_name("ref.h5"), path))
    except TracediffError as error:
        said = error
    made = path.with_name("made.h5")
    try:
        td.convert(path, made)
    except TracediffError as error:
        said = error
    if made.exists():  # what was written can be read
        with td.open_trace(made) as trace:
            listing(trace)
        with suppress(TracediffError):  # weights share no site with the run
            str(td.bisect(path.with_name("ref.h5"), made))
    if said is not None:
        raise said


def _index_file(drawn: random.Random, folder: Path) -> Path:
    files = {f"{layer}.weight": "weights.safetensors" for layer in LAYERS}
    whole: Any = json_of(drawn, {"metadata": {"total_size": 4096}, "weight_map": files})
    (folder / "shards").mkdir()
    shutil.copy(folder / "weights.safetensors", folder / "shards")
    path = folder / "shards" / "model.safetensors.index.json"
    path.write_bytes(dumped(whole) if drawn.random() < 0.9 else bytes_of(drawn, dumped(whole)))
    return path.parent


def _mapping(drawn: random.Random, folder: Path) -> Path:
    said = json.loads((folder / "map.json").read_text())
    said["pairs"][0] |= {"layout": "(1, 0)"}
    said["pairs"].append({"reference": "first", "port": "first", "part": {"of": "port", "axis": 0, "start": 0, "stop": 2, "groups": 1}})
    said["ignore"] = {"reference": ["la*"], "port": []}
    path = folder / "x.json"
    text = dumped(json_of(drawn, said))
    path.write_bytes(text if drawn.random() < 0.8 else bytes_of(drawn, text))
    return path


def _torch_file(drawn: random.Random, folder: Path) -> Path:
    import torch

    good = folder / "weights.pt"
    if not good.exists():
        held: dict[str, Any] = {f"{layer}.weight": torch.ones(3, 3) for layer in LAYERS}
        torch.save({"state_dict": held, "epoch": 3}, good)
    path = folder / "x.pt"
    path.write_bytes(bytes_of(drawn, good.read_bytes()))
    return path


def _weighed(path: Path) -> None:
    str(td.weights(path.with_name("ref.h5"), path))


FORMATS: dict[str, Format] = {
    "trace": Format(_trace_bytes, _used),
    "tables": Format(_trace_cells, _used),
    "journal": Format(_journal, _recovered),
    "safetensors": Format(_safetensors_file, _converted),
    "npz": Format(_npz_file, _converted),
    "index": Format(_index_file, _weighed),
    "mapping": Format(_mapping, lambda path: td.align(path.with_name("ref.h5"), path.with_name("port.h5"), mapping=path)),
    "torch": Format(_torch_file, _weighed),
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


def tried(name: str, seed: int, good: Path) -> str:
    """How one input ended: "read", "refused", or what went wrong and where. It is the same for the same format and seed."""
    made, drawn = FORMATS[name], random.Random(f"{name} {seed}")
    with tempfile.TemporaryDirectory(prefix="fuzzing-") as text:
        folder = Path(text)
        for file in good.iterdir():
            os.link(file, folder / file.name) if not file.name.endswith(".h5") else shutil.copy(file, folder)
        path = made.make(drawn, folder)
        try:
            with at_most(SECONDS), np.errstate(all="ignore"):
                made.read(path)
        except TracediffError as error:
            str(error).encode()  # a message that cannot be printed is none
            return "refused"
        except (Exception, TooSlowError) as error:
            at = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in at if "tracediff/" in frame.filename] or at
            return f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].name}: {str(error)[:100]!r}"
        return "read"


def watch(folder: Path) -> None:
    """Ends the process where a file outside of the temporary folder, Python and the package is opened to be read."""
    ours = (folder, Path(td.__file__).parent.parent, sys.prefix, sys.base_prefix)
    allowed = (*map(str, ours), "/proc", "/sys", "/dev/urandom", "/etc", "/usr")

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event in ("os.system", "subprocess.Popen", "os.exec"):
            raise AssertionError(f"a process was started: {given!r}")
        is_path = event == "open" and isinstance(given[0], str) and os.path.isabs(given[0])
        if is_path and not os.path.realpath(given[0]).startswith(allowed):
            raise AssertionError(f"a file outside was opened: {given[0]!r}")

    sys.addaudithook(hook)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--inputs", type=int, default=10_000, help="of all formats together")
    parser.add_argument("--seed", type=int, default=0, help="of the first input; the others follow")
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory(prefix="fuzzing-") as text:
        good, ended, began = corpus(Path(text)), Counter[str](), time.monotonic()
        for name in asked.formats:
            tried(name, -1, good)  # loads what is loaded once
        watch(Path(tempfile.gettempdir()))
        for number in range(asked.inputs):
            name = asked.formats[number % len(asked.formats)]
            how = tried(name, asked.seed + number, good)
            if how not in ("read", "refused") and not ended[f"{name}: {how}"]:
                print(f"{name} {asked.seed + number}: {how}", flush=True)
            ended[f"{name}: {how}"] += 1
    for how, count in sorted(ended.items()):
        print(f"{count:9,} {how}")
    print(f"{asked.inputs:,} inputs in {time.monotonic() - began:,.0f} s")
    if any(not how.endswith((": read", ": refused")) for how in ended):
        sys.exit(1)


if __name__ == "__main__":
    main()
