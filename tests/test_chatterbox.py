"""The real pair: chatterbox-tts in PyTorch, mlx-audio's port in MLX, at their reduced size with seeded weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tracediff.observe.context import Context
from tracediff.observe.observer import Boundary, Observer
from tracediff.observe.provenance import digest_of
from tracediff.observe.recipe import Recipe, find_recipe, load_faults, load_file, load_recipe, observe_recipe
from tracediff.site import RETURNED, is_below, module_of

pytestmark = pytest.mark.real

STAGES = [
    "t3.cond",
    "t3.transformer",
    "s3gen.embedding",
    "s3gen.encoder",
    "flow.block",
    "flow.time",
    "flow.ode",
    "vocoder",
    "vocoder.decode",
]
# Where the shipped port itself departs from its reference; see docs/chatterbox.md.
DIFFERENT = {"vocoder", "vocoder.decode"}

# Methods of stages that are run in other tests: generation and the reference voice.
ELSEWHERE = {"t3:inference", "s3gen.tokenizer:quantize", "s3_tokenizer:quantize"}

FAULTS = load_faults("chatterbox", "mlx")
PLANTING = load_file(find_recipe("chatterbox", "mlx").with_name("chatterbox_faults.py"))
# Two of each stage that runs here; `benchmarks/chatterbox_faults.py` runs them all.
SAMPLE = [name for stage in STAGES for name in [name for name, fault in FAULTS.items() if fault.stage == stage][:2]]


class Calls(Observer):
    """Keeps every call of a run in order: its scope, and its arrays' digests by end."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str, str], bytes] = {}
        self.scopes: dict[str, set[str]] = {}
        self.draws: list[tuple[str, np.ndarray]] = []

    def start(self, run: Any) -> None:
        self.run = run

    def see(self, boundary: Boundary) -> None:
        self.scopes.setdefault(boundary.site, set()).add(boundary.scope)
        for end, tensor in boundary.leaves:
            tensor = boundary.replaced.get(end, tensor)
            if not isinstance(tensor, str):
                self.seen[boundary.site, boundary.call, end] = digest_of(self.run.adapter.to_numpy(tensor))
            if boundary.moment == "draw":
                self.draws.append((boundary.site, np.array(tensor)))


class Side:
    """One side: its recipe, its models, and what its stages gave."""

    def __init__(self, impl: str, **options: Any) -> None:
        self.recipe: Recipe = load_recipe("chatterbox", impl)
        self.context = Context(**options)
        self.models: Mapping[str, Any] = self.recipe.load(self.context)
        self.calls = Calls()
        self.given = {stage: flat(value) for stage, value in self.observe(self.calls).items()}

    def observe(self, *observers: Observer) -> Any:
        return observe_recipe(self.recipe, self.context, observers, models=self.models)

    def modules(self) -> set[str]:
        return {node.path for node in self.calls.run.modules}


def flat(value: Any) -> list[np.ndarray]:
    """The arrays in what a stage gave."""
    if isinstance(value, (list, tuple)):
        return [array for part in value for array in flat(part)]
    return [] if value is None else [np.array(value)]


def relative(reference: np.ndarray, port: np.ndarray) -> float:
    reference, port = reference.astype(np.float64), port.astype(np.float64)
    return float(np.linalg.norm(port - reference) / max(np.linalg.norm(reference), 1e-30))


@pytest.fixture(scope="session")
def port() -> Side:
    pytest.importorskip("mlx_audio")
    return Side("mlx", stages=tuple(STAGES))


@pytest.fixture(scope="session")
def reference() -> Side:
    import importlib.util

    if importlib.util.find_spec("chatterbox") is None:
        pytest.skip("chatterbox-tts is not installed")
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return Side("torch", stages=tuple(STAGES))
    finally:
        torch.set_num_threads(threads)


# -- both sides


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in DIFFERENT])
def test_a_stage_of_the_shipped_port_agrees_with_its_reference(reference: Side, port: Side, stage: str) -> None:
    pairs = list(zip(reference.given[stage], port.given[stage], strict=True))
    assert pairs
    assert all(ours.shape == theirs.shape and relative(ours, theirs) < 2e-5 for ours, theirs in pairs)
    assert any(ours.std() > 0.1 for ours, _ in pairs)


