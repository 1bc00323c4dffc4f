"""Token generation and the whole of the real pair: step by step the same, but for what the mends of the shipped port take away."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracediff as td
from tracediff.observe.context import Context
from tracediff.observe.observer import Boundary, Observer
from tracediff.observe.recipe import Recipe, find_recipe, load_file, load_recipe, observe_recipe, run_recipe
from tracediff.runs.captured import captured

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (find_spec("mlx_audio") and find_spec("s3tokenizer")), reason="the pair is not installed"),
]

STAGES = ("t3.generate", "t3.sample")
TOKENS, START, STOP = 8, 6561, 6562
MENDING = load_file(find_recipe("chatterbox", "mlx").with_name("chatterbox_mends.py"))
SAMPLING = ("temperature_last", "top_p_of_logits")


class Steps(Observer):
    """Keeps what the steps of a run were told by: drawn tokens, taps, and how long keys were at each token."""

    def __init__(self) -> None:
        self.taps: dict[tuple[str, str, str], np.ndarray] = {}
        self.keys: dict[tuple[str, str], set[int]] = {}
        self.drawn: dict[str, list[int]] = {}

    def start(self, run: Any) -> None:
        self.run = run

    def see(self, boundary: Boundary) -> None:
        step = boundary.stage, boundary.scope
        if boundary.moment == "draw" and boundary.site.endswith("categorical"):
            drawn = boundary.replaced.get("draw", boundary.leaves[0][1])
            self.drawn.setdefault(boundary.stage, []).append(int(np.array(drawn).ravel()[0]))
        for end, tensor in boundary.leaves:
            if boundary.site.startswith("t3#"):
                self.taps[(*step, boundary.site[3:])] = np.array(self.run.adapter.to_numpy(tensor))
            if end == "input[k]":
                self.keys.setdefault(step, set()).add(int(tensor.shape[2]))


class Side:
    """One side with both stages of generation run once."""

    def __init__(self, impl: str, *stages: str, reference: Any = None) -> None:
        self.recipe: Recipe = load_recipe("chatterbox", impl)
        self.context = Context(stages=stages, reference=reference)
        self.models = self.recipe.load(self.context)
        self.steps = Steps()
        self.given = {stage: np.array(value) for stage, value in self.observe(self.steps).items()}

    def observe(self, *observers: Observer) -> Any:
        return observe_recipe(self.recipe, self.context, observers, models=self.models)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference's trace of both stages; the noise floor is measured at the drawn tokens' stage alone, below."""
    return run_recipe("torch", "chatterbox", output=tmp_path_factory.mktemp("t3") / "ref.h5", stages=STAGES, repeat=False)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference's trace of the drawn tokens with its noise floor."""
    to = tmp_path_factory.mktemp("sample") / "ref.h5"
    return run_recipe("torch", "chatterbox", output=to, stages=("t3.sample",), repeat=False, job=captured, floor_dtypes=())


@pytest.fixture(scope="module")
def reference() -> Side:
    return Side("torch", *STAGES)


@pytest.fixture(scope="module")
def port(traced: Path) -> Iterator[Side]:
    with td.open_trace(traced) as trace:
        yield Side("mlx", *STAGES, reference=trace)


@pytest.fixture(scope="module")
def sides(reference: Side, port: Side) -> dict[str, Side]:
    return {"reference": reference, "port": port}


def relative(reference: np.ndarray, port: np.ndarray) -> float:
    return float(np.linalg.norm(port.astype(np.float64) - reference) / np.linalg.norm(reference))


# -- every token


def test_the_likeliest_tokens_are_the_same_on_both_sides(sides: dict[str, Side]) -> None:
    ours, theirs = (side.steps.drawn["t3.generate"] for side in sides.values())
    assert ours == theirs
    assert len(ours) == TOKENS


def test_the_likeliest_token_is_what_is_drawn(reference: Side) -> None:
    penalised = [reference.steps.taps["t3.generate", f"token={step}", "penalised"] for step in range(TOKENS)]
    assert [int(logits.argmax()) for logits in penalised] == reference.steps.drawn["t3.generate"]


def test_the_port_is_handed_the_tokens_that_the_reference_drew(sides: dict[str, Side]) -> None:
    ours, theirs = (side.steps.drawn["t3.sample"] for side in sides.values())
    assert ours == theirs
    penalised = [sides["reference"].steps.taps["t3.sample", f"token={step}", "penalised"] for step in range(TOKENS)]
    assert [int(logits.argmax()) for logits in penalised] != ours


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["guided", "penalised"])
def test_what_a_token_is_chosen_from_is_the_same_before_it_is_filtered(sides: dict[str, Side], stage: str, name: str) -> None:
    for step in range(TOKENS):
        ours, theirs = (side.steps.taps[stage, f"token={step}", name] for side in sides.values())
        assert relative(ours, theirs) < 2e-5


def test_the_repetition_penalty_reaches_every_earlier_token(reference: Side) -> None:
    step = TOKENS - 1
    guided, penalised = (reference.steps.taps["t3.sample", f"token={step}", name][0] for name in ("guided", "penalised"))
    assert set(np.flatnonzero(guided != penalised).tolist()) == {START, *reference.steps.drawn["t3.sample"][:step]}


