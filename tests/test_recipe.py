"""Recipes: found by name or file, refused with reasons, run here or in another Python, and written to start from."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from tracediff.errors import MissingDependencyError, RecipeError, TraceExistsError
from tracediff.observe.context import Context, weights_beside
from tracediff.observe.other_python import run_elsewhere
from tracediff.observe.recipe import (
    find_recipe,
    known_recipes,
    load_faults,
    load_file,
    load_recipe,
    observe_recipe,
    run_recipe,
    write_recipes,
)
from tracediff.trace import open_trace

GOOD = '''"""A toy, the port."""
import tracediff as td
IMPL = "mlx"
REQUIRES = ["mlx>=0.32"]
STAGES = {"one": "The first", "two.a": "The second", "two.b": "The third"}

def load(context):
    import mlx.nn as nn
    return {"model": nn.Linear(2, 3)}

def run(models, context):
    import mlx.core as mx
    for stage in STAGES:
        if context.wants(stage):
            with td.stage(stage):
                x = td.tap("x", mx.array(context.array(stage, "x", lambda g: g.standard_normal((4, 2)))))
                models["model"](x)
'''


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder with a hooks folder, and in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hooks").mkdir()
    return tmp_path


def write(project: Path, name: str, text: str = GOOD) -> Path:
    path = project / "hooks" / name
    path.write_text(text, encoding="utf-8")
    return path


# -- finding


def test_a_recipe_is_found_by_name_and_by_file(project: Path) -> None:
    path = write(project, "toy_mlx.py")
    assert find_recipe("toy", "mlx") == path
    assert find_recipe("toy_mlx", "mlx") == path
    assert find_recipe(Path("hooks/toy_mlx.py"), "mlx") == path


def test_the_projects_only_recipe_needs_no_name(project: Path) -> None:
    assert find_recipe(None, "mlx").name == "chatterbox_mlx.py"
    path = write(project, "toy_mlx.py")
    assert find_recipe(None, "mlx") == path


def test_of_several_recipes_one_must_be_named(project: Path) -> None:
    write(project, "toy_mlx.py")
    write(project, "other_mlx.py")
    with pytest.raises(RecipeError, match=r"has 2 recipes for 'mlx': other, toy\. Choose one with --recipe NAME"):
        find_recipe(None, "mlx")


def test_a_further_port_beside_a_pair_is_asked_for_by_name_and_the_pair_needs_none(project: Path) -> None:
    path = write(project, "toy_mlx.py")
    write(project, "toy_torch.py")
    second = write(project, "second-port_mlx.py")
    assert find_recipe(None, "mlx") == path
    assert find_recipe("second-port", "mlx") == second


def test_a_projects_recipe_goes_before_an_installed_one_of_that_name(project: Path) -> None:
    path = write(project, "chatterbox_mlx.py")
    assert find_recipe("chatterbox", "mlx") == path


def test_an_unknown_name_lists_the_recipes_and_the_nearest() -> None:
    with pytest.raises(
        RecipeError, match=r"No recipe 'chaterbox' for 'torch'\. Recipes for 'torch': .*chatterbox.*Did you mean 'chatterbox'"
    ):
        find_recipe("chaterbox", "torch")


def test_a_missing_file_lists_the_recipes() -> None:
    with pytest.raises(RecipeError, match=r"No recipe file 'hooks/gone_mlx\.py'\. Recipes for 'mlx': .*chatterbox"):
        find_recipe("hooks/gone_mlx.py", "mlx")


def test_the_known_recipes_are_pairs_and_not_the_files_beside_them() -> None:
    assert "chatterbox (mlx, torch)" in known_recipes()
    assert not any("faults" in name or "shared" in name for name in known_recipes())


# -- loading


def test_a_loaded_recipe_says_what_is_written_in_it(project: Path) -> None:
    write(project, "toy_mlx.py", GOOD + 'METHODS = ["model:encode"]\n')
    recipe = load_recipe("toy", "mlx")
    assert (recipe.name, recipe.impl, recipe.description) == ("toy", "mlx", "A toy, the port.")
    assert list(recipe.stages) == ["one", "two.a", "two.b"]
    assert recipe.methods == ("model:encode",)


def test_a_recipe_imports_the_files_beside_it_and_leaves_their_names_free(project: Path) -> None:
    write(project, "toy_shared.py", "SIZE = 3\n")
    write(project, "toy_mlx.py", GOOD + "import toy_shared\nSIZE = toy_shared.SIZE\n")
    assert load_recipe("toy", "mlx").module.SIZE == 3
    assert "toy_shared" not in sys.modules
    assert os.fspath(project / "hooks") not in sys.path


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (("def load", "def loud"), "it has no function load"),
        (('IMPL = "mlx"', 'IMPL = "torch"'), "IMPL is 'torch', not 'mlx'"),
        (('IMPL = "mlx"', ""), "it does not say IMPL = 'mlx'"),
        (("STAGES = {", "STAGES = {} and {"), "STAGES is no dict of names and descriptions"),
        (('["mlx>=0.32"]', '"mlx"'), "REQUIRES is no list of texts"),
        (('IMPL = "mlx"', 'IMPL = "mlx"\nMETHODS = ["encode"]'), "METHODS names 'encode', which is not of the form 'path:method'"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_with_the_reason(project: Path, changed: tuple[str, str], reason: str) -> None:
    write(project, "toy_mlx.py", GOOD.replace(*changed))
    with pytest.raises(RecipeError, match="is no recipe") as caught:
        load_recipe("toy", "mlx")
    assert reason in str(caught.value)


def test_an_import_that_fails_names_what_is_required_and_how_to_install_it(project: Path) -> None:
    write(project, "toy_mlx.py", GOOD.replace("import tracediff as td", 'REQUIRES = ["absent==1.2"]\nimport absent_framework'))
    with pytest.raises(
        RecipeError, match=r"absent_framework.*It requires absent==1\.2\. Install with: pip install 'absent==1\.2'.*--python PATH"
    ):
        load_recipe("toy", "mlx")


def test_an_import_that_fails_only_when_the_models_are_loaded_says_the_same(project: Path) -> None:
    write(project, "toy_mlx.py", GOOD.replace("import mlx.nn as nn", "import absent_framework"))
    recipe = load_recipe("toy", "mlx")
    with pytest.raises(RecipeError, match=r"absent_framework.*Install with: pip install 'mlx>=0\.32'"):
        recipe.load(Context())


def test_an_error_in_a_recipe_is_shown_with_its_line(project: Path) -> None:
    path = write(project, "toy_mlx.py", GOOD + "\nsizes = {}\nsizes['width']\n")
    with pytest.raises(RecipeError, match=rf"cannot be loaded: KeyError: 'width' \(line {len(path.read_text().splitlines())}\)"):
        load_recipe("toy", "mlx")
    write(project, "toy_mlx.py", "def load(:\n")
    with pytest.raises(RecipeError, match=r"SyntaxError: .*\(line 1\)"):
        load_recipe("toy", "mlx")


def test_load_must_name_its_models(project: Path) -> None:
    pytest.importorskip("mlx.core")
    write(project, "toy_mlx.py", GOOD.replace('{"model": nn.Linear(2, 3)}', "[]"))
    with pytest.raises(RecipeError, match=r"load\(\) in .* returned list; return a dict"):
        load_recipe("toy", "mlx").load(Context())


# -- running


def test_only_the_wanted_stages_run_and_a_prefix_wants_all_below_it(project: Path) -> None:
    pytest.importorskip("mlx.core")
    write(project, "toy_mlx.py")
    with open_trace(run_recipe("mlx", "toy", stages=["two"])) as trace:
        assert list(trace.meta["stages"]) == ["two.a", "two.b"]


def test_an_unknown_stage_is_refused_with_those_there_are(project: Path) -> None:
    write(project, "toy_mlx.py")
    with pytest.raises(RecipeError, match=r"No stage 'three' in .*Its stages: one, two\.a, two\.b"):
        run_recipe("mlx", "toy", stages=["three"])


def test_a_run_takes_the_next_free_name_unless_one_is_given(project: Path) -> None:
    pytest.importorskip("mlx.core")
    write(project, "toy_mlx.py")
    paths = [run_recipe("mlx", "toy", stages=["one"], repeat=False) for _ in range(2)]
    assert [path.as_posix() for path in paths] == ["traces/toy_mlx.h5", "traces/toy_mlx-2.h5"]
    with pytest.raises(TraceExistsError):
        run_recipe("mlx", "toy", stages=["one"], output=paths[0])


def test_inputs_come_from_the_seed_or_from_the_reference(project: Path) -> None:
    pytest.importorskip("mlx.core")
    write(project, "toy_mlx.py")
    seeded = [run_recipe("mlx", "toy", stages=["one"], repeat=False, seed=seed) for seed in (1, 1, 2)]
    played = run_recipe("mlx", "toy", stages=["one"], repeat=False, seed=5, random=seeded[2])
    first, same, other, back = (open_trace(path).find("#x")[0].read() for path in (*seeded, played))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    assert np.array_equal(back, other)


def test_an_input_that_the_reference_does_not_have_is_an_error_and_not_another_input(project: Path) -> None:
    pytest.importorskip("mlx.core")
    write(project, "toy_mlx.py")
    reference = run_recipe("mlx", "toy", stages=["one"], repeat=False)
    with pytest.raises(RecipeError, match=r"has no input 'x' of stage 'two\.a': that stage was not captured"):
        run_recipe("mlx", "toy", stages=["two.a"], repeat=False, random=reference)


def test_what_a_model_prints_is_no_answer(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mlx.core")
    write(project, "toy_mlx.py", GOOD.replace("    for stage in", "    print('chatter')\n    for stage in"))
    run_recipe("mlx", "toy", stages=["one"], repeat=False)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "chatter" in captured.err


def test_weights_that_a_reference_keeps_reach_the_port(tmp_path: Path) -> None:
    weights = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    Context(weights_file=weights_beside(tmp_path / "ref.h5")).keep_weights(weights)

    class Reference:
        path = tmp_path / "ref.h5"

    port = Context()
    port.reference = Reference()  # type: ignore[assignment]
    assert np.array_equal(port.kept_weights()["a.weight"], weights["a.weight"])
    with pytest.raises(RecipeError, match="no reference is given"):
        Context().kept_weights()


# -- in another Python


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children find nothing of what the core needs besides NumPy, h5py, ml_dtypes and xxhash."""
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ("click", "rich", "pandas", "matplotlib", "scipy", "safetensors"):
        (blocked / f"{name}.py").write_text(f"raise ImportError('{name} is not installed')\n")
    monkeypatch.setenv("PYTHONPATH", os.fspath(blocked))


