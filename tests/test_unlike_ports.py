"""What ports of real packages showed: layers stacked or apart, lengths carried on, draws of another shape, weights never loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
mx = pytest.importorskip("mlx.core")
nn = pytest.importorskip("mlx.nn")

import tracediff as td  # noqa: E402

WIDTH, LENGTH = 8, 12
X = np.random.default_rng(0).standard_normal((2, LENGTH, WIDTH)).astype(np.float32)
MODES = ("forced", "free")


def array(value: Any) -> Any:
    return mx.array(value.detach().numpy())


def report(reference: Any, port: Any, folder: Path, mode: str, x: np.ndarray = X) -> td.Report:
    with torch.no_grad():
        td.capture(reference.eval(), (torch.tensor(x),), to=folder / "ref.h5").close()
    td.capture(port, (mx.array(x),), to=folder / "port.h5", **{"feed" if mode == "forced" else "random": folder / "ref.h5"}).close()
    return td.diff(folder / "ref.h5", folder / "port.h5")


def loaded(port: Any, reference: Any, name: str = "", other: str = "") -> None:
    """Copies a linear layer's parameters."""
    ours = reference if not name else getattr(reference, name)
    theirs = getattr(port, other or name)
    theirs.weight, theirs.bias = array(ours.weight), array(ours.bias)


# -- a recurrent stack against a list of its layers ----------------------------------------------------------------------------------------


class Stack(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.lstm = torch.nn.Linear(WIDTH, WIDTH), torch.nn.LSTM(WIDTH, WIDTH, num_layers=2, batch_first=True)

    def forward(self, x: Any) -> Any:
        y = self.first(x)
        return y + self.lstm(y)[0]


class Layers(nn.Module):
    """The same, a module a layer in a list. ``swapped`` exchanges two gates of the second layer: a fault."""

    def __init__(self, reference: Stack, *, swapped: bool = False) -> None:
        super().__init__()
        self.first, self.lstm = nn.Linear(WIDTH, WIDTH), [nn.LSTM(WIDTH, WIDTH) for _ in range(2)]
        loaded(self, reference, "first")
        for number, layer in enumerate(self.lstm):
            layer.Wx, layer.Wh = (array(getattr(reference.lstm, f"weight_{kind}_l{number}")) for kind in ("ih", "hh"))
            layer.bias = array(getattr(reference.lstm, f"bias_ih_l{number}") + getattr(reference.lstm, f"bias_hh_l{number}"))
        if swapped:
            order = np.concatenate([np.arange(WIDTH, 2 * WIDTH), np.arange(WIDTH), np.arange(2 * WIDTH, 4 * WIDTH)])
            self.lstm[1].Wx = self.lstm[1].Wx[mx.array(order)]

    def __call__(self, x: Any) -> Any:
        y = h = self.first(x)
        for layer in self.lstm:
            h = layer(h)[0]
        return y + h


@pytest.mark.parametrize("mode", MODES)
def test_a_recurrent_stack_is_none_of_its_layers(mode: str, tmp_path: Path) -> None:
    reference = Stack()
    assert report(reference, Layers(reference), tmp_path, mode).verdict == "same"


@pytest.mark.parametrize("mode", MODES)
def test_a_fault_in_a_layer_of_a_stack_is_found(mode: str, tmp_path: Path) -> None:
    reference = Stack()
    assert report(reference, Layers(reference, swapped=True), tmp_path, mode).verdict == "different"


# -- lengths -------------------------------------------------------------------------------------------------------------------------------


class Upsampled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = torch.nn.ConvTranspose1d(WIDTH, WIDTH, 4, stride=2, padding=1)
        self.act = torch.nn.Tanh()
        self.out = torch.nn.Conv1d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Any) -> Any:
        return self.out(self.act(self.up(x.transpose(1, 2)))).transpose(1, 2)


class UpsampledPort(nn.Module):
    """The same; its transposed convolution gives ``extra`` more places, which code cuts off behind the activation if ``cuts``."""

    def __init__(self, reference: Upsampled, extra: int, *, cuts: bool) -> None:
        super().__init__()
        self.up = nn.ConvTranspose1d(WIDTH, WIDTH, 4, stride=2, padding=1, output_padding=extra)
        self.act, self.out = nn.Tanh(), nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.up.weight, self.up.bias = array(reference.up.weight.permute(1, 2, 0)), array(reference.up.bias)
        self.out.weight, self.out.bias = array(reference.out.weight.transpose(1, 2)), array(reference.out.bias)
        self.cuts = cuts

    def __call__(self, x: Any) -> Any:
        y = self.act(self.up(x))
        return self.out(y[:, : 2 * LENGTH] if self.cuts else y)


