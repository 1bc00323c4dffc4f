"""A model built once more under another seed: what then has other values came from no file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from tracediff.observe import describe
from tracediff.observe.adapters import registry
from tracediff.observe.observer import Run
from tracediff.observe.provenance import digest_of
from tracediff.observe.tree import discover

_FURTHER = 7919
"""What is added to a seed; a prime, so that no seed of the code's own is likely to be met."""


def digests_under_other_seeds(build: Callable[[], Any]) -> dict[str, bytes]:
    """The digests of the parameters of the models that ``build`` returns, by name, where all is seeded otherwise.

    That is also what ``build`` seeds itself, through the functions that seed the generators of Python, NumPy and the frameworks that are
    loaded. All generators are then as they were.
    """
    shared = registry.named("plain")
    state = shared.rng_state()
    try:
        with _seeded_otherwise(tuple(shared.seeding())):
            return {name: digest for name, (digest, _) in _parameters(build()).items()}
    finally:
        shared.set_rng_state(state)


def drawn(models: Any, other: Mapping[str, bytes]) -> list[str]:
    """The parameters that have other values than in the ``other`` build; none where all have that are not of one value throughout.

    A model of random numbers alone has no file, and nobody takes it for one that has.
    """
    known = {name: of for name, of in _parameters(models).items() if name in other}
    found = [name for name, (digest, _) in known.items() if digest != other[name]]
    return found if any(not is_constant for name, (_, is_constant) in known.items() if name not in found) else []


def _parameters(models: Any) -> dict[str, tuple[bytes, bool]]:
    """By name the digest of each parameter, and whether it is of one value throughout; nothing where there is no model."""
    adapter = registry.of(models)
    if adapter is None:
        return {}
    found = {}
    for parameter in describe.parameters(Run(adapter, tuple(discover(models, adapter)))):
        view = adapter.view(parameter.tensor)
        found[parameter.name] = digest_of(view), not view.size or bool((view == view.flat[0]).all())
    return found


@contextmanager
def _seeded_otherwise(seeding: tuple[tuple[Any, str], ...]) -> Iterator[None]:
    """A context that begins with other seeds, and in which whatever seeds a generator seeds it otherwise."""
    originals = [getattr(holder, name) for holder, name in seeding]
    try:
        for (holder, name), original in zip(seeding, originals, strict=True):
            original(_FURTHER)
            setattr(holder, name, partial(_seed_otherwise, original))
        yield
    finally:
        for (holder, name), original in zip(seeding, originals, strict=True):
            setattr(holder, name, original)


def _seed_otherwise(original: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """The call of a function that seeds, with another whole number in the place of its own."""
    seed, *rest = given or (_FURTHER,)
    other = (int(seed) + _FURTHER) % 2**32 if isinstance(seed, int | np.integer) else seed
    return original(other, *rest, **named)
