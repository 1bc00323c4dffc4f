"""A reference with its port's weights as they are stored: a clean quantised port is the same, and a fault in one is found at its place."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core")
torch = pytest.importorskip("torch")

from click.testing import CliRunner  # noqa: E402
from mlx import nn as mlx_nn  # noqa: E402
from torch import nn  # noqa: E402

import tracediff as td  # noqa: E402
from benchmarks.faults.plant import planted  # noqa: E402
from tracediff.cli import main  # noqa: E402
from tracediff.errors import CaptureError, TracediffError, WeightsError  # noqa: E402

GROUP = 32
FAULTS = 10


def quantise(port: Any, bits: int) -> None:
    """Quantises the layers whose width is one of whole groups."""
    mlx_nn.quantize(port, GROUP, bits, class_predicate=lambda _, one: hasattr(one, "to_quantized") and one.weight.shape[-1] % GROUP == 0)


def chat(bits: int = 0) -> Any:
    """The two sides of a language model of other names, with one fused projection; the port quantised where bits are given."""
    pair = importlib.import_module("benchmarks.faults.pairs.chat").make(0)
    if bits:
        quantise(pair.port, bits)
    return pair


def reference_of(pair: Any, to: Path, **options: Any) -> Path:
    with torch.no_grad():
        td.capture(pair.reference, pair.run_reference, to=to, **options).close()
    return to


def diffed(pair: Any, reference: Path, *faults: Any, is_fed: bool = True) -> td.Report:
    to = reference.with_name("port.h5")
    with planted(pair.port, *faults):
        td.capture(pair.port, pair.run_port, to=to, feed=reference if is_fed else None, repeat=False, force=True).close()
    return td.diff(reference, to)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A 4-bit port, and the trace of its reference with the port's weights."""
    pair = chat(4)
    return pair, reference_of(pair, tmp_path_factory.mktemp("q4") / "ref.h5", weights_from=pair.port)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The same pair in full precision."""
    pair = chat()
    return pair, reference_of(pair, tmp_path_factory.mktemp("full") / "ref.h5")


@pytest.mark.parametrize("is_fed", [True, False])
def test_a_clean_port_of_4_bits_is_the_same_and_the_report_says_what_was_taken(quantised: tuple[Any, Path], is_fed: bool) -> None:
    report = diffed(*quantised, is_fed=is_fed)
    assert report.verdict == "same"
    assert "the port's weights as they are stored (19 of 4-bit codes; off by 8.8e-02" in report.certificate["notes"][0]


def test_a_clean_port_of_8_bits_is_the_same(tmp_path: Path) -> None:
    pair = chat(8)
    assert diffed(pair, reference_of(pair, tmp_path / "ref.h5", weights_from=pair.port)).verdict == "same"


@pytest.mark.parametrize("fault", range(FAULTS))
def test_a_fault_is_found_where_and_why_it_is_found_in_full_precision(
    full: tuple[Any, Path], quantised: tuple[Any, Path], fault: int
) -> None:
    told = []
    for pair, reference in (full, quantised):
        report = diffed(pair, reference, pair.edits[fault].fault)
        told.append([(one.culprit.port, one.causes[0].kind if one.causes else "") for one in report.divergences])
    assert told[0]
    assert told[1] == told[0]


def test_the_reference_has_its_own_weights_again_bit_for_bit_also_where_its_run_raises(tmp_path: Path) -> None:
    pair = chat(4)
    before = {name: value.clone() for name, value in pair.reference.state_dict().items()}

    def run() -> None:
        assert not torch.equal(pair.reference.state_dict()[first], before[first])
        raise RuntimeError("the run itself")

    first = next(name for name in before if name.endswith("q_proj.weight"))
    with pytest.raises(RuntimeError, match="the run itself"):
        td.capture(pair.reference, run, to=tmp_path / "x.h5", weights_from=pair.port)
    assert all(torch.equal(value, before[name]) for name, value in pair.reference.state_dict().items())


def test_a_trace_with_values_and_a_file_serve_as_the_model_does(quantised: tuple[Any, Path], tmp_path: Path) -> None:
    pair, expected = quantised
    td.capture(pair.port, pair.run_port, to=tmp_path / "port.h5", save_params=True, repeat=False).close()
    with td.open_trace(tmp_path / "port.h5") as port:
        np.savez(tmp_path / "port.npz", **{name: param.read() for name, param in port.params.items()})
    for source in ("port.h5", "port.npz"):
        found = td.open_trace(reference_of(pair, tmp_path / f"{source}.ref.h5", weights_from=tmp_path / source, floor=False))
        with td.open_trace(expected) as wanted:
            assert {name: param.digest for name, param in found.params.items()} == {n: p.digest for n, p in wanted.params.items()}


def test_a_trace_without_the_values_of_its_parameters_is_refused(tmp_path: Path) -> None:
    pair = chat(4)
    td.capture(pair.port, pair.run_port, to=tmp_path / "port.h5", repeat=False).close()
    with pytest.raises(CaptureError, match="--save-params"):
        reference_of(pair, tmp_path / "ref.h5", weights_from=tmp_path / "port.h5")
    assert not (tmp_path / "ref.h5").exists()


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="weights of different models"):
        reference_of(chat(), tmp_path / "ref.h5", weights_from={"z": np.zeros((3, 1, 4, 1, 5), np.float32)})


def test_a_port_that_is_fed_keeps_its_weights(full: tuple[Any, Path], tmp_path: Path) -> None:
    pair, reference = full
    with pytest.raises(CaptureError, match="for the capture of its reference"):
        td.capture(pair.port, pair.run_port, to=tmp_path / "x.h5", feed=reference, weights_from=pair.reference)


class Layers(nn.Sequential):
    """Three layers of the names that MLX's Sequential gives."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64), nn.LayerNorm(64)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


X = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)


def layers(change: Any = None) -> tuple[Any, Any]:
    """A pair whose port was changed before it was quantised to 4 bits."""
    reference = Layers().eval()
    port = mlx_nn.Sequential(mlx_nn.Linear(64, 64), mlx_nn.Linear(64, 64), mlx_nn.LayerNorm(64))
    port.load_weights([(name, mx.array(value.numpy())) for name, value in reference.state_dict().items()])
    if change is not None:
        change(port)
    quantise(port, 4)
    return reference, port


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda port: port.layers[1].update({"weight": mx.random.normal((64, 64), key=mx.random.key(3)) / 8}), "weights.unloaded"),
        (lambda port: port.layers[1].update({"weight": port.layers[1].weight.T}), "weights.layout"),
        (lambda port: port.layers[1].update({"weight": port.layers[0].weight}), "weights.swapped"),
        (lambda port: port.layers[1].update({"bias": mx.zeros(64)}), "weights.missing_bias"),
    ],
    ids=["unloaded", "transposed", "exchanged", "without bias"],
)
def test_what_differs_otherwise_than_by_storage_stays_the_references_and_is_found(tmp_path: Path, change: Any, kind: str) -> None:
    reference, port = layers(change)
    with torch.no_grad():
        taken = td.capture(reference, X, to=tmp_path / "ref.h5", weights_from=port).meta["weights_from"]
    td.capture(port, X, to=tmp_path / "port.h5", feed=tmp_path / "ref.h5").close()
    (found,) = td.diff(tmp_path / "ref.h5", tmp_path / "port.h5").divergences
    assert (found.culprit.port, found.causes[0].kind) == ("layers.1", kind)
    assert taken["left"] == {"weights.missing_bias": ["layers.1.bias"], "weights.layout": []}.get(kind, ["layers.1.weight"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_port_of_half_precision_gives_its_rounded_weights(tmp_path: Path, dtype: str) -> None:
    reference, port = Layers().eval(), mlx_nn.Sequential(mlx_nn.Linear(64, 64), mlx_nn.Linear(64, 64), mlx_nn.LayerNorm(64))
    port.load_weights([(name, mx.array(value.numpy()).astype(getattr(mx, dtype))) for name, value in reference.state_dict().items()])
    with torch.no_grad():
        trace = td.capture(reference, X, to=tmp_path / "ref.h5", weights_from=port, floor_dtypes=("float64", dtype))
    assert {how for _, how, _ in trace.meta["weights_from"]["taken"]} == {dtype}
    td.capture(port, mx.array(X).astype(getattr(mx, dtype)), to=tmp_path / "port.h5", feed=tmp_path / "ref.h5").close()
    report = td.diff(tmp_path / "ref.h5", tmp_path / "port.h5")
    assert report.verdict == "same"
    assert report.weights is not None
    assert report.weights.equal == 6


def test_a_status_says_what_the_storage_of_weights_costs_each_stage(full: tuple[Any, Path], quantised: tuple[Any, Path]) -> None:
    _, own = full
    pair, reference = quantised
    forced = reference.with_name("forced.h5")
    td.capture(pair.port, pair.run_port, to=forced, feed=reference, repeat=False, force=True).close()
    table = td.status(reference, forced, full=own)
    (stage,) = table.stages
    assert stage.forced is not None
    assert stage.forced.state == "same"
    assert stage.storage is not None
    assert 0.05 < (stage.storage.introduced or 0) < 0.3
    assert 0.05 < (stage.storage.at_end or 0) < 1
    assert "stored weights: one layer" in str(table)
    assert td.status(reference, forced).stages[0].storage is None


def test_the_error_that_one_layer_introduces_is_what_a_run_of_it_alone_gives(tmp_path: Path) -> None:
    torch.manual_seed(4)
    reference, port = Layers().eval(), layers()[1]
    with torch.no_grad():
        td.capture(reference, X, to=tmp_path / "full.h5", floor=False).close()
        td.capture(reference, X, to=tmp_path / "ref4.h5", floor=False, weights_from=port).close()
    td.capture(port, X, to=tmp_path / "port.h5", feed=tmp_path / "full.h5").close()
    cost = td.status(tmp_path / "ref4.h5", tmp_path / "port.h5", full=tmp_path / "full.h5").stages[0].storage
    alone = {one.where.reference: one.introduced for one in td.diff(tmp_path / "full.h5", tmp_path / "port.h5").quantised}
    assert cost is not None
    assert cost.introduced == pytest.approx(alone[cost.layer], rel=0.3)


@pytest.mark.parametrize(("reference", "full", "said"), [("full.h5", "full.h5", "--weights-from"), ("ref4.h5", "ref4.h5", "with its own")])
def test_a_cost_takes_one_run_with_own_weights_and_one_with_the_ports(tmp_path: Path, reference: str, full: str, said: str) -> None:
    model, port = layers()
    with torch.no_grad():
        td.capture(model, X, to=tmp_path / "full.h5", floor=False).close()
        td.capture(model, X, to=tmp_path / "ref4.h5", floor=False, weights_from=port).close()
    td.capture(port, X, to=tmp_path / "port.h5", repeat=False).close()
    with pytest.raises(TracediffError, match=said):
        td.status(tmp_path / reference, tmp_path / "port.h5", full=tmp_path / full)


RECIPE = '''"""A layer, the {side}."""
import numpy as np
import tracediff as td
IMPL = "{impl}"
STAGES = {{"one": "The only one"}}

def load(context):
    weight = context.weight("layer.weight", (64, 64))
    {load}
    return {{"model": model}}

def run(models, context):
    with td.stage("one"):
        x = context.array("one", "x", lambda g: g.standard_normal((3, 64), "float32"))
        return models["model"](td.tap("x", {give}(x)))
'''
SIDES = {
    "torch": (
        "import torch; model = torch.nn.Linear(64, 64, bias=False); model.weight.data = torch.from_numpy(weight)",
        "__import__('torch').from_numpy",
    ),
    "mlx": (
        "import mlx.core as mx, mlx.nn as nn; model = nn.Linear(64, 64, bias=False); model.weight = mx.array(weight); "
        "model = model.to_quantized(32, 4)",
        "__import__('mlx.core').core.array",
    ),
}


def test_the_command_line_takes_a_ports_trace_or_the_port_of_the_same_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hooks").mkdir()
    for impl, (load, give) in SIDES.items():
        text = RECIPE.format(side="reference" if impl == "torch" else "port", impl=impl, load=load, give=give)
        (tmp_path / "hooks" / f"toy_{impl}.py").write_text(text)
    command = CliRunner()
    for given in (
        "--impl mlx --save-params --no-repeat -o port.h5",
        "--impl torch --weights-from port.h5 -o by_trace.h5",
        "--impl torch --weights-from mlx --precise -o by_recipe.h5",
        "--impl mlx --feed by_recipe.h5 -o forced.h5",
    ):
        done = command.invoke(main, ["capture", *given.split()])
        assert done.exit_code == 0, done.output
    with td.open_trace("by_trace.h5") as one, td.open_trace("by_recipe.h5") as other:
        taken = [trace.meta["weights_from"]["taken"] for trace in (one, other)]
        assert [(name, how) for name, how, _ in taken[0]] == [("model.weight", "4-bit codes")]
        assert taken[0] == taken[1]
        assert one.params["model.weight"].digest == other.params["model.weight"].digest
    assert command.invoke(main, ["bisect", "by_recipe.h5", "forced.h5"]).exit_code == 0