@pytest.mark.parametrize("mode", MODES)
def test_a_length_that_is_carried_on_is_the_fault_of_what_made_it(mode: str, tmp_path: Path) -> None:
    reference = Upsampled()
    found = report(reference, UpsampledPort(reference, 1, cuts=False), tmp_path, mode)
    assert [one.site.reference for one in found.divergences] == ["up"]
    assert found.divergences[0].causes[0].kind == "length"


@pytest.mark.parametrize("mode", MODES)
def test_a_length_that_is_cut_again_is_none(mode: str, tmp_path: Path) -> None:
    reference = Upsampled()
    assert report(reference, UpsampledPort(reference, 1, cuts=True), tmp_path, mode).verdict == "same"


# -- draws ---------------------------------------------------------------------------------------------------------------------------------


class Noisy(torch.nn.Module):
    """Adds noise that is the same for all channels of a place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        y = self.first(x)
        return self.last(y + torch.randn(len(y), LENGTH, 1))


class NoisyPort(nn.Module):
    """The same, but the noise is the same for all places of a channel: two axes were confused."""

    def __init__(self, reference: Noisy) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        loaded(self, reference, "first")
        loaded(self, reference, "last")

    def __call__(self, x: Any) -> Any:
        y = self.first(x)
        return self.last(y + mx.random.normal((len(y), 1, WIDTH)))


@pytest.mark.parametrize("mode", MODES)
def test_numbers_drawn_of_another_shape_are_the_fault_of_the_code_that_draws(mode: str, tmp_path: Path) -> None:
    reference = Noisy()
    first = report(reference, NoisyPort(reference), tmp_path, mode).divergences[0]
    assert first.site.end == "draw"
    assert [cause.kind for cause in first.causes] == ["length"]


# -- weights -------------------------------------------------------------------------------------------------------------------------------


class Projected(torch.nn.Module):
    """Queries, keys and values by layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, torch.nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Any) -> Any:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.o_proj(torch.softmax(q @ k.transpose(1, 2), -1) @ v)


class Fused(nn.Module):
    """The same, by one fused layer whose weights were never loaded."""

    def __init__(self, reference: Projected) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        loaded(self, reference, "o_proj", "proj")

    def __call__(self, x: Any) -> Any:
        q, k, v = mx.split(self.qkv(x), 3, axis=-1)
        return self.proj(mx.softmax(q @ k.swapaxes(1, 2), axis=-1) @ v)


@pytest.mark.parametrize("mode", MODES)
def test_fused_weights_that_were_never_loaded_are_the_cause(mode: str, tmp_path: Path) -> None:
    reference = Projected()
    first = report(reference, Fused(reference), tmp_path, mode).divergences[0]
    assert first.culprit.port == "qkv"
    assert first.causes[0].kind == "weights.unloaded"


class Normed(torch.nn.Module):
    """Convolutions with weight norms as they are initialised: each gain is the norm of its direction. One has two equal axes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        norm = torch.nn.utils.parametrizations.weight_norm
        self.first, self.last = norm(torch.nn.Conv1d(WIDTH, WIDTH, WIDTH)), norm(torch.nn.Conv1d(WIDTH, 1, 3))

    def forward(self, x: Any) -> Any:
        return self.last(self.first(x.transpose(1, 2))).transpose(1, 2)


class NormedPort(nn.Module):
    def __init__(self, reference: Normed) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(WIDTH, WIDTH, WIDTH), nn.Conv1d(WIDTH, 1, 3)
        for name in ("first", "last"):
            theirs, ours = getattr(self, name), getattr(reference, name)
            theirs.weight, theirs.bias = array(ours.weight.transpose(1, 2)), array(ours.bias)

    def __call__(self, x: Any) -> Any:
        return self.last(self.first(x))


def test_weight_norms_as_they_are_initialised_are_merged_rightly(tmp_path: Path) -> None:
    reference = Normed()
    found = report(reference, NormedPort(reference), tmp_path, "free")
    assert found.verdict == "same"
    assert not found.weights.different


# -- a branch that is small beside what it is added to -------------------------------------------------------------------------------------


class Branch(torch.nn.Module):
    """A small branch beside a large residual."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.act, self.down = torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.GELU(), torch.nn.Linear(4 * WIDTH, WIDTH)
        self.down.weight.data *= 1e-3
        self.down.bias.data *= 1e-3

    def forward(self, x: Any) -> Any:
        return 10 * x + self.down(self.act(self.up(x)))


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch, self.out = Branch(), torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        return self.out(self.branch(x))


