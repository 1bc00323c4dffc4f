"""In which precision float32 numbers are multiplied: probed, recorded, pinned, allowed for by the floor, and named as a cause.

Hardware that multiplies in TF32 is simulated: what MLX's products and convolutions take in is cut to 10 bits of mantissa.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core")
torch = pytest.importorskip("torch")
pytest.importorskip("mlx_lm")
pytest.importorskip("transformers")

import transformers  # noqa: E402
from mlx import nn as mlx_nn  # noqa: E402
from mlx_lm.models import llama  # noqa: E402
from torch import nn  # noqa: E402

import tracediff as td  # noqa: E402
from tracediff.doctor import products_check  # noqa: E402
from tracediff.errors import CaptureError  # noqa: E402
from tracediff.observe import products  # noqa: E402
from tracediff.observe.adapters import torch_operations  # noqa: E402
from tracediff.observe.adapters.registry import named  # noqa: E402
from tracediff.tensors.mantissa import shortened  # noqa: E402

IDS = np.arange(12)[None] * 7 % 100
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


@contextmanager
def coarse_mlx(way: str, bits: int = 10) -> Iterator[None]:
    """MLX as on hardware that cuts what products of float32 numbers take in."""

    def cut(x: Any) -> Any:
        return mx.array(shortened(np.array(x), bits, way)) if x.dtype == mx.float32 else x

    def cutting(original: Callable[..., Any], *places: int) -> Callable[..., Any]:
        return lambda *args, **named: original(*(cut(arg) if place in places else arg for place, arg in enumerate(args)), **named)

    product = cutting(mx.matmul, 0, 1)

    def attention(q: Any, k: Any, v: Any, *, scale: float, mask: Any = None, **_: Any) -> Any:
        k, v = (mx.repeat(one, q.shape[1] // one.shape[1], 1) for one in (k, v))
        scores = product(q * scale, k.swapaxes(-1, -2))
        if mask is not None:
            mask = mx.tril(mx.ones(scores.shape[-2:], mx.bool_)) if isinstance(mask, str) else mask
            scores = mx.where(mask, scores, -1e30)
        return product(mx.softmax(scores, -1), v)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mx, "addmm", cutting(mx.addmm, 1, 2))
        patch.setattr(mx, "conv1d", cutting(mx.conv1d, 0, 1))
        patch.setattr(mx.array, "__matmul__", cutting(mx.array.__matmul__, 0, 1))
        patch.setattr(mx.fast, "scaled_dot_product_attention", attention)
        patch.setattr(mx, "matmul", product)
        yield


def llamas() -> tuple[Any, Any]:
    torch.manual_seed(0)
    reference = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, max_position_embeddings=64)).eval()
    port = llama.Model(llama.ModelArgs(model_type="llama", **SIZES))
    port.load_weights([(name, mx.array(value.numpy())) for name, value in reference.state_dict().items()])
    return reference, port


class Convolved(nn.Module):
    """(B, T, 16) through a convolution over T, a GELU, a norm and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv1d(16, 24, 3, padding=1), nn.LayerNorm(24), nn.Linear(24, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(nn.functional.gelu(self.conv(x.transpose(1, 2)).transpose(1, 2))))