@pytest.mark.usefixtures("bare")
def test_a_side_runs_in_another_python_that_has_little_but_its_framework(project: Path) -> None:
    pytest.importorskip("mlx.core")
    write(project, "toy_mlx.py")
    here = run_recipe("mlx", "toy", output="here.h5")
    there = run_recipe("mlx", "toy", output="there.h5", python=sys.executable)
    with open_trace(here) as ours, open_trace(there) as theirs:
        assert [record.digest for record in ours.find("#x")] == [record.digest for record in theirs.find("#x")]
        assert theirs.meta["repeats"] is True


@pytest.mark.usefixtures("bare")
def test_an_error_in_the_other_python_is_the_error_here(project: Path) -> None:
    write(project, "toy_mlx.py")
    with pytest.raises(RecipeError, match="No stage 'three'"):
        run_recipe("mlx", "toy", stages=["three"], python=sys.executable)


def test_what_the_other_python_lacks_is_named_with_the_command(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(MissingDependencyError, match=r"lacks numpy, h5py.*Install with: .*python -m pip install numpy h5py"):
        run_elsewhere(python, os.getcwd, {})


def test_what_is_no_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not run as a Python"):
        run_elsewhere(tmp_path / "nothing", os.getcwd, {})


def test_a_python_that_dies_is_reported_with_its_status() -> None:
    with pytest.raises(RecipeError, match="ended with status 7 before it answered"):
        run_elsewhere(sys.executable, os._exit, {"status": 7})


def test_models_elsewhere_cannot_be_changed_from_here(project: Path) -> None:
    write(project, "toy_mlx.py")
    with pytest.raises(RecipeError, match="cannot be changed from here"):
        run_recipe("mlx", "toy", python=sys.executable, change=lambda models: None)


# -- writing a pair


def test_the_written_pair_runs_and_agrees(project: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("mlx.core")
    paths = write_recipes("hooks", "toy")
    assert [path.name for path in paths] == ["toy_torch.py", "toy_mlx.py"]
    traces = [open_trace(run_recipe(impl, "toy", repeat=False)) for impl in ("torch", "mlx")]
    for site, end in (("#encoded", "value"), ("model.head", "output")):
        ours, theirs = (trace.find(site, end=end)[0].read() for trace in traces)
        assert np.allclose(ours, theirs, atol=1e-5)
    assert not any("draw" in line for trace in traces for line in trace.meta["not_seen"])


def test_writing_spares_what_is_there(project: Path) -> None:
    write_recipes("hooks", "toy")
    with pytest.raises(RecipeError, match=r"toy_torch\.py' is there already"):
        write_recipes("hooks", "toy")


@pytest.mark.parametrize("name", ["my-model", "../up", "", "3d"])
def test_a_name_that_python_cannot_import_is_refused(project: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="is no name for a recipe"):
        write_recipes("hooks", name)


def test_an_observed_recipe_returns_what_it_gave(project: Path) -> None:
    pytest.importorskip("mlx.core")
    write(project, "toy_mlx.py", GOOD + "    return 'done'\n")
    recipe = load_recipe("toy", "mlx")
    assert observe_recipe(recipe, Context()) == "done"


def test_faults_are_those_of_the_file_beside_the_recipe(project: Path) -> None:
    write(project, "toy_mlx.py")
    write(project, "toy_faults.py", "FAULTS = {'one': 1}\n")
    assert load_faults("toy", "mlx") == {"one": 1}
    assert "dropped_bias" in load_faults("chatterbox", "mlx")


def test_a_recipe_without_faults_says_so(project: Path) -> None:
    path = write(project, "toy_mlx.py")
    with pytest.raises(RecipeError, match=r"No faults are written for 'toy': there is no .*toy_faults\.py"):
        load_faults("toy", "mlx")
    assert load_file(path).IMPL == "mlx"