def test_both_recipes_have_the_same_stages_and_inputs(reference: Side, port: Side) -> None:
    assert list(reference.recipe.stages) == list(port.recipe.stages)
    assert [stage for stage in reference.recipe.stages if stage in STAGES] == STAGES
    ours, theirs = ({key for key in side.calls.seen if key[0].startswith("#") and key[0] != RETURNED} for side in (reference, port))
    assert ours == theirs
    unequal = {site for site, call, end in ours if reference.calls.seen[site, call, end] != port.calls.seen[site, call, end]}
    assert unequal == {"#cond", "#logits"}  # what the first two stages computed


def test_every_draw_of_the_reference_is_shared(reference: Side, port: Side) -> None:
    by_site = dict(port.calls.draws)
    noise = dict(reference.calls.draws)["s3gen.flow.decoder!random.normal"]
    kept = np.array(port.models["s3gen"].flow.decoder.rand_noise)
    assert np.array_equal(kept[:, :, : noise.shape[2]], noise)
    source = "s3gen.mel2wav.m_source.l_sin_gen!random.normal"
    assert np.array_equal(by_site[source], dict(reference.calls.draws)[source])


def test_the_ports_last_activation_has_another_slope_than_its_references(reference: Side, port: Side) -> None:
    ours, theirs = (side.given["vocoder.decode"][0] for side in (reference, port))
    assert relative(ours, theirs) > 1e-2
    with LastSlope(port.models["s3gen"].mel2wav, 0.01):
        assert relative(ours, flat(port.observe()["vocoder.decode"])[0]) < 1e-5


class LastSlope:
    """For a while the leaky ReLU before the last convolution has this slope: the one change that mends it."""

    def __init__(self, vocoder: Any, slope: float) -> None:
        self.conv, self.slope, self.original = vocoder.conv_post, slope, type(vocoder.conv_post)

    def __enter__(self) -> None:
        import mlx.core as mx

        def forward(conv: Any, x: Any) -> Any:
            return self.original.__call__(conv, mx.where(x < 0, x / 0.1 * self.slope, x))

        self.conv.__class__ = type("Conv1d", (self.original,), {"__call__": forward})

    def __exit__(self, *_: object) -> None:
        self.conv.__class__ = self.original


def test_the_ports_phase_is_summed_in_single_precision(reference: Side, port: Side) -> None:
    import mlx.core as mx

    turns = np.full((1, 9, 24000), 0.04, np.float32)
    exact = np.cumsum(turns.astype(np.float64), axis=-1)
    summed = np.array(mx.cumsum(mx.array(turns), axis=-1)).astype(np.float64)
    assert abs(summed - exact).max() > 1e-3
    source = [side.given["vocoder"][1] for side in (reference, port)]
    assert 1e-4 < relative(*source) < 1e-2


# -- the reference


def test_the_shipped_list_of_weights_is_the_references(reference: Side) -> None:
    shared = reference.recipe.module.shared
    assert json.loads(shared.MANIFEST.read_text(encoding="utf-8")) == reference.recipe.module.manifest()


def test_no_bias_is_zero_and_no_scale_is_one(reference: Side) -> None:
    for root, model in reference.models.items():
        for key, value in model.state_dict().items():
            if value.is_floating_point() and value.ndim <= 1 and value.numel() > 1 and "trim_fade" not in key:
                assert bool((value != 0).all()), f"{root}.{key} has a zero"
                assert bool((value != 1).all()), f"{root}.{key} has a one"


def test_activations_stay_sane_through_all_layers(reference: Side) -> None:
    for stage, arrays in reference.given.items():
        for array in arrays:
            assert np.isfinite(array).all(), stage
            assert abs(array).max() < 1e3, stage


