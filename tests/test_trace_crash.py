"""Traces whose writer was killed, ran out of disk, was interrupted, or is still at work."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import suppress
from functools import partialmethod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tracediff.errors import TracediffError, TraceExistsError, TraceFileError
from tracediff.trace import TraceWriter, open_trace, reader, recover, schema
from tracediff.trace.amend import amend
from tracediff.trace.background_writer import BackgroundWriter
from tracediff.trace.container import Output
from tracediff.trace.journal import MAGIC, ROW, frames, journal_of

ROOT = Path(__file__).parents[1]


def values(row: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.arange(row, row + (40_000 if row % 3 == 0 else 10), dtype=np.float32)


def add(writer: TraceWriter, row: int) -> None:
    writer.add(site=f"enc.{row % 4}", call=f"enc[{row}]", ordinal=row, end="output", values=values(row))


def killed(path: Path, records: int = 10) -> Path:
    """A trace whose writer disappeared after its flush."""
    live = path.with_name("live.h5")
    writer = TraceWriter(live, meta={"impl": "numpy", "seed": 3})
    writer.add_param("w", values(3), path="enc", kind="parameter", store=True)
    for row in range(records):
        add(writer, row)
    writer.flush()
    shutil.copy(live, path)
    shutil.copy(journal_of(live), journal_of(path))
    writer.close()
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.h5"


def check(path: Path, records: int) -> None:
    with open_trace(path) as trace:
        assert len(trace.records) == records
        for row, record in enumerate(trace.records):
            np.testing.assert_array_equal(record.read(), values(row))
            assert (record.site, record.call) == (f"enc.{row % 4}", f"enc[{row}]")


def test_a_process_killed_at_random_moments_loses_no_promised_record() -> None:
    run = subprocess.run([sys.executable, ROOT / "benchmarks/kill.py", "--kills", "15"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_killed_trace_reads_through_its_journal_as_incomplete(path: Path) -> None:
    check(killed(path), 10)
    with open_trace(path) as trace:
        assert (trace.complete, trace.was_killed) == (False, True)
        assert (trace.meta["impl"], trace.meta["seed"]) == ("numpy", 3)
        np.testing.assert_array_equal(trace.params["w"].read(), values(3))
        np.testing.assert_allclose(trace.params["w"].sketch.axes[0], values(3))


def test_every_prefix_of_a_journal_gives_the_rows_that_it_holds_whole(path: Path) -> None:
    journal = journal_of(killed(path)).read_bytes()
    sizes = [9 + len(payload) for _, payload in frames(journal)]
    rows = 0
    for (kind, _), end in zip(frames(journal), len(MAGIC) + np.cumsum(sizes), strict=True):
        if end > len(MAGIC) + sizes[0]:
            journal_of(path).write_bytes(journal[: end - 1])
            check(path, rows)
        rows += kind == ROW
        journal_of(path).write_bytes(journal[:end])
        check(path, rows)
    assert rows == 10


def test_recover_makes_an_ordinary_closed_file(path: Path) -> None:
    assert recover(killed(path)) == path
    assert sorted(os.listdir(path.parent)) == ["a.h5", "live.h5"]
    check(path, 10)
    with open_trace(path) as trace:
        assert (trace.complete, trace.was_killed) == (False, False)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["sites/enc/3/000003 output"][...], values(3))


def test_recover_to_another_file_leaves_the_old_one_as_it_was(path: Path) -> None:
    to = path.with_name("b.h5")
    before = killed(path).read_bytes()
    assert recover(path, to) == to
    check(to, 10)
    check(path, 10)
    assert path.read_bytes() == before
    with pytest.raises(TraceExistsError, match="exists already"):
        recover(path, to)


def test_recovering_a_closed_trace_changes_nothing(path: Path) -> None:
    with TraceWriter(path) as writer:
        add(writer, 0)
    before = path.read_bytes()
    assert recover(path) == path
    assert path.read_bytes() == before
    check(recover(path, path.with_name("b.h5")), 1)


def test_a_trace_that_is_being_written_is_in_progress(path: Path) -> None:
    with TraceWriter(path) as writer:
        add(writer, 0)
        writer.flush()
        for attempt in (open_trace, recover, lambda path: TraceWriter(path, force=True)):
            with pytest.raises(TraceFileError, match="in progress"):
                attempt(path)
    check(path, 1)


def test_a_journal_left_behind_by_another_trace_is_not_believed(path: Path) -> None:
    killed(path)
    with TraceWriter(path.with_name("c.h5")) as writer:
        add(writer, 0)
    shutil.move(path.with_name("c.h5"), path)
    check(path, 1)


def test_a_killed_trace_without_its_journal_says_so(path: Path) -> None:
    journal_of(killed(path)).unlink()
    with pytest.raises(TraceFileError, match=r"journal"):
        open_trace(path)


def test_values_beyond_the_end_of_a_killed_file_are_lost_and_the_rest_kept(path: Path) -> None:
    os.truncate(killed(path), path.stat().st_size - 4)
    with open_trace(path) as trace:
        assert "values of 1 rows are lost" in trace.meta["warnings"][0]
        assert [record.stored for record in trace.records] == [True] * 9 + [False]
        assert trace.records[9].stats.count == values(9).size


def test_what_stands_behind_a_damaged_frame_of_a_journal_is_not_believed(path: Path) -> None:
    journal = journal_of(killed(path))
    blob = journal.read_bytes()
    journal.write_bytes(blob.replace(b"enc[5]", b"enc[6]"))
    check(path, 5)
    journal.write_bytes(blob.replace(b"format_version", b"formal_version"))
    with pytest.raises(TraceFileError, match="journal"):
        open_trace(path)


def test_an_exception_in_the_block_keeps_what_was_recorded(path: Path) -> None:
    with suppress(KeyError), TraceWriter(path) as writer:
        add(writer, 0)
        raise KeyError
    check(path, 1)
    with open_trace(path) as trace:
        assert (trace.complete, trace.was_killed) == (False, False)


def interrupted(background: BackgroundWriter, put: Callable[..., None] | None, job: Callable[[], None], nbytes: int = 0) -> None:
    if put is not None:
        put(background, job, nbytes)
    raise KeyboardInterrupt


def test_ctrl_c_while_a_record_is_queued_leaves_rows_and_names_in_step(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TraceWriter(path) as writer:
        for is_queued in (False, True):
            add(writer, writer._count)
            with monkeypatch.context() as patch:
                patch.setattr(BackgroundWriter, "put", partialmethod(interrupted, BackgroundWriter.put if is_queued else None))
                with pytest.raises(KeyboardInterrupt):
                    add(writer, writer._count)
        add(writer, writer._count)
        writer.flush()
        shutil.copy(path, path.with_name("b.h5"))
        shutil.copy(journal_of(path), journal_of(path.with_name("b.h5")))
    check(path, 4)
    check(path.with_name("b.h5"), 4)


def test_a_writer_that_was_dropped_leaves_a_trace_that_can_be_read(path: Path) -> None:
    writer = TraceWriter(path)
    add(writer, 0)
    writer.flush()
    del writer
    check(path, 1)
    with open_trace(path) as trace:
        assert not trace.complete


def test_a_closed_writer_takes_nothing_more(path: Path) -> None:
    writer = TraceWriter(path)
    writer.close()
    writer.close()
    with pytest.raises(TraceFileError, match="is closed"):
        add(writer, 0)


def test_an_existing_output_is_replaced_only_by_force(path: Path) -> None:
    with TraceWriter(path) as writer:
        add(writer, 0)
    with pytest.raises(TraceExistsError, match="--force"):
        TraceWriter(path)
    check(path, 1)
    with TraceWriter(path, force=True) as writer:
        add(writer, 0)
        add(writer, 1)
    check(path, 2)
    assert os.listdir(path.parent) == ["a.h5"]


def test_an_old_trace_survives_a_new_one_that_cannot_be_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TraceWriter(path) as writer:
        add(writer, 0)
    monkeypatch.setattr("tracediff.trace.writer.Journal", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(TraceFileError, match="No space left"):
        TraceWriter(path, force=True)
    check(path, 1)
    assert os.listdir(path.parent) == ["a.h5"]


@pytest.mark.parametrize(("path_of", "why"), [(lambda p: p, "a folder"), (lambda p: p / "no" / "a.h5", "there is no folder")])
def test_an_output_that_cannot_be_is_refused(tmp_path: Path, path_of: Callable[[Path], Path], why: str) -> None:
    with pytest.raises(TraceFileError, match=why):
        TraceWriter(path_of(tmp_path), force=True)


FULL = """
    import resource, signal, sys
    import numpy as np
    from tracediff.errors import TraceFileError
    from tracediff.trace import TraceWriter, open_trace, recover
    from tracediff.trace.writer import IN_FLIGHT

    path, limit = sys.argv[1], int(sys.argv[2])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    said = None
    try:
        with TraceWriter(path) as writer:
            for row in range(1000):
                writer.add(site="a", call="", ordinal=row, end="output", values=np.full(20_000, row))
    except TraceFileError as error:
        said = str(error)
    assert row * 160_000 < limit + 2 * IN_FLIGHT, "was not told at once"
    assert "recover" in said and "are kept" in said, said
    with open_trace(path) as trace:
        kept = len(trace.records)
        assert kept >= 10 and not trace.complete
        assert all((record.read() == row).all() for row, record in enumerate(trace.records))
    try:
        recover(path)
        raise AssertionError("there was no room")
    except TraceFileError as error:
        assert "could not be recovered" in str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    recover(path)
    with open_trace(path) as trace:
        assert len(trace.records) == kept and not trace.was_killed
        assert all((record.read() == row).all() for row, record in enumerate(trace.records))
