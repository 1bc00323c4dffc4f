"""Pairs from packages besides language models: tiny configurations, seeded weights, loaded through the port's own conversion.

`mlx-embeddings` (BERT), `mlx-vlm` (DINOv2) and a mixture of experts of `mlx-lm` (OLMoE), against `transformers`.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import torch
from pairs import Pair, Rules, mlx_flat, perturb

from benchmarks import real_pairs


def olmoe(seed: int = 0) -> Pair:
    """A mixture of experts: OLMoE of `transformers`, whose experts are fused, against `mlx-lm`, which takes them one by one."""
    from mlx_lm.models import olmoe as ported
    from transformers import OlmoeConfig, OlmoeForCausalLM

    config = OlmoeConfig(**{**real_pairs.GROUPED, "intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2})
    reference = perturb(OlmoeForCausalLM(config), seed)
    port = ported.Model(ported.ModelArgs.from_dict({**config.to_dict(), **real_pairs.ROPE, "model_type": "olmoe"}))
    weights = {name: mx.array(value) for name, value in unfused(reference.state_dict()).items()}
    port.load_weights(list(port.sanitize(weights).items()), strict=True)
    port.eval()
    ids = np.random.default_rng(seed).integers(1, 100, (1, 10))
    return real_pairs.SameNames(
        "olmoe", reference, port, lambda: reference(torch.tensor(ids), use_cache=False), lambda: mx.eval(port(mx.array(ids))), {}
    )


def mixtral(seed: int = 0) -> Pair:
    """Another mixture of experts, whose blocks and experts bear other names in `mlx-lm`."""
    from mlx_lm.models import mixtral as ported
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {**real_pairs.GROUPED, "intermediate_size": 48, "num_local_experts": 4, "num_experts_per_tok": 2}
    config = MixtralConfig(**sizes, rope_parameters={"rope_type": "default", **real_pairs.ROPE})
    reference = perturb(MixtralForCausalLM(config), seed)
    port = ported.Model(ported.ModelArgs.from_dict({**config.to_dict(), **real_pairs.ROPE, "model_type": "mixtral"}))
    named = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2", "mlp": "block_sparse_moe"}
    weights = {
        ".".join(named.get(part, part) for part in name.split(".")): mx.array(value)
        for name, value in unfused(reference.state_dict()).items()
    }
    port.load_weights(list(port.sanitize(weights).items()), strict=True)
    port.eval()
    ids = np.random.default_rng(seed).integers(1, 100, (1, 10))
    truth = {"model.layers.*.mlp": "model.layers.*.block_sparse_moe", "model.layers.*.mlp.gate": "model.layers.*.block_sparse_moe.gate"}
    return real_pairs.SameNames(
        "mixtral", reference, port, lambda: reference(torch.tensor(ids), use_cache=False), lambda: mx.eval(port(mx.array(ids))), truth
    )


def unfused(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """A state dict whose fused experts are told apart, as checkpoints have them."""
    found: dict[str, np.ndarray] = {}
    for name, value in state.items():
        owner, _, kind = name.rpartition(".")
        for expert in range(len(value) if owner.endswith(".experts") else 0):
            parts = np.split(value[expert].numpy(), 2) if kind == "gate_up_proj" else [value[expert].numpy()]
            names = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
            found |= {f"{owner}.{expert}.{part}.weight": array for part, array in zip(names, parts, strict=True)}
        if not owner.endswith(".experts"):
            found[name] = value.numpy()
    return found


def bert(seed: int = 0) -> Pair:
    """Sentence embeddings: BERT, a padding mask, mean pooling in the port."""
    from mlx_embeddings.models.bert import Model, ModelArgs
    from transformers import BertConfig, BertModel

    sizes = {
        "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 40, "layer_norm_eps": 1e-12,
    }  # fmt: skip
    reference = perturb(BertModel(BertConfig(**sizes)), seed)
    port = Model(ModelArgs(model_type="bert", **sizes))
    weights = port.sanitize({name: mx.array(value.numpy()) for name, value in reference.state_dict().items()})
    port.load_weights(list(weights.items()), strict=True)
    port.eval()
    ids = np.random.default_rng(seed).integers(1, 60, (2, 9))
    mask = np.ones((2, 9), np.int64)
    mask[1, 6:] = 0
    return real_pairs.SameNames(
        "bert",
        reference,
        port,
        lambda: reference(torch.tensor(ids), attention_mask=torch.tensor(mask)),
        lambda: mx.eval(port(mx.array(ids), attention_mask=mx.array(mask)).last_hidden_state),
        {},
    )


def dinov2(seed: int = 0) -> Pair:
    """A vision transformer: DINOv2 of `mlx-vlm`."""
    from mlx_vlm.models.dinov2 import Model, ModelConfig
    from transformers import Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2, "image_size": 28, "patch_size": 7}
    reference = perturb(Dinov2Model(Dinov2Config(**sizes)), seed)
    port = Model(ModelConfig(**sizes))
    weights = port.sanitize({as_published(name): mx.array(value.numpy()) for name, value in reference.state_dict().items()})
    port.load_weights(list(weights.items()), strict=False)
    port.eval()
    image = np.random.default_rng(seed).standard_normal((2, 3, 28, 28)).astype(np.float32)
    return real_pairs.SameNames(
        "dinov2",
        reference,
        port,
        lambda: reference(torch.tensor(image)),
        lambda: mx.eval(mlx_leaves(port(mx.array(image.transpose(0, 2, 3, 1))))),
        _DINO,
        _DINO_FUSED,
    )


def as_published(name: str) -> str:
    """A weight's name as published checkpoints have it; newer releases of `transformers` rename some modules."""
    for new, old in (("q_proj", "attention.query"), ("k_proj", "attention.key"), ("v_proj", "attention.value"), ("o_proj", "output.dense")):
        name = name.replace(f".attention.{new}.", f".attention.{old}.")
    return name


_LAYER = "encoder.layer.*"
_DINO: Rules = {
    "": "",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    _LAYER: "blocks.*",
    f"{_LAYER}.attention": "blocks.*.attn",
    f"{_LAYER}.attention.o_proj": "blocks.*.attn.proj",
    **{f"{_LAYER}.{ours}": f"blocks.*.{theirs}" for ours, theirs in (("layer_scale1", "ls1"), ("layer_scale2", "ls2"))},
    **{f"{_LAYER}.{name}": f"blocks.*.{name}" for name in ("norm1", "norm2", "mlp", "mlp.fc1", "mlp.fc2")},
}
_DINO_FUSED: Rules = {f"{_LAYER}.attention.{name}_proj": "blocks.*.attn.qkv" for name in "qkv"}


def mlx_leaves(made: Any) -> Any:
    """The arrays of what a model returned."""
    return [value for _, value in mlx_flat(made)] if isinstance(made, dict | list | tuple) else made


PAIRS = {"bert": bert, "dinov2": dinov2, "olmoe": olmoe, "mixtral": mixtral}
