"""Token loops: draws inside compiled samplers, steps that are scopes, logits of one position only, ids that travel as floats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracediff as td
from tracediff.alignment import align
from tracediff.alignment.axes import kept
from tracediff.observe.observer import Boundary, Observer
from tracediff.runs.variations import is_whole

mx = pytest.importorskip("mlx.core")

from mlx import nn  # noqa: E402

from tracediff.observe import observe  # noqa: E402
from tracediff.observe.adapters.mlx import draws, is_compiling  # noqa: E402

WIDTH, WORDS, PROMPT = 8, 12, 5


def _sampled(logits: Any, temperature: float) -> Any:
    return mx.random.categorical(logits * (1 / temperature))


sampled = mx.compile(_sampled, inputs=mx.random.state, outputs=mx.random.state)
"""As `mlx_lm` writes its samplers."""
doubled = mx.compile(lambda x: x * 2)


class Drawn(Observer):
    """Sees draws, and answers them where it has an answer."""

    def __init__(self, answer: int | None = None) -> None:
        self.answer = answer
        self.seen: list[tuple[str, list[int]]] = []

    def start(self, run: Any) -> None:
        self.run = run

    def see(self, boundary: Boundary) -> Any:
        if boundary.moment != "draw":
            return None
        self.seen.append((boundary.site, np.array(boundary.leaves[0][1]).tolist()))
        return None if self.answer is None else {"draw": np.array([self.answer])}


def tokens(count: int = 6) -> list[int]:
    mx.random.seed(3)
    logits = mx.arange(WORDS).reshape(1, WORDS) / 4
    return [int(sampled(logits, 0.8)[0]) for _ in range(count)]


# -- draws


def test_a_draw_inside_a_compiled_sampler_is_seen() -> None:
    drawn = Drawn()
    plain = tokens()
    assert observe(None, tokens, [drawn], impl="mlx") == plain
    assert drawn.seen == [("!random.categorical", [token]) for token in plain]
    assert drawn.run.not_seen == []


def test_a_draw_inside_a_compiled_sampler_is_played_back() -> None:
    assert observe(None, tokens, [Drawn(answer=7)], impl="mlx") == [7] * 6


def test_afterwards_the_sampler_is_compiled_again() -> None:
    before = sampled
    observe(None, tokens, [Drawn()], impl="mlx")
    assert sampled is before
    assert is_compiling()


def test_only_functions_that_draw_run_uncompiled() -> None:
    assert draws(sampled)
    assert not draws(doubled)
    inside: list[bool] = []

    def run() -> None:
        inside.append(is_compiling())
        tokens(1)
        inside.append(is_compiling())

    observe(None, run, [Drawn()], impl="mlx")
    assert inside == [True, True]


# -- loops


class Decoder(nn.Module):
    """Mixes what came before and gives logits: of all positions, or of the last one alone."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        mx.random.seed(0)
        self.body, self.head, self._last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WORDS), last

    def __call__(self, x: Any) -> Any:
        hidden = mx.tanh(self.body(mx.cumsum(x, axis=1)))
        return self.head(hidden[:, -1:] if self._last else hidden)


def loop(model: Any, *, is_late: bool) -> Any:
    """A prompt and four further steps. With ``is_late`` the body's last output is never asked for logits."""
    values = mx.array(np.random.default_rng(2).standard_normal((1, PROMPT + 4, WIDTH)), mx.float32)

    def run() -> None:
        for step in range(5):
            with td.scope("token", step):
                x = values[:, :PROMPT] if step == 0 else values[:, PROMPT + step - 1 : PROMPT + step]
                if is_late and step == 4:
                    model.body(mx.cumsum(x, axis=1))
                else:
                    td.tap("logits", model(x)[:, -1])

    return run


@pytest.fixture
def traces(tmp_path: Path) -> tuple[Any, Any]:
    paths = tmp_path / "ref.h5", tmp_path / "port.h5"
    for path, last in zip(paths, (False, True), strict=True):
        model = Decoder(last)
        td.capture({"model": model}, loop(model, is_late=last), to=path, repeat=False, floor=False)
    return td.open_trace(paths[0]), td.open_trace(paths[1])


def test_calls_are_paired_inside_their_scope(traces: tuple[Any, Any]) -> None:
    reference, port = traces
    pairs = [(reference.records[one.reference[0]], port.records[one.port[0]]) for one in align(reference, port).records]
    assert len([ours for ours, _ in pairs if ours.module == "model.head"]) == 4 * 2
    assert {(ours.scope, theirs.scope) for ours, theirs in pairs} == {(f"token={step}", f"token={step}") for step in range(5)}


def test_logits_of_the_last_position_are_read_as_the_references_last(traces: tuple[Any, Any]) -> None:
    reference, port = traces
    layouts = {str(one.layout) for one in align(reference, port).records if reference.records[one.reference[0]].call.endswith("head[0]")}
    assert f"reference {PROMPT - 1}:{PROMPT} of axis 1" in layouts
    assert td.bisect(reference.path, port.path).verdict == "same"


def test_an_output_that_lost_positions_is_not_excused(tmp_path: Path) -> None:
    """The port takes everything in and gives the last position out: only who takes in one position may give out one."""

    class Lossy(nn.Module):
        def __call__(self, x: Any) -> Any:
            return x[:, -1:]

    class Whole(nn.Module):
        def __call__(self, x: Any) -> Any:
            return x * 1

    x = mx.array(np.random.default_rng(0).standard_normal((1, PROMPT, WIDTH)), mx.float32)
    for name, model in {"ref": Whole(), "port": Lossy()}.items():
        td.capture({"model": model}, (x,), to=tmp_path / f"{name}.h5", repeat=False, floor=False)
    assert td.bisect(tmp_path / "ref.h5", tmp_path / "port.h5").verdict == "different"


def test_one_position_is_told_in_either_direction() -> None:
    assert [one.shape for one in kept((2, 9, 4), (2, 1, 4))] == [(2, 1, 4)] * 2
    assert [one.shape for one in kept((2, 1, 4), (2, 9, 4))] == [(2, 1, 4)] * 2
    assert kept((2, 9, 4), (2, 8, 4)) == kept((2, 9, 4), (2, 9)) == kept((2, 9, 4), (1, 1, 4)) == ()


# -- floors


@pytest.mark.parametrize("values", [[3, 0, 6560], [-np.inf, 0], [0, 1], []])
def test_whole_numbers_in_a_float_dtype_have_no_noise(values: list[float]) -> None:
    assert is_whole(np.float32(values))


@pytest.mark.parametrize("values", [[0.5], [*range(100), 0.25], [np.nan], [1j]])
def test_other_numbers_have(values: list[Any]) -> None:
    assert not is_whole(np.array(values, np.complex64 if values == [1j] else np.float32))


def test_a_floor_does_not_change_ids_that_travel_as_floats(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Lookup(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.table, self.mix = torch.nn.Embedding(500, 4), torch.nn.Linear(4, 4)

        def forward(self, ids: Any) -> Any:
            return self.mix(self.table(ids.long()))

    torch.manual_seed(0)
    ids = torch.arange(100, 500).float()
    trace = td.capture({"model": Lookup()}, (ids,), to=tmp_path / "ref.h5")
    found = {record.call: float(trace.floor["noise"][record.row]) for record in trace.records if record.site == "model.table"}
    assert max(found.values()) == 0
