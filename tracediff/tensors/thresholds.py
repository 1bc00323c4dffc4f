"""The numbers that decide at the floor of tensors."""

from __future__ import annotations

from dataclasses import dataclass

from tracediff.thresholds import threshold

_WEIGHT_NORMS = "set by hand above the float32 error of a merge; tests/test_alignment_parameters.py and test_parameters_sources.py guard it"


@dataclass(frozen=True)
class TensorThresholds:
    """When a tensor is a weight norm merged."""

    merged_norm: float = threshold(1e-5, "relative difference of a merged tensor's norm from its gain's norm", _WEIGHT_NORMS)
    direction_norm: float = threshold(
        1e-2,
        "relative difference of the direction's norm from the norm that rows and gain imply: rounding weighs more where a row is near 0",
        _WEIGHT_NORMS,
    )


THRESHOLDS = TensorThresholds()