"""


def test_a_full_disk_is_told_at_once_and_keeps_what_was_written(path: Path) -> None:
    script = textwrap.dedent(FULL)
    run = subprocess.run([sys.executable, "-c", script, path, "3000000"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert os.listdir(path.parent) == ["a.h5"]


def test_no_room_for_the_tables_keeps_the_journal(path: Path) -> None:
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        writer = TraceWriter(path)
        for row in range(40):
            add(writer, row)
        writer.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, limits[1]))
        with pytest.raises(TraceFileError, match="The first 40 records are kept"):
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    check(path, 40)
    check(recover(path), 40)
    with open_trace(path) as trace:
        assert trace.complete


def closed(path: Path) -> Path:
    with TraceWriter(path, meta={"impl": "numpy"}) as writer:
        writer.add_param("w", values(3), path="enc", kind="parameter", store=True)
        for row in range(5):
            add(writer, row)
    return path


def test_what_is_known_later_can_be_added_to_a_closed_trace(path: Path) -> None:
    floor = np.zeros(5, schema.FLOOR)
    floor["noise"] = np.arange(5)
    amend(closed(path), meta={"repeats": True}, floor=floor)
    amend(path, meta={"repeats": False, "seed": 1})
    check(path, 5)
    with open_trace(path) as trace:
        assert (trace.meta["repeats"], trace.meta["seed"], trace.meta["impl"], trace.complete) == (False, 1, "numpy", True)
        assert trace.floor is not None
        assert trace.floor["noise"].tolist() == [0, 1, 2, 3, 4]
    assert os.listdir(path.parent) == ["a.h5"]


def test_a_kill_while_a_trace_is_added_to_leaves_it_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    amend(closed(path), floor=np.zeros(5, schema.FLOOR))

    def fails(output: Output, _: object) -> None:
        output.close()
        path.write_bytes(path.read_bytes()[:-200])  # HDF5 metadata in disorder
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tracediff.trace.amend._replace", fails)
    with pytest.raises(TraceFileError, match="tracediff recover"):
        amend(path, meta={"repeats": True})
    for _ in ("through the journal", "recovered"):
        check(path, 5)
        with open_trace(path) as trace:
            assert trace.complete
            assert "repeats" not in trace.meta
            assert trace.floor is not None
            np.testing.assert_array_equal(trace.params["w"].read(), values(3))
        recover(path)


def test_a_large_trace_whose_segments_are_checked_late_can_be_added_to(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "EAGER_SEGMENTS", 0)
    amend(closed(path), meta={"repeats": True})
    check(path, 5)


def test_a_trace_that_cannot_be_opened_for_writing_stays_as_it_was(path: Path) -> None:
    before = closed(path).read_bytes()
    with h5py.File(path, "r"), pytest.raises(TraceFileError, match="as it was"):
        amend(path, meta={"repeats": True})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["a.h5"]


def test_only_a_closed_trace_can_be_added_to_and_only_with_json(path: Path) -> None:
    with pytest.raises(TraceFileError, match="first run: tracediff recover"):
        amend(killed(path), meta={"repeats": True})
    with pytest.raises(TracediffError, match="meta item 'x'"):
        amend(recover(path), meta={"x": float("nan")})
    check(path, 10)
    assert json.loads(json.dumps(open_trace(path).meta)) == open_trace(path).meta