@pytest.mark.parametrize("who", ["reference", "port"])
@pytest.mark.parametrize("stage", STAGES)
def test_each_token_is_a_scope_and_sees_one_key_more(sides: dict[str, Side], who: str, stage: str) -> None:
    keys = sides[who].steps.keys
    lengths = [keys[stage, f"token={step}"] for step in range(TOKENS + 1)]
    first = min(length for length in lengths[0] if length > 32)
    assert [max(length) for length in lengths] == [max(lengths[0]) + step for step in range(TOKENS + 1)]
    assert all(length == {first + step} for step, length in enumerate(lengths) if step)


def test_the_recipes_leave_everything_as_it_was(sides: dict[str, Side]) -> None:
    import torch
    from mlx_audio.lm import sample_utils
    from mlx_audio.tts.models.chatterbox.t3 import t3 as port_module
    from transformers import RepetitionPenaltyLogitsProcessor

    ours, theirs = (side.models["t3"] for side in sides.values())
    assert not hasattr(ours, "patched_model")
    assert "forward" not in vars(ours.tfmr)
    assert torch.multinomial.__name__ == "multinomial"
    reference_module = sys.modules["chatterbox.models.t3.t3"]
    assert reference_module.RepetitionPenaltyLogitsProcessor is RepetitionPenaltyLogitsProcessor
    assert reference_module.tqdm.__name__ == "tqdm"
    assert type(theirs.tfmr.model).__module__.startswith("mlx_audio")
    assert port_module.make_logits_processors is sample_utils.make_logits_processors
    assert type(sample_utils.categorical_sampling) is type(sample_utils.apply_min_p)


def test_generation_repeats(reference: Side) -> None:
    again = reference.observe()
    assert all(np.array_equal(np.array(again[stage]), reference.given[stage]) for stage in STAGES)


class Stopping(Observer):
    """Makes the stop token the likeliest from the second step on."""

    def start(self, run: Any) -> None:
        self.run = run

    def see(self, boundary: Boundary) -> Any:
        if boundary.site != "t3.speech_head" or boundary.moment != "leave" or boundary.scope == "token=0":
            return None
        logits = self.run.adapter.to_numpy(boundary.leaves[0][1])
        logits[..., STOP] = 100.0
        return {"output": logits}


@pytest.mark.parametrize("who", ["reference", "port"])
def test_a_stop_token_ends_it(sides: dict[str, Side], who: str) -> None:
    side = sides[who]
    alone = observe_recipe(side.recipe, Context(stages=STAGES[:1]), [Stopping()], models=side.models)  # no draw is played back
    given = np.array(alone["t3.generate"]).ravel().tolist()
    first = sides["reference"].steps.drawn["t3.generate"][0]
    assert given == ([first, STOP] if who == "reference" else [START, first, STOP])


# -- what differs


def compared(folder: Path, traced: Path, *names: str, forced: bool, stages: tuple[str, ...] = ("t3.sample",)) -> Any:
    """The report of a run of the port with these mends."""
    with MENDING.mended({}, *names) if names else nullcontext():
        port = run_recipe(
            "mlx",
            "chatterbox",
            output=folder / "port.h5",
            stages=stages,
            random=traced,
            repeat=False,
            force=True,
            job=captured,
            **({"feed": str(traced)} if forced else {}),
        )
    return td.bisect(traced, port, scan=True)


def sites(report: Any) -> set[str]:
    """Where it diverges; the draw's own odds are the probabilities that are tapped before it."""
    return {"t3#probs" if one.site.reference == "t3!random.categorical" else one.site.reference for one in report.divergences}


def test_the_shipped_port_filters_other_tokens_and_keeps_the_start_token(tmp_path: Path, sampled: Path) -> None:
    report = compared(tmp_path, sampled, forced=True)
    assert sites(report) == {"t3#probs", "t3:inference"}
    probabilities = next(one for one in report.divergences if one.site.reference == "t3#probs")
    assert 0.1 < probabilities.introduced < 2
    assert probabilities.floor < 1e-5


@pytest.mark.parametrize("forced", [True, False], ids=["forced", "free"])
def test_the_mended_port_is_the_same(tmp_path: Path, sampled: Path, forced: bool) -> None:
    report = compared(tmp_path, sampled, *SAMPLING, "start_token_kept", forced=forced)
    assert report.verdict == "same"
    assert report.coverage.compared > 1000


@pytest.mark.parametrize("left_out", [*SAMPLING, "start_token_kept"])
def test_no_mend_can_be_left_out(tmp_path: Path, sampled: Path, left_out: str) -> None:
    names = [name for name in (*SAMPLING, "start_token_kept") if name != left_out]
    expected = "t3:inference" if left_out == "start_token_kept" else "t3#probs"
    assert sites(compared(tmp_path, sampled, *names, forced=True)) == {expected}


def test_mends_put_everything_back() -> None:
    from mlx_audio.lm import sample_utils
    from mlx_audio.tts.models.chatterbox.chatterbox import Model
    from mlx_audio.tts.models.chatterbox.t3.t3 import T3

    functions = sample_utils.make_sampler, T3.inference, Model.generate
    before = [(function.__code__, function.__defaults__) for function in functions]
    with MENDING.mended({}, *SAMPLING, "start_token_kept", "default_exaggeration", "no_watermark"):
        inside = [(function.__code__, function.__defaults__) for function in functions]
    assert all(ours != theirs for ours, theirs in zip(before, inside, strict=True))
    assert [(function.__code__, function.__defaults__) for function in functions] == before
