"""Every reader gives what a file holds or refuses it with an error of ours, whatever the file is."""

from __future__ import annotations

import os
import random
from importlib.util import find_spec
from pathlib import Path

import pytest
from fuzzing import FORMATS, at_most, batch, corpus, load, tried

import tracediff as td
from tracediff.errors import TracediffError
from tracediff.json_text import MOST_DEPTH, parse_json

INPUTS = int(os.environ.get("TRACEDIFF_INPUTS", "300"))
"""Of each format; a nightly run takes more. ``python tests/fuzzing.py --inputs N`` runs as many as are wanted."""

NEEDS_TORCH = (pytest.mark.frameworks, pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed"))
NAMES = [pytest.param(name, marks=NEEDS_TORCH if name == "torch" else ()) for name in FORMATS]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = corpus(tmp_path_factory.mktemp("corpus"))
    load(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_file_is_read_or_refused(name: str, good: Path) -> None:
    wrong = {f"{seed}: {how}" for seed in range(INPUTS) if (how := tried(name, seed, good)) not in ("read", "refused")}
    assert not wrong


@pytest.mark.parametrize("name", NAMES)
def test_the_corpus_itself_is_read(name: str, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without mutations nothing is refused, so what the fuzzing refuses is refused for its mutation."""
    for changed in ("bytes_of", "json_of", "cells_of", "_other_member"):
        monkeypatch.setattr(f"fuzzing.{changed}", lambda drawn, *given: given[-1])
    monkeypatch.setattr("fuzzing._replace_strings", lambda *_: None)
    monkeypatch.setattr("random.Random", First)
    assert tried(name, 0, good, whole=True) == "read"


def test_an_input_at_which_the_process_dies_is_told_and_the_others_are_read(
    good: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fuzzing.tried", lambda name, seed, good: os.kill(os.getpid(), 9) if seed == 1 else "read")
    assert batch([("npz", seed) for seed in range(4)], good) == {"npz: read": 3, "npz: the process died": 1}
    assert "npz 1: the process died (-9)" in capfd.readouterr().out


class First(random.Random):
    """Draws the first of all choices, which are the harmless ones."""

    def choice(self, choices):  # type: ignore[no-untyped-def]
        return choices[0]

    def random(self) -> float:
        return 0.9

    def randrange(self, *_: int) -> int:
        return 4


READERS = (
    td.weights,
    td.bisect,
    lambda _, path: td.convert(path, path.with_name("made.h5")),
    lambda reference, path: td.align(reference, reference, mapping=path),
)


@pytest.mark.parametrize("suffix", [".h5", ".npz", ".safetensors", ".pt", ".json"])
def test_a_pipe_is_refused_at_once(suffix: str, good: Path, tmp_path: Path) -> None:
    pipe = tmp_path / f"x{suffix}"
    os.mkfifo(pipe)
    with at_most(5):
        for read in (
            td.weights,
            td.bisect,
            lambda ref, x: td.convert(x, tmp_path / "made.h5"),
            lambda ref, x: td.align(ref, ref, mapping=x),
        ):
            with pytest.raises(TracediffError):
                read(good / "ref.h5", pipe)


@pytest.mark.parametrize("text", ["[" * (MOST_DEPTH + 1) + "]" * (MOST_DEPTH + 1), "[" * 100_000, "NaN", "[1e999]", "[-Infinity]", "{", ""])
def test_json_that_no_reader_can_follow_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_json(text)


def test_json_as_deep_as_allowed_is_read() -> None:
    value: object = '"]'
    for _ in range(MOST_DEPTH):
        value = [value]
    assert parse_json(str(value).replace("'", '"').replace('""]"', '"\\"]"')) == value
