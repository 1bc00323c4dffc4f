"""look is silent on clean language models of mlx-lm, whole passes and sampled tokens."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracediff as td

mx = pytest.importorskip("mlx.core")
pytest.importorskip("mlx_lm")

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "phi3": {},
    "gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 64, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
}


def model(name: str) -> Any:
    home = import_module(f"mlx_lm.models.{name}")
    known = inspect.signature(home.ModelArgs).parameters
    mx.random.seed(0)
    made = home.Model(
        home.ModelArgs(**{key: value for key, value in {**SIZES, "model_type": name, **MODELS[name]}.items() if key in known})
    )
    mx.eval(made.parameters())
    return made


@pytest.mark.parametrize("name", MODELS)
def test_a_clean_language_model_raises_no_alarm(name: str, tmp_path: Path) -> None:
    from mlx_lm.models.cache import make_prompt_cache

    lm = model(name)

    def sampled() -> Any:
        cache, ids, chosen = make_prompt_cache(lm), mx.array([[3, 14, 15, 92, 65]]), []
        for _ in range(28):
            ids = mx.random.categorical(lm(ids, cache=cache)[:, -1])[:, None]
            chosen.append(ids)
        return mx.concatenate(chosen, axis=1)

    td.capture(lm, {"inputs": np.arange(40).reshape(1, 40) * 7 % 96}, to=tmp_path / "whole.h5", repeat=False)
    td.capture(lm, sampled, to=tmp_path / "sampled.h5", repeat=False, seed=0)
    for path in ("whole.h5", "sampled.h5"):
        assert td.look(tmp_path / path).alarms == ()
    assert td.look(tmp_path / "sampled.h5", like=tmp_path / "whole.h5").alarms == ()
