"""Pairs read by the workers of an executor: the answer is that of one process, and a worker that dies costs no more than its task."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracediff as td
from tracediff.cli import main
from tracediff.errors import TracediffError
from tracediff.locate import workers as workers_module
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.locate.workers import Task, taken
from tracediff.thresholds import changed
from tracediff.trace import TraceWriter

LAYERS, WIDTH = 60, 2000


def write(path: Path, *, wrong: dict[int, float] | None = None, noise: float = 0.0) -> Path:
    """A chain of layers; from each wrong one on all is off by its factor, and everything by noise."""
    chance, noisy = np.random.default_rng(0), np.random.default_rng(1)
    with TraceWriter(path, force=True, meta={"impl": path.stem}) as writer:
        off, made = 1.0, -1
        for layer in range(LAYERS):
            off *= (wrong or {}).get(layer, 1.0)
            values = chance.standard_normal(WIDTH) * off * (1 + noise * noisy.standard_normal(WIDTH))
            rows: dict[str, Any] = {"site": f"layers.{layer}", "call": f"layers.{layer}[0]", "ordinal": 0}
            if made >= 0:
                writer.add_again(made, end="input[0]", producer=made, producer_how=1, **rows)
            made = writer.add(end="output", values=values.astype("f4"), **rows)
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("workers")
    return write(folder / "ref.h5"), write(folder / "port.h5", wrong={41: 1.01}, noise=1e-8)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("clean")
    return write(folder / "ref.h5"), write(folder / "port.h5", noise=1e-7)


def processes(count: int = 2) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"))


class Recorder(Executor):
    """Runs each task at once, or loses it as a pool whose process was killed does."""

    def __init__(self, *, loses: Callable[[int], bool] = lambda number: False) -> None:
        self.tasks: list[Task] = []
        self._loses = loses

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.tasks.append(args[0])
        future: Future[Any] = Future()
        if self._loses(len(self.tasks)):
            future.set_exception(BrokenProcessPool("a process was killed"))
        else:
            future.set_result(fn(*args, **kwargs))
        return future


@pytest.fixture
def small_tasks() -> Iterator[None]:
    with changed(THRESHOLDS, "task_pairs", 5):
        yield


# -- the answer


@pytest.mark.parametrize("search", [td.diff, td.bisect], ids=["diff", "bisect"])
@pytest.mark.parametrize("engine", [lambda: ThreadPoolExecutor(3), Recorder, processes], ids=["threads", "here", "processes"])
def test_the_report_is_that_of_one_process_bit_for_bit(
    search: Callable[..., Any], engine: Callable[[], Executor], pair: tuple[Path, Path], clean: tuple[Path, Path], small_tasks: None
) -> None:
    with engine() as executor:
        for one in (pair, clean):
            alone, together = search(*one), search(*one, executor=executor)
            assert together == alone
            assert together.to_json() == alone.to_json()
            assert together.rows == alone.rows


def test_workers_read_every_pair_of_a_scan_and_this_process_none(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from tracediff.locate import comparisons

    expected = td.diff(*pair)
    monkeypatch.setattr(comparisons, "compare", lambda *_, **__: pytest.fail("it was read here"))
    executor = Recorder()
    assert td.diff(*pair, executor=executor) == expected
    assert sum(len(task.pairs) for task in executor.tasks) == expected.coverage.read
    assert len(executor.tasks) == -(-LAYERS // THRESHOLDS.task_pairs)


def test_a_task_ends_with_the_bytes_that_one_may_have(pair: tuple[Path, Path]) -> None:
    executor = Recorder()
    with changed(THRESHOLDS, "task_bytes", 4 * WIDTH * 2 * 3):
        td.diff(*pair, executor=executor)
    assert {len(task.pairs) for task in executor.tasks} == {3}


def test_a_tolerance_and_a_selection_reach_the_workers(pair: tuple[Path, Path]) -> None:
    for given in ({"rtol": 1e-3, "atol": 1e-6}, {"rtol": 0.1, "atol": 0.1}, {"strict": True}):
        assert td.diff(*pair, executor=Recorder(), **given) == td.diff(*pair, **given)


def test_damage_is_said_as_by_one_process(pair: tuple[Path, Path], tmp_path: Path) -> None:
    port = tmp_path / "port.h5"
    blob = bytearray(pair[1].read_bytes())
    with td.open_trace(pair[1]) as trace:
        record = trace.find("layers.50", end="output")[0]
        place = trace.segments.place(int(trace.index["segment"][record.row])).offset + int(trace.index["offset"][record.row])
    blob[place : place + 4] = b"\0\0\x80\x7f"
    port.write_bytes(blob)
    alone, together = td.diff(pair[0], port), td.diff(pair[0], port, executor=Recorder())
    assert alone.caveats
    assert "layers.50" in alone.caveats[0]
    assert together == alone


# -- what goes wrong


def test_a_pool_that_breaks_is_made_anew_and_what_was_done_stays_done(pair: tuple[Path, Path], small_tasks: None) -> None:
    made: list[Recorder] = []

    def engine() -> Executor:
        first = not made
        made.append(Recorder(loses=lambda number: first and number == 4))
        return made[-1]

    assert td.diff(*pair, executor=engine) == td.diff(*pair)
    assert [len(one.tasks) for one in made] == [LAYERS // 5, 1]


def test_of_an_executor_that_was_given_and_broke_the_rest_is_done_here(pair: tuple[Path, Path], small_tasks: None) -> None:
    executor = Recorder(loses=lambda number: number >= 3)
    assert td.diff(*pair, executor=executor) == td.diff(*pair)
    shut = ThreadPoolExecutor(1)
    shut.shutdown()
    assert td.diff(*pair, executor=shut) == td.diff(*pair)


def test_a_task_at_which_workers_keep_dying_is_given_up_with_its_place(pair: tuple[Path, Path]) -> None:
    with pytest.raises(TracediffError, match=r"3 times a worker died while it read ref.h5 and port.h5, from row 0 of the reference on"):
        td.diff(*pair, executor=lambda: Recorder(loses=lambda _: True))


def test_workers_that_see_no_such_file_or_another_one_are_told_of(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task((str(pair[0]), b"another identity"), (str(pair[1]), b""), (None, None), ())
    assert "is another file there, or was replaced meanwhile" in str(taken(task))
    assert "No trace '/nowhere/ref.h5'" in str(taken(Task(("/nowhere/ref.h5", b""), (str(pair[1]), b""), (None, None), ())))
    monkeypatch.setattr(workers_module, "taken", lambda task: "No trace.")
    with pytest.raises(TracediffError, match=r"A worker cannot read the traces: No trace\. Workers open the files themselves"):
        td.diff(*pair, executor=Recorder())


def dies_once(mark: Path, task: Task) -> Any:
    """Kills its process the first time it is run, which the file ``mark`` tells, and then does what `taken` does."""
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return taken(task)


def test_a_process_that_is_killed_costs_its_task_alone(
    pair: tuple[Path, Path], small_tasks: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(workers_module, "taken", partial(dies_once, tmp_path / "died"))
    together = td.diff(*pair, executor=processes)
    assert (tmp_path / "died").exists()
    assert together == td.diff(*pair)


# -- Dask


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed", reason="Dask's distributed is not installed (extra: dask)")
    with distributed.LocalCluster(
        n_workers=4, threads_per_worker=1, processes=True, dashboard_address=None, protocol="tcp", host="127.0.0.1"
    ) as local:
        yield local


@pytest.mark.slow
def test_four_dask_workers_give_the_report_of_one_process(cluster: Any, pair: tuple[Path, Path], small_tasks: None) -> None:
    with cluster.get_client() as client, client.get_executor(pure=False) as executor:
        for search in (td.diff, td.bisect):
            assert search(*pair, executor=executor).to_json() == search(*pair).to_json()


@pytest.mark.slow
def test_a_dask_worker_that_is_killed_costs_its_task_alone(
    cluster: Any, pair: tuple[Path, Path], small_tasks: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(workers_module, "taken", partial(dies_once, tmp_path / "died"))
    with cluster.get_client() as client, client.get_executor(pure=False) as executor:
        together = td.diff(*pair, executor=executor)
    assert (tmp_path / "died").exists()
    assert together == td.diff(*pair)


# -- the command line


def ran(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    return int(caught.value.code or 0)


@pytest.mark.slow
def test_the_command_line_reads_in_processes_or_asks_a_scheduler(
    pair: tuple[Path, Path], cluster: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for words in ([], ["--jobs", "2"], ["--scheduler", cluster.scheduler_address]):
        for command in ("diff", "bisect"):
            assert ran(command, *map(str, pair), *words, "--json") == 1
            said.append(capsys.readouterr().out)
    assert said[::2] == [said[0]] * 3
    assert said[1::2] == [said[1]] * 3


def test_the_command_line_refuses_what_goes_not_together(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for words, why in (
        (["diff", *map(str, pair), "--jobs", "2", "--scheduler", "tcp://127.0.0.1:1"], "leave out one"),
        (["bisect", "--live", "--jobs", "2"], "--live stores nothing that workers could read"),
        (["diff", *map(str, pair), "--jobs", "0"], "0 is not in the range"),
    ):
        assert ran(*words) == 2
        assert why in capsys.readouterr().err


def test_a_scheduler_that_is_not_there_is_said(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    installed = True
    try:
        import distributed  # noqa: F401
    except ImportError:
        installed = False
    assert ran("diff", *map(str, pair), "--scheduler", "nonsense://x") == 2
    assert ("No Dask scheduler answers" if installed else "pip install 'tensor-tracediff[dask]'") in capsys.readouterr().err
