"""Files that are no trace, or are one made to deceive: each is refused, with words of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tracediff.errors import TracediffError, TraceFileError, TraceNotFoundError, UnsafeTraceError
from tracediff.trace import TraceWriter, open_trace, reader, schema
from tracediff.trace.journal import HEADER, MAGIC, frame, journal_of

SECRET = b"root:x:0:0:a file of the system" * 4000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.h5"
    with TraceWriter(path, meta={"impl": "numpy"}) as writer:
        for number in range(4):
            values = np.arange(30_000 if number % 2 else 5, dtype=np.float32) + number
            writer.add(site="enc", call=f"enc[{number}]", ordinal=number, end="output", values=values, parent=number - 1)
        writer.add_param("enc.w", np.ones((3, 4)), path="enc", kind="parameter", store=True)
    (tmp_path / "secret").write_bytes(SECRET)
    return path


def read_all(path: Path) -> None:
    with open_trace(path) as trace:
        for record in trace.records:
            record.read()
            assert record.site is not None
            assert record.note is not None
        for param in trace.params.values():
            assert param.sketch.axes


def rows(file: h5py.File, table: str, column: str, value: Any, row: int = 1) -> None:
    """Changes one cell of a table in place."""
    cells = file[table][...]
    cells[column][row] = value
    file[table][...] = cells


def replaced(file: h5py.File, name: str, **options: Any) -> None:
    """Puts another kind of dataset in the place of one."""
    old = file[name][...]
    del file[name]
    file.create_dataset(name, **{"data": old, **options} if "shape" not in options else options)


def linked(file: h5py.File, name: str, link: Any) -> None:
    del file[name]
    file[name] = link


def virtual(file: h5py.File, name: str) -> None:
    shape, dtype = file[name].shape, file[name].dtype
    del file[name]
    layout = h5py.VirtualLayout(shape, dtype)
    layout[:] = h5py.VirtualSource("other.h5", "x", shape)
    file.create_virtual_dataset(name, layout)


def group(file: h5py.File, name: str) -> None:
    del file[name]
    file.create_group(name)


def never_allocated(file: h5py.File, name: str) -> None:
    shape, dtype = file[name].shape, file[name].dtype
    del file[name]
    file.create_dataset(name, shape, dtype)


BIG = "tensors/t000001"
TABLE = h5py.string_dtype()

HOSTILE: dict[str, Callable[[h5py.File], None]] = {
    "values in another file": lambda f: replaced(f, BIG, shape=(30_000,), dtype="<f4", external=[("secret", 0, h5py.h5f.UNLIMITED)]),
    "texts in another file": lambda f: replaced(f, "strings", shape=(40,), dtype="u1", external=[("secret", 0, h5py.h5f.UNLIMITED)]),
    "virtual values": lambda f: virtual(f, BIG),
    "virtual index": lambda f: virtual(f, "index"),
    "compressed values": lambda f: replaced(f, BIG, compression="gzip"),
    "compressed index": lambda f: replaced(f, "index", compression="gzip"),
    "chunked values": lambda f: replaced(f, BIG, chunks=(1000,)),
    "checksummed values": lambda f: replaced(f, BIG, fletcher32=True),
    "values without storage": lambda f: never_allocated(f, BIG),
    "soft link to values": lambda f: linked(f, BIG, h5py.SoftLink("/tensors/t000000")),
    "external link to values": lambda f: linked(f, BIG, h5py.ExternalLink("other.h5", "/x")),
    "external link to the index": lambda f: linked(f, "index", h5py.ExternalLink("other.h5", "/x")),
    "soft link to the texts": lambda f: linked(f, "strings", h5py.SoftLink("/meta")),
    "another link at the root": lambda f: f.__setitem__("more", h5py.ExternalLink("other.h5", "/x")),
    "tensors elsewhere": lambda f: linked(f, "tensors", h5py.ExternalLink("other.h5", "/")),
    "a segment of another name": lambda f: f["tensors"].create_dataset("zzz", data=np.ones(3)),
    "a segment that is a group": lambda f: group(f, BIG),
    "texts as values": lambda f: replaced(f, BIG, data=["x"], dtype=TABLE),
    "references as values": lambda f: replaced(f, BIG, data=[f.ref], dtype=h5py.ref_dtype),
    "opaque values": lambda f: replaced(f, BIG, data=np.zeros(30_000, "V4")),
    "big-endian values": lambda f: replaced(f, BIG, data=np.zeros(30_000, ">f4")),
    "an index of other columns": lambda f: replaced(f, "index", data=np.zeros(4, [("a", "<u4")])),
    "an index of two axes": lambda f: replaced(f, "index", data=np.zeros((2, 2), schema.INDEX)),
    "a group for an index": lambda f: group(f, "index"),
    "a shorter segment": lambda f: replaced(f, BIG, data=np.zeros(100, "<f4")),
    "texts that end before they start": lambda f: f["string_ends"].__setitem__(2, 2**40),
    "texts beyond their table": lambda f: f["string_ends"].__setitem__(-1, 2**62),
    "texts that are no UTF-8": lambda f: f["strings"].__setitem__(slice(0, 3), [255, 255, 255]),
    "a site beyond the texts": lambda f: rows(f, "index", "site", 10_000),
    "a note beyond the texts": lambda f: rows(f, "index", "note", 2**32 - 1),
    "a parent that is later": lambda f: rows(f, "index", "parent", 3),
    "a parent that is itself": lambda f: rows(f, "index", "parent", 1),
    "a parent below none": lambda f: rows(f, "index", "parent", -2),
    "a producer that is later": lambda f: rows(f, "index", "producer", 2**60),
    "an unknown dtype": lambda f: rows(f, "index", "dtype", 99),
    "an unknown flag": lambda f: rows(f, "index", "flags", 1 << 20),
    "an unknown way": lambda f: rows(f, "index", "producer_how", 9),
    "a segment that is not": lambda f: rows(f, "index", "segment", 70),
    "a segment below none": lambda f: rows(f, "index", "segment", -2),
    "an offset behind the segment": lambda f: rows(f, "index", "offset", 1),
    "an offset behind everything": lambda f: rows(f, "index", "offset", 2**64 - 16),
    "bytes beyond the shape": lambda f: rows(f, "index", "nbytes", 8),
    "a shape that is none": lambda f: rows(f, "index", "shape", 1),
    "a parameter of no kind": lambda f: rows(f, "params", "kind", 7, 0),
    "a parameter behind the file": lambda f: rows(f, "params", "offset", 2**63, 0),
    "a sketch behind its pool": lambda f: rows(f, "params", "sketch_start", 2**64 - 1, 0),
    "a sketch longer than its pool": lambda f: rows(f, "params", "sketch_length", 2**63, 0),
}


def spoil(path: Path, deed: str) -> None:
    with h5py.File(path.with_name("other.h5"), "w") as other:
        other["x"] = np.zeros(30_000, "<f4")
    with h5py.File(path, "r+") as file:
        del file["digest"]  # a file of whoever means harm has none, or the right one
        HOSTILE[deed](file)


@pytest.mark.parametrize("deed", HOSTILE)
def test_a_hostile_trace_is_refused(path: Path, deed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    spoil(path, deed)
    with pytest.raises(UnsafeTraceError):
        open_trace(path)


@pytest.mark.parametrize("deed", [deed for deed in HOSTILE if "values" in deed or "segment" in deed])
def test_segments_of_a_large_trace_are_checked_when_they_are_read(path: Path, deed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "EAGER_SEGMENTS", 0)
    read_all(path)
    monkeypatch.chdir(path.parent)
    spoil(path, deed)
    with pytest.raises(UnsafeTraceError):
        read_all(path)


def test_an_untouched_trace_is_read(path: Path) -> None:
    read_all(path)


def test_links_for_people_are_never_followed(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["sites"]
        file["sites/enc/output"] = h5py.ExternalLink("/etc/passwd", "/x")
    read_all(path)


def test_a_note_that_is_no_json_is_told_of_when_it_is_read(path: Path) -> None:
    with TraceWriter(path, force=True) as writer:
        writer.add(site="a", call="", ordinal=0, end="output", values=np.ones(1), note="{no")
    with pytest.raises(TraceFileError, match="not JSON"):
        assert open_trace(path).records[0].note


def with_meta(path: Path, blob: bytes) -> None:
    with h5py.File(path, "r+") as file:
        replaced(file, "meta", data=np.frombuffer(blob, np.uint8))


def cut(path: Path, to: float) -> None:
    os.truncate(path, int(path.stat().st_size * to))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "newer": (
        lambda p: with_meta(p, json.dumps({"format_version": 2}).encode()),
        "format version 2, which is newer .* Take a newer checkout",
    ),
    "meta is no JSON": (lambda p: with_meta(p, b"{'"), "is not JSON"),
    "meta is no object": (lambda p: with_meta(p, b"[1]"), "names no format version"),
    "meta has no version": (lambda p: with_meta(p, b"{}"), "names no format version"),
    "no meta": (lambda p: with_file(p, lambda f: f.__delitem__("meta")), "was never closed"),
    "no index": (lambda p: with_file(p, lambda f: f.__delitem__("index")), "lacks /index"),
    "cut to half": (lambda p: cut(p, 0.5), "was cut short"),
    "cut to nearly all": (lambda p: cut(p, 0.99), "was cut short"),
    "cut to a few bytes": (lambda p: os.truncate(p, 20), "was cut short|is damaged"),
    "empty": (lambda p: os.truncate(p, 0), "is empty"),
    "text": (lambda p: p.write_text("site,value\n"), "no HDF5 file"),
    "zeros": (lambda p: p.write_bytes(bytes(5000)), "no HDF5 file"),
    "signature only": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(3000)), "is damaged"),
    "other HDF5": (lambda p: (p.unlink(), h5py.File(p, "w").close()), "HDF5 file but not a trace"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "is a folder"),
}


def with_file(path: Path, change: Callable[[h5py.File], object]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


@pytest.mark.parametrize("how", BROKEN)
def test_what_is_no_whole_trace_is_told_apart(path: Path, how: str) -> None:
    change, words = BROKEN[how]
    change(path)
    with pytest.raises(TraceFileError, match=words) as caught:
        open_trace(path)
    assert repr(str(path)) in str(caught.value)
    assert isinstance(caught.value, OSError)


def test_an_absent_trace_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(TraceNotFoundError, match=r"No trace .*tracediff capture") as caught:
        open_trace(tmp_path / "no.h5")
    assert isinstance(caught.value, FileNotFoundError)


def test_damage_anywhere_gives_an_error_of_ours_or_the_trace(path: Path) -> None:
    """Bytes of the metadata flipped at random: never another kind of exception."""
    random = np.random.default_rng(0)
    blob = bytearray(path.read_bytes())
    for _ in range(150):
        damaged = bytearray(blob)
        for place in random.integers(0, len(blob), 20):
            damaged[place] ^= int(random.integers(1, 256))
        for place in random.integers(0, 2000, 4):
            damaged[place] ^= int(random.integers(1, 256))
        path.write_bytes(damaged)
        try:
            read_all(path)
        except TracediffError:
            continue


@pytest.mark.parametrize(
    "payload",
    [
        b"R" * 10,
        b"S\0",
        b"G" + bytes(10),
        b"P" * 5,
        b"Mnot json",
        b"Tfloor\0x",
        b"Tnone\0",
        b"?",
        b"G" + bytes(16) + b"|O|3",
        b"S\xff\0\0\0abc",
    ],
)
def test_a_hostile_journal_is_refused(path: Path, payload: bytes) -> None:
    with open_trace(path) as trace:
        identity, offset = trace.identity
    header = frame(HEADER, json.dumps({"identity": identity.hex(), "offset": offset, "format_version": 1}).encode())
    journal_of(path).write_bytes(MAGIC + header + frame(payload[0], payload[1:]))
    with pytest.raises(TraceFileError, match="journal"):
        open_trace(path)


def test_a_journal_of_a_newer_version_is_refused(path: Path) -> None:
    with open_trace(path) as trace:
        identity, offset = trace.identity
    header = {"identity": identity.hex(), "offset": offset, "format_version": 9}
    journal_of(path).write_bytes(MAGIC + frame(HEADER, json.dumps(header).encode()))
    with pytest.raises(TraceFileError, match="format version 9"):
        open_trace(path)


@pytest.mark.parametrize(
    "header", [{}, {"identity": ""}, {"identity": "00" * 16}, {"identity": "zz", "offset": 0}, {"identity": "", "offset": 0}]
)
def test_a_journal_without_this_files_identity_cannot_hide_the_trace(path: Path, header: dict[str, Any]) -> None:
    journal_of(path).write_bytes(MAGIC + frame(HEADER, json.dumps(header).encode()))
    read_all(path)
