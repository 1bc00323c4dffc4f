"""The tape: two sides with one seed draw the same, and a port can be given what its reference drew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tracediff as td
from tracediff.draws import laid_out
from tracediff.observe import observe
from tracediff.observe.observer import Boundary, Observer, Run
from tracediff.observe.randomness import Draws, Playback, SeededDraws, Tape, seeded_weight
from tracediff.trace import Trace, open_trace


class Drawn(Observer):
    """Keeps what each draw of a run became, and what was not seen."""

    def __init__(self) -> None:
        self.values: list[np.ndarray] = []

    def start(self, run: Run) -> None:
        self.run = run

    def see(self, boundary: Boundary) -> None:
        if boundary.moment == "draw":
            self.values.append(np.array(boundary.replaced.get("draw", boundary.leaves[0][1])))

    @property
    def not_seen(self) -> list[str]:
        return self.run.not_seen


def draw(impl: str, run: Any, draws: Draws) -> Drawn:
    seen = Drawn()
    observe(None, run, [draws, seen], impl=impl)
    return seen


def test_the_tape_depends_on_the_names_and_not_on_the_order_of_asking() -> None:
    first, second = Tape(7), Tape(7)
    one = first.normal("flow", "random.normal", 0, (3,)), first.normal("flow", "random.normal", 1, (3,))
    other = second.normal("flow", "random.normal", 1, (3,)), second.normal("flow", "random.normal", 0, (3,))
    assert np.array_equal(one[0], other[1])
    assert np.array_equal(one[1], other[0])


@pytest.mark.parametrize("changed", [{"seed": 8}, {"stage": "vocoder"}, {"name": "random.uniform"}, {"ordinal": 1}])
def test_each_part_of_a_draws_name_changes_the_draw(changed: dict[str, Any]) -> None:
    named = {"seed": 7, "stage": "flow", "name": "random.normal", "ordinal": 0}
    tapes = [Tape(parts.pop("seed")).generator(**parts).random(4) for parts in (dict(named), {**named, **changed})]
    assert not np.array_equal(*tapes)


PINNED = {
    "normal": [-0.18568722903728485, -0.6017549633979797, -1.0284956693649292],
    "uniform": [0.2149854302406311, 0.30993062257766724, 0.9279396533966064],
}


def test_the_tape_is_the_same_in_every_version_of_numpy() -> None:
    normal = Tape(0).normal("stage", "random.normal", 0, (3,))
    uniform = Tape(0).uniform("stage", "random.uniform", 0, (3,))
    assert normal.tolist() == pytest.approx(PINNED["normal"], abs=0)
    assert uniform.tolist() == pytest.approx(PINNED["uniform"], abs=0)


@pytest.mark.parametrize("key", ["conv.bias", "lstm.bias_ih_l0", "bn.running_mean"])
def test_no_seeded_bias_is_zero(key: str) -> None:
    values = seeded_weight(0, key, (500,))
    assert abs(values).min() >= 0.049
    assert -0.1 < values.mean() < 0.1


@pytest.mark.parametrize("key", ["norm.weight", "activation.alpha", "bn.running_var", "conv.parametrizations.weight.original0"])
def test_no_seeded_scale_is_one(key: str) -> None:
    values = seeded_weight(0, key, (500,))
    assert (values != 1).all()
    assert (values > 0).all()


def test_seeded_matrices_keep_the_size_of_what_goes_through_them() -> None:
    values = np.random.default_rng(0).standard_normal((64, 96))
    for layer in range(20):
        values = values @ seeded_weight(0, f"layers.{layer}.weight", (96, 96)).T
    assert 0.2 < values.std() < 5


def test_one_seed_gives_torch_and_mlx_the_same_normal_draws() -> None:
    torch, mx = pytest.importorskip("torch"), pytest.importorskip("mlx.core")
    ours = draw("torch", lambda: torch.randn_like(torch.empty(2, 5)), SeededDraws(Tape(3)))
    theirs = draw("mlx", lambda: mx.random.normal((2, 5)), SeededDraws(Tape(3)))
    assert np.array_equal(ours.values[0], theirs.values[0])


def test_a_unit_interval_stretched_by_hand_shares_the_draw_of_a_call_that_names_its_bounds() -> None:
    torch, mx = pytest.importorskip("torch"), pytest.importorskip("mlx.core")
    by_hand = draw("torch", lambda: torch.distributions.Uniform(-np.pi, np.pi).sample((1, 9, 1)), SeededDraws(Tape(3)))
    named = draw("mlx", lambda: mx.random.uniform(-np.pi, np.pi, (1, 9, 1)), SeededDraws(Tape(3)))
    assert np.allclose(by_hand.values[0] * 2 * np.pi - np.pi, named.values[0], atol=1e-6)


def test_the_seed_reaches_scaled_normals_integers_permutations_coins_and_dropout() -> None:
    torch, mx = pytest.importorskip("torch"), pytest.importorskip("mlx.core")

    def on_torch() -> None:
        torch.normal(5.0, 2.0, (4,))
        torch.randint(3, 9, (6,))
        torch.randperm(5)
        torch.empty(8).bernoulli_(0.3)
        torch.nn.functional.dropout(torch.ones(50), 0.4, training=True)

    def on_mlx() -> None:
        mx.random.normal((4,), loc=5.0, scale=2.0)
        mx.random.randint(3, 9, (6,))

    ours, theirs = draw("torch", on_torch, SeededDraws(Tape(0))), draw("mlx", on_mlx, SeededDraws(Tape(0)))
    assert np.allclose(ours.values[0], theirs.values[0])
    assert ours.values[1].tolist() == theirs.values[1].tolist()
    assert sorted(ours.values[2].tolist()) == [0, 1, 2, 3, 4]
    assert set(ours.values[3].tolist()) <= {0.0, 1.0}
    assert 0.3 < ours.values[4].mean() < 0.9
    assert not ours.not_seen


def test_a_second_run_draws_what_the_first_one_drew() -> None:
    torch = pytest.importorskip("torch")
    draws = SeededDraws(Tape(1))
    first, second = (draw("torch", lambda: torch.randn(4), draws) for _ in range(2))
    assert np.array_equal(first.values[0], second.values[0])


def test_a_draw_that_the_tape_cannot_make_is_the_frameworks_own_and_is_reported() -> None:
    torch = pytest.importorskip("torch")
    seen = draw("torch", lambda: torch.multinomial(torch.ones(4), 2), SeededDraws(Tape(1)))
    assert seen.values[0].shape == (2,)
    assert seen.not_seen == ["draw not seeded: random.categorical in stage ''; the framework's own was kept"]


def test_noise_that_a_port_keeps_is_the_draw_that_its_reference_makes() -> None:
    torch = pytest.importorskip("torch")
    draws = SeededDraws(Tape(1))
    kept = draws.take("flow", "random.normal", (1, 4))

    def run() -> None:
        with td.stage("flow"):
            torch.randn(1, 4)

    assert np.array_equal(draw("torch", run, SeededDraws(Tape(1))).values[0], kept)
    assert not np.array_equal(draw("torch", run, draws).values[0], kept)


@given(st.lists(st.integers(2, 7), min_size=2, max_size=4, unique=True), st.randoms())
def test_a_permuted_layout_is_undone_where_the_sizes_tell_the_axes(shape: list[int], random: Any) -> None:
    values = np.arange(np.prod(shape)).reshape(shape)
    order = list(range(len(shape)))
    random.shuffle(order)
    wanted = values.transpose(order)
    found = laid_out(values, wanted.shape)
    assert found is not None
    assert np.array_equal(found, wanted)


def test_axes_of_size_one_do_not_keep_layouts_apart() -> None:
    values = np.arange(6).reshape(1, 2, 3)
    assert np.array_equal(laid_out(values, (3, 1, 2)), values[0].T.reshape(3, 1, 2))


def test_equal_sizes_keep_their_order() -> None:
    values = np.arange(16).reshape(1, 4, 4)
    assert np.array_equal(laid_out(values, (4, 4)), values[0])


def test_another_size_is_no_layout() -> None:
    assert laid_out(np.zeros(6), (7,)) is None


def recorded(tmp_path: Path, run: Any) -> Trace:
    """A trace of a reference's draws, each its framework's own."""
    from tracediff.observe.options import CaptureOptions
    from tracediff.observe.recording import record_run

    return open_trace(record_run(None, run, tmp_path / "ref.h5", options=CaptureOptions(impl="torch", repeat=False)))


def test_playback_gives_the_port_the_references_draws_in_its_own_layout_and_scale(tmp_path: Path) -> None:
    torch, mx = pytest.importorskip("torch"), pytest.importorskip("mlx.core")
    drawn: list[Any] = []

    def reference() -> None:
        drawn.append(torch.randn(2, 3, 5).numpy())
        drawn.append(torch.rand(4).numpy())

    def port() -> None:
        mx.random.normal((2, 5, 3), scale=2.0)
        mx.random.uniform(-1.0, 1.0, (4,))

    with recorded(tmp_path, reference) as trace:
        seen = draw("mlx", port, Playback(trace))
    assert np.array_equal(seen.values[0], 2 * drawn[0].transpose(0, 2, 1))
    assert np.allclose(seen.values[1], 2 * drawn[1] - 1, atol=1e-6)
    assert not seen.not_seen


def test_playback_hands_over_the_tokens_that_the_reference_sampled(tmp_path: Path) -> None:
    torch, mx = pytest.importorskip("torch"), pytest.importorskip("mlx.core")
    tokens: list[int] = []
    with recorded(tmp_path, lambda: tokens.append(int(torch.multinomial(torch.ones(1, 1000), 1)))) as trace:
        seen = draw("mlx", lambda: mx.random.categorical(mx.zeros((1, 1000))), Playback(trace))
    assert seen.values[0].tolist() == tokens


def test_a_draw_without_partner_is_reported_and_left_alone(tmp_path: Path) -> None:
    torch, mx = pytest.importorskip("torch"), pytest.importorskip("mlx.core")

    def port() -> None:
        mx.random.normal((3,))
        mx.random.normal((3,))
        mx.random.uniform(shape=(2,))

    def reference() -> None:
        torch.randn(3)
        torch.randperm(4)

    with recorded(tmp_path, reference) as trace:
        seen = draw("mlx", port, Playback(trace))
    assert seen.not_seen == [
        "draw without partner: random.normal [3] in stage '' is number 2, and the reference made 1; the port's own was kept",
        "draw without partner: random.uniform [2] in stage '' is number 1, and the reference made 0; the port's own was kept",
        "draw without partner: 1 of the reference's random.permutation in stage '' were not asked for",
    ]


def test_a_draw_of_another_size_has_no_partner(tmp_path: Path) -> None:
    torch, mx = pytest.importorskip("torch"), pytest.importorskip("mlx.core")
    with recorded(tmp_path, lambda: torch.randn(3)) as trace:
        seen = draw("mlx", lambda: mx.random.normal((4,)), Playback(trace))
    assert "is of shape [4], and the reference's of [3]" in seen.not_seen[0]


def test_draws_of_a_stage_that_the_port_did_not_run_are_not_missed(tmp_path: Path) -> None:
    torch, mx = pytest.importorskip("torch"), pytest.importorskip("mlx.core")

    def reference() -> None:
        with td.stage("flow"):
            torch.randn(3)

    with recorded(tmp_path, reference) as trace:
        seen = draw("mlx", lambda: td.tap("x", mx.zeros(2)), Playback(trace))
    assert not seen.not_seen


@pytest.mark.parametrize("scoped", [True, False], ids=["with scopes", "without"])
@pytest.mark.parametrize("further", ["port", "reference"])
def test_a_draw_that_only_one_side_makes_shifts_none_of_the_others(tmp_path: Path, further: str, scoped: bool) -> None:
    mx = pytest.importorskip("mlx.core")

    def run(makes_further: bool) -> Any:
        def steps() -> None:
            for step in range(3):
                with td.scope("step", step) if scoped else td.scope("all", 0):
                    if makes_further:
                        mx.random.normal((5,))
                    mx.random.normal((2, 3))

        return steps

    with td.record(None, tmp_path / "ref.h5", impl="mlx"):
        run(further == "reference")()
    with open_trace(tmp_path / "ref.h5") as trace:
        drawn = [record.read() for record in trace.records if record.end == "draw" and record.shape == (2, 3)]
        seen = draw("mlx", run(further == "port"), Playback(trace))
    got = [values for values in seen.values if values.shape == (2, 3)]
    assert all(np.array_equal(one, other) for one, other in zip(drawn, got, strict=True))
    assert any("without partner" in line for line in seen.not_seen)


def test_a_further_draw_of_the_same_size_shifts_none_in_the_next_step(tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core")

    def run(times: int) -> Any:
        def steps() -> None:
            for step in range(3):
                with td.scope("step", step):
                    for _ in range(times):
                        mx.random.normal((4,))

        return steps

    with td.record(None, tmp_path / "ref.h5", impl="mlx"):
        run(1)()
    with open_trace(tmp_path / "ref.h5") as trace:
        drawn = [record.read() for record in trace.records if record.end == "draw"]
        seen = draw("mlx", run(2), Playback(trace))
    assert all(np.array_equal(one, other) for one, other in zip(drawn, seen.values[::2], strict=True))
