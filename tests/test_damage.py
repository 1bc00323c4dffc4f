"""A damaged trace is said to be damaged: a flipped bit never becomes a finding, and never counts as compared."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from judging import Fault, Run, bumped, inputs, noisy, weights

import tracediff as td
from tracediff import cli
from tracediff.errors import DamagedRecordError, TracediffError, UnsafeTraceError
from tracediff.site import escape, printable, unescape
from tracediff.trace import Record, open_trace, schema
from tracediff.trace.amend import amend

LAYERS = ("first", "second", "third", "last")


def recorded(path: Path, *, noise: float = 3e-7, **faults: Fault) -> Path:
    """A run of four layers that are a rounding error off."""
    run = Run(path, faults={**dict.fromkeys(LAYERS, noisy(noise)), **faults})
    value = inputs()
    for layer, weight in zip(LAYERS, weights(len(LAYERS)), strict=True):
        value = run.layer(layer, value, weight)
    run.close().close()
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    return recorded(folder / "reference.h5", noise=0.0), recorded(folder / "port.h5")


def damaged(path: Path, to: Path, choose: Callable[[list[Record]], Record], bit: int = 30, element: int = 0) -> str:
    """A copy of a trace in which one bit of one stored float is flipped; the name of its record."""
    shutil.copy(path, to)
    with open_trace(to) as trace:
        stored = [record for record in trace.records if record.stored and record.dtype == "float32"]
        record = choose(stored)
        row = trace.index[record.row]
        at = trace.segments.place(int(row["segment"])).offset + int(row["offset"]) + 4 * element + bit // 8
    with to.open("r+b") as file:
        byte = os.pread(file.fileno(), 1, at)[0]
        os.pwrite(file.fileno(), bytes([byte ^ (1 << bit % 8)]), at)
    return str(record)


@pytest.mark.parametrize("side", ["reference", "port"])
@pytest.mark.parametrize("scan", [False, True], ids=["bisect", "scan"])
def test_one_flipped_bit_is_never_a_finding(scan: bool, side: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    drawn, said = random.Random(0), 0
    for _ in range(20):
        paths = {"reference": pair[0], "port": pair[1]}
        broken = tmp_path / "broken.h5"
        name = damaged(paths[side], broken, drawn.choice, bit=drawn.randrange(20, 32))
        report = td.bisect(*{**paths, side: broken}.values(), scan=scan)
        assert report.verdict != "different", name
        if report.verdict is None:
            said += 1
            assert report.withheld is not None
            assert report.withheld.code == "damaged"
            assert "damaged" in str(report)
            assert len(report.withheld.names) == 1
        broken.unlink()
    assert said > 5


def test_a_damaged_output_is_not_said_to_be_the_same(pair: tuple[Path, Path], tmp_path: Path) -> None:
    damaged(pair[1], tmp_path / "broken.h5", lambda stored: stored[-1])
    report = td.bisect(pair[0], tmp_path / "broken.h5")
    assert (report.verdict, report.divergences) == (None, ())
    ran = CliRunner().invoke(cli.main, ["bisect", str(pair[0]), str(tmp_path / "broken.h5"), "--json"])
    assert (ran.exit_code, json.loads(ran.stdout)["withheld"]["code"]) == (2, "damaged")


@pytest.mark.parametrize("scan", [False, True], ids=["bisect", "scan"])
def test_a_fault_beside_a_damaged_record_is_found(scan: bool, pair: tuple[Path, Path], tmp_path: Path) -> None:
    faulty = recorded(tmp_path / "faulty.h5", third=bumped)
    damaged(faulty, tmp_path / "broken.h5", lambda stored: next(one for one in stored if one.site == "first" and one.end == "output"))
    report = td.bisect(pair[0], tmp_path / "broken.h5", scan=scan)
    assert (report.verdict, report.first.culprit.reference) == ("different", "third")
    assert report.divergences == td.bisect(pair[0], faulty, scan=scan).divergences
    assert ("first[0] output" in str(report)) == scan


def test_a_damaged_record_is_refused_and_counts_as_not_stored(pair: tuple[Path, Path], tmp_path: Path) -> None:
    damaged(pair[0], tmp_path / "broken.h5", lambda stored: stored[3])
    with open_trace(tmp_path / "broken.h5") as trace:
        record = [record for record in trace.records if record.stored and record.dtype == "float32"][3]
        for _ in range(2):
            with pytest.raises(DamagedRecordError, match="not those that were written"):
                record.read()
            assert not record.stored
        assert trace.verify() == [str(record)]


def test_show_verify_names_what_is_damaged(pair: tuple[Path, Path], tmp_path: Path) -> None:
    name = damaged(pair[0], tmp_path / "broken.h5", lambda stored: stored[3])
    ran = CliRunner().invoke(cli.main, ["show", str(tmp_path / "broken.h5"), "--verify"])
    assert ran.exit_code == 2
    assert name in ran.output
    assert CliRunner().invoke(cli.main, ["show", str(pair[0]), "--verify"]).exit_code == 0


@pytest.mark.parametrize("table", [*schema.TABLES, schema.FLOOR_TABLE])
def test_a_flipped_bit_in_a_table_is_noticed_when_the_trace_is_opened(table: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    whole = tmp_path / "whole.h5"
    shutil.copy(pair[0], whole)
    with open_trace(whole) as trace:
        amend(whole, floor=np.zeros(len(trace.records), schema.FLOOR))
    with h5py.File(whole) as file:
        at, size = file[table].id.get_offset(), file[table].id.get_storage_size()
    drawn = random.Random(1)
    for _ in range(20 if size else 0):
        broken = tmp_path / "broken.h5"
        shutil.copy(whole, broken)
        place, bit = at + drawn.randrange(size), drawn.randrange(8)
        with broken.open("r+b") as handle:
            byte = os.pread(handle.fileno(), 1, place)[0]
            os.pwrite(handle.fileno(), bytes([byte ^ (1 << bit)]), place)
        with pytest.raises(TracediffError, match=r"damaged|not JSON|no format version|newer|text table"):
            open_trace(broken)


def test_a_trace_without_a_digest_of_its_tables_is_read(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """As version 0.1.0 wrote them."""
    old = tmp_path / "old.h5"
    shutil.copy(pair[0], old)
    with h5py.File(old, "r+") as file:
        del file[schema.DIGEST]
    assert len(open_trace(old).records) == len(open_trace(pair[0]).records)
    with h5py.File(old, "r+") as file:
        file[schema.DIGEST] = np.zeros(16, np.uint8)
    with pytest.raises(UnsafeTraceError, match="its tables are not those that were written"):
        open_trace(old)


NASTY = ("\x1b]0;owned\x07", "\x1b[2J", "\x9b31m", "\r", "\u202egnp.exe", "\u2066", "\ud83d", "\u200b")


@pytest.mark.parametrize("nasty", NASTY, ids=[f"{ord(text[0]):x}{len(text)}" for text in NASTY])
def test_names_are_text_wherever_they_are_shown(nasty: str, tmp_path: Path) -> None:
    """A stranger's names cannot speak to a terminal, nor turn a line of a page round, nor keep a trace from being converted."""
    paths = {}
    for name, faults in (("ref", {}), ("port", {f"en{nasty}c": bumped})):
        run = Run(tmp_path / f"{name}.h5", faults=faults, modules=[{"path": f"en{nasty}c", "type": f"T{nasty}"}], not_seen=[nasty])
        run.stage = f"st{nasty}age"
        run.writer.add_param(f"en{nasty}c.w", weights(1)[0], path=f"en{nasty}c", kind="parameter", store=True)
        run.layer(f"en{nasty}c", inputs(), weights(1)[0])
        run.close().close()
        paths[name] = str(tmp_path / f"{name}.h5")
    shown = []
    commands = (["bisect"], ["diff"], ["status"], ["weights"], ["align"], ["bisect", "--json"])
    for command in [[*command, *paths.values()] for command in commands] + [["show", paths["ref"]], ["show", paths["ref"], "--modules"]]:
        ran = CliRunner().invoke(cli.main, command, color=True)
        shown.append(ran.output)
    with pytest.raises(TracediffError) as refused:
        open_trace(paths["ref"]).find(f"x{nasty}")
    CliRunner().invoke(cli.main, ["show", paths["ref"], f"x{nasty}"])
    report = td.bisect(*paths.values())
    for suffix in (".html", ".md", ".txt", ".json"):
        shown.append(report.save(tmp_path / f"report{suffix}").read_text(encoding="utf-8"))
    assert not [text for text in shown if nasty in text]
    assert str(refused.value)
    open_trace(paths["ref"]).to_frame()


@pytest.mark.parametrize("nasty", NASTY, ids=[f"{ord(text[0]):x}{len(text)}" for text in NASTY])
def test_a_name_that_no_file_can_hold_is_escaped_when_it_is_recorded_and_comes_back(nasty: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "ref.h5")
    site = escape(f"en{nasty}c")
    run.layer(site, inputs(), weights(1)[0])
    run.close().close()
    td.convert(tmp_path / "ref.h5", tmp_path / "ref.npz")
    td.convert(tmp_path / "ref.npz", tmp_path / "again.h5")
    with td.open_trace(tmp_path / "again.h5") as trace:
        assert list(trace.sites) == [site]
    assert printable(site) == site
    assert unescape(site) == f"en{nasty}c"
