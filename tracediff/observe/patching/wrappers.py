"""What stands in the place of a module's entry, a method, a function or a random function while sessions are open.

One wrapper serves all sessions of the process. A module's asks which sessions track that very object; a function's asks which
observe the present thread. Inside an observer, inside another recorded function and inside a compiler nothing is observed.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from types import FunctionType, MethodType
from typing import Any

from tracediff.errors import CaptureError
from tracediff.observe import frames
from tracediff.observe.exchange import imitating, original_of
from tracediff.observe.frames import Frame
from tracediff.observe.patching.places import Found, Place, quiet, without_locals
from tracediff.observe.types import Args, Call, Function, Kwargs, Random
from tracediff.site import escape

Wrap = Callable[[Any], Any]
"""Makes the wrapper of an original."""

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class made by Python code
_tracked: dict[tuple[int, str], tuple[Place, ...]] = {}
_lock = threading.Lock()


def track(instance: Any, attribute: str, place: Place) -> None:
    """Makes calls of an object's attribute lead to a place, until `untrack`; the session keeps the object alive.

    Raises CaptureError where another thread observes this object: the calls of the two could not be told apart.
    """
    key = (id(instance), attribute)
    with _lock:
        known = _tracked.get(key, ())
        if any(other.session.thread != place.session.thread for other in known):
            raise CaptureError(f"{place.site or 'The model'!r} is being captured in another thread. Capture a copy of it here, or wait.")
        _tracked[key] = (*known, place)


def _forget() -> None:
    """In a forked child nothing is observed: what records lives in the parent."""
    _tracked.clear()
    frames.forget()


os.register_at_fork(after_in_child=_forget)


def untrack(instance: Any, attribute: str, place: Place) -> None:
    """Takes back one `track`."""
    key = (id(instance), attribute)
    with _lock:
        left = tuple(other for other in _tracked.pop(key, ()) if other is not place)
        if left:
            _tracked[key] = left


def dispatch(places: Sequence[Place], original: Call, args: Args, kwargs: Kwargs) -> Any:
    """A call seen by several sessions, the one that was opened first outermost."""
    place, rest = places[0], places[1:]
    if rest:
        return place.session.call(place, lambda *a, **k: dispatch(rest, original, a, k), args, kwargs)
    return place.session.call(place, original, args, kwargs)


def owner_of(instance: Any, attribute: str) -> Any:
    """Where calls of an object's attribute are intercepted: in the class whose body has it, so that the object and its copies stay
    what they are; or in the object itself, where it has its own or the class has something other than a function.
    """
    if attribute in getattr(instance, "__dict__", {}):
        return instance
    provider = provider_of(type(instance), attribute)
    is_special = attribute.startswith("__")
    return provider if provider is not None and (is_special or isinstance(vars(provider)[attribute], FunctionType)) else instance


def can_intercept(instance: Any, attribute: str) -> bool:
    """Whether calls of an object's attribute can be intercepted; not in objects of classes written in C."""
    owner = owner_of(instance, attribute)
    if isinstance(owner, type):
        return bool(owner.__flags__ & _HEAP_TYPE)
    return hasattr(instance, "__dict__") and not attribute.startswith("__")


def entrance(owner: Any, attribute: str, is_compiling: Callable[[], bool]) -> Wrap:
    """How to wrap an attribute of a class or of one object, through which calls come in."""
    if isinstance(owner, type):
        return functools.partial(_class_entrance, owner, attribute, is_compiling)
    return functools.partial(_instance_entrance, owner, attribute, is_compiling)


