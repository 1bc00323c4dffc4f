"""Where a run is: the frames that were entered, with the calls counted, in every thread and task of its own.

The chain of frames is immutable and hangs in a context variable, so that threads and tasks each see their own. A frame that is left
out of order (a scope inside a generator that was abandoned) is marked as closed and skipped.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Container
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any

from tracediff.site import escape, frame_text

ids = itertools.count(1)
"""The numbers of frames."""


@lru_cache(65536)
def _shown(site: str, enclosing: str) -> str:
    """A site as it is printed below a module path."""
    return frame_text(site, 0, enclosing).removesuffix("[0]")


class Frame:
    """One entered call, scope or stage, below its parent; ``text`` is the call as it is printed.

    ``is_outermost``: no frame of the session was open in this thread when this one was pushed.
    """

    __slots__ = ("counts", "id", "is_function", "is_outermost", "number", "open", "parent", "path", "scope", "session", "stage", "text")

    def __init__(self, session: Any, parent: Frame | None) -> None:
        self.session = session
        self.parent = parent
        self.open = True
        self.is_function = False
        self.is_outermost = False
        self.number = 0
        if parent is None:
            self.id, self.path, self.text, self.stage, self.scope = 0, "", "", "", ""
            self.counts: dict[str, int] = {}
        else:
            self.id, self.path, self.text = parent.id, parent.path, parent.text
            self.stage, self.scope, self.counts = parent.stage, parent.scope, parent.counts

    def call(self, site: str, path: str) -> Frame:
        """A call of ``site`` (at module ``path``), numbered per (site, this call)."""
        frame = Frame(self.session, self)
        frame.number = self.counts.get(site, 0)
        self.counts[site] = frame.number + 1
        text = f"{_shown(site, self.path)}[{frame.number}]"
        frame.text = f"{self.text}/{text}" if self.text else text
        frame.id, frame.path, frame.counts = next(ids), path, {}
        return frame

    def again(self, parent: Frame) -> Frame:
        """The same call as a new frame below ``parent``, where its generator goes on."""
        frame = Frame(self.session, parent)
        frame.text, frame.id, frame.path, frame.counts = self.text, self.id, self.path, self.counts
        return frame

    def scoped(self, name: str, value: Any) -> Frame:
        """A named scope inside this frame."""
        frame = Frame(self.session, self)
        text = f"{escape(name)}={escape(str(value))}"
        frame.text = f"{self.text}/@{text}" if self.text else f"@{text}"
        frame.scope = f"{self.scope}/{text}" if self.scope else text
        return frame

    def staged(self, name: str) -> Frame:
        """A stage inside this frame."""
        frame = Frame(self.session, self)
        frame.stage = name
        return frame


_chain: ContextVar[tuple[Frame, ...]] = ContextVar("tracediff_frames", default=())


def current() -> tuple[Frame, ...]:
    """The innermost open frame of every session that observes this thread or task, outermost session first."""
    frames = _chain.get()
    return tuple(innermost(frame) for frame in frames if not frame.session.finished) if frames else frames


def current_of(session: Any) -> Frame | None:
    """The innermost open frame of one session in this thread or task."""
    for frame in _chain.get():
        if frame.session is session:
            return innermost(frame)
    return None


def innermost(frame: Frame) -> Frame:
    """The frame itself while it is open, else the nearest open one around it."""
    while not frame.open and frame.parent is not None:
        frame = frame.parent
    return frame


def push(frame: Frame) -> None:
    """Makes a frame its session's current one."""
    chain = _chain.get()
    for at, other in enumerate(chain):
        if other.session is frame.session:
            _chain.set((*chain[:at], frame, *chain[at + 1 :]))
            return
    frame.is_outermost = True
    _chain.set((*chain, frame))


def pop(frame: Frame) -> None:
    """Closes a frame; what is open around it becomes current again if this one was."""
    frame.open = False
    chain = _chain.get()
    if frame in chain:
        around = () if frame.is_outermost or frame.parent is None else (innermost(frame.parent),)
        at = chain.index(frame)
        _chain.set((*chain[:at], *around, *chain[at + 1 :]))


def leave(session: Any) -> None:
    """Takes all frames of a finished session out of this context."""
    _chain.set(tuple(frame for frame in _chain.get() if frame.session is not session))


def forget() -> None:
    """Takes the frames of all sessions out of this context."""
    _chain.set(())


OURS = frozenset(str(path) for path in Path(__file__).parent.rglob("*.py"))
"""The source files of this folder, which are never the caller."""


def caller(passed_over: Container[str]) -> FrameType | None:
    """The frame of the model code that made the present call: the innermost one whose source file is not passed over."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename in passed_over:
        frame = frame.f_back
    return frame


def holders(frame: FrameType | None) -> frozenset[int]:
    """The ids of what a frame's function and those that called it were handed first: of methods, the objects that they belong to."""
    found = set()
    while frame is not None:
        if frame.f_code.co_argcount:
            found.add(id(frame.f_locals.get(frame.f_code.co_varnames[0])))
        frame = frame.f_back
    return frozenset(found)


def source(frame: FrameType | None) -> tuple[str, int]:
    """File and line of a frame; files are given below the folder they are imported from."""
    return ("", 0) if frame is None else (short(frame.f_code.co_filename), frame.f_lineno)


@lru_cache(4096)
def short(file: str) -> str:
    """A source file's path below the folder on Python's path that holds it."""
    folders = [str(Path(entry or ".").resolve()) + "/" for entry in (*sys.path, ".")]
    below = [folder for folder in folders if file.startswith(folder)]
    return file[len(max(below, key=len)) :] if below else file
