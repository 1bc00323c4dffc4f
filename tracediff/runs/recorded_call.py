"""One call of a reference, rebuilt from its trace: its arguments in their containers, and the records of what it returned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracediff.errors import TraceFileError
from tracediff.observe.containers import built
from tracediff.site import End, is_returned
from tracediff.trace import Record, Trace


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument: its name in the reference ("" where the trace does not tell it), its value, and whether it was given by name."""

    name: str
    value: Any
    is_keyword: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the value is no tensor and holds none: a switch that a port may do without."""
        return self.value is None or isinstance(self.value, (bool, int, float, str))

    @property
    def is_off(self) -> bool:
        """Whether the value is None or False."""
        return self.value is None or self.value is False

    @property
    def described(self) -> str:
        """The shape and dtype of an array, the type of any other value."""
        return f"{tuple(self.value.shape)} {self.value.dtype}" if isinstance(self.value, np.ndarray) else type(self.value).__name__


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One recorded call: where it was made, its positional and then its keyword arguments, and the records of what it returned.

    ``unseen``: the names of parameters of which nothing was recorded.
    """

    text: str
    stage: str
    arguments: tuple[Argument, ...]
    outputs: tuple[Record, ...]
    unseen: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """How users name each argument: by its name, else by its place among the arguments."""
        return tuple(argument.name or str(place) for place, argument in enumerate(self.arguments))

    @property
    def described(self) -> str:
        """The arguments in words."""
        return ", ".join(f"{label}: {argument.described}" for label, argument in zip(self.labels, self.arguments, strict=True))


def recorded_call(reference: Trace, site: str, call: str) -> RecordedCall:
    """The call ``call`` of ``site``. Raises TraceFileError where its inputs were not recorded, or not with their values."""
    records = reference.find(site, call)
    _check_inputs(reference, site, call, records)
    names = _parameter_names(reference, site)
    by_key = _by_argument(_input_values(records))
    positions = sorted(key for key in by_key if isinstance(key, int))
    keywords = [key for key in by_key if isinstance(key, str)]
    arguments = (
        *(Argument(names[key] if key < len(names) else "", _rebuilt(by_key[key], key)) for key in positions),
        *(Argument(key, _rebuilt(by_key[key], key), is_keyword=True) for key in keywords),
    )
    seen = {argument.name for argument in arguments}
    outputs = tuple(record for record in records if is_returned(record.end))
    return RecordedCall(call, records[0].stage, arguments, outputs, tuple(name for name in names if name not in seen))


def _is_input(end: str) -> bool:
    return end.startswith("input")


def _check_inputs(reference: Trace, site: str, call: str, records: Sequence[Record]) -> None:
    inputs = [record for record in records if _is_input(record.end)]
    absent = next((record for record in inputs if not record.stored), None)
    if inputs and absent is None:
        return
    what = f"the values of {absent.end} were not stored" if absent is not None else "no inputs were recorded"
    raise TraceFileError(
        f"{str(reference.path)!r} does not hold what {site or 'the root'!r} was handed at {call!r}: {what}. Capture the reference with "
        "--save full and without leaving the site out."
    )


def _parameter_names(reference: Trace, site: str) -> list[str]:
    """What the reference's module calls its positional parameters, as far as the trace says."""
    modules: Iterable[Mapping[str, Any]] = reference.meta.get("modules") or ()
    return next((list(module.get("arguments") or ()) for module in modules if module["path"] == site), [])


def _input_values(records: Sequence[Record]) -> dict[str, Any]:
    """The values that a call was given, by end: recorded tensors and texts, then the scalars that were noted beside them."""
    inputs = [record for record in records if _is_input(record.end)]
    values: dict[str, Any] = {record.end: record.text() if record.dtype == "text" else record.read() for record in inputs}
    for record in records:
        scalars: Mapping[str, Any] = record.note.get("scalars") or {}
        values |= {end: value for end, value in scalars.items() if _is_input(end)}
    return values


def _by_argument(values: Mapping[str, Any]) -> dict[int | str, dict[str, Any]]:
    """The values by the position or the name of the argument that they are part of, and then by end."""
    by_key: dict[int | str, dict[str, Any]] = {}
    for end, value in values.items():
        by_key.setdefault(End.parse(end).keys[0], {})[end] = value
    return by_key


def _rebuilt(parts: Mapping[str, Any], key: int | str) -> Any:
    """One argument, its containers rebuilt from their parts by end."""
    first = next(iter(parts))
    if len(parts) == 1 and len(End.parse(first).keys) == 1:
        return parts[first]
    value = built(parts)
    return value[key] if isinstance(value, dict) else value[0]
