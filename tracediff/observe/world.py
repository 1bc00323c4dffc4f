"""What a run leaves behind, so that further runs begin as the first did and the caller finds what one run would have left.

A run may change buffers (a batch norm counts its batches in training), gradients, caches and counters in attributes, in objects or in
variables of its own, and the generators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tracediff.interrupts import whole
from tracediff.observe import reachable
from tracediff.observe.copies import Copies, Copy
from tracediff.observe.reachable import Holders
from tracediff.observe.tree import discover
from tracediff.observe.types import Adapter, Tensor
from tracediff.site import listed

MOST_COPIED = 256 * 2**20
"""Bytes of tensors that are copied to a file, the smallest first: of larger ones, as a rule weights, it is only known whether they
changed."""


@dataclass(slots=True)
class State:
    """The state of models, of what their run holds, and of the generators, at one moment.

    ``holders``: what gives each thing that holds others its contents of that moment. ``tensors``: each tensor with a copy of its values,
    or None and a token by which a change shows. ``gradients``: each parameter with its gradient and a copy of that. ``is_whole``: whether
    all that can be reached is in it.
    """

    generators: Any
    holders: list[Callable[[], None]] = field(default_factory=list)
    tensors: list[tuple[str, Tensor, Copy | None, Any]] = field(default_factory=list)
    gradients: list[tuple[Tensor, Tensor | None, Copy | None]] = field(default_factory=list)
    is_whole: bool = True


class World:
    """The models of a run, what the run itself holds, and the generators: what their state is, and how they get back into one."""

    def __init__(self, models: Any, run: Any, adapter: Adapter) -> None:
        self._adapter, self._run = adapter, run
        self._nodes = discover(models, adapter)

    def state(self, like: State | None = None) -> State:
        """The present state; copies that hold what those of the earlier state ``like`` hold are the same ones."""
        known = {} if like is None else {id(tensor): copy for _, tensor, copy, _ in like.tensors}
        adapter, state, copies = self._adapter, State(self._adapter.rng_state()), Copies()
        found = Holders(adapter)
        found.walk([*((node.path, node.module) for node in self._nodes), ("the run", self._run)])
        state.holders, state.is_whole = found.kept, found.is_whole
        held = {key: one for key, one in found.tensors.items() if not adapter.unreadable([one[1]])}
        room = float(MOST_COPIED)
        for nbytes, (name, tensor) in sorted(((_nbytes(one[1]), one) for one in held.values()), key=lambda sized: sized[0]):
            room -= nbytes
            copy = self._copy(tensor, known.get(id(tensor)), copies) if room >= 0 else None
            state.tensors.append((name, tensor, copy, adapter.token(tensor)))
            gradient = adapter.gradient(tensor)
            is_copied = gradient is not None and not adapter.unreadable([gradient])
            state.gradients.append((tensor, gradient, copies.of(adapter.view(gradient)) if is_copied else None))
        return state

    def _copy(self, tensor: Tensor, known: Copy | None, copies: Copies) -> Copy:
        """A copy of a tensor's values, or the one that is known where it holds the same bytes."""
        view = self._adapter.view(tensor)
        return known if known is not None and known.is_of(view) else copies.of(view)

    def once(self, state: State) -> str:
        """Why no run can begin in a state as another did, or the empty text."""
        if lost := self._lost(state):
            return f"a run changes {listed(lost, 3)}, so that none can be as the first was"
        if not state.is_whole:
            most = f"{reachable.MOST_HOLDERS:,}"
            return f"a run can reach more than {most} lists, dicts and objects, whose contents are not put back"
        return self._adapter.once([node.module for node in self._nodes if node.is_model])

    @contextmanager
    def as_it_is(self, like: State | None = None) -> Iterator[State]:
        """A context after which all is in the present state again, which it gives; to be entered where interrupts are held.

        ``like`` is an earlier state with which it shares the copies.
        """
        state = self.state(like)
        try:
            yield state
        finally:
            self.back_to(state)

    @whole
    def back_to(self, state: State) -> None:
        """Puts models and generators into a state in which they were."""
        adapter = self._adapter
        for put_back in state.holders:
            put_back()
        with adapter.no_grad():
            for _, tensor, copy, _ in state.tensors:
                # Tokens are not asked: PyTorch's batch norm changes its statistics without counting that as a change.
                if copy is not None and not copy.is_of(adapter.view(tensor)):
                    adapter.assign(tensor, adapter.from_numpy(copy.read(), tensor))
            for tensor, gradient, copy in state.gradients:
                if gradient is not None and copy is not None:
                    adapter.assign(gradient, adapter.from_numpy(copy.read(), gradient))
                adapter.set_gradient(tensor, gradient)
        adapter.set_rng_state(state.generators)

    def _lost(self, state: State) -> list[str]:
        """The names of the tensors that have changed since, and that `back_to` cannot put back."""
        return [name for name, tensor, copy, token in state.tensors if copy is None and self._adapter.is_changed(tensor, token)]


def _nbytes(tensor: Tensor) -> float:
    """The bytes of a tensor; infinite for a sparse one, which is not copied: its values cannot be written in place."""
    try:
        return float(tensor.nbytes)
    except RuntimeError:
        return math.inf
