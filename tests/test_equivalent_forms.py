"""A port that says the same in another way is the same; what merely hides an error acquits nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
mx = pytest.importorskip("mlx.core")
nn = pytest.importorskip("mlx.nn")

import tracediff as td  # noqa: E402

WIDTH, EXPERTS, TOKENS, CHOSEN = 16, 6, 5, 3
X = np.random.default_rng(0).standard_normal((TOKENS, WIDTH)).astype(np.float32)
MODES = ("forced", "free")


class Linear(torch.nn.Linear):
    """A linear layer with telling weights."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        drawn = np.random.default_rng(sizes)
        self.weight.data = torch.tensor(drawn.standard_normal(self.weight.shape).astype(np.float32) / sizes[0] ** 0.5)
        self.bias.data = torch.tensor(0.1 * drawn.standard_normal(self.bias.shape).astype(np.float32))


def ported(layer: Linear, gain: float = 1.0) -> Any:
    one = nn.Linear(layer.in_features, layer.out_features)
    one.weight, one.bias = (mx.array(gain * value.detach().numpy()) for value in (layer.weight, layer.bias))
    return one


def recorded(reference: Any, port: Any, folder: Path, mode: str = "forced", x: Any = X) -> tuple[Path, Path]:
    """The traces of the reference and of a port that is forced or runs free."""
    folder.mkdir(exist_ok=True)
    paths = folder / "ref.h5", folder / f"{mode}.h5"
    with torch.no_grad():
        td.capture(reference, (torch.tensor(x),), to=paths[0]).close()
    td.capture(port, (mx.array(x),), to=paths[1], **{"feed" if mode == "forced" else "random": paths[0]}).close()
    return paths


def compared(reference: Any, port: Any, folder: Path, mode: str = "forced", x: Any = X) -> Any:
    """The report on a port."""
    return td.bisect(*recorded(reference, port, folder, mode, x))


# -- the order of a set --------------------------------------------------------------------------------------------------------------------


class Routed(torch.nn.Module):
    """A mixture of experts: those that a router scores highest, best first."""

    def __init__(self) -> None:
        super().__init__()
        self.router = Linear(WIDTH, EXPERTS)
        self.weigh = torch.nn.Softmax(dim=-1)
        self.experts = torch.nn.ModuleList(Linear(WIDTH, WIDTH) for _ in range(EXPERTS))
        self.out = Linear(WIDTH, WIDTH)
        for number, expert in enumerate(self.experts):
            expert.weight.data *= 1 + number

    def forward(self, x: Any) -> Any:
        scores, ids = torch.topk(self.router(x), CHOSEN)
        weights = self.weigh(scores)
        every = torch.stack([expert(x) for expert in self.experts], 1)
        chosen = torch.take_along_dim(every, ids[..., None], 1)
        return self.out((weights[..., None] * chosen).sum(1))


class RoutedPort(nn.Module):
    """The same, the chosen experts worst first; ``mixed``: the weights stay best first, and so fall on the wrong experts."""

    def __init__(self, reference: Routed, *, mixed: bool = False) -> None:
        super().__init__()
        self.router, self.out = ported(reference.router), ported(reference.out)
        self.weigh = nn.Softmax()
        self.experts = [ported(expert) for expert in reference.experts]
        self.mixed = mixed

    def __call__(self, x: Any) -> Any:
        scores = self.router(x)
        ids = mx.argsort(scores, axis=-1)[..., -CHOSEN:]
        weights = self.weigh(mx.take_along_axis(scores, ids, -1))
        every = mx.stack([expert(x) for expert in self.experts], 1)
        chosen = mx.take_along_axis(every, (ids[..., ::-1] if self.mixed else ids)[..., None], 1)
        return self.out((weights[..., None] * chosen).sum(1))


@pytest.mark.parametrize("mode", MODES)
def test_a_set_in_another_order_is_the_same(mode: str, tmp_path: Path) -> None:
    reference = Routed()
    report = compared(reference, RoutedPort(reference), tmp_path, mode)
    assert (report.verdict, report.divergences) == ("same", ())
    assert {form.where.reference for form in report.equivalent} >= {"weigh"}
    assert all(form.absorber == "" for form in report.equivalent)
    assert "Equivalent form: weigh" in str(report)
    assert td.Report.from_json(report.to_json()).equivalent == report.equivalent


@pytest.mark.parametrize("mode", MODES)
def test_a_set_in_another_order_without_its_companion_is_not(mode: str, tmp_path: Path) -> None:
    reference = Routed()
    report = compared(reference, RoutedPort(reference, mixed=True), tmp_path, mode)
    assert report.verdict == "different"


# -- a factor folded into weights ----------------------------------------------------------------------------------------------------------


