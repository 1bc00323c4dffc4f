"""Stages that feed each other: what an earlier one computes is handed on, or taken from what the reference's run had there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracediff as td
from tracediff.errors import RecipeError
from tracediff.observe.context import Context
from tracediff.observe.recipe import load_recipe, run_recipe
from tracediff.runs.captured import captured as record
from tracediff.trace import Trace, TraceWriter, open_trace

PIPELINE = '''"""A pipeline of two stages, the {impl} side."""
import numpy as np
import tracediff as td
IMPL = "{impl}"
REQUIRES = ["{impl}"]
STAGES = {{"encoder": "The first", "decoder": "The second"}}

def load(context):
    import {nn} as nn
    model = nn.Linear(4, 4)
    weight = np.eye(4, dtype="float32") * {gain}
    {fill}
    return {{"model": model}}

def run(models, context):
    import {package} as xp
    hidden = None
    if context.wants("encoder"):
        with td.stage("encoder"):
            x = context.array("encoder", "x", lambda g: g.standard_normal((3, 4)).astype("float32"))
            hidden = models["model"](td.tap("x", xp.{array}(x)))
    if context.wants("decoder"):
        with td.stage("decoder"):
            models["model"](td.tap("hidden", xp.{array}(context.given("decoder", "hidden", hidden))))
'''
TORCH = {
    "impl": "torch",
    "nn": "torch.nn",
    "package": "torch",
    "array": "as_tensor",
    "gain": 2,
    "fill": "import torch; model.weight.data, model.bias.data = torch.from_numpy(weight), torch.zeros(4); model.requires_grad_(False)",
}
MLX = {
    "impl": "mlx",
    "nn": "mlx.nn",
    "package": "mlx.core",
    "array": "array",
    "gain": 3,
    "fill": "import mlx.core as mx; model.weight = mx.array(weight); model.bias = mx.zeros(4)",
}


@pytest.fixture
def handed(tmp_path: Path) -> Iterator[Trace]:
    """A reference's trace: `hidden` tapped where the decoder takes it, `late` and `text` only before it, `pair` as a container."""
    values = np.arange(3, dtype=np.float32)
    with TraceWriter(tmp_path / "ref.h5") as writer:

        def tap(name: str, stage: str, array: np.ndarray, ordinal: int = 0, end: str = "value") -> None:
            writer.add(site=f"#{name}", call=f"#{name}[{ordinal}]", ordinal=ordinal, end=end, stage=stage, values=array)

        tap("hidden", "encoder", values)
        tap("late", "encoder", values + 10)
        tap("late", "encoder", values + 20, ordinal=1)
        writer.add_text(site="#text", call="#text[0]", ordinal=0, end="value", stage="encoder", text="Hello")
        tap("hidden", "decoder", values + 1, ordinal=1)
        tap("half", "decoder", values.astype("float16"))
        for part in (0, 1):
            tap("pair", "decoder", values, end=f"value[{part}]")
        tap("after", "vocoder", values)
    with open_trace(tmp_path / "ref.h5") as trace:
        yield trace


def test_what_an_earlier_stage_computed_is_handed_on(handed: Trace) -> None:
    computed = object()
    assert Context().given("decoder", "hidden", computed) is computed
    assert Context(reference=handed).given("decoder", "hidden", computed) is computed


def test_a_stage_that_starts_by_itself_gets_what_the_reference_had_at_its_own_tap(handed: Trace) -> None:
    assert Context(reference=handed).given("decoder", "hidden", None).tolist() == [1, 2, 3]
    assert Context(reference=handed, from_reference=True).given("decoder", "hidden", [0]).tolist() == [1, 2, 3]


def test_what_a_whole_run_is_given_is_found_where_the_recipe_says(handed: Trace) -> None:
    sources = {"vocoder": {"mel": "#late/value", "lost": "nowhere/output", "hidden": "#late/value"}, "decoder": {"hidden": "#late/value"}}
    context = Context(reference=handed, from_reference=True, sources=sources)
    assert context.given("vocoder", "mel").tolist() == [10, 11, 12]
    assert context.given("vocoder", "hidden").tolist() == [10, 11, 12]  # rather than an earlier stage's tap of that name
    assert context.given("decoder", "hidden").tolist() == [1, 2, 3]  # the stage's own tap goes before
    assert context.array("vocoder", "mel", lambda _: pytest.fail("drawn")).tolist() == [10, 11, 12]
    with pytest.raises(RecipeError, match="and it has no 'nowhere/output'"):
        context.given("vocoder", "lost")


def test_inputs_are_not_taken_from_a_whole_run_unless_asked(handed: Trace) -> None:
    context = Context(reference=handed, sources={"vocoder": {"mel": "#late/value"}})
    with pytest.raises(RecipeError, match="that stage was not captured"):
        context.array("vocoder", "mel", lambda _: pytest.fail("drawn"))


def test_what_is_tapped_only_before_the_stage_is_the_last_of_that_name(handed: Trace) -> None:
    assert Context(reference=handed).given("decoder", "late", None).tolist() == [20, 21, 22]
    assert Context(reference=handed).given("decoder", "text", None) == "Hello"


def test_half_precision_is_handed_over_as_it_was(handed: Trace) -> None:
    assert Context(reference=handed).given("decoder", "half", None).dtype == np.float16


