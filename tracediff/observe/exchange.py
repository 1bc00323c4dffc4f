"""Attributes exchanged for the length of a run and put back on every path, also when several runs are observed at once.

Each patched attribute has one wrapper for the whole process, which asks whose run it is being called in; it goes in with the first
session that needs it and out with the last. Wrappers of different purpose (``layer``) lie one over the other.
A wrapper made by `imitating` looks like its original, and `original_of` finds the original again.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_ABSENT: Any = object()


@dataclass(slots=True)
class _Patch:
    owner: Any
    name: str
    own: Any  # the owner's own attribute before, or _ABSENT where it was inherited
    wrapper: Any
    users: int = 0


Key = tuple[int, str, str]

_patches: dict[Key, _Patch] = {}
_lock = threading.Lock()


def apply(owner: Any, name: str, wrap: Callable[[Any], Any], *, layer: str = "") -> Key:
    """Puts ``wrap(original)`` in the place of an attribute, unless that is done already; `release` takes the key it returns."""
    key = (id(owner), name, layer)
    with _lock:
        patch = _patches.get(key)
        if patch is None:
            wrapper = wrap(getattr(owner, name))
            patch = _Patch(owner, name, vars(owner).get(name, _ABSENT), wrapper)
            _set(owner, name, wrapper)
            _patches[key] = patch
        patch.users += 1
    return key


def release(key: Key) -> None:
    """Puts an attribute back when its last user goes; one that somebody else exchanged meanwhile is left alone."""
    with _lock:
        patch = _patches[key]
        patch.users -= 1
        if patch.users:
            return
        del _patches[key]
        _put_back(patch)


@contextmanager
def suspended() -> Iterator[None]:
    """Everything as it was before, for code that reads the source of what it finds."""
    with _lock:
        away = [patch for patch in reversed(_patches.values()) if _put_back(patch)]
    try:
        yield
    finally:
        with _lock:
            for patch in reversed(away):
                if patch in _patches.values():
                    _set(patch.owner, patch.name, patch.wrapper)


def _put_back(patch: _Patch) -> bool:
    """Puts the attribute back unless somebody else exchanged it meanwhile; whether it did."""
    if vars(patch.owner).get(patch.name, _ABSENT) is not patch.wrapper:
        return False
    if patch.own is _ABSENT:
        _delete(patch.owner, patch.name)
    else:
        _set(patch.owner, patch.name, patch.own)
    return True


def _set(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, type):
        try:
            type.__setattr__(owner, name, value)
        except TypeError:  # a class that was made in C++ lets only its own metaclass do that
            setattr(owner, name, value)
    else:
        vars(owner)[name] = value


def _delete(owner: Any, name: str) -> None:
    if isinstance(owner, type):
        type.__delattr__(owner, name)
    else:
        del vars(owner)[name]


def imitating(original: Any, wrapper: Any) -> Any:
    """The wrapper, with the name, signature and documentation of its original, and with the methods of a cached function."""
    functools.update_wrapper(wrapper, original)
    wrapper.__tracediff_original__ = original
    for name in ("cache_info", "cache_clear", "cache_parameters"):
        if hasattr(original, name):
            setattr(wrapper, name, getattr(original, name))
    return wrapper


def original_of(function: Any) -> Any:
    """The original of a wrapper; any other function itself, and whatever fails when it is asked."""
    try:
        return getattr(function, "__tracediff_original__", function)
    except Exception:  # noqa: BLE001 - an attribute that is computed, such as a device's property without the device
        return function
