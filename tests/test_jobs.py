"""What is done with a recipe's run is a function, which another Python finds by its name."""

from __future__ import annotations

import ast
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

import tracediff
from tracediff.errors import RecipeError
from tracediff.observe.jobs import find_job, name_of
from tracediff.observe.recording import record_run
from tracediff.runs.captured import calibrated, captured
from tracediff.runs.live import index_run, keep_run

PACKAGE = Path(tracediff.__file__).parent


@pytest.mark.parametrize("job", [captured, calibrated, record_run, index_run, keep_run])
def test_every_job_is_found_again_by_its_name(job: object) -> None:
    assert find_job(name_of(job)) is job  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "job"),
    [
        ("tracediff.capturing:captured", captured),
        ("tracediff.capturing:calibrated", calibrated),
        ("tracediff.capture.recording:record_run", record_run),
        ("tracediff.live:index_run", index_run),
        ("tracediff.live:keep_run", keep_run),
        ("tracediff.runs.captured:captured", captured),
    ],
)
def test_a_name_of_version_0_1_finds_the_function_where_it_is_now(name: str, job: object) -> None:
    assert find_job(name) is job


def test_every_module_that_moved_is_there_under_its_old_name_and_looking_for_it_loads_nothing() -> None:
    for old, new in tracediff.MOVED.items():
        alias = import_module(old)
        assert not hasattr(alias, "__file__")
        assert all(getattr(alias, name) is value for name, value in vars(import_module(new)).items() if not name.startswith("_"))


def test_a_function_without_a_name_of_its_own_cannot_be_sent() -> None:
    def local() -> None: ...

    for job in (local, lambda: None, captured.__call__):
        with pytest.raises(RecipeError, match="cannot be found by another Python"):
            name_of(job)


def test_a_name_that_is_none_says_so() -> None:
    with pytest.raises(RecipeError, match=r"No function 'tracediff\.nothing:at_all'"):
        find_job("tracediff.nothing:at_all")


def test_no_module_names_a_function_of_another_as_text() -> None:
    for path in PACKAGE.rglob("*.py"):
        texts = [node.value for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Constant)]
        named = [text for text in texts if isinstance(text, str) and re.fullmatch(r"tracediff(\.\w+)+:\w+", text)]
        assert not named, f"{path.relative_to(PACKAGE)}: {named}"


RECIPE = '''"""A loop."""
import numpy as np
import tracediff as td
IMPL = "mlx"
STAGES = {"loop": "The loop"}

def load(context):
    import mlx.nn as nn
    return {"model": nn.Linear(2, 3)}

def run(models, context):
    import mlx.core as mx
    with td.stage("loop"):
        for step in range(6):
            models["model"](mx.full((1, 2), step))
'''


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    pytest.importorskip("mlx.core")
    path = tmp_path / "loop_mlx.py"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def test_the_old_keyword_and_name_still_choose_the_job(recipe: Path, tmp_path: Path) -> None:
    from tracediff.observe.recipe import run_recipe

    path = run_recipe("mlx", recipe, output=tmp_path / "x.h5", how="tracediff.capturing:captured", repeat=False, calls="0:1")
    with tracediff.open_trace(path) as trace:
        assert trace.meta["observed"] == {"methods": [], "functions": []}  # which only `captured` writes
        assert {record.ordinal for record in trace.records} == {0, 1}


def test_options_and_job_reach_the_other_python(recipe: Path, tmp_path: Path) -> None:
    from tracediff import api

    said: list[str] = []
    options: dict[str, object] = {"calls": iter(["0:1", "9"]), "save": "stats", "repeat": False, "floor": False}
    with api.capture_recipe(
        impl="mlx", recipe=str(recipe), output=tmp_path / "x.h5", python=sys.executable, progress=said.append, **options
    ) as trace:  # type: ignore[arg-type]
        assert {record.ordinal for record in trace.records} == {0, 1}
        assert not any(record.stored for record in trace.records)
        assert "observed" in trace.meta
    assert "warning: calls '9': matched no call of a wanted site" in said
