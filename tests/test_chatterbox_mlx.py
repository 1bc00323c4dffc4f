"""The second port of Chatterbox, chatterbox-mlx: its recipe, and what a run in its own environment shows.

That environment cannot be this one, since its package has the name of the reference's. Where the environment variable
TRACEDIFF_CHATTERBOX_MLX names its Python (docs/install.md says what is in it), the port is run there.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from pathlib import Path

import pytest

import tracediff as td
from tracediff.errors import RecipeError
from tracediff.observe.context import Context
from tracediff.observe.recipe import find_recipe, load_file, load_recipe, run_recipe
from tracediff.report import Report
from tracediff.runs.captured import captured

NAME = "chatterbox-mlx"
PYTHON = os.environ.get("TRACEDIFF_CHATTERBOX_MLX")
ROOT = Path(__file__).parents[1]
CLEAN = ("t3.cond", "s3gen.embedding", "flow.time")
FAULTY = ("s3gen.encoder", "flow.block", "vocoder.decode")
PROVED = ("wrong_relative_shift", "biases_never_loaded", "mask_for_all_queries", "edge_for_reflection")

elsewhere = pytest.mark.skipif(
    PYTHON is None, reason="TRACEDIFF_CHATTERBOX_MLX does not name the Python of an environment with chatterbox-mlx (docs/install.md)"
)


def is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def mending() -> dict[str, object]:
    mends: dict[str, object] = load_file(find_recipe(NAME, "mlx").with_name(f"{NAME}_mends.py")).MENDS
    return mends


# -- here


def test_the_recipe_is_found_by_its_name_and_says_which_package_it_runs() -> None:
    recipe = load_recipe(NAME, "mlx")
    assert (recipe.name, recipe.impl, recipe.path.name) == (NAME, "mlx", "chatterbox-mlx_mlx.py")
    assert "chatterbox-mlx==1.0.6" in recipe.requires


def test_its_stages_are_the_references_in_their_order_and_words() -> None:
    ours, theirs = load_recipe("chatterbox", "torch").stages, load_recipe(NAME, "mlx").stages
    assert theirs.items() <= ours.items()
    assert {"t3.generate", "flow.ode", "vocoder", "text", "voice.xvector"} <= theirs.keys()


def test_it_does_not_stand_in_for_the_first_port() -> None:
    assert load_recipe("chatterbox", "mlx").requires != load_recipe(NAME, "mlx").requires
    assert find_recipe("chatterbox", "mlx").name == "chatterbox_mlx.py"


@pytest.mark.skipif(is_installed("chatterbox-mlx"), reason="chatterbox-mlx is installed here")
def test_without_its_package_the_error_names_it_and_the_way_to_run_it_elsewhere() -> None:
    recipe = load_recipe(NAME, "mlx")
    with pytest.raises(RecipeError, match=r"not chatterbox-mlx's|chatterbox-mlx is not installed here") as caught:
        recipe.load(Context(stages=("flow.time",)))
    assert "chatterbox-mlx==1.0.6" in str(caught.value)
    assert "--python PATH" in str(caught.value)


def test_every_mend_names_stages_that_the_port_has() -> None:
    stages = load_recipe(NAME, "mlx").stages
    for name, mend in mending().items():
        assert all(stage in stages for stage, _ in mend.sites), name  # type: ignore[attr-defined]


@pytest.mark.real
@pytest.mark.skipif(not is_installed("chatterbox-tts"), reason="chatterbox-tts is not installed here")
def test_every_mend_names_code_of_the_reference_that_is_there() -> None:
    for mend in mending().values():
        assert str(mend.reference).startswith("chatterbox/")  # type: ignore[attr-defined]


# -- in its own environment


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference's run of a few stages, with its noise floor."""
    if not is_installed("chatterbox-tts"):
        pytest.skip("chatterbox-tts is not installed here")
    to = tmp_path_factory.mktemp("second") / "ref.h5"
    return run_recipe("torch", "chatterbox", output=to, stages=[*CLEAN, *FAULTY], repeat=False, job=captured)


@pytest.fixture(scope="module")
def forced(reference: Path) -> Report:
    assert PYTHON is not None
    port = run_recipe(
        "mlx",
        NAME,
        output=reference.with_name("forced.h5"),
        stages=[*CLEAN, *FAULTY],
        random=reference,
        python=PYTHON,
        repeat=False,
        job=captured,
        feed=str(reference),
    )
    return td.bisect(reference, port)


def culprits(report: Report, stage: str) -> set[str]:
    return {one.culprit.port for one in report.divergences if one.site.stage == stage}


@elsewhere
@pytest.mark.real
def test_what_is_right_in_the_port_is_same_and_compared(forced: Report) -> None:
    verdicts = {stage.stage: stage.verdict for stage in forced.stages}
    assert {stage: verdicts[stage] for stage in CLEAN} == dict.fromkeys(CLEAN, "same")


@elsewhere
@pytest.mark.real
def test_the_relative_shift_is_blamed_on_the_attention_that_makes_it(forced: Report) -> None:
    encoder = "s3gen.flow.encoder"
    assert culprits(forced, "s3gen.encoder") == {f"{encoder}.encoders_0.self_attn", f"{encoder}.up_encoders_0.self_attn"}


@elsewhere
@pytest.mark.real
def test_biases_that_no_checkpoint_holds_and_a_call_that_raises_are_told_apart(forced: Report) -> None:
    attention = "s3gen.flow.decoder.estimator.mid_blocks_0.layers_1_0.attn1"
    assert culprits(forced, "flow.block") == {attention, *(f"{attention}.to_{part}" for part in "qkv")}
    raised = [one for one in forced.divergences if one.causes and one.causes[0].kind == "raised"]
    assert [one.culprit.port for one in raised] == [attention]
    assert any("attn1.to_q.bias" in line for line in forced.weights.unexpected)


@elsewhere
@pytest.mark.real
def test_the_vocoders_two_mistakes_are_both_in_its_own_code(forced: Report) -> None:
    seen = {one.site.reference for one in forced.divergences if one.site.stage == "vocoder.decode"}
    assert seen == {"s3gen.mel2wav.resblocks.6", "s3gen.mel2wav.conv_post"}
    assert culprits(forced, "vocoder.decode") == {"s3gen.mel2wav"}


@pytest.fixture(scope="module")
def proofs(reference: Path) -> list[list[str]]:
    """The rows of the table that the proofs print, for the mends below."""
    assert PYTHON is not None
    command = [PYTHON, os.fspath(ROOT / "benchmarks" / "mends_second_port.py"), os.fspath(reference), *PROVED]
    environment = {**os.environ, "PYTHONPATH": os.fspath(ROOT)}
    told = subprocess.run([*command, "--folder", os.fspath(reference.parent)], capture_output=True, text=True, env=environment, check=False)
    assert told.returncode == 0, told.stderr[-2000:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in told.stdout.splitlines()[2:]]


@elsewhere
@pytest.mark.real
@pytest.mark.parametrize("name", PROVED)
def test_one_change_brings_its_sites_back_to_their_floor(proofs: list[list[str]], name: str) -> None:
    rows = [[float(cell) for cell in row[4:7]] for row in proofs if row[0] == name]
    assert rows
    assert all(mended <= allowed < shipped for shipped, allowed, mended in rows), rows