class ConvolvedMlx(mlx_nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = mlx_nn.Conv1d(16, 24, 3, padding=1), mlx_nn.LayerNorm(24), mlx_nn.Linear(24, 16)

    def __call__(self, x: Any) -> Any:
        return self.out(self.norm(mlx_nn.gelu(self.conv(x))))


def convolved() -> tuple[Any, Any]:
    torch.manual_seed(1)
    reference, port = Convolved().eval(), ConvolvedMlx()
    weights = {name: value.numpy() for name, value in reference.state_dict().items()}
    weights["conv.weight"] = weights["conv.weight"].transpose(0, 2, 1)
    port.load_weights([(name, mx.array(value)) for name, value in weights.items()])
    return reference, port


SIGNAL = np.random.default_rng(3).standard_normal((2, 9, 16)).astype(np.float32)
PAIRS = {"llama": (llamas, {"input_ids": IDS}, IDS), "convolution": (convolved, SIGNAL, SIGNAL)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """References with a floor in tf32, one a pair."""
    made = tmp_path_factory.mktemp("products")
    for name, (models, inputs, _) in PAIRS.items():
        with torch.no_grad():
            td.capture(models()[0], inputs, to=made / f"{name}.h5", floor_dtypes=("float64", "tf32")).close()
    return made


def diffed(folder: Path, name: str, *, way: str = "nearest", is_fed: bool = True, change: Callable[[Any], None] | None = None) -> td.Report:
    """The report of a pair whose port runs on coarse hardware."""
    models, _, inputs = PAIRS[name]
    port = models()[1]
    if change is not None:
        change(port)
    with coarse_mlx(way):
        feed = folder / f"{name}.h5" if is_fed else None
        td.capture(port, mx.array(inputs), to=folder / "port.h5", feed=feed, force=True).close()
    return td.diff(folder / f"{name}.h5", folder / "port.h5")


def silence(patch: pytest.MonkeyPatch) -> None:
    """From now on no probe tells coarse products from float32's."""
    patch.setattr(products, "FLOAT32_AT_MOST", 1.0)


class TestProbe:
    @pytest.mark.parametrize("framework", ["torch", "mlx"])
    def test_a_product_on_a_processor_is_float32s(self, framework: str) -> None:
        found = products.probed(named(framework))["products"]
        assert (found["precision"], found["rounding"], found["device"]) == ("float32", "", "cpu")
        assert found["error"] < 1e-6
        assert found["settings"]

    @pytest.mark.parametrize("way", ["nearest", "zero"])
    @pytest.mark.parametrize(("bits", "precision"), [(10, "tf32"), (7, "bfloat16")])
    def test_it_tells_how_many_bits_are_multiplied_and_how_they_were_cut(self, way: str, bits: int, precision: str) -> None:
        with coarse_mlx(way, bits):
            found = products.probed(named("mlx"))["products"]
        assert (found["precision"], found["rounding"]) == (precision, way)

    def test_a_convolution_that_alone_is_coarse_is_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        exact = torch.nn.functional.conv1d
        monkeypatch.setattr(torch.nn.functional, "conv1d", lambda x, w: exact(x.bfloat16().float(), w.bfloat16().float()))
        assert products.probed(named("torch"))["products"]["precision"] == "bfloat16"

    def test_no_generator_is_moved(self) -> None:
        before = mx.array(mx.random.state[0]).tolist(), torch.get_rng_state().tolist()
        products.probed(named("mlx"))
        products.probed(named("torch"))
        assert (mx.array(mx.random.state[0]).tolist(), torch.get_rng_state().tolist()) == before

    def test_the_doctor_says_what_a_product_is_and_what_rules_it(self) -> None:
        found = {"precision": "tf32", "error": 2.94e-4, "device": "gpu", "settings": {"MLX_ENABLE_TF32": "1"}}
        check = products_check("mlx", found)
        assert (check.state, check.seen) == ("coarse", "TF32-class on gpu (relative error 2.9e-04; MLX_ENABLE_TF32 = 1)")
        assert "MLX_ENABLE_TF32=0" in check.cure


class TestPinned:
    def test_mlx_is_asked_for_full_precision_while_it_runs_and_left_as_it_was(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MLX_ENABLE_TF32", raising=False)
        with named("mlx").full_precision():
            assert os.environ["MLX_ENABLE_TF32"] == "0"
        assert "MLX_ENABLE_TF32" not in os.environ

    def test_what_a_person_has_set_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLX_ENABLE_TF32", "1")
        with named("mlx").full_precision():
            assert os.environ["MLX_ENABLE_TF32"] == "1"

    def test_torch_is_set_to_full_precision_while_it_runs_and_left_as_it_was(self) -> None:
        matmul = torch.backends.cuda.matmul
        before = torch.get_float32_matmul_precision(), matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        try:
            torch.set_float32_matmul_precision("high")
            with named("torch").full_precision():
                assert torch.get_float32_matmul_precision() == "highest"
                switches = matmul.allow_tf32, torch.backends.cudnn.allow_tf32, matmul.allow_bf16_reduced_precision_reduction
                assert not any(switches)
            assert (torch.get_float32_matmul_precision(), matmul.allow_tf32) == ("high", True)
            assert matmul.allow_bf16_reduced_precision_reduction
        finally:
            torch.set_float32_matmul_precision(before[0])
        assert (torch.get_float32_matmul_precision(), matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before

    def test_newer_settings_of_torch_are_pinned_and_put_back_too(self) -> None:
        products_of_cpu = torch.backends.mkldnn.matmul
        if not hasattr(products_of_cpu, "fp32_precision"):
            pytest.skip("this version of PyTorch has no fp32_precision")
        before = products_of_cpu.fp32_precision
        try:
            products_of_cpu.fp32_precision = "bf16"
            with named("torch").full_precision():
                assert products_of_cpu.fp32_precision == "ieee"
            assert products_of_cpu.fp32_precision == "bf16"
        finally:
            products_of_cpu.fp32_precision = before

    @pytest.mark.parametrize(
        ("options", "is_precise"), [({"floor": True}, True), ({"floor": False}, False), ({"floor": False, "precise": True}, True)]
    )
    def test_a_run_with_a_floor_is_pinned_and_the_trace_says_so(self, tmp_path: Path, options: Any, is_precise: bool) -> None:
        with td.capture(nn.Linear(4, 4), np.ones((1, 4), np.float32), to=tmp_path / "x.h5", **options) as trace:
            assert trace.meta["precise"] is is_precise
            assert trace.meta["products"]["precision"] == "float32"

    def test_hardware_that_does_not_let_itself_be_pinned_is_said(self, tmp_path: Path) -> None:
        port = mlx_nn.Linear(4, 4)
        with coarse_mlx("nearest"), pytest.warns(UserWarning, match="set MLX_ENABLE_TF32=0 before Python starts"):
            td.capture(port, np.ones((1, 4), np.float32), to=tmp_path / "x.h5", precise=True).close()


MULTIPLYING = {
    "linear": lambda: nn.Linear(16, 16),
    "convolution": lambda: nn.Conv1d(9, 9, 3, padding=1),
    "transposed convolution": lambda: nn.ConvTranspose1d(9, 9, 3, padding=1),
    "attention": lambda: nn.MultiheadAttention(16, 2, batch_first=True),
    "encoder layer": lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
    "LSTM": lambda: nn.LSTM(16, 16, batch_first=True),
    "GRU": lambda: nn.GRU(16, 16, batch_first=True),
}


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", MULTIPLYING)
def test_the_operands_of_every_product_of_torch_are_cut(name: str, context: Any) -> None:
    torch.manual_seed(2)
    module, x = MULTIPLYING[name]().eval(), torch.from_numpy(SIGNAL)
    given = (x, x, x) if name == "attention" else (x,)
    with context():
        whole, cutting = module(*given), named("torch").coarse_products(10, "nearest", lambda: False)
        with cutting:
            cut = module(*given)
    ours, theirs = (made[0] if isinstance(made, tuple) else made for made in (whole, cut))
    assert 1e-5 < float((theirs - ours).norm() / ours.norm()) < 2e-3


class TestFloor:
    @pytest.mark.parametrize("is_fed", [True, False])
    @pytest.mark.parametrize("way", ["nearest", "zero"])
    @pytest.mark.parametrize("name", PAIRS)
    def test_a_clean_port_on_coarse_hardware_is_the_same(self, folder: Path, name: str, way: str, is_fed: bool) -> None:
        report = diffed(folder, name, way=way, is_fed=is_fed)
        assert report.verdict == "same"
        assert "TF32-class" in report.certificate["notes"][0]

    def test_without_the_column_a_reader_is_told_to_measure_it(self, folder: Path, tmp_path: Path) -> None:
        reference, port = convolved()
        with torch.no_grad():
            td.capture(reference, SIGNAL, to=tmp_path / "ref.h5").close()
        with coarse_mlx("nearest"):
            td.capture(port, SIGNAL, to=tmp_path / "port.h5", feed=tmp_path / "ref.h5").close()
        report = td.diff(tmp_path / "ref.h5", tmp_path / "port.h5")
        assert report.verdict == "same"
        assert "tracediff calibrate" in report.certificate["notes"][0]
        with torch.no_grad():
            calibrated = td.calibrate(reference, SIGNAL, tmp_path / "ref.h5", dtypes=["tf32"])
        with td.open_trace(folder / "convolution.h5") as whole:
            assert calibrated.floor_products is not None
            assert np.array_equal(calibrated.floor_products, whole.floor_products)

    def test_only_products_err(self, folder: Path) -> None:
        with td.open_trace(folder / "convolution.h5") as trace:
            table = trace.floor_products
            worst = {record.site: table["tf32"][record.row] for record in trace.records if record.end == "output"}
        assert worst["norm"] == 0.0
        assert all(1e-4 < worst[site] < 3e-3 for site in ("conv", "out"))

    @pytest.mark.parametrize(
        ("name", "culprit", "kind"),
        [("eps", "model.layers.1.post_attention_layernorm", "norm.eps"), ("scale", "model.layers.1.mlp", "scale")],
    )
    def test_a_fault_of_a_port_on_coarse_hardware_is_found_at_its_place(self, folder: Path, name: str, culprit: str, kind: str) -> None:
        def change(port: Any) -> None:
            layer = port.model.layers[1]
            if name == "eps":
                layer.post_attention_layernorm.eps = 1e-3
            else:
                layer.mlp.__class__ = type("MLP", (type(layer.mlp),), {"__call__": lambda self, x: 1.02 * llama.MLP.__call__(self, x)})

        report = diffed(folder, "llama", change=change)
        assert [(one.culprit.port, one.causes[0].kind, one.causes[0].confirmed) for one in report.divergences] == [(culprit, kind, True)]

    def test_a_tf32_floor_of_a_framework_whose_products_cannot_be_cut_is_not_measured(self, tmp_path: Path) -> None:
        with td.capture(mlx_nn.Linear(4, 4), np.ones((1, 4), np.float32), to=tmp_path / "x.h5", floor=True, floor_dtypes=["tf32"]) as trace:
            assert trace.floor_products is None
            assert any(text.startswith("floor in tf32: not measured") for text in trace.meta["not_seen"])

    def test_an_unknown_floor_is_refused_with_those_that_there_are(self, tmp_path: Path) -> None:
        with pytest.raises(CaptureError, match="measured in float64, float16, bfloat16, tf32"):
            td.capture(nn.Linear(4, 4), np.ones((1, 4), np.float32), to=tmp_path / "x.h5", floor_dtypes=["tf19"])


class TestCause:
    @pytest.mark.parametrize("way", ["nearest", "zero"])
    @pytest.mark.parametrize("name", PAIRS)
    def test_where_no_trace_says_so_each_product_is_named_and_confirmed(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, way: str
    ) -> None:
        silence(monkeypatch)
        report = diffed(folder, name, way=way)
        assert report.verdict == "different"
        for one in report.divergences:
            cause = one.causes[0]
            assert (cause.kind, cause.confirmed) == ("precision", True), one.site
            assert f"TF32: what its products take in is {'rounded to' if way == 'nearest' else 'cut off after'} 10 bits" in cause.evidence

    @pytest.mark.parametrize("way", ["nearest", "zero"])
    def test_where_what_was_multiplied_was_not_kept_it_is_likely(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
        silence(monkeypatch)
        monkeypatch.setattr(torch_operations, "MOST_VALUES", ((0, 0),))
        reference, port = llamas()
        with torch.no_grad():
            td.capture(reference, {"input_ids": IDS}, to=tmp_path / "ref.h5").close()
        with coarse_mlx(way):
            td.capture(port, mx.array(IDS), to=tmp_path / "port.h5", feed=tmp_path / "ref.h5").close()
        report = td.diff(tmp_path / "ref.h5", tmp_path / "port.h5")
        assert report.verdict == "different"
        assert {one.causes[0].kind for one in report.divergences} == {"precision"}
        layers = [one.causes[0] for one in report.divergences if str(one.site.reference).endswith("_proj")]
        assert layers
        assert not any(cause.confirmed for cause in layers)
        assert "modules that multiply" in report.divergences[0].causes[0].evidence

    @pytest.mark.parametrize("factor", [0.9995, 1.0005])
    def test_where_it_was_not_kept_a_factor_at_all_layers_is_not_taken_for_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
    ) -> None:
        monkeypatch.setattr(torch_operations, "MOST_VALUES", ((0, 0),))
        reference, port = llamas()
        linear = mlx_nn.Linear.__call__
        with torch.no_grad():
            td.capture(reference, {"input_ids": IDS}, to=tmp_path / "ref.h5").close()
        monkeypatch.setattr(mlx_nn.Linear, "__call__", lambda self, x: factor * linear(self, x))
        td.capture(port, mx.array(IDS), to=tmp_path / "port.h5", feed=tmp_path / "ref.h5").close()
        report = td.diff(tmp_path / "ref.h5", tmp_path / "port.h5")
        assert report.divergences
        assert "precision" not in {cause.kind for one in report.divergences for cause in one.causes}

    def test_a_wrong_factor_as_small_is_not_taken_for_it(self, folder: Path) -> None:
        _, port = llamas()
        layer = port.model.layers[1]
        layer.mlp.__class__ = type("MLP", (type(layer.mlp),), {"__call__": lambda self, x: 1.0005 * llama.MLP.__call__(self, x)})
        td.capture(port, mx.array(IDS), to=folder / "port.h5", feed=folder / "llama.h5", force=True).close()
        (found,) = td.diff(folder / "llama.h5", folder / "port.h5").divergences
        assert (found.causes[0].kind, found.culprit.port) == ("scale", "model.layers.1.mlp")


class Cancelling(nn.Module):
    """The spread of (B, 8) values, from their mean and that of their squares where ``by_squares``, which loses digits."""

    def __init__(self, *, by_squares: bool) -> None:
        super().__init__()
        self.by_squares, self.scale = by_squares, nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.scale
        if self.by_squares:
            return ((x * x).mean(-1) - x.mean(-1) ** 2).sqrt()
        return ((x - x.mean(-1, keepdim=True)) ** 2).mean(-1).sqrt()


@pytest.mark.parametrize("is_fed", [True, False])
@pytest.mark.parametrize(("floor", "verdict"), [(None, "different"), (True, "same")])
def test_a_port_that_loses_digits_by_another_formula_is_allowed_its_own_floor_where_it_was_asked_for(
    tmp_path: Path, floor: bool | None, verdict: str, is_fed: bool
) -> None:
    x = (300 + np.random.default_rng(0).standard_normal((4, 8))).astype(np.float32)
    feed = tmp_path / "ref.h5" if is_fed else None
    with torch.no_grad():
        td.capture(Cancelling(by_squares=False), x, to=tmp_path / "ref.h5").close()
        td.capture(Cancelling(by_squares=True), x, to=tmp_path / "port.h5", floor=floor, feed=feed).close()
    assert td.diff(tmp_path / "ref.h5", tmp_path / "port.h5").verdict == verdict


def test_a_fault_of_a_fed_port_is_found_beside_its_own_floor(tmp_path: Path) -> None:
    class Wrong(Cancelling):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 1.5 * super().forward(x)

    x = (300 + np.random.default_rng(0).standard_normal((4, 8))).astype(np.float32)
    with torch.no_grad():
        td.capture(Cancelling(by_squares=False), x, to=tmp_path / "ref.h5").close()
        td.capture(Wrong(by_squares=True), x, to=tmp_path / "port.h5", floor=True, feed=tmp_path / "ref.h5").close()
    assert td.diff(tmp_path / "ref.h5", tmp_path / "port.h5").verdict == "different"
