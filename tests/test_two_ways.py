"""compare: one model run in two ways is the same, and a fault in the one way is found in it.

Tiny models of transformers and mlx-lm with seeded weights: a whole pass against token by token, chunks, singles, padding, compiled.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from test_look_models import model as language_model

import tracediff as td
from tracediff import cli
from tracediff.alignment.axes import Layout, apply, apply_reference, places_in_port, restore
from tracediff.errors import CaptureError, TraceExistsError

torch = pytest.importorskip("torch")
mx = pytest.importorskip("mlx.core")
transformers = pytest.importorskip("transformers")
pytest.importorskip("mlx_lm")

pytestmark = pytest.mark.slow

IDS = (np.arange(24) * 7 % 90 + 3).reshape(2, 12)
ONE = IDS[:1]
PADS = np.concatenate([np.zeros((1, 4), int), ONE], 1)
BEHIND = np.concatenate([ONE, np.zeros((1, 4), int)], 1)
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "head_dim": 8,
}
OF_TRANSFORMERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES, pad_token_id=0),
    "gemma2": lambda: transformers.Gemma2Config(**SIZES, query_pre_attn_scalar=8, sliding_window=8, pad_token_id=0),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=96, n_positions=64, pad_token_id=0, bos_token_id=1, eos_token_id=2
    ),
}
OF_MLX_LM = ("llama", "gemma2", "qwen3")


class Torch:
    """A model of transformers, and the ways to run it."""

    ways = ("decode", "chunks", "batch", "left", "right", "compiled")

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.model = transformers.AutoModelForCausalLM.from_config(OF_TRANSFORMERS[name]()).eval()

    def _run(self, ids: Any, *, model: Any = None, **given: Any) -> Any:
        with torch.no_grad():
            arrays = {key: torch.tensor(value) if isinstance(value, np.ndarray) else value for key, value in given.items()}
            return (self.model if model is None else model)(torch.tensor(ids), **{"use_cache": False, **arrays})

    def whole(self, ids: Any = ONE) -> Callable[[], Any]:
        return lambda: self._run(ids).logits

    def steps(self, step: int = 1, *, positions: Any = None, tamper: Any = None) -> Callable[[], Any]:
        def run() -> Any:
            past, made = None, []
            for start in range(0, ONE.shape[1], step):
                ids = ONE[:, start : start + step]
                given = {"position_ids": positions(np.arange(start, start + ids.shape[1]))[None]} if positions else {}
                answer = self._run(ids, past_key_values=past, use_cache=True, **given)
                past = answer.past_key_values
                made.append(answer.logits)
                if tamper:
                    tamper(past, start)
            return torch.cat(made, 1)

        return run

    def left(self, *, mask: bool = True, positions: bool = True) -> Callable[[], Any]:
        kept = (np.arange(16) >= 4).astype(int)[None]
        given = {
            "attention_mask": kept if mask else np.ones_like(kept),
            "position_ids": np.maximum(np.cumsum(kept, 1) - 1, 0) if positions else np.arange(16)[None],
        }
        return lambda: self._run(PADS, **given).logits[:, 4:]

    def way(self, name: str) -> tuple[Any, Any]:
        if name == "batch":
            return self.whole(IDS), lambda: torch.cat([self._run(IDS[row : row + 1]).logits for row in range(2)], 0)
        if name == "right":
            kept = (np.arange(16) < 12).astype(int)[None]
            return self.whole(), lambda: self._run(BEHIND, attention_mask=kept).logits[:, :12]
        if name == "compiled":
            compiled = torch.compile(self.model, backend="eager")
            return self.whole(), lambda: self._run(ONE, model=compiled).logits
        return self.whole(), {"decode": self.steps(), "chunks": self.steps(5), "left": self.left()}[name]


class Mlx:
    """A model of mlx-lm, and the ways to run it."""

    ways = ("decode", "chunks", "batch", "right", "compiled")

    def __init__(self, name: str) -> None:
        self.model = language_model(name)

    def whole(self, ids: Any = ONE) -> Callable[[], Any]:
        return lambda: self.model(mx.array(ids))

    def steps(self, step: int = 1, tamper: Any = None) -> Callable[[], Any]:
        from mlx_lm.models.cache import make_prompt_cache

        def run() -> Any:
            cache, made = make_prompt_cache(self.model), []
            for start in range(0, ONE.shape[1], step):
                if tamper:
                    tamper(cache, start)
                made.append(self.model(mx.array(ONE[:, start : start + step]), cache=cache))
            return mx.concatenate(made, 1)

        return run

    def way(self, name: str) -> tuple[Any, Any]:
        if name == "batch":
            return self.whole(IDS), lambda: mx.concatenate([self.model(mx.array(IDS[row : row + 1])) for row in range(2)], 0)
        if name == "compiled":
            compiled = mx.compile(lambda ids: self.model(ids))  # noqa: PLW0108 - a model itself cannot be compiled
            return self.whole(), lambda: compiled(mx.array(ONE))
        second = {"decode": self.steps(), "chunks": self.steps(5), "right": lambda: self.model(mx.array(BEHIND))[:, :12]}
        return self.whole(), second[name]


MODELS: dict[str, Callable[[], Any]] = {
    **{f"transformers {name}": lambda name=name: Torch(name) for name in OF_TRANSFORMERS},
    **{f"mlx-lm {name}": lambda name=name: Mlx(name) for name in OF_MLX_LM},
}


def compared(side: Any, first: Any, second: Any, **options: Any) -> Any:
    return td.compare(side.model, first, second, repeat=False, **options)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_run_in_two_ways_is_the_same(name: str) -> None:
    side = MODELS[name]()
    for way in side.ways:
        report = compared(side, *side.way(way))
        assert (way, report.verdict, report.divergences) == (way, "same", ())
        if way != "compiled":  # inside of what torch compiles nothing is seen
            missed = [one for one in report.coverage.unpaired_reference if "causal" not in one and "input[1]" not in one]
            assert len(missed) <= 4, (way, missed)


# -- faults in one way


def halve(past: Any, start: int) -> None:
    """From position 6 on the cached values are half as large."""
    if start == 5:
        for layer in past.layers:
            layer.values = layer.values * 0.5


@pytest.mark.parametrize(
    ("name", "second", "culprit", "end"),
    [
        ("llama", lambda side: side.steps(positions=lambda p: p + (p >= 6)), "model", "input[position_ids]"),
        ("gpt2", lambda side: side.steps(5, positions=lambda p: p % 5), "transformer", "input[0]"),
        ("llama", lambda side: side.steps(tamper=halve), "model.layers.0.self_attn", "input[v]"),
        ("gpt2", lambda side: side.left(mask=False), "transformer.h.0.attn", "output"),
        ("gemma2", lambda side: side.left(mask=False), "model.layers.0.self_attn", "output"),
        ("gpt2", lambda side: side.left(positions=False), "transformer", "input[0]"),
    ],
)
def test_a_fault_in_one_way_of_a_torch_model_is_found_in_it(name: str, second: Any, culprit: str, end: str) -> None:
    side = Torch(name)
    first, *_ = compared(side, side.whole(), second(side)).divergences
    assert (first.culprit.port, first.site.end) == (culprit, end)


def test_what_a_rotation_does_not_tell_from_a_shift_is_no_fault() -> None:
    """Rotary positions count from each other: padding on the left that shifts all of them changes nothing behind attention."""
    side = Torch("llama")
    report = compared(side, side.whole(), side.left(positions=False))
    assert report.verdict == "same"
    assert {form.where.reference for form in report.equivalent} >= {"model.layers.0.self_attn.q_proj"} or report.equivalent


def shifted(cache: Any, start: int) -> None:
    if start == 6:
        for layer in cache:
            layer.offset += 1


def forgotten(cache: Any, start: int) -> None:
    if start:
        for layer in cache:
            layer.keys = layer.values = None
            layer.offset = 0


@pytest.mark.parametrize("name", OF_MLX_LM)
@pytest.mark.parametrize(("step", "tamper"), [(1, shifted), (5, forgotten)])
def test_a_wrong_offset_of_a_rotation_is_found_in_the_loop(name: str, step: int, tamper: Any) -> None:
    side = Mlx(name)
    first, *_ = compared(side, side.whole(), side.steps(step, tamper)).divergences
    assert first.culprit.port == "model.layers.0.self_attn.rope"
    assert [cause.kind for cause in first.causes][:1] == ["rope.variant"]


def test_padding_on_the_left_without_a_mask_is_found() -> None:
    side = Mlx("llama")
    first, *_ = compared(side, side.whole(), lambda: side.model(mx.array(PADS))[:, 4:]).divergences
    assert first.culprit.port == "model.layers.0.self_attn.rope"


def test_another_dtype_is_judged_by_its_own_noise_and_a_fault_in_it_is_found() -> None:
    def half(factor: float = 1.0) -> Any:
        made = Torch("llama").model.to(torch.bfloat16)
        with torch.no_grad():
            made.model.layers[1].mlp.up_proj.weight *= factor
        return made

    side = Torch("llama")

    def run(model: Any) -> Any:
        return lambda: side._run(ONE, model=model).logits

    for factor, verdict in ((1.0, "same"), (1.5, "different")):
        other = half(factor)
        assert compared(side, side.whole(), run(other), second_model=other).verdict == verdict


# -- layouts


def test_a_window_of_the_reference_and_a_cut_that_begins_later_are_read_and_restored() -> None:
    whole = np.arange(2 * 4 * 6).reshape(2, 4, 6)
    part = whole[:, 1:3, :3]
    assert (apply_reference(whole, Layout((2, 2, 3), window_reference=((0, 2), (1, 3), (0, 3)))) == part).all()
    layout = Layout((2, 2, 3), crop=(2, 2, 3), crop_from=(0, 1, 0))
    assert (apply(whole, layout) == part).all()
    assert whole.reshape(-1)[places_in_port(np.arange(12), layout, whole.shape)].tolist() == part.reshape(-1).tolist()
    [restored] = restore(-part, layout, [whole])
    assert (restored[:, 1:3, :3] == -part).all()
    assert (restored[:, 0] == whole[:, 0]).all()


# -- the call and the command


def test_the_traces_are_kept_where_a_folder_is_named_and_never_overwritten(tmp_path: Path) -> None:
    layer = torch.nn.Linear(4, 4).eval()
    x = np.ones((2, 4), np.float32)
    report = td.compare(layer, {"input": x}, lambda: layer(torch.tensor(x)), to=tmp_path / "ways")
    assert report.verdict == "same"
    assert sorted(path.name for path in (tmp_path / "ways").iterdir()) == ["first.h5", "second.h5"]
    with pytest.raises(TraceExistsError):
        td.compare(layer, {"input": x}, {"input": x}, to=tmp_path / "ways")
    assert td.compare(layer, {"input": x}, {"input": x}, to=tmp_path / "ways", force=True).verdict == "same"


def test_both_ways_take_the_same_draws() -> None:
    class Noisy(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x + torch.randn_like(x)

    model, x = Noisy().eval(), np.ones((2, 4), np.float32)
    assert td.compare(model, {"x": x}, {"x": x}).verdict == "same"


WAYS = """
import numpy as np, torch
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).eval()
X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)

def whole():
    return model, {"input": X}

def rows():
    return model, lambda: torch.cat([model(torch.tensor(X[i : i + 1])) for i in range(6)])

def wrong():
    return model, lambda: torch.cat([model(torch.tensor(X[i : i + 1]) * (1.0 + (i == 3))) for i in range(6)])

def nothing():
    return model
"""


def test_the_command_compares_two_functions_of_files_also_in_another_python(tmp_path: Path) -> None:
    (tmp_path / "ways.py").write_text(WAYS)

    def status(first: str, second: str, *more: str) -> int:
        return CliRunner().invoke(cli.main, ["compare", f"{tmp_path}/ways.py:{first}", f"{tmp_path}/ways.py:{second}", *more]).exit_code

    assert status("whole", "rows") == 0
    assert status("whole", "wrong") == 1
    assert status("whole", "nothing") == 2
    assert status("whole", "rows", "--python", sys.executable) == 0
    with pytest.raises(CaptureError, match="returns Sequential"):
        td.api.compare_named(f"{tmp_path}/ways.py:whole", f"{tmp_path}/ways.py:nothing")