def _class_entrance(owner: type, attribute: str, is_compiling: Callable[[], bool], original: Any) -> Any:
    bind = functools.partial if isinstance(original, FunctionType) else _bound

    def entered(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            return original(self, *args, **kwargs)
        places = _tracked.get((id(self), attribute))
        if places is None or quiet.now or provider_of(type(self), attribute) is not owner:
            return bind(original, self)(*args, **kwargs)
        return dispatch(places, bind(original, self), args, kwargs)

    return imitating(original, entered)


def _instance_entrance(owner: Any, attribute: str, is_compiling: Callable[[], bool], original: Any) -> Any:
    def called(*args: Any, **kwargs: Any) -> Any:
        places = None if is_compiling() or quiet.now else _tracked.get((id(owner), attribute))
        return original(*args, **kwargs) if places is None else dispatch(places, original, args, kwargs)

    if not isinstance(original, MethodType) or original.__self__ is not owner:
        return imitating(original, called)
    function = original.__func__

    def entered(self: Any, *args: Any, **kwargs: Any) -> Any:
        return called(*args, **kwargs) if self is owner else function(self, *args, **kwargs)  # else it is a copy

    return MethodType(imitating(function, entered), owner)


def tidy(instance: Any, attribute: str) -> None:
    """Gives an object its own method again where the run stored the wrapper of its class in it (to put back what it had patched)."""
    held = getattr(instance, "__dict__", {}).get(attribute)
    if isinstance(held, MethodType) and original_of(held.__func__) is not held.__func__:
        vars(instance)[attribute] = MethodType(original_of(held.__func__), held.__self__)


def provider_of(cls: type, attribute: str) -> type | None:
    """The class in whose body an attribute of ``cls`` is."""
    for base in cls.__mro__:
        if attribute in base.__dict__:
            return base
    return None


def _bound(function: Any, instance: Any) -> Call:
    return function.__get__(instance, type(instance)) if hasattr(function, "__get__") else function  # type: ignore[no-any-return]


def function_wrapper(function: Function, is_compiling: Callable[[], bool]) -> Wrap:
    """How to wrap a functional site."""

    def wrap(original: Any) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            if is_compiling():
                return original(*args, **kwargs)
            active = _observing(original)
            if not active or (function.applies is not None and not function.applies(args, kwargs)):
                return original(*args, **kwargs)
            return dispatch([_place_of(function, frame) for frame in active], original, args, kwargs)

        return imitating(original, called)

    return wrap


def own_wrapper(found: Found, function: Function, is_compiling: Callable[[], bool]) -> Wrap:
    """How to wrap a function or method of the model's own code."""
    raw = original_of(vars(found.owner)[found.attribute])

    def wrap(original: Any) -> Any:
        if found.kind == "function":
            return _own(original, found.function, function, is_compiling)
        if found.kind == "static":
            return staticmethod(_own(found.function, found.function, function, is_compiling))

        def bound(holder: Any, *args: Any, **kwargs: Any) -> Any:
            call = functools.partial(found.function, holder)
            return _seen(call, found.function, function, is_compiling, args, kwargs)

        method = imitating(found.function, bound)
        return classmethod(method) if isinstance(raw, classmethod) else method

    return wrap


def _own(original: Call, key: Any, function: Function, is_compiling: Callable[[], bool]) -> Any:
    """A wrapper of a function of the model's own code; ``key`` is the function by which sessions know it."""

    def called(*args: Any, **kwargs: Any) -> Any:
        return _seen(original, key, function, is_compiling, args, kwargs)

    return imitating(original_of(original), called)


def _seen(original: Call, key: Any, function: Function, is_compiling: Callable[[], bool], args: Args, kwargs: Kwargs) -> Any:
    """What a call of an own function returns, shown where a session observes; functions that the call made are observed from then on."""
    active = [] if is_compiling() else _observing(key)
    if not active:
        return original(*args, **kwargs)
    result = dispatch([_place_of(function, frame) for frame in active], original, args, kwargs)
    return _with_closures(result, key, active, is_compiling)


def _with_closures(result: Any, maker: Any, active: Sequence[Frame], is_compiling: Callable[[], bool]) -> Any:
    """What ``maker`` returned, with each function that it made exchanged for an observed one: samplers, logits processors."""
    if isinstance(result, list):
        for place, part in enumerate(result):
            if _is_made_by(part, maker):
                result[place] = _closure(part, active, is_compiling)
        return result
    if type(result) is tuple and any(_is_made_by(part, maker) for part in result):
        return tuple(_closure(part, active, is_compiling) if _is_made_by(part, maker) else part for part in result)
    return _closure(result, active, is_compiling) if _is_made_by(result, maker) else result


def _is_made_by(value: Any, maker: Any) -> bool:
    return (
        isinstance(value, FunctionType)
        and "<locals>" in value.__qualname__
        and value.__module__ == getattr(maker, "__module__", None)
        and original_of(value) is value
    )


def _closure(made: FunctionType, active: Sequence[Frame], is_compiling: Callable[[], bool]) -> Any:
    name = without_locals(made.__qualname__)
    for frame in active:
        frame.session.watched.add(id(made))
    return _own(made, made, Function(None, made.__name__, name, is_own=True), is_compiling)


def random_wrapper(random: Random, is_compiling: Callable[[], bool]) -> Wrap:
    """How to wrap a random function."""

    def wrap(original: Any) -> Any:
        def drawn(*args: Any, **kwargs: Any) -> Any:
            if is_compiling():
                return original(*args, **kwargs)
            draw = original
            for frame in reversed(_observing(original)):
                draw = functools.partial(frame.session.draw, frame, random, draw)
            return draw(*args, **kwargs)

        return imitating(original, drawn)

    return wrap


def _observing(original: Any) -> list[Frame]:
    """The frames in which a call of a patched function is to be shown, one for each session that asked for it."""
    if quiet.now:
        return []
    return [frame for frame in frames.current() if not frame.is_function and id(original) in frame.session.watched]


def _place_of(function: Function, frame: Frame) -> Place:
    name = frame.session.name_in(frame.path, function) if function.is_own else function.name
    return Place(frame.session, f"{frame.path}!{escape(name)}", frame.path, function)
