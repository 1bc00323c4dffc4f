"""Selections: the chosen ids are sites of one name on both sides, forced runs go on with the reference's choice, draws are played back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_observe_sites import Boundaries, seen

import tracediff as td
from tracediff.observe import observe
from tracediff.observe.randomness import ODDS, Playback, SeededDraws, Tape

torch = pytest.importorskip("torch")
mx = pytest.importorskip("mlx.core")

LOGITS = np.array([[0.1, 2.0, 2.0, -1.0], [3.0, 0.0, -2.0, 0.5]], np.float32)
TIED = np.array([[0.1, 1.0, 1.0 + 1.2e-7, -1.0]], np.float32)


def test_selections_have_one_name_in_both_frameworks() -> None:
    ours, theirs = torch.from_numpy(LOGITS), mx.array(LOGITS)
    runs: dict[str, tuple[Any, ...]] = {
        "torch": (
            lambda: torch.argmax(ours, -1),
            lambda: ours.argmax(dim=-1),
            lambda: ours.argmin(None),
            lambda: torch.topk(ours, k=2),
            lambda: ours.topk(2),
            lambda: torch.argsort(ours),
        ),
        "mlx": (
            lambda: mx.argmax(theirs, axis=-1),
            lambda: theirs.argmax(axis=-1),
            lambda: theirs.argmin(None),
            lambda: mx.topk(theirs, k=2),
            lambda: mx.topk(theirs, 2),
            lambda: mx.argsort(theirs),
        ),
    }
    expected = ["!argmax", "!argmax", "!argmin", "!topk", "!topk", "!argsort"]
    for impl, calls in runs.items():
        found = seen(None, lambda calls=calls: [call() for call in calls], impl=impl)
        assert [b.site for b in found.all if b.moment == "enter"] == expected
        assert all(b.leaves[0][0] == "input[0]" for b in found.all if b.moment == "enter")


def test_whole_numbers_that_are_sorted_are_no_selection() -> None:
    lengths = np.array([3, 3, 5])
    assert [b.moment for b in seen(None, lambda: torch.from_numpy(lengths).argsort(), impl="torch").all] == ["return"]
    assert [b.moment for b in seen(None, lambda: mx.argsort(mx.array(lengths)), impl="mlx").all] == ["return"]


def test_a_frameworks_functions_are_its_own_again_afterwards() -> None:
    places = [(torch, "argmax"), (torch.Tensor, "argmax"), (torch.Tensor, "topk"), (mx, "argmax"), (mx, "argsort")]
    before = [getattr(owner, name) for owner, name in places]
    held = vars(mx.array)["argmax"]

    def fails() -> None:
        mx.array(LOGITS).argmax()
        raise ValueError("no")

    for impl in ("torch", "mlx"):
        with pytest.raises(ValueError, match="no"):
            observe(None, fails, [Boundaries()], impl=impl)
    assert all(getattr(owner, name) is own for (owner, name), own in zip(places, before, strict=True))
    assert vars(mx.array)["argmax"] is held


class Chooser:
    """Two tokens chosen one after the other, the second from what the first one's embedding gives."""

    def __init__(self, framework: Any, error: float = 0.0, offset: int = 0) -> None:
        self.framework, self.error, self.offset = framework, error, offset
        self.table = np.linspace(-1.0, 1.0, 16, dtype=np.float32).reshape(4, 4)

    def __call__(self) -> Any:
        make = torch.from_numpy if self.framework is torch else mx.array
        logits = td.tap("logits", make(TIED + np.float32([0.0, self.error, 0.0, 0.0])))
        token = (torch if self.framework is torch else mx).argmax(logits, -1)
        return td.tap("hidden", make(self.table)[token] + self.offset)


def test_a_near_tie_does_not_send_a_forced_port_down_another_path(tmp_path: Path) -> None:
    td.capture(None, Chooser(torch), to=tmp_path / "ref.h5", floor=False, impl="torch")
    port = Chooser(mx, error=4e-7)
    free = td.capture(None, port, to=tmp_path / "free.h5", impl="mlx", floor=False)
    forced = td.capture(None, port, to=tmp_path / "forced.h5", feed=tmp_path / "ref.h5", impl="mlx")
    with free, forced, td.open_trace(tmp_path / "ref.h5") as reference:
        hidden = [trace.find("#hidden")[0].read() for trace in (reference, free, forced)]
    assert not np.array_equal(hidden[0], hidden[1])  # the free port chose the other token
    assert np.array_equal(hidden[0], hidden[2])


