"""Ctrl-C at any moment: held back while something is half done, and raised as soon as it is whole.

Python runs the handler of a signal between any two calls of the main thread, also inside ``__enter__``, ``__exit__`` and ``finally``. So
no ``try`` protects what takes more than one step: a patch and the note of it, a lock and its release, a file and what closes it.
Inside `held` an interrupt is only noted, and raised where the outermost such region ends. `allowed` lifts that for what takes long or is
not ours, such as a model's run, inside of whatever will put things back. The handler that was there before is called, whatever it does.

>>> import signal
>>> before = signal.signal(signal.SIGINT, signal.default_int_handler)
>>> try:
...     with held():
...         signal.raise_signal(signal.SIGINT)
...         print("whole")
... except KeyboardInterrupt:
...     print("interrupted")
whole
interrupted
>>> _ = signal.signal(signal.SIGINT, before)
"""

from __future__ import annotations

import functools
import signal
import threading
from _signal import getsignal as _handler_of  # `signal` makes enumerations of what they return, which takes most of the time
from _signal import signal as _set_handler
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType, TracebackType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
_Handler = Callable[[int, FrameType | None], Any]


class _Depth(threading.local):
    """``now``: how many regions hold interrupts at present in this thread; ``regions``: how many there are, held or allowed."""

    now = 0
    regions = 0


class _Interrupt:
    """``handler``: the one that was there before, while ours stands in its place; ``waits``: whether an interrupt was noted."""

    handler: _Handler | None = None
    waits = False


_depth = _Depth()


def _note(number: int, frame: FrameType | None) -> None:
    """The handler of SIGINT: notes an interrupt in a region that holds it, and else hands it on."""
    if _depth.now or (frame is not None and frame.f_code in _BEGINNINGS):
        _Interrupt.waits = True
    else:
        handler = _Interrupt.handler if _depth.regions else _stand_back()
        if handler is not None:
            handler(number, frame)


def _is_main() -> bool:
    """Whether this is the thread in which handlers run."""
    return threading.get_ident() == threading.main_thread().ident


def _stand_in() -> None:
    """Puts our handler in the place of one that Python would call; a signal that ends the process or is ignored stays so."""
    if _is_main():
        handler = _handler_of(signal.SIGINT)
        if callable(handler) and handler is not _note:  # whatever `_Interrupt` says: an interrupt may have come between the two
            _Interrupt.handler = handler
            _set_handler(signal.SIGINT, _note)


def _stand_back() -> _Handler | None:
    """Puts the handler back that was there, unless somebody else has set one meanwhile; returns it."""
    handler = _Interrupt.handler
    if handler is not None and _handler_of(signal.SIGINT) is _note:
        _set_handler(signal.SIGINT, handler)
    _Interrupt.handler = None  # last: an interrupt before this finds whom to hand itself to
    return handler


def _raise_what_waits() -> None:
    """Hands an interrupt that was noted to the handler that was there before, which raises it."""
    if _Interrupt.waits and _is_main():
        _Interrupt.waits, handler = False, _Interrupt.handler
        if handler is not None:
            handler(signal.SIGINT, None)


class held:  # noqa: N801 - reads as a statement: ``with held():``
    """A region in which an interrupt is noted only. Where the outermost one ends it is raised."""

    __slots__ = ("_before", "_regions")

    def __enter__(self) -> None:
        self._before, self._regions = _depth.now, _depth.regions
        if not self._regions:
            _stand_in()
        _depth.now = self._before + 1
        _depth.regions = self._regions + 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _depth.now = self._before + 1  # an interrupt in between may have left it otherwise
        try:
            if not self._before:
                _raise_what_waits()
        finally:
            _depth.regions = self._regions
            _depth.now = self._before
            if not self._regions and _is_main():
                handler = _stand_back()
                if handler is not None and _Interrupt.waits:  # noted while this ended
                    _Interrupt.waits = False
                    handler(signal.SIGINT, None)


class allowed:  # noqa: N801
    """A region inside of `held` in which interrupts are raised, one that was noted at once."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before = _depth.now
        if self._before:
            _raise_what_waits()
            _depth.now = 0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _depth.now = self._before


def whole(function: Callable[P, R]) -> Callable[P, R]:
    """A function during which interrupts are held."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with held():
            return function(*args, **kwargs)

    return call


class _Owning(AbstractContextManager[R]):
    """A generator's context manager, which is held while it begins and ends, and not in its block."""

    def __init__(self, block: AbstractContextManager[R]) -> None:
        self._block = block
        self._held, self._allowed = held(), allowed()

    def __enter__(self) -> R:
        self._held.__enter__()
        try:
            value = self._block.__enter__()
            try:
                self._allowed.__enter__()
            except BaseException as error:
                self._block.__exit__(type(error), error, error.__traceback__)
                raise
        except BaseException as error:
            self._held.__exit__(type(error), error, error.__traceback__)
            raise
        return value

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool | None:
        self._allowed.__exit__(kind, error, trace)
        try:
            return self._block.__exit__(kind, error, trace)
        finally:
            self._held.__exit__(kind, error, trace)


def owning(function: Callable[P, Iterator[R]]) -> Callable[P, AbstractContextManager[R]]:
    """As `contextlib.contextmanager`, for what an interrupt must not leave open: nothing is half begun or half ended."""
    made = contextmanager(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[R]:
        return _Owning(made(*args, **kwargs))

    return call


_BEGINNINGS = frozenset({allowed.__exit__.__code__, _Owning.__exit__.__code__})
"""Functions that begin outside of every region that holds, and are themselves to be whole."""
