"""More language models of `mlx-lm` against `transformers`, held out: chosen by name alone, after tracediff was mended on others.

The port of GLM in mlx-lm 0.32.2 turns all channels of a head (`models/glm.py:58`), its reference half of them by default: here it is
configured to turn all, so that the pair is clean.
"""

from __future__ import annotations

import real_pairs
from pairs import Pair

_HEADS = {**real_pairs.GROUPED, "head_dim": 16}
SIZES = {
    "granite": real_pairs.GROUPED,
    "helium": _HEADS,
    "nemotron": real_pairs.GROUPED,
    "ernie4_5": _HEADS,
    "seed_oss": _HEADS,
    "smollm3": real_pairs.GROUPED,
    "glm": {**_HEADS, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}},
    "hunyuan_v1_dense": _HEADS,
}


def make(kind: str, seed: int = 0) -> Pair:
    """The pair of a model type. Raises ImportError where one of the packages does not know it."""
    real_pairs.MODELS.setdefault(kind, (SIZES[kind], real_pairs.ROPE, {}))
    try:
        return real_pairs.build(kind, seed)
    except ValueError as error:
        raise ImportError(f"transformers does not know {kind!r}: {error}") from error
