"""Binding: which parameter of a port's module takes which argument that the reference's module was called with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from tracediff.alignment.names import tokens
from tracediff.errors import CaptureError
from tracediff.observe.types import Adapter
from tracediff.runs.recorded_call import RecordedCall

Place = int | str | None
"""Where an argument goes: a position among ``*args``, the name of a parameter, or nowhere."""

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_OPAQUE = (
    " (the reference was handed {0!r} too, but an object of its own kind, of which a trace holds nothing: try a callable that makes it, "
    "such as a module around this one)"
)


@dataclass(frozen=True, slots=True)
class Binding:
    """The place of each of a call's arguments; ``positional``: the module's parameters that may be given by position, in order."""

    places: tuple[Place, ...]
    positional: tuple[str, ...] = ()

    def laid_out(self, values: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """The positional and the keyword arguments of the module's call; by position as far as no parameter is left out."""
        placed = list(zip(self.places, values, strict=True))
        keywords = {place: value for place, value in placed if isinstance(place, str)}
        leading = list(takewhile(keywords.__contains__, self.positional))
        positions = [keywords.pop(name) for name in leading]
        return [*positions, *(value for place, value in placed if isinstance(place, int))], keywords


def bindings(calls: Sequence[RecordedCall], module: Any, adapter: Adapter, stated: Mapping[str, str], site: str) -> list[Binding]:
    """A binding for each call, since a module may be given other arguments from call to call (a mask or a cache only at some).

    ``stated``: the module's names of the reference's arguments, by the latter. Raises CaptureError where an argument finds no place.
    """
    signature = _signature(module, adapter)
    if signature is None:
        return [Binding(tuple(range(len(call.arguments)))) for call in calls]
    known = {label for call in calls for label in call.labels}
    bound = []
    for call in calls:
        meant = {ours: theirs for ours, theirs in stated.items() if ours in call.labels or ours not in known}
        bound.append(_Binder(call, signature, meant, site).bind())
    return bound


def _signature(module: Any, adapter: Adapter) -> inspect.Signature | None:
    """What a module may be called with; None where Python cannot tell."""
    stated: inspect.Signature | None = getattr(module, "__tracediff_signature__", None)
    entry = adapter.entry(module)
    try:
        return stated or inspect.signature(getattr(module, entry) if entry is not None else module)
    except (TypeError, ValueError):
        return None


class _Binder:
    """Binds the arguments of one call: as stated, then by name, then by order.

    What is None or False is left out where the module does not ask for it, unless the module takes any number of arguments.
    """

    def __init__(self, call: RecordedCall, signature: inspect.Signature, stated: Mapping[str, str], site: str) -> None:
        self._call, self._signature, self._stated, self._site = call, signature, stated, site
        kinds = {parameter.kind for parameter in signature.parameters.values()}
        self._takes_more = inspect.Parameter.VAR_POSITIONAL in kinds
        self._takes_any_name = inspect.Parameter.VAR_KEYWORD in kinds
        single = (*_POSITIONAL, inspect.Parameter.KEYWORD_ONLY)
        self._parameters = [parameter for parameter in signature.parameters.values() if parameter.kind in single]
        self._places: list[Place] = [None] * len(call.arguments)

    def bind(self) -> Binding:
        self._check_stated()
        self._by_name()
        self._by_order()
        if self._takes_more:
            self._by_position()
        self._fill_required()
        positional = tuple(parameter.name for parameter in self._parameters if parameter.kind in _POSITIONAL)
        return Binding(tuple(self._places), positional)

    def _check_stated(self) -> None:
        """Both names of a stated pair must exist."""
        unknown = [ours for ours in self._stated if ours not in self._call.labels]
        if not self._takes_any_name:
            unknown += [theirs for theirs in self._stated.values() if theirs not in self._signature.parameters]
        if unknown:
            raise self._failure(f"there is no argument {unknown[0]!r}")

    def _by_name(self) -> None:
        """Gives each argument the stated parameter, else the first free one that is named alike."""
        taken: set[str] = set()
        for place, (label, argument) in enumerate(zip(self._call.labels, self._call.arguments, strict=True)):
            alike = (one.name for one in self._parameters if one.name not in taken and _is_named_alike(argument.name, one.name))
            parameter = self._stated.get(label) or next(alike, "")
            if parameter and parameter not in taken:
                self._places[place] = parameter
                taken.add(parameter)

    def _by_order(self) -> None:
        """Gives what is left of the arguments to what is left of the positional parameters, then to ``*args`` and ``**kwargs``."""
        free = [one.name for one in self._parameters if one.kind in _POSITIONAL and one.name not in self._places]
        for place, argument in enumerate(self._call.arguments):
            if self._places[place] is not None or argument.is_off:
                continue
            if free:
                self._places[place] = free.pop(0)
            elif self._takes_any_name and argument.is_keyword:
                self._places[place] = argument.name
            elif self._takes_more:
                self._places[place] = place
            elif self._takes_any_name and argument.name:
                self._places[place] = argument.name
            elif not argument.is_plain:
                raise self._failure(f"nothing takes the reference's {self._call.labels[place]!r}")

    def _by_position(self) -> None:
        """Lets every further positional argument keep its place among ``*args``."""
        for place, argument in enumerate(self._call.arguments):
            if self._places[place] is None and not argument.is_keyword:
                self._places[place] = place

    def _fill_required(self) -> None:
        """Gives arguments that are None or False to parameters that have to be given, in order."""
        required = [one.name for one in self._parameters if one.default is one.empty and one.name not in self._places]
        spare = [place for place, argument in enumerate(self._call.arguments) if self._places[place] is None and argument.is_off]
        for place in spare[: len(required)]:
            self._places[place] = required.pop(0)
        if required:
            opaque = next((_OPAQUE.format(name) for name in required if name in self._call.unseen), "")
            raise self._failure(f"nothing is left for {', '.join(map(repr, required))}{opaque}")

    def _failure(self, why: str) -> CaptureError:
        given = f"The reference was called with ({self._call.described})"
        return CaptureError(
            f"The inputs of {self._site or 'the root'!r} cannot be bound: {why}. {given}; the module takes {self._signature}. "
            "Say which is which: arguments={'reference_name': 'its_name'}, or --arg REFERENCE=ITS_NAME."
        )


def _is_named_alike(ours: str, theirs: str) -> bool:
    return bool(ours) and (ours == theirs or tokens(ours) == tokens(theirs))