def test_a_fault_after_a_selection_is_still_found(tmp_path: Path) -> None:
    td.capture(None, Chooser(torch), to=tmp_path / "ref.h5", floor=False, impl="torch")
    td.capture(None, Chooser(mx, error=4e-7, offset=1), to=tmp_path / "forced.h5", feed=tmp_path / "ref.h5", impl="mlx")
    report = td.diff(tmp_path / "ref.h5", tmp_path / "forced.h5")
    assert "#hidden" in [d.site.port for d in report.divergences]


def sampled(framework: Any, temperature: float = 1.0) -> Any:
    """A token for each row of the logits, as either framework samples one."""
    if framework is torch:
        return torch.multinomial(torch.softmax(torch.from_numpy(LOGITS) / temperature, dim=-1), 1)
    return mx.random.categorical(mx.array(LOGITS) * (1 / temperature))


def probabilities(found: Boundaries) -> np.ndarray[Any, Any]:
    return next(values for (call, end), values in found.values.items() if end == ODDS)


def test_both_ways_to_draw_tell_the_same_probabilities() -> None:
    ours = seen(None, lambda: sampled(torch), impl="torch")
    theirs = seen(None, lambda: sampled(mx), impl="mlx")
    assert probabilities(ours).dtype == np.float32
    assert probabilities(ours) == pytest.approx(probabilities(theirs), rel=1e-6)
    assert probabilities(ours).sum(axis=-1) == pytest.approx(1.0)
    along_first = seen(None, lambda: mx.random.categorical(mx.array(LOGITS.T), axis=0), impl="mlx")
    assert probabilities(along_first) == pytest.approx(probabilities(theirs), rel=1e-6)


def test_a_recorded_token_is_played_back_in_the_ports_layout(tmp_path: Path) -> None:
    torch.manual_seed(3)
    with td.capture(None, lambda: td.tap("t", sampled(torch)), to=tmp_path / "ref.h5", floor=False, impl="torch") as reference:
        tokens = reference.find("#t")[0].read()
        for seed in range(3):
            mx.random.seed(seed)
            found = seen_with(Playback(reference))
            assert found.values["#t[0]", "value"].tolist() == tokens[:, 0].tolist()
            assert not found.run.not_seen


def seen_with(draws: Any) -> Boundaries:
    found = Boundaries()
    observe(None, lambda: td.tap("t", sampled(mx)), [draws, found], impl="mlx")
    return found


def test_a_sampler_of_another_temperature_is_seen_at_the_draw(tmp_path: Path) -> None:
    td.capture(None, lambda: sampled(torch), to=tmp_path / "ref.h5", floor=False, impl="torch")
    for temperature, verdict in ((1.0, "same"), (0.8, "different")):
        path = tmp_path / f"{temperature}.h5"
        td.capture(
            None, lambda temperature=temperature: sampled(mx, temperature), to=path, random=tmp_path / "ref.h5", impl="mlx", floor=False
        )
        report = td.diff(tmp_path / "ref.h5", path)
        assert report.verdict == verdict
        if verdict == "different":
            assert report.first is not None
            assert report.first.site.end == ODDS


def test_two_sides_with_one_seed_draw_the_same_tokens() -> None:
    def drawn(framework: Any, impl: str) -> list[int]:
        found = Boundaries()
        observe(None, lambda: td.tap("t", sampled(framework)), [SeededDraws(Tape(5)), found], impl=impl)
        assert not found.run.not_seen
        return [int(token) for token in found.values["#t[0]", "value"].reshape(-1)]

    assert drawn(torch, "torch") == drawn(mx, "mlx")


def test_seeded_tokens_follow_their_probabilities() -> None:
    odds = np.array([[0.5, 0.25, 0.25, 0.0]] * 4000, np.float32)
    found = Boundaries()
    observe(None, lambda: td.tap("t", torch.multinomial(torch.from_numpy(odds), 1)), [SeededDraws(Tape(1)), found], impl="torch")
    shares = np.bincount(found.values["#t[0]", "value"].reshape(-1), minlength=4) / 4000
    assert shares == pytest.approx([0.5, 0.25, 0.25, 0.0], abs=0.03)
    assert shares[3] == 0


def test_selections_leave_results_as_they_are(side: SimpleNamespace) -> None:
    def run() -> list[Any]:
        return [sampled(torch if side.name == "torch" else mx), Chooser(torch if side.name == "torch" else mx)()]

    side.seed(1)
    bare = [side.numpy(value).tolist() for value in run()]
    side.seed(1)
    assert [side.numpy(value).tolist() for value in observe(None, run, [Boundaries()], impl=side.name)] == bare