class Gated(torch.nn.Module):
    """Two projections of which one is multiplied by the other, times a factor; a third follows."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.value, self.out = Linear(WIDTH, WIDTH), Linear(WIDTH, WIDTH), Linear(WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        return self.out(3.0 * self.key(x) * self.value(x))


class GatedPort(nn.Module):
    """The factor is folded into the key's weights; ``twice``: and applied once more in the code."""

    def __init__(self, reference: Gated, *, twice: bool = False) -> None:
        super().__init__()
        self.key, self.value, self.out = ported(reference.key, 3.0), ported(reference.value), ported(reference.out)
        self.factor = 3.0 if twice else 1.0

    def __call__(self, x: Any) -> Any:
        return self.out(self.factor * self.key(x) * self.value(x))


@pytest.mark.parametrize("mode", MODES)
def test_a_factor_folded_into_weights_is_the_same(mode: str, tmp_path: Path) -> None:
    reference = Gated()
    assert compared(reference, GatedPort(reference), tmp_path, mode).verdict == "same"


@pytest.mark.parametrize("mode", MODES)
def test_a_factor_folded_into_weights_and_applied_again_is_not(mode: str, tmp_path: Path) -> None:
    reference = Gated()
    assert compared(reference, GatedPort(reference, twice=True), tmp_path, mode).verdict == "different"


class Chained(torch.nn.Module):
    """Two layers, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Linear(WIDTH, WIDTH), Linear(WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        return self.last(torch.relu(self.first(x)))


class ChainedPort(nn.Module):
    """The first layer gives three times as much; the last one takes it back, unless ``only_first``."""

    def __init__(self, reference: Chained, *, only_first: bool = False) -> None:
        super().__init__()
        self.first, self.last = ported(reference.first, 3.0), ported(reference.last)
        if not only_first:
            self.last.weight = self.last.weight / 3.0

    def __call__(self, x: Any) -> Any:
        return self.last(nn.relu(self.first(x)))


@pytest.mark.parametrize("mode", MODES)
def test_a_factor_moved_from_a_layer_to_the_next_is_the_same(mode: str, tmp_path: Path) -> None:
    reference = Chained()
    report = compared(reference, ChainedPort(reference), tmp_path, mode)
    assert report.verdict == "same"
    assert "first" in {form.where.reference for form in report.equivalent}


@pytest.mark.parametrize("mode", MODES)
def test_a_factor_that_the_next_layer_does_not_take_back_is_not(mode: str, tmp_path: Path) -> None:
    reference = Chained()
    report = compared(reference, ChainedPort(reference, only_first=True), tmp_path, mode)
    assert (report.verdict, report.first.culprit.reference) == ("different", "first")


class Rough(torch.nn.Module):
    """What rounding changes by a hundredth of its size, and then two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.chained = Linear(WIDTH, WIDTH), Chained()

    def forward(self, x: Any) -> Any:
        return self.chained((self.before(x) + 1e5) - 1e5)


class RoughPort(nn.Module):
    """``gain``: by how much more the first layer gives, ``back``: what the last one takes back of it."""

    def __init__(self, reference: Rough, gain: float, back: float) -> None:
        super().__init__()
        self.before, self.chained = ported(reference.before), ChainedPort(reference.chained, only_first=True)
        self.chained.first = ported(reference.chained.first, gain)
        self.chained.last.weight = self.chained.last.weight / back

    def __call__(self, x: Any) -> Any:
        return self.chained((self.before(x) + 1e5) - 1e5)


@pytest.mark.parametrize(("gain", "back", "verdict"), [(1.02, 1.02, "same"), (1.02, 1.0, "different"), (1.02, 1.03, "different")])
def test_a_form_that_a_free_run_is_too_noisy_to_show_is_the_same_forced(gain: float, back: float, verdict: str, tmp_path: Path) -> None:
    reference = Rough()
    report = compared(reference, RoughPort(reference, gain, back), tmp_path)
    assert report.verdict == verdict
    assert ("chained.first" in {form.where.reference for form in report.equivalent}) == (verdict == "same")


@pytest.mark.parametrize("size", [0.02, 0.03, 0.05, 0.08, 0.12, 0.2])
def test_what_a_random_error_hardly_exceeds_is_not_acquitted(size: float, tmp_path: Path) -> None:
    reference = Rough()
    reference.chained.last.weight.data[:, 3] *= 0.5  # so that a wrong channel shows by half as much as a random error
    port = RoughPort(reference, 1.0, 1.0)
    wrong = np.array(port.chained.first.weight)
    wrong[3] += size * np.linalg.norm(wrong) * np.random.default_rng(0).standard_normal(WIDTH) / WIDTH**0.5
    port.chained.first.weight = mx.array(wrong)
    assert compared(reference, port, tmp_path).verdict == "different"


