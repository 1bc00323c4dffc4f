"""Faults planted in the real port as wrong code or wrong weights: the first divergence is at the planted module or next to it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import pytest

from tracediff import api
from tracediff.observe.recipe import find_recipe, load_faults, load_file, run_recipe
from tracediff.report import Report
from tracediff.runs.captured import captured
from tracediff.site import is_below

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (find_spec("mlx_audio") and find_spec("chatterbox")), reason="the pair is not installed"),
]

FAULTS = load_faults("chatterbox", "mlx")
PLANTING = load_file(find_recipe("chatterbox", "mlx").with_name("chatterbox_faults.py"))
# A few of every group of stages; `benchmarks/chatterbox_faults.py` plants them all.
PLANTED = (
    "missing_capital",
    "transposed_weight",
    "missing_position",
    "missing_residual",
    "swapped_norms",
    "rounded_weight",
    "missing_causal_mask",
    "wrong_rope_base",
    "norm_behind",
    "wrong_shape",
    "prompt_behind",
    "unloaded_block",
    "missing_mask",
    "repeated_as_a_whole",
    "dropped_bias",
    "mixed_heads",
    "shifted_mask",
    "wrong_time_scale",
    "cosine_first",
    "lower_limit",
    "source_padded_with_zeros",
)
# Where the shipped port departs from its reference itself: those differences are mended before a fault is planted.
MENDED = {"text": ("lost_quotes", "more_sentence_enders"), "vocoder.decode": ("slope_of_the_others",)}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The reference's trace of a stage, recorded once."""
    folder = tmp_path_factory.mktemp("reference")

    def of(stage: str) -> Path:
        path = folder / f"{stage}.h5"
        return path if path.exists() else run_recipe("torch", "chatterbox", output=path, stages=[stage], repeat=False, job=captured)

    return of


def forced(reference: Path, folder: Path, stage: str, *faults: str, mends: tuple[str, ...] = ()) -> Report:
    with ExitStack() as stack:

        def plant(models: dict[str, object]) -> None:
            if mends:
                stack.enter_context(PLANTING.mended(models, *mends))
            stack.enter_context(PLANTING.planted(models, *faults))

        port = run_recipe(
            "mlx", "chatterbox", output=folder / "mlx.h5", stages=[stage], random=reference, change=plant, job=captured, feed=str(reference)
        )
    return api.bisect(reference, port)


def is_next_to(found: str, true: str) -> bool:
    """The module itself, its direct parent (or, of a fault that all its siblings share, their common caller), or what lies in it."""
    return is_below(found, true) or is_below(true, found)


@pytest.mark.parametrize("name", PLANTED)
def test_the_first_divergence_is_at_the_planted_module(name: str, reference: Callable[[str], Path], tmp_path: Path) -> None:
    fault = FAULTS[name]
    report = forced(reference(fault.stage), tmp_path, fault.stage, name, mends=MENDED.get(fault.stage, ()))
    assert report.verdict == "different"
    assert report.first is not None
    assert is_next_to(report.first.culprit.port, fault.port)
    assert is_next_to(report.first.culprit.reference, fault.reference)
    assert fault.site in ("", report.first.site.reference)
    kinds = {cause.kind for cause in report.first.causes}
    if fault.kind.startswith("weights.") and fault.kind != "weights.precision":
        assert fault.kind in kinds


@pytest.mark.parametrize("stage", ["t3.cond", "t3.transformer", "s3gen.embedding", "s3gen.encoder", "flow.block", "flow.time"])
def test_the_shipped_port_raises_no_false_alarm(stage: str, reference: Callable[[str], Path], tmp_path: Path) -> None:
    report = forced(reference(stage), tmp_path, stage)
    assert report.verdict == "same"
    assert report.coverage.compared == report.coverage.paired > 0


def test_two_faults_in_different_modules_are_both_named(reference: Callable[[str], Path], tmp_path: Path) -> None:
    report = forced(reference("t3.transformer"), tmp_path, "t3.transformer", "rounded_weight", "swapped_norms")
    culprits = {divergence.culprit.port for divergence in report.divergences}
    assert {FAULTS["rounded_weight"].port, FAULTS["swapped_norms"].port} <= culprits


def test_the_wrong_slope_of_the_shipped_vocoder_is_found(reference: Callable[[str], Path], tmp_path: Path) -> None:
    report = forced(reference("vocoder.decode"), tmp_path, "vocoder.decode")
    assert [(one.culprit.port, one.site.reference, one.site.end) for one in report.divergences] == [
        ("s3gen.mel2wav", "s3gen.mel2wav.conv_post", "input[0]")
    ]
