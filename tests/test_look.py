"""look: each symptom on a made trace is named where it arises, and clean traces raise no alarm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from judging import Run

import tracediff as td
from tracediff import cli
from tracediff.alarms import Look
from tracediff.errors import TraceNotFoundError
from tracediff.show.alarms import render
from tracediff.show.words import plain

TRACES = Path(__file__).parents[1] / "traces"
RATE = 24_000
Work = Callable[[Run, np.random.Generator], None]


def traced(path: Path, work: Work, *, seed: int = 0, params: tuple[str, ...] = ("a", "b"), **meta: Any) -> Path:
    """A trace of what ``work`` does; the sites in ``params`` have a weight of their own."""
    run = Run(path, **meta)
    for name in params:
        run.writer.add_param(f"{name}.weight", np.random.default_rng(len(name)).standard_normal((8, 8)), path=name, kind="parameter")
    work(run, np.random.default_rng(seed))
    run.writer.close()
    return path


def layers(change: Callable[[np.ndarray], np.ndarray] = lambda y: y) -> Work:
    """Two layers, a and b; ``change`` is what goes wrong in b."""

    def work(run: Run, chance: np.random.Generator) -> None:
        x = chance.standard_normal((5, 32)).astype(np.float32)
        with run("a", x=x) as leave:
            x = leave(np.tanh(x))
        with run("b", x=x) as leave:
            x = leave(np.asarray(change(x * np.float32(0.5)), np.float32))
        with run("c", x=x) as leave:
            leave(x + np.float32(1))

    return work


def with_nan(y: np.ndarray) -> np.ndarray:
    y = y.copy()
    y[2, 3] = np.nan
    return y


def with_infinity(y: np.ndarray) -> np.ndarray:
    y = y.copy()
    y[2, 3] = np.inf
    return y


def loop(step: Callable[[np.ndarray, int], np.ndarray], steps: int = 8) -> Work:
    def work(run: Run, chance: np.random.Generator) -> None:
        x = chance.standard_normal((2, 64)).astype(np.float32)
        for number in range(steps):
            with run("solver", x=x) as leave:
                x = leave(np.asarray(step(x, number), np.float32))

    return work


def ids(chosen: list[int]) -> Work:
    def work(run: Run, chance: np.random.Generator) -> None:
        for one in chosen:
            with run("embed", ids=np.array([[one]], np.int32)) as leave:
                leave(chance.standard_normal((1, 1, 32)).astype(np.float32))

    return work


def wave(signal: np.ndarray) -> Work:
    def work(run: Run, chance: np.random.Generator) -> None:
        with run("vocoder", mel=chance.standard_normal((1, 80, 20)).astype(np.float32)) as leave:
            leave(signal[None].astype(np.float32))

    return work


def said(found: Look) -> list[tuple[str, str]]:
    return [(alarm.symptom, alarm.site) for alarm in found.alarms]


def seconds(count: int = RATE) -> np.ndarray:
    return np.arange(count) / RATE


def speech_like() -> np.ndarray:
    """Harmonics of a gliding voice, and noise."""
    phase = 2 * np.pi * np.cumsum(120 + 30 * seconds()) / RATE
    return np.asarray(sum(np.sin(k * phase) / k for k in range(1, 20)) + 0.1 * np.random.default_rng(0).standard_normal(RATE))


@pytest.mark.parametrize(
    ("symptom", "site", "work"),
    [
        ("not finite", "b", layers(with_nan)),
        ("not finite", "b", layers(with_infinity)),
        ("constant", "b", layers(lambda y: np.full_like(y, 0.25))),
        ("same everywhere", "b", layers(lambda y: np.broadcast_to(y[:1], y.shape))),
        ("looping ids", "embed", ids([7, 1, 9, *[6405] * 30])),
        ("looping ids", "embed", ids([7, 1, 9, *[5, 8, 3] * 10])),
        ("tone", "vocoder", wave(np.sin(2 * np.pi * 6000 * seconds()) + 0.05 * speech_like())),
        ("growing", "solver", loop(lambda x, _: 1.8 * x)),
    ],
)
def test_a_symptom_is_named_where_it_arises(symptom: str, site: str, work: Work, tmp_path: Path) -> None:
    found = td.look(traced(tmp_path / "port.h5", work))
    assert said(found) == [(symptom, site)]
    assert found.alarms[0].next == f"tracediff show {tmp_path}/port.h5 {site}"


@pytest.mark.parametrize(
    "work",
    [
        layers(),
        layers(lambda y: y * 1e4),
        ids(list(np.random.default_rng(0).integers(0, 900, 60))),
        ids([3] * 10),
        ids([0, 1] * 30),
        wave(speech_like()),
        wave(np.random.default_rng(0).standard_normal(RATE)),
        loop(lambda x, n: x * (n + 2) / (n + 1)),
        loop(lambda x, n: 0.9 * x),
    ],
)
def test_a_clean_trace_raises_no_alarm(work: Work, tmp_path: Path) -> None:
    assert td.look(traced(tmp_path / "port.h5", work)).alarms == ()


def test_what_was_handed_on_is_not_said_again(tmp_path: Path) -> None:
    """c is handed the NaN of b, and returns it."""
    assert said(td.look(traced(tmp_path / "port.h5", layers(with_nan), params=("a", "b", "c")))) == [("not finite", "b")]


def test_a_mask_of_infinities_is_no_alarm(tmp_path: Path) -> None:
    masked = layers(lambda y: np.where(np.arange(32) > 20, -np.inf, y))
    assert td.look(traced(tmp_path / "port.h5", masked)).alarms == ()


@pytest.mark.parametrize(
    ("symptom", "change"),
    [
        ("signs", lambda y: -np.abs(y)),
        ("spread", lambda y: 9 * y),
        ("range", lambda y: np.where(np.arange(y.size).reshape(y.shape) == 40, 10.0, y)),
    ],
)
def test_beside_a_reference_on_other_inputs_what_is_unlike_it_is_named(
    symptom: str, change: Callable[[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    reference = traced(tmp_path / "ref.h5", layers(), seed=1)
    port = traced(tmp_path / "port.h5", layers(change))
    assert said(td.look(traced(tmp_path / "clean.h5", layers()), like=reference)) == []
    first, *_ = td.look(port, like=reference).alarms
    assert (first.symptom, first.site) == (symptom, "b")
    assert "bisect" in first.next


def test_what_the_reference_shows_too_is_no_alarm(tmp_path: Path) -> None:
    for number, work in enumerate((layers(with_nan), ids([4, *[7] * 40]), wave(np.sin(seconds() * 9000)), loop(lambda x, _: 2 * x))):
        reference = traced(tmp_path / f"ref{number}.h5", work, seed=1)
        assert td.look(traced(tmp_path / f"port{number}.h5", work), like=reference).alarms == ()


def test_ids_that_do_not_end_are_told_beside_a_reference_that_ends(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    reference = traced(tmp_path / "ref.h5", ids(list(chance.integers(0, 900, 30))))
    port = traced(tmp_path / "port.h5", ids(list(chance.integers(0, 900, 120))))
    [alarm] = td.look(port, like=reference).alarms
    assert (alarm.symptom, alarm.text) == ("endless ids", "120 ids, where the reference has 30")


def test_many_places_of_one_symptom_are_counted(tmp_path: Path) -> None:
    def work(run: Run, chance: np.random.Generator) -> None:
        for number in range(20):
            x = chance.standard_normal((5, 32)).astype(np.float32)
            with run(f"layers.{number}", x=x) as leave:
                leave(with_nan(x))

    found = td.look(traced(tmp_path / "port.h5", work))
    assert [alarm.count for alarm in found.alarms] == [1, 1, 18]
    assert "20 alarms" in plain(render(found))


@pytest.mark.parametrize("name", ["tiny_torch.h5", "tiny_mlx.h5"])
def test_the_recorded_traces_raise_no_alarm(name: str) -> None:
    assert td.look(TRACES / name).alarms == ()
    assert td.look(TRACES / "tiny_mlx.h5", like=TRACES / name).alarms == ()


def test_the_command_exits_with_0_whatever_it_sees_and_with_trouble_without_a_trace(tmp_path: Path) -> None:
    path = traced(tmp_path / "port.h5", layers(with_nan))
    shown = CliRunner().invoke(cli.main, ["look", str(path), "--json"])
    assert shown.exit_code == 0
    answer = json.loads(shown.stdout)
    assert (answer["schema"], answer["alarms"][0]["symptom"]) == ("tracediff.look/1", "not finite")
    assert "An alarm is no verdict" in plain(render(td.look(path)))
    with pytest.raises(TraceNotFoundError):
        td.look(tmp_path / "absent.h5")


def test_a_look_and_compared_weights_draw_themselves_as_a_report_does(tmp_path: Path) -> None:
    weights = td.weights({"a.weight": np.ones((2, 3), np.float32)}, {"a.weight": np.zeros((2, 3), np.float32)})
    for shown, first in ((td.look(TRACES / "tiny_mlx.h5"), "No alarm"), (weights, "Different")):
        assert str(shown).startswith(first)
        assert shown._repr_html_().startswith("<pre style=")
        assert repr(shown).startswith(f"<{type(shown).__name__}: {first}")