def test_every_step_of_the_ode_is_a_scope_of_its_own(reference: Side, port: Side) -> None:
    steps = {f"ode={step}" for step in range(4)}
    for side in (reference, port):
        assert steps <= side.calls.scopes["s3gen.flow.decoder.estimator"]
        assert {"input[x]", "input[0]"} & {end for site, _, end in side.calls.seen if site == "s3gen.flow.decoder.estimator"}


def test_the_named_methods_are_seen_on_both_sides(reference: Side, port: Side) -> None:
    for side in (reference, port):
        seen = {site for site, _, _ in side.calls.seen}
        expected = set(side.recipe.methods) - ELSEWHERE
        assert expected <= seen, expected - seen


def test_the_recipes_leave_the_models_as_they_were(reference: Side, port: Side) -> None:
    decoders = [side.models["s3gen"].flow.decoder for side in (reference, port)]
    assert "forward" not in vars(decoders[0].estimator)
    assert type(decoders[1].estimator).__name__ == "ConditionalDecoder"
    assert type(decoders[1].estimator).__module__.startswith("mlx_audio")


def test_a_run_of_one_stage_loads_one_model() -> None:
    pytest.importorskip("mlx_audio")
    recipe = load_recipe("chatterbox", "mlx")
    assert set(recipe.load(Context(stages=("t3.cond",)))) == {"t3"}
    assert set(recipe.load(Context(stages=("vocoder",)))) == {"s3gen"}


# -- the faults


@pytest.fixture(scope="session")
def clean() -> dict[str, dict[tuple[str, str, str], bytes]]:
    """What the port's calls hold without a fault, by stage."""
    pytest.importorskip("mlx_audio")
    return {stage: side("mlx", stage).calls.seen for stage in STAGES}


def side(impl: str, stage: str) -> Side:
    return Side(impl, stages=(stage,))


def first_changed(before: Mapping[tuple[str, str, str], bytes], after: Mapping[tuple[str, str, str], bytes]) -> str:
    """The module path of the first record that differs."""
    return next((module_of(key[0]) for key, digest in after.items() if before.get(key) != digest), "nothing")


def test_without_a_fault_nothing_changes(clean: dict[str, dict[tuple[str, str, str], bytes]]) -> None:
    for stage, calls in clean.items():
        assert first_changed(calls, side("mlx", stage).calls.seen) == "nothing"


@pytest.mark.parametrize("name", SAMPLE)
def test_a_fault_shows_first_at_its_culprit_or_directly_below_or_above(
    name: str, clean: dict[str, dict[tuple[str, str, str], bytes]]
) -> None:
    fault = FAULTS[name]
    recipe, context, calls = load_recipe("chatterbox", "mlx"), Context(stages=(fault.stage,)), Calls()
    models = recipe.load(context)
    with PLANTING.planted(models, name):
        observe_recipe(recipe, context, [calls], models=models)
    found = first_changed(clean[fault.stage], calls.seen)
    assert found in (fault.port, fault.port.rpartition(".")[0]) or is_below(found, fault.port), found


def test_there_are_faults_of_many_kinds() -> None:
    assert len(FAULTS) >= 52
    assert len({fault.kind for fault in FAULTS.values()}) >= 35
    stages = load_recipe("chatterbox", "mlx").stages
    named = {fault.stage for fault in FAULTS.values()}
    assert named == set(stages)


def test_every_culprit_is_a_module_on_its_side(reference: Side, port: Side) -> None:
    for name, fault in FAULTS.items():
        if fault.stage in STAGES:
            assert fault.port in port.modules(), name
            assert fault.reference in reference.modules(), name


def test_planting_touches_the_given_models_alone_once_it_is_over(port: Side) -> None:
    others = load_recipe("chatterbox", "mlx").load(Context(stages=tuple(STAGES)))
    with PLANTING.planted(others, *SAMPLE[::2], "infinite_mask", "source_padded_with_zeros"):
        pass
    again = {stage: flat(value) for stage, value in port.observe().items()}
    for stage, arrays in port.given.items():
        assert all(np.array_equal(before, after) for before, after in zip(arrays, again[stage], strict=True)), stage