@pytest.mark.parametrize(
    ("stage", "name", "why"),
    [
        ("decoder", "absent", "nothing is tapped as 'absent'"),
        ("decoder", "after", "nothing is tapped as 'after' in that stage or before it"),
        ("other", "hidden", "it did not run that stage"),
        ("decoder", "pair", "a container of 2 arrays"),
    ],
)
def test_an_input_that_the_reference_cannot_give_is_an_error_that_says_why(handed: Trace, stage: str, name: str, why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        Context(reference=handed).given(stage, name, None)


def test_without_an_earlier_stage_and_a_reference_the_error_names_both_ways() -> None:
    with pytest.raises(RecipeError, match=r"needs 'hidden'.*Run it too, or start.*--from"):
        Context().given("decoder", "hidden", None)


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a reference in PyTorch that doubles twice and a port in MLX that triples, and the reference's trace."""
    pytest.importorskip("torch")
    pytest.importorskip("mlx.core")
    (tmp_path / "hooks").mkdir()
    for side in (TORCH, MLX):
        (tmp_path / "hooks" / f"pipe_{side['impl']}.py").write_text(PIPELINE.format(**side), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    run_recipe("torch", "pipe", output="ref.h5", repeat=False)
    return tmp_path


def tapped(path: str, name: str) -> np.ndarray:
    with open_trace(path) as trace:
        return trace.find(f"#{name}")[0].read()


def test_a_free_port_goes_on_with_its_own_data_and_one_that_starts_at_a_stage_with_the_references(pipeline: Path) -> None:
    x = tapped("ref.h5", "x")
    run_recipe("mlx", "pipe", output="free.h5", random="ref.h5", repeat=False)
    run_recipe("mlx", "pipe", output="stage.h5", start="ref.h5", stages=["decoder"], repeat=False)
    run_recipe("mlx", "pipe", output="both.h5", start="ref.h5", repeat=False)
    np.testing.assert_array_equal(tapped("free.h5", "hidden"), 3 * x)
    np.testing.assert_array_equal(tapped("stage.h5", "hidden"), 2 * x)
    np.testing.assert_array_equal(tapped("both.h5", "hidden"), 2 * x)
    with open_trace("stage.h5") as trace:
        assert {record.stage for record in trace.records} == {"decoder"}
        assert trace.meta["from"] == "ref.h5"
        assert json.dumps(trace.meta["wanted"]) == '["decoder"]'


def test_a_stage_alone_without_a_reference_is_refused(pipeline: Path) -> None:
    with pytest.raises(RecipeError, match="--from REFERENCE"):
        run_recipe("mlx", "pipe", output="alone.h5", stages=["decoder"], repeat=False)


def test_two_different_references_are_refused(pipeline: Path) -> None:
    with pytest.raises(RecipeError, match=r"not from both 'other.h5' and 'ref.h5'"):
        run_recipe("mlx", "pipe", output="x.h5", random="other.h5", start="ref.h5")


@pytest.mark.parametrize("sources", ["[]", "{'a': 'b'}", "{'a': {'x': 3}}", "{'a': {'x': 'no end'}}"])
def test_sources_of_another_form_are_refused(tmp_path: Path, sources: str) -> None:
    path = tmp_path / "x_torch.py"
    path.write_text(PIPELINE.format(**TORCH) + f"SOURCES = {sources}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="SOURCES is no dict"):
        load_recipe(path, "torch")


RAISING = '''"""Three stages, the {impl} side."""
import numpy as np
import tracediff as td
IMPL = "{impl}"
REQUIRES = ["{impl}"]
STAGES = {{"one": "The first", "two": "The second", "three": "The third"}}

def load(context):
    import {nn} as nn
    model = nn.Linear(4, 4)
    weight = np.eye(4, dtype="float32") * 2
    {fill}
    return {{"model": model}}

def run(models, context):
    import {package} as xp
    given = {{}}
    for stage in STAGES:
        if {chosen}:
            with td.stage(stage):
                x = context.array(stage, "x", lambda g: g.standard_normal((3, 4)).astype("float32"))
                y = models["model"](td.tap("x", xp.{array}(x)))
                if stage == "two" and IMPL == "mlx":
                    {fails}
                given[stage] = td.tap("y", y)
    return given
'''


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Captures both sides of a recipe whose port raises in its second stage; ``fails``: how, ``chosen``: how it chooses its stages."""
    pytest.importorskip("mlx.core")
    pytest.importorskip("torch")

    def captured(*, fails: str = "raise ValueError('no such thing')", chosen: str = "context.wants(stage)", feed: bool = False) -> Path:
        folder = tmp_path / "hooks"
        folder.mkdir()
        for side in (TORCH, MLX):
            (folder / f"fails_{side['impl']}.py").write_text(RAISING.format(**side, fails=fails, chosen=chosen))
        monkeypatch.chdir(tmp_path)
        given: dict[str, Any] = {"job": record, "repeat": False}
        run_recipe("torch", "fails", output="ref.h5", floor=False, **given)
        with pytest.raises(ValueError, match="no such thing"):
            run_recipe("mlx", "fails", output="port.h5", random="ref.h5", **given, **({"feed": "ref.h5"} if feed else {"floor": False}))
        return tmp_path / "port.h5"

    return captured


@pytest.mark.parametrize("feed", [False, True], ids=["free", "forced"])
def test_the_stages_behind_one_that_raises_are_run_and_judged_all_the_same(failing: Any, feed: bool) -> None:
    port = failing(feed=feed)
    with open_trace(port) as trace:
        assert list(dict.fromkeys(record.stage for record in trace.records)) == ["one", "two", "three"]
    report = td.bisect("ref.h5", port)
    assert {stage.stage: stage.verdict for stage in report.stages} == {"one": "same", "two": "different", "three": "same"}
    assert [(one.site.stage, one.causes[0].kind) for one in report.divergences] == [("two", "raised")]
    assert "no such thing" in report.divergences[0].causes[0].evidence


def test_a_recipe_that_does_not_choose_its_stages_ends_where_it_raises(failing: Any) -> None:
    with open_trace(failing(chosen="True")) as trace:
        assert list(dict.fromkeys(record.stage for record in trace.records)) == ["one", "two"]
