"""What a recipe is given: which stages are wanted, and where its weights, inputs and draws come from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tracediff.dtype import Array
from tracediff.errors import RecipeError, TracediffError
from tracediff.observe.randomness import Draws, Playback, SeededDraws, Shape, Tape, seeded_weight

if TYPE_CHECKING:
    from tracediff.trace import Record, Trace


@dataclass
class Context:
    """What a run of a recipe was asked for, and where its weights, inputs and draws come from.

    - ``weights``: ``seeded``, ``seeded:small``, ``seeded:full``, a folder or a hub id; ``dtype``: the dtype in which the models run, None
      for their own; ``stages``: the wanted stages, all where empty;
    - ``reference``: a trace whose inputs and draws are played back; without it they come from the seed;
    - ``from_reference``: whether the results of earlier stages come from the reference too, so that a stage starts by itself (``--from``);
    - ``sources``: by stage and input, where (``SITE/END``) the input is found in a trace of a whole run;
    - ``weights_file``: where this side may leave its weights for the other side (`keep_weights`);
    - ``asked``: whether the recipe asked which stages are wanted.
    """

    seed: int = 0
    weights: str = "seeded"
    dtype: str | None = None
    stages: tuple[str, ...] = ()
    reference: Trace | None = None
    weights_file: Path | None = None
    from_reference: bool = False
    sources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    asked: bool = field(default=False, init=False)
    tape: Tape = field(init=False)
    draws: Draws = field(init=False)

    def __post_init__(self) -> None:
        self.tape = Tape(self.seed)
        self.draws = SeededDraws(self.tape) if self.reference is None else Playback(self.reference)

    def wants(self, stage: str) -> bool:
        """Whether a stage is wanted; ``t3`` wants ``t3.cond`` and all others below it."""
        self.asked = True
        return not self.stages or any(stage == wanted or stage.startswith(wanted + ".") for wanted in self.stages)

    def array(self, stage: str, name: str, make: Callable[[np.random.Generator], Array]) -> Array:
        """An input of a stage: the reference's record at the tap ``#name`` of that stage; without a reference what ``make`` draws.

        ``make`` gets a generator that depends on the seed, the stage and the name only. The recipe taps the input by the same name. Raises
        RecipeError where the reference has no such record.
        """
        if self.reference is None:
            return make(self.tape.generator(stage, f"#{name}"))
        records = [record for record in _tapped(self.reference, name) if record.stage == stage]
        values: Array
        if not records and self.from_reference:
            values = self._of_reference(stage, name)
            return values
        if not records:
            raise RecipeError(
                f"{os.fspath(self.reference.path)!r} has no input {name!r} of stage {stage!r}: that stage was not captured. "
                "Capture the reference with it (where --include selected sites, with --include '#*' too, which keeps the inputs), or leave "
                "out the stage here with --stage."
            )
        values = _values(records[0])
        return values

    def given(self, stage: str, name: str, computed: Any = None) -> Any:
        """An input that an earlier stage computes: ``computed``, as the earlier stage gave it, or the reference's values.

        ``computed`` is None where the earlier stage was not run. The reference's values are taken with ``--from``, and where ``computed``
        is None. They are found at the tap ``#name`` of the stage, else where the recipe's ``SOURCES`` say, else at the last tap of that
        name before the stage began. They are a NumPy array (float32 for bfloat16), or a str where a text was tapped. Raises RecipeError
        where neither side has the input.

        >>> Context().given("decoder", "hidden", computed=[1.0])
        [1.0]
        """
        if computed is not None and not self.from_reference:
            return computed
        if self.reference is None:
            raise RecipeError(
                f"Stage {stage!r} needs {name!r}, which an earlier stage computes, and that stage was not run. Run it too, or start "
                "from the inputs that a reference had there: --from REFERENCE."
            )
        return self._of_reference(stage, name)

    def _of_reference(self, stage: str, name: str) -> Any:
        assert self.reference is not None
        return _values(_input_record(self.reference, stage, name, self.sources.get(stage, {}).get(name)))

    def weight(self, key: str, shape: Shape) -> Array:
        """The seeded float32 values (of that shape) of the reference's parameter or buffer ``key``: no bias zero, no scale one."""
        return seeded_weight(self.seed, key, shape)

    def draw(self, stage: str, name: str, shape: Shape) -> Array:
        """The next draw of that name in that stage, float32, for a model that keeps its noise instead of drawing it.

        The other side's call gets the same draw: a port whose constructor made its noise can be given the reference's. Raises RecipeError
        where the reference made no such draw.
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


def _tapped(reference: Trace, name: str) -> list[Record]:
    """The records of a tap; none where the trace has no such tap."""
    try:
        return reference.find(f"#{name}")
    except TracediffError:
        return []


def _input_record(reference: Trace, stage: str, name: str, source: str | None = None) -> Record:
    """The record of an input of a stage: at its own tap, else at ``source``, else at the last tap of that name before the stage began."""
    tapped = _tapped(reference, name)
    inside = [record for record in tapped if record.stage == stage]
    began = _first_row(reference, stage)
    before = [] if began is None else [record for record in tapped if record.row < began]
    records = inside[:1] or _of_source(reference, source) or before[-1:]
    if not records:
        why = "it did not run that stage" if began is None else f"nothing is tapped as {name!r} in that stage or before it"
        why += f", and it has no {source!r}" if source else ""
        raise RecipeError(
            f"{os.fspath(reference.path)!r} cannot give stage {stage!r} its input {name!r}: {why}. Capture the reference with that stage, "
            f"and tap its inputs there: td.tap({name!r}, ...)."
        )
    record = records[0]
    parts = {other.end for other in tapped if (other.call, other.stage) == (record.call, record.stage)}
    if len(parts) > 1:
        raise RecipeError(
            f"{name!r} of stage {stage!r} was tapped as a container of {len(parts)} arrays in {os.fspath(reference.path)!r}; "
            "tap each array by a name of its own."
        )
    return record


def _of_source(reference: Trace, source: str | None) -> list[Record]:
    """The first record at ``SITE/END``; none where the trace has no such site."""
    site, _, end = (source or "").rpartition("/")
    try:
        return reference.find(site, end=end)[:1] if source else []
    except TracediffError:
        return []


def _first_row(reference: Trace, stage: str) -> int | None:
    """The first row of a stage in a trace; None where the stage did not run."""
    if stage not in reference.strings:
        return None
    rows = np.flatnonzero(reference.index["stage"] == list(reference.strings).index(stage))
    return int(rows[0]) if rows.size else None


def _values(record: Record) -> Any:
    """A record's text, or its values in a dtype that every framework takes."""
    if record.dtype == "text":
        return record.text()
    values = record.read()
    return values if values.dtype.kind in "biufc" else values.astype(np.float32)


def weights_beside(trace: Path) -> Path:
    """The file beside a trace in which the trace's side leaves its weights, in the safetensors format."""
    return trace.with_suffix(".weights.safetensors")
