"""Where weights come from: files, folders, traces and live models are read alike, lazily, and what is none of these is refused."""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from weights_pairs import Named, port, transformer, values

from tracediff.errors import MissingDependencyError, WeightsError
from tracediff.parameters.diagnosis import weights
from tracediff.parameters.sources import open_weights
from tracediff.trace import TraceWriter, open_trace


def small() -> Named:
    return {
        "a.weight": values("a", 6, 4),
        "a.bias": values("b", 6),
        "scale": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
    }


def same(source: Any, named: Named) -> None:
    """A source gives exactly these tensors."""
    opened = open_weights(source)
    assert sorted(opened) == sorted(named)
    for name, value in named.items():
        assert opened[name].shape == value.shape
        assert opened[name].dtype.view == value.dtype
        assert opened[name].read().tobytes() == value.tobytes()


def write_trace(path: Path, named: Named, *, store: bool) -> Path:
    with TraceWriter(path) as writer:
        for name, value in named.items():
            writer.add_param(name, value, path=name.rpartition(".")[0], kind="parameter", store=store)
    return path


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_safetensors_file_is_read_one_tensor_at_a_time(tmp_path: Path) -> None:
    save_file(small(), tmp_path / "model.safetensors")
    same(tmp_path / "model.safetensors", small())
    read: Any = open_weights(str(tmp_path / "model.safetensors"))["a.weight"].read()
    while getattr(read, "base", None) is not None:
        read = read.base
    assert isinstance(read, mmap.mmap)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float16", "int64", "bool"])
def test_every_dtype_of_safetensors_is_read(tmp_path: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save

    tensor = torch.tensor([[0.5, -2.0, 0.0], [1.0, 4.0, 8.0]]).to(getattr(torch, dtype))
    save({"x": tensor}, tmp_path / "model.safetensors")
    weight = open_weights(tmp_path / "model.safetensors")["x"]
    assert weight.dtype.name == dtype
    assert weight.read().astype(np.float32).tolist() == tensor.float().tolist()


def test_sharded_files_are_one_set_of_weights(tmp_path: Path) -> None:
    names = list(small())
    shards = {"model-1.safetensors": names[:2], "model-2.safetensors": names[2:]}
    for file, members in shards.items():
        save_file({name: small()[name] for name in members}, tmp_path / file)
    save_file({"stray": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    index = {"weight_map": {name: file for file, members in shards.items() for name in members}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    same(tmp_path, small())
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"1 of 2 files that 'model\.safetensors\.index\.json' lists"):
        open_weights(tmp_path)


def test_files_of_one_folder_with_clashing_names_keep_apart(tmp_path: Path) -> None:
    for part in ("t3", "ve"):
        save_file({"bias": values(part, 4)}, tmp_path / f"{part}.safetensors")
    same(tmp_path, {"t3.bias": values("t3", 4), "ve.bias": values("ve", 4)})


def test_an_npz_file_is_read_with_bfloat16_and_without_pickles(tmp_path: Path) -> None:
    named = small() | {"half": values("h", 3, 5).astype(ml_dtypes.bfloat16)}
    np.savez(tmp_path / "w.npz", **named)  # type: ignore[arg-type]
    same(tmp_path / "w.npz", named)
    np.savez(tmp_path / "objects.npz", x=np.array([{}, {}]))
    with pytest.raises(WeightsError, match=r"'x' in .* is an object array"):
        open_weights(tmp_path / "objects.npz")


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_torch_file_is_unwrapped(tmp_path: Path, wrapper: str | None, legacy: bool) -> None:
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(value) for name, value in small().items()}
    saved = state if wrapper is None else {wrapper: state, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}
    torch.save(saved, tmp_path / "model.pt", _use_new_zipfile_serialization=not legacy)
    same(tmp_path / "model.pt", small())


def test_a_torch_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(2), "hook": pytest.approx}, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="cannot be read as tensors alone"):
        open_weights(tmp_path / "model.pt")


