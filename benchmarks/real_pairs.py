"""Pairs from packages: language models of `transformers` against their ports in `mlx-lm`, tiny, with seeded weights.

The port is loaded with the reference's weights through its own `sanitize`. Most modules bear the same name on both sides; those whose
parameters are equal under that name are the truth, besides what is written down here. `pip install mlx-lm transformers`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from pairs import Pair, Rules, mlx_flat, perturb

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
ROPE = {"rope_theta": 10000.0}

# model type: (sizes of the reference, further arguments of the port, names that differ)
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], Rules]] = {
    "llama": (GROUPED, ROPE, {}),
    "qwen2": (GROUPED, ROPE, {}),
    "qwen3": ({**GROUPED, "head_dim": 16}, ROPE, {}),
    "phi3": (GROUPED, ROPE, {}),
    "gemma": ({**GROUPED, "head_dim": 16}, ROPE, {}),
    "gemma2": ({**GROUPED, "head_dim": 16}, ROPE, {}),
    "olmo2": (GROUPED, ROPE, {}),
    "starcoder2": (GROUPED, ROPE, {}),
    "stablelm": (GROUPED, {**ROPE, "use_qkv_bias": False, "partial_rotary_factor": 0.25}, {}),
    "phi": (SMALL, {**ROPE, "partial_rotary_factor": 0.5}, {}),
    "cohere": (GROUPED, ROPE, {}),
    "gpt2": (
        {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 100, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0},
        {"n_ctx": 64},
        {"transformer": "model", "transformer.*": "model.*"},
    ),
    "gpt_neox": (
        {**SMALL, "intermediate_size": 256},
        {"rotary_pct": 0.25, "rotary_emb_base": 10000},
        {"gpt_neox": "model", "gpt_neox.**": "model.**"},
    ),
    "mamba": (
        {
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "vocab_size": 100,
            "state_size": 8,
            "time_step_rank": 4,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        {},
        {},
    ),
}


def build(kind: str, seed: int = 0) -> Pair:
    """The pair of a model type. Raises whatever the packages raise where they cannot build it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes, more, rules = MODELS[kind]
    config = AutoConfig.for_model(kind, **sizes)
    attention = {"attn_implementation": "eager" if kind == "gemma2" else "sdpa"} if kind != "mamba" else {}
    reference = perturb(AutoModelForCausalLM.from_config(config, **attention), seed)
    module = importlib.import_module(f"mlx_lm.models.{kind}")
    port = module.Model(module.ModelArgs.from_dict({**config.to_dict(), **more, "model_type": kind}))
    _load(port, kind, {name: mx.array(value.numpy()) for name, value in reference.state_dict().items()})
    ids = np.random.default_rng(seed).integers(1, 100, (1, 12))
    return SameNames(
        kind, reference, port, lambda: reference(torch.tensor(ids), use_cache=False), lambda: mx.eval(port(mx.array(ids))), rules
    )


def _load(port: Any, kind: str, weights: dict[str, mx.array]) -> None:
    """Loads through the port's own conversion; a head tied to the embedding is left out where the port has none of its own."""
    if kind == "gpt2":
        weights = {name.removeprefix("transformer."): value for name, value in weights.items() if name != "lm_head.weight"}
    if kind == "gpt_neox":
        weights["embed_out.weight"] = weights.pop("lm_head.weight")
    weights = port.sanitize(weights) if hasattr(port, "sanitize") else weights
    known = {name for name, _ in mlx_flat(port.parameters())}
    weights = {name: value for name, value in weights.items() if name in known or "lm_head" not in name}
    port.load_weights(list(weights.items()), strict=True)
    port.eval()


class SameNames(Pair):
    """A pair whose sites mostly bear the same names."""

    def expected(self, reference_sites: list[str], port_sites: list[str]) -> dict[str, str]:
        known = set(port_sites)
        found = {site: site for site in reference_sites if site in known}
        return found | super().expected(reference_sites, port_sites)


PAIRS: dict[str, Callable[..., Pair]] = {kind: partial(build, kind) for kind in MODELS}