class BranchPort(nn.Module):
    """The same with another activation: what it changes cannot be seen in what the branch is added to."""

    def __init__(self, reference: Branch) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(approx="tanh"), nn.Linear(4 * WIDTH, WIDTH)
        loaded(self, reference, "up")
        loaded(self, reference, "down")

    def __call__(self, x: Any) -> Any:
        return 10 * x + self.down(self.act(self.up(x)))


class ModelPort(nn.Module):
    def __init__(self, reference: Model) -> None:
        super().__init__()
        self.branch, self.out = BranchPort(reference.branch), nn.Linear(WIDTH, WIDTH)
        loaded(self, reference, "out")

    def __call__(self, x: Any) -> Any:
        return self.out(self.branch(x))


@pytest.mark.parametrize("mode", MODES)
def test_what_a_large_sum_hides_is_not_acquitted(mode: str, tmp_path: Path) -> None:
    reference = Model()
    found = report(reference, ModelPort(reference), tmp_path, mode)
    assert found.verdict == "different"
    assert found.divergences[0].site.reference == "branch.act"
    assert not found.equivalent


# -- a window of a spectrum ----------------------------------------------------------------------------------------------------------------

FRAMES = np.random.default_rng(0).standard_normal((6, 32)).astype(np.float32)


class Spectrum(torch.nn.Module):
    """The magnitudes of windowed frames, by a complex number as code writes it, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Linear(32, 32), torch.nn.Linear(17, 8)
        self.register_buffer("window", torch.hann_window(32))

    def forward(self, x: Any) -> Any:
        return self.last(torch.fft.rfft(self.first(x) * self.window).mul(2j).abs())


class SpectrumPort(nn.Module):
    """The same with a window that ends where it begins: a fault."""

    def __init__(self, reference: Spectrum) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(32, 32), nn.Linear(17, 8)
        loaded(self, reference, "first")
        loaded(self, reference, "last")

    def __call__(self, x: Any) -> Any:
        window = mx.array(np.hanning(32).astype(np.float32))
        return self.last(2 * mx.abs(mx.fft.rfft(self.first(x) * window)))


@pytest.mark.parametrize("mode", MODES)
def test_a_symmetric_window_in_the_place_of_a_periodic_one_is_named(mode: str, tmp_path: Path) -> None:
    reference = Spectrum()
    cause = report(reference, SpectrumPort(reference), tmp_path, mode, FRAMES).divergences[0].causes[0]
    assert cause.confirmed
    assert "symmetric hann window in the place of a periodic hann one" in cause.evidence


# -- a module whose code the port writes into a caller's -----------------------------------------------------------------------------------


class Halves(torch.nn.Module):
    """The second half of the channels before the first."""

    def forward(self, x: Any) -> Any:
        return torch.cat([x[..., WIDTH // 2 :], x[..., : WIDTH // 2]], -1)


class Exchanged(torch.nn.Module):
    """``factor``: what the model's own code multiplies with before the halves are exchanged; 1 where it does nothing."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.halves, self.last, self.factor = torch.nn.Linear(WIDTH, WIDTH), Halves(), torch.nn.Linear(WIDTH, WIDTH), factor

    def forward(self, x: Any) -> Any:
        x = self.first(x)
        return self.last(self.halves(x if self.factor == 1 else x * self.factor))


