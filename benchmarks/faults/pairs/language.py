"""More language models of `mlx-lm` against `transformers`, most of them held out: chosen by name, after tracediff was mended on others."""

from __future__ import annotations

from typing import Any

from pairs import Pair

from benchmarks import real_pairs

_HEADS = {**real_pairs.GROUPED, "head_dim": 16}
_THETA = {"rope_parameters": {"rope_type": "default", **real_pairs.ROPE}}
_SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
SIZES: dict[str, dict[str, Any]] = {
    "granite": real_pairs.GROUPED,
    "helium": _HEADS,
    "nemotron": real_pairs.GROUPED,
    "ernie4_5": _HEADS,
    "seed_oss": _HEADS,
    "smollm3": real_pairs.GROUPED,
    "hunyuan_v1_dense": _HEADS,
    "glm4": {**_HEADS, "partial_rotary_factor": 0.5},
    "gemma3_text": {**_HEADS, "sliding_window": 6, "query_pre_attn_scalar": 16, "layer_types": _SLIDING},
    "cohere2": {**_HEADS, **_THETA, "num_hidden_layers": 4, "sliding_window": 6},
    "apertus": {**real_pairs.GROUPED, **_THETA},
}
MORE: dict[str, dict[str, Any]] = {
    "gemma3_text": {"sliding_window_pattern": 2, "rope_theta": 1000000.0},
    "cohere2": {"sliding_window_pattern": 4},
    "apertus": {"mlp_bias": False, "post_norm": False, "qk_norm": True},
}
"""What the port is told besides the reference's configuration."""


def make(kind: str, seed: int = 0) -> Pair:
    """The pair of a model type. Raises ImportError where one of the packages does not know it."""
    real_pairs.MODELS.setdefault(kind, (SIZES[kind], {**real_pairs.ROPE, **MORE.get(kind, {})}, {}))
    try:
        return real_pairs.build(kind, seed)
    except ValueError as error:
        raise ImportError(f"transformers does not know {kind!r}: {error}") from error
