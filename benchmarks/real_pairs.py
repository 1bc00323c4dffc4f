"""Pairs from packages: language models of `transformers` against their ports in `mlx-lm`, tiny, with seeded weights.

The port is loaded with the reference's weights through its own `sanitize`. Most modules bear the same name on both sides; those whose
parameters are equal under that name are the truth, besides what is written down here. `pip install mlx-lm transformers`.

Four ports of mlx-lm compute otherwise than the reference does by its own configuration (`DIFFERENT`, docs/other-ports.md). Here the
reference is configured as the port computes, so that the pairs are clean; ``shipped=True`` leaves its configuration as it is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from pairs import Pair, Rules, matched, mlx_flat, perturb

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
    "gemma": ({**GROUPED, "head_dim": 16, "hidden_act": "gelu_python"}, ROPE, {}),
    "gemma2": ({**GROUPED, "head_dim": 16}, ROPE, {}),
    "olmo2": (GROUPED, ROPE, {}),
    "starcoder2": ({**GROUPED, "hidden_act": "gelu"}, ROPE, {}),
    "stablelm": (GROUPED, {**ROPE, "use_qkv_bias": False, "partial_rotary_factor": 0.25}, {}),
    "phi": (SMALL, {**ROPE, "partial_rotary_factor": 0.5}, {}),
    "cohere": ({**GROUPED, "rope_parameters": {"rope_type": "default", **ROPE}}, ROPE, {}),
    "glm": ({**GROUPED, "head_dim": 16, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0, **ROPE}}, ROPE, {}),
    "gpt2": (
        {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 100, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0},
        {"n_ctx": 64},
        {"transformer": "model", "transformer.*": "model.*"},
    ),
    "gpt_neox": (
        {**SMALL, "intermediate_size": 256, "hidden_act": "gelu_pytorch_tanh"},
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


DIFFERENT = {"gemma": "hidden_act", "starcoder2": "hidden_act", "gpt_neox": "hidden_act", "glm": "rope_parameters"}
"""The ports that do not do what one setting of the reference says, and which setting that is."""


def build(kind: str, seed: int = 0, *, length: int = 12, shipped: bool = False) -> Pair:
    """The pair of a model type. Raises whatever the packages raise where they cannot build it.

    ``shipped``: the reference computes as it is configured by default, also where the port computes otherwise.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes, more, rules = MODELS[kind]
    if shipped:
        sizes = {name: value for name, value in sizes.items() if name != DIFFERENT.get(kind)}
    config = AutoConfig.for_model(kind, **sizes)
    attention = {"attn_implementation": "eager" if kind == "gemma2" else "sdpa"} if kind != "mamba" else {}
    reference = perturb(AutoModelForCausalLM.from_config(config, **attention), seed)
    module = importlib.import_module(f"mlx_lm.models.{kind}")
    settings = config.to_dict()
    rope_names = ("rope_theta", "partial_rotary_factor")  # by transformers in a dict of their own
    base = {name: value for name, value in (settings.get("rope_parameters") or {}).items() if name in rope_names}
    port = module.Model(module.ModelArgs.from_dict({**settings, **more, **base, "model_type": kind}))
    _load(port, kind, {name: mx.array(value.numpy()) for name, value in reference.state_dict().items()})
    ids = np.random.default_rng(seed).integers(1, 100, (1, length))
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


_ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
_WHISPER: Rules = {
    "model.encoder": "encoder",
    "model.encoder.conv1": "encoder.conv1",
    "model.encoder.conv2": "encoder.conv2",
    "model.encoder.layer_norm": "encoder.ln_post",
    "model.decoder": "decoder",
    "model.decoder.embed_tokens": "decoder.token_embedding",
    "model.decoder.layer_norm": "decoder.ln",
    "model.decoder.layers.*.encoder_attn_layer_norm": "decoder.blocks.*.cross_attn_ln",
    "model.decoder.layers.*.encoder_attn": "decoder.blocks.*.cross_attn",
    **{f"model.decoder.layers.*.encoder_attn.{ours}": f"decoder.blocks.*.cross_attn.{theirs}" for ours, theirs in _ATTENTION.items()},
}
for _stack in ("encoder", "decoder"):
    _ours, _theirs = f"model.{_stack}.layers.*", f"{_stack}.blocks.*"
    _WHISPER |= {_ours: _theirs, f"{_ours}.self_attn": f"{_theirs}.attn", f"{_ours}.self_attn_layer_norm": f"{_theirs}.attn_ln"}
    _WHISPER |= {f"{_ours}.self_attn.{ours}": f"{_theirs}.attn.{theirs}" for ours, theirs in _ATTENTION.items()}
    _WHISPER |= {f"{_ours}.fc1": f"{_theirs}.mlp1", f"{_ours}.fc2": f"{_theirs}.mlp2", f"{_ours}.final_layer_norm": f"{_theirs}.mlp_ln"}


def whisper(seed: int = 0, *, length: int = 7) -> Pair:
    """Whisper of `transformers` against `mlx-whisper`: an encoder and a decoder, with other names throughout."""
    from mlx_whisper.whisper import ModelDimensions, Whisper
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=100, num_mel_bins=20, d_model=64, encoder_layers=3, decoder_layers=3, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=256, decoder_ffn_dim=256, max_source_positions=30, max_target_positions=24,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    reference = perturb(WhisperForConditionalGeneration(config), seed)
    port = Whisper(ModelDimensions(20, 30, 64, 4, 3, 100, 24, 64, 4, 3), mx.float32)
    weights = {}
    for name, value in reference.state_dict().items():
        owner, _, kind = name.rpartition(".")
        target = matched(_WHISPER, owner)
        if target is not None:
            weights[f"{target}.{kind}"] = mx.array(value.numpy().transpose(0, 2, 1) if value.ndim == 3 else value.numpy())
    weights["decoder.positional_embedding"] = mx.array(reference.model.decoder.embed_positions.weight.detach().numpy())
    weights["alignment_heads"] = port.alignment_heads
    port.load_weights(list(weights.items()), strict=True)
    port.encoder._positional_embedding = mx.array(reference.model.encoder.embed_positions.weight.detach().numpy())
    port.eval()
    random = np.random.default_rng(seed)
    mel, ids = random.standard_normal((1, 20, 60)).astype(np.float32), random.integers(1, 100, (1, length))
    return Pair(
        "whisper",
        reference,
        port,
        lambda: reference(input_features=torch.tensor(mel), decoder_input_ids=torch.tensor(ids), use_cache=False),
        lambda: mx.eval(port(mx.array(mel.transpose(0, 2, 1)), mx.array(ids))),
        _WHISPER,
    )


PAIRS: dict[str, Callable[..., Pair]] = {kind: partial(build, kind) for kind in MODELS} | {"whisper": whisper}
