"""What a run leaves behind, so that further runs begin as the first did and the caller finds what one run would have left.

A run may change buffers (a batch norm counts its batches in training), gradients, caches and counters in attributes, and the generators.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tracediff.dtype import Array
from tracediff.observe.provenance import digest_of
from tracediff.observe.tree import discover
from tracediff.observe.types import Adapter, Tensor
from tracediff.site import join

MOST_COPIED = 256 * 2**20
"""Bytes of tensors that are copied, the smallest first: of larger ones, as a rule weights, it is only known whether they changed."""
_DEEPEST = 3
"""Lists and dicts below an attribute whose contents are put back."""


@dataclass(slots=True)
class State:
    """The state of models and generators at one moment.

    ``tables``: what each table of attributes, and each list and dict in it, holds. ``tensors``: each tensor with a copy of its values, or
    None and a token by which a change shows. ``gradients``: each parameter with its gradient and a copy of that.
    """

    generators: Any
    tables: list[tuple[Any, Any]] = field(default_factory=list)
    tensors: list[tuple[str, Tensor, Array | None, Any]] = field(default_factory=list)
    gradients: list[tuple[Tensor, Tensor | None, Array | None]] = field(default_factory=list)


class World:
    """The models of a run and the generators: what their state is, and how they get back into one."""

    def __init__(self, models: Any, adapter: Adapter) -> None:
        self._adapter = adapter
        self._nodes = discover(models, adapter)

    def state(self, like: State | None = None) -> State:
        """The present state; copies that hold what those of the earlier state ``like`` hold are the same ones."""
        known = {} if like is None else {id(tensor): copy for _, tensor, copy, _ in like.tensors}
        adapter, state = self._adapter, State(self._adapter.rng_state())
        held: dict[int, tuple[str, Tensor]] = {}
        for node in self._nodes:
            for table in adapter.tables(node.module):
                for inner, saved in _contents(table, _DEEPEST):
                    state.tables.append((inner, saved))
                    items = saved.items() if isinstance(saved, dict) else enumerate(saved)
                    found = ((key, value) for key, value in items if adapter.is_tensor(value) and not adapter.unreadable([value]))
                    held.update((id(value), (join(node.path, str(key)), value)) for key, value in found)
        room = MOST_COPIED
        for name, tensor in sorted(held.values(), key=lambda one: one[1].nbytes):
            room -= tensor.nbytes
            copy = self._copy(tensor, known.get(id(tensor))) if room >= 0 else None
            state.tensors.append((name, tensor, copy, adapter.token(tensor)))
            gradient = adapter.gradient(tensor)
            is_copied = gradient is not None and not adapter.unreadable([gradient])
            state.gradients.append((tensor, gradient, adapter.to_numpy(gradient) if is_copied else None))
        return state

    def _copy(self, tensor: Tensor, known: Array | None) -> Array:
        """A copy of a tensor's values, or the one that is known where it holds the same bytes."""
        view = self._adapter.view(tensor)
        is_same = known is not None and (known.dtype, known.shape) == (view.dtype, view.shape) and digest_of(known) == digest_of(view)
        return known if known is not None and is_same else self._adapter.to_numpy(tensor)

    def once(self) -> str:
        """Why no run can begin as another did, or the empty text."""
        return self._adapter.once([node.module for node in self._nodes if node.is_model])

    def back_to(self, state: State) -> None:
        """Puts models and generators into a state in which they were."""
        adapter = self._adapter
        for table, saved in state.tables:
            _refill(table, saved)
        with adapter.no_grad():
            for _, tensor, copy, _ in state.tensors:
                # Tokens are not asked: PyTorch's batch norm changes its statistics without counting that as a change.
                if copy is not None and not np.array_equal(adapter.view(tensor), copy):
                    adapter.assign(tensor, adapter.from_numpy(copy, tensor))
            for tensor, gradient, copy in state.gradients:
                if gradient is not None and copy is not None:
                    adapter.assign(gradient, adapter.from_numpy(copy, gradient))
                adapter.set_gradient(tensor, gradient)
        adapter.set_rng_state(state.generators)

    def lost(self, state: State) -> list[str]:
        """The names of the tensors that have changed since, and that `back_to` cannot put back."""
        return [name for name, tensor, copy, token in state.tensors if copy is None and self._adapter.is_changed(tensor, token)]


def _contents(table: Any, depth: int) -> Iterator[tuple[Any, Any]]:
    """A list or dict with a shallow copy of it, and all that lie in it."""
    saved = dict(dict.items(table)) if isinstance(table, dict) else list(table)  # a module of MLX may iterate over something else
    yield table, saved
    inner: Iterable[Any] = saved.values() if isinstance(saved, dict) else saved
    for value in inner if depth else ():
        if type(value) in (list, dict):
            yield from _contents(value, depth - 1)


def _refill(table: Any, saved: Any) -> None:
    """Gives a list or dict the very members that it had."""
    if isinstance(saved, list):
        if len(table) != len(saved) or any(now is not before for now, before in zip(table, saved, strict=True)):
            table[:] = saved
        return
    for key in [key for key in dict.keys(table) if key not in saved]:
        dict.pop(table, key)
    for key, value in saved.items():
        if dict.get(table, key, _NOTHING) is not value:
            dict.__setitem__(table, key, value)


_NOTHING = object()
