"""What a look at a trace found: plain frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

SCHEMA = "tracediff.look/1"
Symptom = Literal[
    "raised",
    "not finite",
    "constant",
    "same everywhere",
    "looping ids",
    "endless ids",
    "tone",
    "growing",
    "signs",
    "spread",
    "range",
    "caveat",
]


@dataclass(frozen=True, slots=True)
class Alarm:
    """One thing that looks wrong, and where it is first seen; ``count``: at so many places. ``next``: the command that tells more."""

    symptom: Symptom
    site: str
    call: str
    end: str
    text: str
    next: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Look:
    """The alarms of one trace in execution order; none is no proof of anything.

    ``records`` were looked at by their statistics, ``read`` of them by their values. ``like``: the reference's file, "" without one.
    """

    path: str
    like: str
    alarms: tuple[Alarm, ...]
    records: int
    read: int

    def to_dict(self) -> Mapping[str, Any]:
        """The look as one JSON object."""
        return {"schema": SCHEMA, **asdict(self), "alarms": [asdict(alarm) for alarm in self.alarms]}