class Kept(torch.nn.Module):
    """What rounding changes by a hundredth of its size, and two layers, of which the second sees the first token alone."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.first, self.last = Linear(WIDTH, WIDTH), Linear(WIDTH, WIDTH), Linear(WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        made = self.first((self.before(x) + 1e5) - 1e5)
        return self.last(made * (torch.arange(TOKENS) == 0)[:, None])


class Unlike(nn.Linear):
    """A layer that gives something else for all tokens but the first, and ``leak`` times so much for that."""

    leak = 0.0

    def __call__(self, x: Any) -> Any:
        wrong = np.random.default_rng(5).standard_normal((TOKENS, WIDTH)).astype(np.float32)
        wrong[0] *= self.leak
        return super().__call__(x) + mx.array(wrong)


class KeptPort(nn.Module):
    def __init__(self, reference: Kept, leak: float) -> None:
        super().__init__()
        self.before, self.first, self.last = ported(reference.before), Unlike(WIDTH, WIDTH), ported(reference.last)
        self.first.weight, self.first.bias = ported(reference.first).weight, ported(reference.first).bias
        self.first.leak = leak

    def __call__(self, x: Any) -> Any:
        made = self.first((self.before(x) + 1e5) - 1e5)
        return self.last(made * (mx.arange(TOKENS) == 0)[:, None])


@pytest.mark.parametrize(("leak", "verdict"), [(0.0, "same"), (0.005, "different"), (0.02, "different")])
def test_what_dwindles_below_what_noise_allows_is_not_what_is_discarded(leak: float, verdict: str, tmp_path: Path) -> None:
    reference = Kept()
    assert compared(reference, KeptPort(reference, leak), tmp_path).verdict == verdict


class Padding(torch.nn.Module):
    """Puts something drawn into the first two places."""

    def __init__(self) -> None:
        super().__init__()
        self.value = torch.tensor(np.random.default_rng(1).standard_normal((2, WIDTH)).astype(np.float32))

    def forward(self, x: Any) -> Any:
        return torch.cat([self.value, x[2:]])


class Deep(torch.nn.Module):
    """A stack of rotations, place by place, of which the last place is returned; the first places are padding."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = Padding()
        self.layers = torch.nn.ModuleList(Linear(WIDTH, WIDTH) for _ in range(32))
        for layer in self.layers:
            layer.weight.data = torch.linalg.qr(layer.weight.data)[0]
        self.out = Linear(WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        x = self.pad(x)
        for layer in self.layers:
            x = layer(x + torch.tanh(x))
        return self.out(x[-1:])


class PaddingPort(nn.Module):
    leak = 0.0

    def __call__(self, x: Any) -> Any:
        drawn = np.random.default_rng(2).standard_normal((2, WIDTH)).astype(np.float32)
        return mx.concatenate([mx.array(drawn), x[2:] * (1 + self.leak)])


class DeepPort(nn.Module):
    """The same, with other padding; ``leak``: it scales the other places besides."""

    def __init__(self, reference: Deep, leak: float) -> None:
        super().__init__()
        self.pad = PaddingPort()
        self.pad.leak = leak
        self.layers = [ported(layer) for layer in reference.layers]
        self.out = ported(reference.out)

    def __call__(self, x: Any) -> Any:
        x = self.pad(x)
        for layer in self.layers:
            x = layer(x + mx.tanh(x))
        return self.out(x[-1:])


@pytest.mark.parametrize(("leak", "verdict"), [(0.0, "same"), (1e-5, "different")])
def test_beside_padding_of_its_own_no_rounding_adds_up_in_the_other_places(leak: float, verdict: str, tmp_path: Path) -> None:
    reference = Deep()
    assert compared(reference, DeepPort(reference, leak), tmp_path).verdict == verdict


class Normed(torch.nn.Module):
    """What rounding changes by as much as its size, a norm with a gain and an offset, and two layers that take it in."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.norm, self.first, self.last = Linear(WIDTH, WIDTH), torch.nn.LayerNorm(WIDTH), Linear(WIDTH, 5), Linear(WIDTH, 5)
        drawn = np.random.default_rng(7).standard_normal((2, WIDTH)).astype(np.float32)
        self.norm.weight.data, self.norm.bias.data = torch.tensor(1 + 0.3 * drawn[0]), torch.tensor(0.3 * drawn[1])

    def forward(self, x: Any) -> Any:
        x = self.norm(self.before(x) + 3e6 - 3e6)
        return torch.tanh(self.first(x)) * self.last(x)


class NormedPort(nn.Module):
    """The gain and the offset of the norm are folded into the layers behind, but for what ``forgotten`` names."""

    def __init__(self, reference: Normed, forgotten: str) -> None:
        super().__init__()
        self.before, self.norm = ported(reference.before), nn.LayerNorm(WIDTH)
        self.first, self.last = ported(reference.first), ported(reference.last)
        gain, offset = (mx.array(value.detach().numpy()) for value in (reference.norm.weight, reference.norm.bias))
        for name, layer in (("first", self.first), ("last", self.last)):
            layer.bias = layer.bias if forgotten == f"{name}.bias" else layer.bias + layer.weight @ offset
            layer.weight = layer.weight if forgotten == f"{name}.weight" else layer.weight * gain

    def __call__(self, x: Any) -> Any:
        x = self.norm(self.before(x) + 3e6 - 3e6)
        return mx.tanh(self.first(x)) * self.last(x)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("forgotten", ["", "first.weight", "last.weight", "last.bias"])
def test_weights_alone_tell_that_a_gain_is_in_the_layers_behind(mode: str, forgotten: str, tmp_path: Path) -> None:
    reference = Normed()
    report = compared(reference, NormedPort(reference, forgotten), tmp_path, mode)
    assert not report.divergences or forgotten
    assert report.withheld is None or "weights" not in report.withheld.code or forgotten
    assert (report.verdict == "same") <= (not forgotten)


class Reordered(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = Linear(WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        return self.last(x)


class ReorderedPort(nn.Module):
    """The layer's channels stand in another order, which the root's code puts right, unless it does not."""

    def __init__(self, reference: Reordered, *, is_put_right: bool = True) -> None:
        super().__init__()
        self.last = ported(reference.last)
        self.last.weight, self.last.bias = self.last.weight[::-1], self.last.bias[::-1]
        self.is_put_right = is_put_right

    def __call__(self, x: Any) -> Any:
        made = self.last(x)
        return made[..., ::-1] if self.is_put_right else made


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("is_right", [True, False])
def test_channels_in_another_order_are_the_same_where_the_code_behind_puts_them_right(mode: str, is_right: bool, tmp_path: Path) -> None:
    reference = Reordered()
    report = compared(reference, ReorderedPort(reference, is_put_right=is_right), tmp_path, mode)
    assert report.verdict == ("same" if is_right else "different")


class Units(torch.nn.Module):
    """Two layers with few units between them; ``faint``: of which little follows beside what rounding changes."""

    def __init__(self, units: int, *, faint: bool = False) -> None:
        super().__init__()
        self.first, self.last = Linear(WIDTH, units), Linear(units, WIDTH)
        self.share, self.noise = (0.02, 3e5) if faint else (1.0, 0.0)

    def forward(self, x: Any) -> Any:
        return (x + self.share * self.last(torch.relu(self.first(x))) + self.noise) - self.noise


class UnitsPort(nn.Module):
    """The units are in another order; ``half``: in one of the two layers only."""

    def __init__(self, reference: Units, half: str) -> None:
        super().__init__()
        self.first, self.last, self.share, self.noise = ported(reference.first), ported(reference.last), reference.share, reference.noise
        order = mx.array(np.roll(np.arange(reference.first.out_features), 1))
        if half != "last":
            self.first.weight, self.first.bias = self.first.weight[order], self.first.bias[order]
        if half != "first":
            self.last.weight = self.last.weight[:, order]

    def __call__(self, x: Any) -> Any:
        return (x + self.share * self.last(nn.relu(self.first(x))) + self.noise) - self.noise


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("half", ["", "first", "last"])
def test_two_units_exchanged_are_no_gain_where_the_layer_behind_has_its_inputs_exchanged(mode: str, half: str, tmp_path: Path) -> None:
    reference, alike = Units(2), X[:1] + 0.01 * X  # of almost equal tokens an exchange is a gain of -1 and an offset
    report = compared(reference, UnitsPort(reference, half), tmp_path, mode, alike)
    assert report.verdict == ("different" if half else "same")


@pytest.mark.parametrize("units", [2, 8])
@pytest.mark.parametrize("half", ["", "first", "last"])
def test_an_order_that_weights_prove_needs_no_random_error_that_shows(units: int, half: str, tmp_path: Path) -> None:
    reference = Units(units, faint=True)
    report = compared(reference, UnitsPort(reference, half), tmp_path)
    assert report.verdict == ("different" if half else "same")


# -- what hides an error -------------------------------------------------------------------------------------------------------------------


class Hidden(torch.nn.Module):
    """A projection, then what may hide an error in it."""

    def __init__(self, hide: Any) -> None:
        super().__init__()
        self.first, self.last, self.hide = Linear(WIDTH, WIDTH), Linear(WIDTH, WIDTH), hide

    def forward(self, x: Any) -> Any:
        return self.last(self.hide(self.first(x)))


class HiddenPort(nn.Module):
    def __init__(self, reference: Hidden, hide: Any, gain: float) -> None:
        super().__init__()
        self.first, self.last, self.hide = ported(reference.first), ported(reference.last), hide
        self.gain = gain

    def __call__(self, x: Any) -> Any:
        return self.last(self.hide(self.gain * self.first(x)))


@pytest.mark.parametrize("mode", MODES)
def test_a_gain_that_a_normalisation_takes_out_stays_a_finding(mode: str, tmp_path: Path) -> None:
    reference = Hidden(torch.nn.LayerNorm(WIDTH, eps=1e-12, elementwise_affine=False))
    report = compared(reference, HiddenPort(reference, nn.LayerNorm(WIDTH, eps=1e-12, affine=False), 1.5), tmp_path, mode)
    assert report.verdict == "different"


@pytest.mark.parametrize("mode", MODES)
def test_a_wrong_row_of_a_weight_whose_unit_rests_stays_a_finding(mode: str, tmp_path: Path) -> None:
    reference = Hidden(torch.nn.ReLU())
    with torch.no_grad():
        reference.first.bias[3] = -50.0
    port = HiddenPort(reference, nn.ReLU(), 1.0)
    wrong = np.array(port.first.weight)
    wrong[3] = np.random.default_rng(5).standard_normal(WIDTH)
    port.first.weight = mx.array(wrong)
    report = compared(reference, port, tmp_path, mode)
    assert report.verdict == "different"
    assert report.first.culprit.port == "first"


class Averages(torch.nn.Module):
    """What is the same at every token, so that an offset of each channel makes the port's of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Linear(WIDTH, WIDTH), Linear(WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        return self.last(self.first(x.mean(0, keepdim=True).expand_as(x)))


class Adds(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = Averages(), Linear(WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        return self.out(x + self.inner(x))


class FirstOfAverages(nn.Module):
    def __init__(self, reference: Averages) -> None:
        super().__init__()
        self.first = ported(reference.first)

    def __call__(self, x: Any) -> Any:
        return self.first(mx.broadcast_to(x.mean(0, keepdims=True), x.shape))


class FinishesIt(nn.Module):
    """The caller has the last layer."""

    def __init__(self, reference: Adds, last: Any) -> None:
        super().__init__()
        self.inner, self.last, self.out = FirstOfAverages(reference.inner), ported(last), ported(reference.out)

    def __call__(self, x: Any) -> Any:
        return self.out(x + self.last(self.inner(x)))


def test_a_module_whose_last_layer_the_caller_has_is_the_same_and_with_another_layer_it_is_not(tmp_path: Path) -> None:
    reference, other = Adds(), Linear(WIDTH, WIDTH)
    with torch.no_grad():
        other.weight *= torch.linspace(0.5, 2, WIDTH)
    right, wrong = (FinishesIt(reference, last) for last in (reference.inner.last, other))
    for mode in MODES:
        assert compared(reference, right, tmp_path / mode, mode).verdict == "same"
        assert compared(reference, wrong, tmp_path / f"wrong {mode}", mode).verdict != "same"


class Centred(torch.nn.Module):
    """What takes an offset out is code: of a module, or of the run."""

    def __init__(self) -> None:
        super().__init__()
        self.last = Linear(WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        return centred(self.last(x))


class CentredPort(nn.Module):
    def __init__(self, reference: Centred, offset: float) -> None:
        super().__init__()
        self.last = ported(reference.last)
        self.last.bias = self.last.bias + mx.array(offset * X[0])

    def __call__(self, x: Any) -> Any:
        return centred(self.last(x))


def centred(x: Any) -> Any:
    return x - x.mean(0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("offset", [0.0, 1.5])
@pytest.mark.parametrize("is_of_the_run", [True, False])
def test_an_offset_that_code_takes_out_stays_a_finding(mode: str, offset: float, is_of_the_run: bool, tmp_path: Path) -> None:
    reference = Centred().eval()
    port = CentredPort(reference, offset)
    ours, theirs = (reference.last, port.last) if is_of_the_run else (reference, port)
    with torch.no_grad():
        td.capture(ours, lambda: centred(ours(torch.tensor(X))), to=tmp_path / "ref.h5").close()
    given = {"feed" if mode == "forced" else "random": tmp_path / "ref.h5"}
    td.capture(theirs, lambda: centred(theirs(mx.array(X))), to=tmp_path / "port.h5", **given).close()
    assert td.bisect(tmp_path / "ref.h5", tmp_path / "port.h5").verdict == ("different" if offset else "same")


class Unnamed(torch.nn.Module):
    """An RMS norm whose class does not say so, and whose gain is one more than its parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.3 * np.random.default_rng(5).standard_normal(WIDTH).astype(np.float32)))

    def forward(self, x: Any) -> Any:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-12) * (1 + self.gain)


class UnnamedPort(nn.Module):
    """The same, the one added to its parameter."""

    def __init__(self, reference: Unnamed) -> None:
        super().__init__()
        self.weight = 1 + mx.array(reference.gain.detach().numpy())

    def __call__(self, x: Any) -> Any:
        return mx.fast.rms_norm(x, self.weight, 1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("gain", "verdict"), [(1.0, "same"), (1.5, "different")])
def test_other_weights_behind_a_gain_excuse_it_only_where_they_take_it_back(gain: float, verdict: str, mode: str, tmp_path: Path) -> None:
    reference = Hidden(Unnamed())
    report = compared(reference, HiddenPort(reference, UnnamedPort(reference.hide), gain), tmp_path, mode)
    assert report.verdict == verdict


class Scaled(torch.nn.Module):
    """A branch that adds next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.last = Linear(WIDTH, WIDTH), Linear(WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        return self.last(x + 1e-9 * self.branch(x))


class ScaledPort(nn.Module):
    def __init__(self, reference: Scaled) -> None:
        super().__init__()
        self.branch, self.last = ported(reference.branch), ported(reference.last)
        self.branch.weight = self.branch.weight[::-1]

    def __call__(self, x: Any) -> Any:
        return self.last(x + 1e-9 * self.branch(x))


def test_what_no_error_of_that_size_would_change_is_not_acquitted(tmp_path: Path) -> None:
    reference = Scaled()
    report = compared(reference, ScaledPort(reference), tmp_path)
    assert report.verdict == "different"
    assert report.first.culprit.reference == "branch"


class Clamped(torch.nn.Module):
    """What a branch adds is lost where the run clamps all that it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.last = Linear(WIDTH, WIDTH), Linear(WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        return (self.last(x) + self.branch(x) + 100).clamp(-1, 1)


class ClampedPort(nn.Module):
    def __init__(self, reference: Clamped) -> None:
        super().__init__()
        self.branch, self.last = ported(reference.branch), ported(reference.last)
        self.branch.weight = self.branch.weight[::-1]

    def __call__(self, x: Any) -> Any:
        return mx.clip(self.last(x) + self.branch(x) + 100, -1, 1)


@pytest.mark.parametrize("mode", MODES)
def test_an_output_that_noise_never_moves_acquits_nothing(mode: str, tmp_path: Path) -> None:
    reference = Clamped()
    report = compared(reference, ClampedPort(reference), tmp_path, mode)
    assert report.verdict == "different"
    assert report.first.culprit.reference == "branch"


class Two(torch.nn.Module):
    """Two layers, and a branch whose length nothing depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.branch = Linear(WIDTH, WIDTH), Linear(WIDTH, WIDTH), Linear(WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        side = self.branch(x)
        return self.last(self.first(x)) + side / side.norm(dim=-1, keepdim=True)


class TwoPort(nn.Module):
    """Its first layer's channels come in another order, which the last one takes back; its branch is twice as large, which nothing does."""

    def __init__(self, reference: Two) -> None:
        super().__init__()
        self.first, self.last, self.branch = ported(reference.first), ported(reference.last), ported(reference.branch)
        self.first.weight, self.first.bias = self.first.weight[::-1], self.first.bias[::-1]
        self.last.weight, self.branch = self.last.weight[:, ::-1], ported(reference.branch, 2.0)

    def __call__(self, x: Any) -> Any:
        side = self.branch(x)
        return self.last(self.first(x)) + side / mx.linalg.norm(side, axis=-1, keepdims=True)


@pytest.mark.parametrize("mode", MODES)
def test_a_form_excuses_no_other_difference_beside_it(mode: str, tmp_path: Path) -> None:
    reference = Two()
    paths = recorded(reference, TwoPort(reference), tmp_path, mode)
    for scan in (False, True):
        report = td.bisect(*paths, scan=scan)
        assert [one.culprit.reference for one in report.divergences] == ["branch"]
        assert "branch" not in {form.where.reference for form in report.equivalent}


class Rectified(torch.nn.Module):
    """Two layers with a ReLU between them, at tokens that are almost alike: one channel is any other with an offset."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Linear(WIDTH, WIDTH), Linear(WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        return self.last(torch.relu(self.first(x[:1] + 1e-4 * x)))


class RectifiedPort(nn.Module):
    """Its first layer gives its channels backwards; its code puts them right, unless ``lost``."""

    def __init__(self, reference: Rectified, *, lost: bool) -> None:
        super().__init__()
        self.first, self.last, self.lost = ported(reference.first), ported(reference.last), lost
        self.first.weight, self.first.bias = self.first.weight[::-1], self.first.bias[::-1]

    def __call__(self, x: Any) -> Any:
        y = nn.relu(self.first(x[:1] + 1e-4 * x))
        return self.last(y if self.lost else y[:, ::-1])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lost", [False, True])
def test_channels_in_another_order_are_a_form_where_the_callers_code_puts_them_right(lost: bool, mode: str, tmp_path: Path) -> None:
    reference = Rectified()
    report = compared(reference, RectifiedPort(reference, lost=lost), tmp_path, mode)
    assert report.verdict == ("different" if lost else "same")
    assert [form.where.reference for form in report.equivalent if form.where.reference == "first"] == ([] if lost else ["first"])


class Folded(torch.nn.Module):
    """A norm before an attention, whose projections are one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention, self.last = torch.nn.LayerNorm(WIDTH), torch.nn.MultiheadAttention(WIDTH, 2), Linear(WIDTH, WIDTH)
        drawn = np.random.default_rng(1)
        for parameter in (*self.norm.parameters(), *self.attention.parameters()):
            parameter.data = torch.tensor((drawn.standard_normal(parameter.shape) / WIDTH**0.5).astype(np.float32))

    def forward(self, x: Any) -> Any:
        y = self.norm(x)
        return self.last(x + self.attention(y, y, y, need_weights=False)[0])


class Attention(nn.Module):
    """Attention over all tokens, its projections apart."""

    def __init__(self, reference: Any, gain: Any) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        weights, biases = (np.split(one.detach().numpy(), 3) for one in (reference.in_proj_weight, reference.in_proj_bias))
        for layer, weight, bias in zip((self.query, self.key, self.value), weights, biases, strict=True):
            layer.weight, layer.bias = mx.array(weight * gain), mx.array(bias)
        self.out.weight, self.out.bias = (mx.array(one.detach().numpy()) for one in (reference.out_proj.weight, reference.out_proj.bias))

    def __call__(self, x: Any) -> Any:
        heads = [layer(x).reshape(TOKENS, 2, -1).transpose(1, 0, 2) for layer in (self.query, self.key, self.value)]
        weights = mx.softmax(heads[0] @ heads[1].transpose(0, 2, 1) * (WIDTH // 2) ** -0.5, axis=-1)
        return self.out((weights @ heads[2]).transpose(1, 0, 2).reshape(TOKENS, WIDTH))


class FoldedPort(nn.Module):
    """Its norm's gain is in the projections, unless ``lost``."""

    def __init__(self, reference: Folded, *, lost: bool) -> None:
        super().__init__()
        gain, bias = (one.detach().numpy() for one in (reference.norm.weight, reference.norm.bias))
        self.norm, self.last = nn.LayerNorm(WIDTH), ported(reference.last)
        self.norm.bias = mx.array(bias / gain)
        self.attention = Attention(reference.attention, np.ones_like(gain) if lost else gain)

    def __call__(self, x: Any) -> Any:
        return self.last(x + self.attention(self.norm(x)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lost", [False, True])
def test_a_gain_may_be_in_projections_that_one_side_has_in_one_matrix(lost: bool, mode: str, tmp_path: Path) -> None:
    reference = Folded()
    paths = recorded(reference, FoldedPort(reference, lost=lost), tmp_path, mode)
    for scan in (False, True):
        assert td.bisect(*paths, scan=scan).verdict == ("different" if lost else "same")


class Paired(torch.nn.Module):
    """Queries and keys that code multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.last = Linear(WIDTH, WIDTH), Linear(WIDTH, WIDTH), Linear(TOKENS, WIDTH)

    def forward(self, x: Any) -> Any:
        return self.last(self.query(x) @ self.key(x).T)


class PairedPort(nn.Module):
    def __init__(self, reference: Paired, gain: float, other: float) -> None:
        super().__init__()
        self.query, self.key = ported(reference.query, gain), ported(reference.key, other)
        self.last = ported(reference.last)

    def __call__(self, x: Any) -> Any:
        return self.last(self.query(x) @ self.key(x).T)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("other", "verdict"), [(1 / 3, "same"), (1.0, "different"), (0.5, "different")])
def test_a_factor_is_a_form_where_another_makes_up_for_it(other: float, verdict: str, mode: str, tmp_path: Path) -> None:
    reference = Paired()
    assert compared(reference, PairedPort(reference, 3.0, other), tmp_path, mode).verdict == verdict


# -- what it costs -------------------------------------------------------------------------------------------------------------------------


class Counted:
    """A run of a port that counts how often it is called, in its class: what an object holds is put back before each further run."""

    runs = 0

    def __init__(self, port: Any) -> None:
        self.port = port
        type(self).runs = 0

    def __call__(self) -> Any:
        type(self).runs += 1
        return mx.eval(self.port(mx.array(X)))


def runs_of(port: Any, reference: Any, folder: Path) -> int:
    """How often a forced capture runs the port."""
    with torch.no_grad():
        td.capture(reference, (torch.tensor(X),), to=folder / "ref.h5").close()
    td.capture(port, Counted(port), to=folder / "port.h5", feed=folder / "ref.h5").close()
    return Counted.runs


@pytest.mark.parametrize(("is_wrong", "runs"), [(False, 4), (True, 2)])
def test_at_most_two_further_runs_are_made_and_none_for_a_single_place(is_wrong: bool, runs: int, tmp_path: Path) -> None:
    reference = Gated()
    assert runs_of(GatedPort(reference, twice=is_wrong), reference, tmp_path) == runs


def test_no_further_run_is_made_where_nothing_is_flagged(tmp_path: Path) -> None:
    reference = Hidden(torch.nn.Tanh())
    assert runs_of(HiddenPort(reference, nn.Tanh(), 1.0), reference, tmp_path) == 2


def test_what_cannot_be_let_through_stays_a_finding_and_the_trace_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise td.TracediffError("no reason")

    monkeypatch.setattr("tracediff.runs.let_through.let_through", fails)
    reference = Gated()
    report = compared(reference, GatedPort(reference), tmp_path)
    assert report.verdict == "different"
    assert "port: what was flagged was not let through: no reason" in report.coverage.not_seen


# -- a factor in code, in a run in half precision ------------------------------------------------------------------------------------------


class Attends(torch.nn.Module):
    """Attention of one head whose scores are multiplied by a factor in code."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Any) -> Any:
        scores = 0.5 * (self.query(x) @ self.key(x).transpose(-1, -2))
        return self.out(torch.softmax(scores, -1) @ self.value(x))


class AttendsPort(nn.Module):
    """The same in bfloat16, with 16 times the factor in the queries' weights and ``factor`` left in code."""

    def __init__(self, reference: Attends, factor: float) -> None:
        super().__init__()
        self.query = ported(reference.query, 16.0)
        self.key, self.value, self.out = map(ported, (reference.key, reference.value, reference.out))
        self.factor = factor
        self.set_dtype(mx.bfloat16)

    def __call__(self, x: Any) -> Any:
        x = x.astype(mx.bfloat16)
        scores = self.factor * (self.query(x) @ mx.swapaxes(self.key(x), -1, -2))
        return self.out(mx.softmax(scores, axis=-1) @ self.value(x))


@pytest.mark.parametrize(("factor", "verdict"), [(0.5 / 16, "same"), (0.5, "different")])
def test_a_factor_that_the_references_code_would_go_wrong_with_is_a_form_in_a_free_run(factor: float, verdict: str, tmp_path: Path) -> None:
    reference = Attends()
    with torch.no_grad():
        td.capture(reference, (torch.tensor(X),), to=tmp_path / "ref.h5", floor_dtypes=("float64", "bfloat16")).close()
    td.capture(AttendsPort(reference, factor), (mx.array(X),), to=tmp_path / "port.h5", random=tmp_path / "ref.h5").close()
    report = td.bisect(tmp_path / "ref.h5", tmp_path / "port.h5")
    assert report.verdict == verdict
    assert [form.where.reference for form in report.equivalent] == (["query"] if verdict == "same" else [])


# -- a run that is longer at the end, with its axes turned ---------------------------------------------------------------------------------


class Filters(torch.nn.Module):
    """Two causal convolutions, of (batch, channels, length)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Conv1d(1, WIDTH, 3), torch.nn.Conv1d(WIDTH, 1, 3)

    def forward(self, x: Any) -> Any:
        x = torch.nn.functional.pad(x, (2, 0))
        return self.second(torch.nn.functional.pad(torch.relu(self.first(x)), (2, 0)))


class PaddedFilters(nn.Module):
    """The same, of (batch, length, channels), with a row and three places more of zeros, cut off behind."""

    def __init__(self, reference: Filters) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(1, WIDTH, 3), nn.Conv1d(WIDTH, 1, 3)
        for name in ("first", "second"):
            own, other = getattr(self, name), getattr(reference, name)
            own.weight, own.bias = mx.array(other.weight.detach().numpy().transpose(0, 2, 1)), mx.array(other.bias.detach().numpy())

    def __call__(self, x: Any) -> Any:
        batch, _, length = x.shape
        x = mx.pad(mx.swapaxes(x, 1, 2), ((0, 1), (2, 3), (0, 0)))
        x = mx.pad(mx.maximum(self.first(x), 0.0), ((0, 0), (2, 0), (0, 0)))
        return mx.swapaxes(self.second(x)[:batch, :length], 1, 2)


@pytest.mark.parametrize("mode", MODES)
def test_a_run_that_is_longer_at_the_end_is_cut_though_its_axes_are_turned(mode: str, tmp_path: Path) -> None:
    reference = Filters()
    x = np.random.default_rng(2).standard_normal((2, 1, 20)).astype(np.float32)
    report = compared(reference, PaddedFilters(reference), tmp_path, mode, x)
    assert report.verdict == "same"
    read = {pair["reference"] for pair in report.pairs_to_dict() if pair["end"] == "output" and pair["how"]}
    assert read >= {"first", "second"}
