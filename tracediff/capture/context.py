"""What a recipe is given: which stages are wanted, and where its weights, inputs and draws come from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tracediff.capture.randomness import Array, Draws, Playback, SeededDraws, Shape, Tape, seeded_weight
from tracediff.errors import RecipeError, TracediffError

if TYPE_CHECKING:
    from tracediff.trace import Trace


@dataclass
class Context:
    """What a run of a recipe was asked for, and where its weights, inputs and draws come from.

    ``weights``: ``seeded``, ``seeded:small``, ``seeded:full``, a folder or a hub id. ``stages``: the wanted ones, all where empty.
    ``reference``: a trace whose inputs and draws are played back; without it they come from the seed.
    ``weights_file``: where this side may leave its weights for the other (`keep_weights`).
    """

    seed: int = 0
    weights: str = "seeded"
    dtype: str | None = None
    stages: tuple[str, ...] = ()
    reference: Trace | None = None
    weights_file: Path | None = None
    tape: Tape = field(init=False)
    draws: Draws = field(init=False)

    def __post_init__(self) -> None:
        self.tape = Tape(self.seed)
        self.draws = SeededDraws(self.tape) if self.reference is None else Playback(self.reference)

    def wants(self, stage: str) -> bool:
        """Whether a stage is wanted; ``t3`` wants ``t3.cond`` and all others below it."""
        return not self.stages or any(stage == wanted or stage.startswith(wanted + ".") for wanted in self.stages)

    def array(self, stage: str, name: str, make: Callable[[np.random.Generator], Array]) -> Array:
        """An input of a stage: what the reference trace has at the tap ``#name`` of that stage, else what ``make`` draws.

        ``make`` gets a generator that depends on the seed, the stage and the name only. The recipe taps the input by the same name.
        """
        if self.reference is None:
            return make(self.tape.generator(stage, f"#{name}"))
        try:
            found = [record for record in self.reference.find(f"#{name}") if record.stage == stage]
        except TracediffError:
            found = []
        if not found:
            raise RecipeError(
                f"{os.fspath(self.reference.path)!r} has no input {name!r} of stage {stage!r}: that stage was not captured. "
                "Capture the reference with it, or leave out the stage here with --stage."
            )
        values = found[0].read()
        return values if values.dtype.kind in "biufc" else values.astype(np.float32)

    def weight(self, key: str, shape: Shape) -> Array:
        """The seeded float32 values (of that shape) of the reference's parameter or buffer ``key``: no bias zero, no scale one."""
        return seeded_weight(self.seed, key, shape)

    def draw(self, stage: str, name: str, shape: Shape) -> Array:
        """The next draw of that name in that stage, float32, for a model that keeps its noise instead of drawing it.

        It is the one that the other side's call gets: a port whose constructor made its noise can be given the reference's.
        """
        values = self.draws.take(stage, name, shape)
        if values is not None:
            return values.astype(np.float32)
        if name != "random.normal":
            raise RecipeError(f"The reference made no draw {name!r} of shape {list(shape)} in stage {stage!r}.")
        return self.tape.normal(stage, name, 0, shape)

    def keep_weights(self, arrays: Mapping[str, Array]) -> None:
        """Leaves this side's weights beside its trace, for the other side."""
        if self.weights_file is not None:
            from safetensors.numpy import save_file

            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, self.weights_file)

    def kept_weights(self) -> dict[str, Array]:
        """The weights that the reference left beside its trace; RecipeError where there are none."""
        file = None if self.reference is None else weights_beside(self.reference.path)
        if file is None or not file.is_file():
            left = "no reference is given" if file is None else f"no file {os.fspath(file)!r}"
            raise RecipeError(f"The reference left no weights: {left}. Capture it first, and then this side with --random REFERENCE.")
        from safetensors.numpy import load_file

        arrays: dict[str, Array] = load_file(file)
        return arrays


def weights_beside(trace: Path) -> Path:
    """Where the side that a trace was made of leaves its weights, in the safetensors format."""
    return trace.with_suffix(".weights.safetensors")
