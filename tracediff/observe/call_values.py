"""What goes into a call and comes out of it: read into the call's boundaries, and exchanged for what observers handed back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tracediff.observe.containers import Nest, number
from tracediff.observe.observer import Boundary
from tracediff.observe.types import Adapter, Args, Function, Kwargs, Tensor

ORDINARY = Function(None, "", "")
"""How the arguments of modules and methods are named: by position and keyword."""


class Input(NamedTuple):
    """A tensor that went into a call, with the token that tells whether the call changed it in place."""

    end: str
    tensor: Tensor
    token: Any


class Swap(NamedTuple):
    """A tensor of the caller, the one that the call was given in its place, and the token of that one."""

    callers: Tensor
    given: Tensor
    token: Any


class CallValues:
    """Reads and exchanges the arguments and results of calls, for one framework."""

    def __init__(self, adapter: Adapter, nest: Nest) -> None:
        self._adapter = adapter
        self._nest = nest

    def read_arguments(self, entered: Boundary, function: Function, args: Args, kwargs: Kwargs) -> None:
        """Puts the arguments of a call into the boundary: tensors as leaves, scalars as a note, attributes of a functional site."""
        entered.leaves, scalars = self._nest.inputs(args, _named_arguments(function, kwargs), function.keys)
        if function.is_own and not entered.leaves:  # then texts are what it works on
            entered.leaves = [(end, value) for end, value in scalars.items() if isinstance(value, str)]
            scalars = {end: value for end, value in scalars.items() if not isinstance(value, str)}
        if function.attributes is not None:
            attributes = function.attributes(args, kwargs).items()
            entered.leaves += [(f"attr[{key}]", number(value)) for key, value in attributes if value is not None]
        if scalars:
            entered.note["scalars"] = scalars

    def replaced_arguments(self, entered: Boundary, function: Function, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs, list[Swap]]:
        """The arguments with what observers handed back, which the boundary then holds too, and which tensors were replaced."""
        old, new = dict(entered.leaves), entered.replaced
        swaps = [Swap(old[end], tensor, self._adapter.token(tensor)) for end, tensor in new.items() if not isinstance(tensor, str)]
        args, named = self._nest.replace_inputs(args, _named_arguments(function, kwargs), new, function.keys)
        entered.leaves = [(end, new.get(end, tensor)) for end, tensor in entered.leaves]
        names = function.renames or {}
        keyword = {names.get(key, key): key for key in kwargs}
        return args, {keyword[name]: value for name, value in named.items()}, swaps

    def inputs(self, entered: Boundary) -> list[Input]:
        """The tensors that go into a call, which the call may change in place."""
        return [
            Input(end, tensor, self._adapter.token(tensor))
            for end, tensor in entered.leaves
            if end.startswith("input") and not isinstance(tensor, str)
        ]

    def read_result(self, left: Boundary, inputs: Sequence[Input], result: Any, *, without_numbers: bool) -> None:
        """Puts what a call returned into the boundary, and which of its inputs it changed in place.

        ``without_numbers`` leaves out tensors without axes.
        """
        left.leaves = self._nest.values(result, "output")
        if without_numbers:
            left.leaves = [(end, value) for end, value in left.leaves if isinstance(value, str) or self._adapter.describe(value)[1]]
        changed = [given for given in inputs if self._adapter.is_changed(given.tensor, given.token)]
        if changed:
            _add_changed(left, changed)
        if not self._adapter.is_tensor(result) and (absent := self._nest.absent(result, "output")):
            left.note["absent"] = absent

    def replaced_result(self, left: Boundary, result: Any) -> Any:
        """The result with what observers handed back. An input that the call changed in place is given the new values too."""
        for end, tensor in left.leaves:
            if end in left.mutated and end in left.replaced:
                other = left.replaced[end]
                if self._adapter.describe(tensor)[:2] == self._adapter.describe(other)[:2]:
                    self._adapter.assign(tensor, other)
        return self._nest.replace(result, "output", left.replaced)

    def write_back(self, swaps: Sequence[Swap]) -> None:
        """Gives the caller's tensors what the call wrote into the tensors that it was given in their place."""
        for swap in swaps:
            if self._adapter.is_changed(swap.given, swap.token):
                self._adapter.assign(swap.callers, swap.given)


def _named_arguments(function: Function, kwargs: Kwargs) -> Kwargs:
    """The keyword arguments of a call under the names that the ends of a functional site have."""
    names = function.renames
    return {names.get(key, key): value for key, value in kwargs.items()} if names else kwargs


def _add_changed(left: Boundary, changed: Sequence[Input]) -> None:
    """Marks the leaves that hold an input which the call changed in place, and adds the changed inputs that it did not return."""
    by_id = {id(given.tensor): given for given in changed}
    kept = [end for end, tensor in left.leaves if id(tensor) in by_id]
    returned = {id(tensor) for _, tensor in left.leaves}
    lost = [(f"output.{given.end}", given.tensor) for given in by_id.values() if id(given.tensor) not in returned]
    left.leaves += lost
    left.mutated = (*kept, *(end for end, _ in lost))