def test_a_torch_file_without_torch_names_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.pt").write_bytes(b"PK")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match="pip install torch"):
        open_weights(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors", b"not a header at all", "not a readable safetensors file"),
        ("model.safetensors", b"", "not a readable safetensors file"),
        ("model.npz", b"PK nonsense", "not a readable .npz file"),
        ("notes.txt", b"hello", "is not a weights file"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_in_words(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=said):
        open_weights(tmp_path / name)


def test_a_truncated_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file(small(), tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-8])
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        open_weights(tmp_path / "model.safetensors")


def test_an_empty_folder_and_an_absent_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    with pytest.raises(WeightsError, match="holds no weights file"):
        open_weights(tmp_path / "sub")
    save_file(small(), tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"No file or folder .*Beside it: model.safetensors"):
        open_weights(tmp_path / "modle.safetensors")
    with pytest.raises(WeightsError, match="int '3' is not weights"):
        open_weights(3)


# -- live models ---------------------------------------------------------------------------------------------------------


def test_a_live_torch_model_gives_its_state_and_knows_its_ties() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.ModuleDict({"one": torch.nn.Linear(4, 4), "two": torch.nn.Linear(4, 4), "norm": torch.nn.BatchNorm1d(4)}).to(
        torch.bfloat16
    )
    model["two"].weight = model["one"].weight
    opened = open_weights(model)
    assert sorted(opened) == sorted(model.state_dict())
    assert opened["two.weight"].aliases == ("one.weight",)
    assert (opened["one.weight"].kind, opened["norm.running_var"].kind) == ("parameter", "buffer")
    assert opened["one.weight"].read().astype(np.float32).tolist() == model["one"].weight.float().tolist()


def test_a_live_mlx_model_gives_its_parameters() -> None:
    pytest.importorskip("mlx.core")
    import mlx.core as mx
    from mlx import nn

    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model.set_dtype(mx.bfloat16)
    opened = open_weights({"net": model})
    assert sorted(opened) == [f"net.layers.{n}.{leaf}" for n in (0, 1) for leaf in ("bias", "weight")]
    assert opened["net.layers.0.weight"].dtype.name == "bfloat16"
    assert opened["net.layers.0.weight"].read().astype(np.float32).tolist() == model.layers[0].weight.astype(mx.float32).tolist()


def test_the_comparison_imports_no_framework() -> None:
    code = """if True:
        import sys, numpy as np
        from tracediff.parameters.diagnosis import weights
        assert weights({"a": np.arange(9.0)}, {"a": np.arange(9.0)}).verdict == "same"
        assert not {"torch", "mlx"} & sys.modules.keys(), sorted(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code], check=True)


# -- traces ------------------------------------------------------------------------------------------------------------------


def norms(reference: Named) -> tuple[Named, Named]:
    """A reference with weight norms besides, and its port."""
    merged = port(reference)
    for n in range(3):
        g, v = np.abs(values(f"g{n}", 16, 1, 1)) + np.float32(0.5), values(f"v{n}", 16, 9, 5)
        reference |= {f"voc.{n}.weight_g": g, f"voc.{n}.weight_v": v}
        merged[f"voc.{n}.weight"] = (g * v / np.sqrt(np.square(v).sum((1, 2), keepdims=True))).transpose(0, 2, 1).astype(np.float32)
    return reference, merged


def test_traces_are_compared_by_their_fingerprints_and_say_so(tmp_path: Path) -> None:
    reference, merged = norms(transformer())
    report = weights(write_trace(tmp_path / "a.h5", reference, store=False), write_trace(tmp_path / "b.h5", merged, store=False))
    assert report.verdict == "same"
    assert report.equal == len(merged)
    assert report.by_sketch == 4 + 3  # the transposed convolutions, the merged norms
    assert any("by their sketches, within 1e-06" in note for note in report.notes)


@pytest.mark.parametrize("sides", ["trace and trace", "file and trace", "trace and file", "stored values"])
def test_faults_are_found_whatever_the_two_sides_are(tmp_path: Path, sides: str) -> None:
    reference, faulty = norms(transformer())
    query, key = (f"blocks_1.attn.{part}_proj.weight" for part in ("query", "key"))
    faulty[query], faulty[key] = faulty[key], faulty[query]
    faulty["blocks_0.attn.out_proj.weight"] = faulty["blocks_0.attn.out_proj.weight"].T.copy()
    faulty["blocks_2.ff.layers.0.weight"] = np.random.default_rng(1).uniform(-0.2, 0.2, (40, 24)).astype(np.float32)
    faulty["blocks_3.attn.out_proj.bias"] = np.zeros(24, np.float32)
    faulty["blocks_3.norm1.bias"] = faulty["blocks_3.norm1.bias"].astype(ml_dtypes.bfloat16).astype(np.float32)
    faulty["head.weight"] = faulty["head.weight"] * np.float32(2)
    faulty["voc.1.weight"] = reference["voc.1.weight_v"].transpose(0, 2, 1).copy()
    a: Any = reference if sides[:4] == "file" else write_trace(tmp_path / "a.h5", reference, store=sides == "stored values")
    b: Any = faulty if sides[-4:] == "file" else write_trace(tmp_path / "b.h5", faulty, store=sides == "stored values")
    report = weights(a, b)
    assert {finding.port: finding.kind for finding in report.findings} == {
        query: "weights.swapped",
        key: "weights.swapped",
        "blocks_0.attn.out_proj.weight": "weights.layout",
        "blocks_2.ff.layers.0.weight": "weights.unloaded",
        "blocks_3.attn.out_proj.bias": "weights.missing_bias",
        "blocks_3.norm1.bias": "weights.precision",
        "head.weight": "weights.value",
        "voc.1.weight": "weights.value",
    }


def test_a_buffer_that_code_computes_may_be_missing_and_a_batch_norms_may_not(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a.h5") as writer:
        for name, value in transformer().items():
            writer.add_param(name, value, path=name.rpartition(".")[0], kind="parameter")
        writer.add_param("rotary.inv_freq", values("r", 12), path="rotary", kind="buffer")
        writer.add_param("layers.0.norm1.running_mean", values("m", 24), path="layers.0.norm1", kind="buffer")
    report = weights(tmp_path / "a.h5", port(transformer()))
    assert {finding.reference: finding.expected for finding in report.missing} == {
        "rotary.inv_freq": True,
        "layers.0.norm1.running_mean": False,
    }
    assert report.verdict == "different"


def test_a_half_precision_port_is_the_same_by_its_fingerprints(tmp_path: Path) -> None:
    halved = {name: value.astype(ml_dtypes.bfloat16) for name, value in port(transformer()).items()}
    a, b = write_trace(tmp_path / "a.h5", transformer(), store=False), write_trace(tmp_path / "b.h5", halved, store=False)
    with open_trace(a) as first, open_trace(b) as second:
        report = weights(first, second)
    assert report.verdict == "same"
    assert report.rounded == report.equal == len(halved)