class ExchangedInCode(nn.Module):
    """The same without a module for the exchange, and with one fault in the code that is left."""

    def __init__(self, reference: Exchanged, *, exchanges: bool, factor: float) -> None:
        super().__init__()
        self.first, self.last, self.exchanges, self.factor = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), exchanges, factor
        loaded(self, reference, "first")
        loaded(self, reference, "last")

    def __call__(self, x: Any) -> Any:
        x = self.first(x) * self.factor
        return self.last(mx.concatenate([x[..., WIDTH // 2 :], x[..., : WIDTH // 2]], -1) if self.exchanges else x)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("factor", "port", "place", "kind"), [(1.0, 1.0, "halves", "order.concat"), (2.0, 2.0, "halves", "order.concat"),
                                                                 (2.0, 3.0, "", "scale")])  # fmt: skip
def test_a_fault_lies_in_the_module_that_the_port_wrote_into_its_caller(
    mode: str, factor: float, port: float, place: str, kind: str, tmp_path: Path
) -> None:
    """By what the module was handed, where that was compared; else by the proved edit, which may lie in the caller's code as well."""
    reference = Exchanged(factor)
    found = report(reference, ExchangedInCode(reference, exchanges=factor != port, factor=port), tmp_path, mode).divergences
    assert [(one.culprit.reference, one.causes[0].kind, one.causes[0].confirmed) for one in found] == [(place, kind, True)]


# -- a tensor that a module only hands on --------------------------------------------------------------------------------------------------


class Placed(torch.nn.Module):
    """Adds what is looked up for three axes of positions; the first row of positions is for masks alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(16, 8)
        self.table.weight.data = torch.tensor(np.random.default_rng(1).standard_normal((16, 8)).astype(np.float32))

    def forward(self, x: Any, places: Any) -> Any:
        return x + self.table(places[1:]).sum(0)


class Body(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.placed = Placed()

    def forward(self, x: Any, places: Any) -> Any:
        return torch.tanh(self.placed(x, places))


class Headed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Body(), torch.nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        places = torch.arange(5).repeat(4, 1) * torch.tensor([[1], [1], [2], [3]])
        return self.head(self.body(x, places))


class PlacedPort(nn.Module):
    def __init__(self, reference: Placed) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 8)
        self.table.weight = array(reference.table.weight)

    def __call__(self, x: Any, places: Any) -> Any:
        return x + self.table(places).sum(0)


class BodyPort(nn.Module):
    """The body and the head in one: what it returns is not what the reference's body returns."""

    def __init__(self, reference: Headed) -> None:
        super().__init__()
        self.placed = PlacedPort(reference.body.placed)
        self.head = nn.Linear(8, 5)
        loaded(self, reference, "head")

    def __call__(self, x: Any, places: Any) -> Any:
        return self.head(mx.tanh(self.placed(x, places)))


class HeadedPort(nn.Module):
    def __init__(self, reference: Headed, last: int) -> None:
        super().__init__()
        self.body, self.last = BodyPort(reference), last

    def __call__(self, x: Any) -> Any:
        return self.body(x, mx.arange(5)[None] * mx.array([[1], [2], [self.last]]))


@pytest.mark.parametrize(("last", "verdict"), [(3, "same"), (2, "different")])
def test_an_input_that_is_handed_on_is_judged_where_it_is_taken_in(last: int, verdict: str, tmp_path: Path) -> None:
    reference = Headed().eval()
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    td.capture(reference, (torch.tensor(x),), to=tmp_path / "ref.h5").close()
    td.capture(HeadedPort(reference, last), (mx.array(x),), to=tmp_path / "port.h5", random=tmp_path / "ref.h5").close()
    assert td.bisect(tmp_path / "ref.h5", tmp_path / "port.h5").verdict == verdict


# -- parts of a layer, each on some of the inputs -------------------------------------------------------------------------------------


class Narrow(torch.nn.Module):
    """Layers of four channels, each followed by a sine."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = torch.sin(3 * layer(x))
        return x


class AddedUp(nn.Module):
    """The same; of one layer each half of the inputs has a layer of its own, and the caller adds up what they return."""

    def __init__(self, reference: Narrow, split: int, *, wrong: bool) -> None:
        super().__init__()
        self.layers, self.split = [nn.Linear(4, 4) for _ in range(4)], split
        for own, other in zip(self.layers, reference.layers, strict=True):
            own.weight, own.bias = array(other.weight), array(other.bias)
        whole = self.layers[split]
        self.low, self.high = nn.Linear(2, 4), nn.Linear(2, 4, bias=False)
        self.low.weight, self.low.bias, self.high.weight = whole.weight[:, :2], whole.bias, whole.weight[:, 2:] * (1.5 if wrong else 1.0)
        self.layers[split] = nn.Identity()

    def __call__(self, x: Any) -> Any:
        for number, layer in enumerate(self.layers):
            x = self.low(x[..., :2]) + self.high(x[..., 2:]) if number == self.split else layer(x)
            x = mx.sin(3 * x)
        return x


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("wrong", "verdict"), [(False, "same"), (True, "different")])
@pytest.mark.parametrize("split", [1, 2])
def test_two_layers_that_make_up_a_small_one_end_to_end_are_that_one(
    split: int, wrong: bool, verdict: str, mode: str, tmp_path: Path
) -> None:
    reference = Narrow()
    found = report(reference, AddedUp(reference, split, wrong=wrong), tmp_path, mode, X[..., :4])
    assert found.verdict == verdict
    if not wrong:
        pairs = {pair.port: pair.reference for pair in td.align(tmp_path / "ref.h5", tmp_path / "port.h5").pairs if pair.port is not None}
        assert {pairs.get("low"), pairs.get("high")} <= {None, f"layers.{split}"}


class Attending(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention, self.last = torch.nn.MultiheadAttention(WIDTH, 2, batch_first=True), torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        return self.last(x + self.attention(x, x, x, need_weights=False)[0])


class InHalves(nn.Module):
    """One projection to queries, keys and values, as two layers on half of the inputs each."""

    def __init__(self, reference: Any) -> None:
        super().__init__()
        self.low, self.high, self.out = (
            nn.Linear(WIDTH // 2, 3 * WIDTH),
            nn.Linear(WIDTH // 2, 3 * WIDTH, bias=False),
            nn.Linear(WIDTH, WIDTH),
        )
        weight = array(reference.in_proj_weight)
        self.low.weight, self.high.weight, self.low.bias = weight[:, : WIDTH // 2], weight[:, WIDTH // 2 :], array(reference.in_proj_bias)
        self.out.weight, self.out.bias = array(reference.out_proj.weight), array(reference.out_proj.bias)

    def __call__(self, x: Any) -> Any:
        made = self.low(x[..., : WIDTH // 2]) + self.high(x[..., WIDTH // 2 :])
        query, key, value = (one.reshape(*x.shape[:2], 2, -1).transpose(0, 2, 1, 3) for one in mx.split(made, 3, axis=-1))
        weights = mx.softmax(query @ key.transpose(0, 1, 3, 2) * (WIDTH // 2) ** -0.5, axis=-1)
        return self.out((weights @ value).transpose(0, 2, 1, 3).reshape(x.shape))


class AttendingPort(nn.Module):
    def __init__(self, reference: Attending) -> None:
        super().__init__()
        self.attention, self.last = InHalves(reference.attention), nn.Linear(WIDTH, WIDTH)
        loaded(self, reference, "last")

    def __call__(self, x: Any) -> Any:
        return self.last(x + self.attention(x))


@pytest.mark.parametrize("mode", MODES)
def test_parts_of_a_projection_inside_an_attention_are_no_pair_of_the_attention(mode: str, tmp_path: Path) -> None:
    reference = Attending()
    assert report(reference, AttendingPort(reference), tmp_path, mode).verdict == "same"
    pairs = {pair.port: pair.reference for pair in td.align(tmp_path / "ref.h5", tmp_path / "port.h5").pairs}
    assert (pairs["attention"], pairs.get("attention.low"), pairs.get("attention.high")) == ("attention", None, None)


# -- a port that is one module: functions over a tree of arrays ------------------------------------------------------------------------


class Tagger(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed, self.norm = torch.nn.Embedding(20, WIDTH), torch.nn.LayerNorm(WIDTH)
        self.score, self.head = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, 14)

    def forward(self, ids: Any) -> Any:
        return self.head(torch.softmax(self.score(self.norm(self.embed(ids))), -1))


class Tree(nn.Module):
    """The same as functions. ``factor`` other than 1 scales the scores: a fault."""

    def __init__(self, reference: Tagger, factor: float = 1.0) -> None:
        super().__init__()
        self.params = {name.replace(".", "_"): array(values) for name, values in reference.state_dict().items()}
        self._factor = factor

    def __call__(self, ids: Any) -> Any:
        p = self.params
        x = mx.fast.layer_norm(p["embed_weight"][ids], p["norm_weight"], p["norm_bias"], 1e-5)
        x = mx.softmax((x @ p["score_weight"].T + p["score_bias"]) * self._factor, -1)
        return x @ p["head_weight"].T + p["head_bias"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("factor", "found"), [(1.0, None), (1.3, "input[0] of !softmax")])
def test_a_port_of_one_module_is_the_model_and_none_of_its_layers(factor: float, found: str | None, mode: str, tmp_path: Path) -> None:
    reference = Tagger()
    got = report(reference, Tree(reference, factor), tmp_path, mode, np.arange(LENGTH)[None] % 20)
    assert got.verdict == ("different" if found else "same")
    if found:
        assert found in " ".join(str(got).split())
