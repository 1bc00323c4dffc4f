"""The observers of a run as one: each boundary is shown to them in turn, and what they hand back is made fit to go on with."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from tracediff.errors import CaptureError
from tracediff.interrupts import allowed
from tracediff.observe.containers import Leaves
from tracediff.observe.observer import AsIs, Boundary, InPart, Observer, Run
from tracediff.observe.patching.places import quiet
from tracediff.observe.types import TRACED


class Audience:
    """Shows a run to its observers. Inside an observer nothing is observed.

    ``failure`` is the exception that an observer raised. From then on nothing is shown to any of them.
    """

    def __init__(self, observers: Sequence[Observer], run: Run) -> None:
        self.failure: BaseException | None = None
        self._observers = tuple(observers)
        self._run = run
        self._adapter = run.adapter
        self._lock = threading.RLock()

    def start(self, ending: ExitStack) -> None:
        """Starts the observers; ``ending`` finishes those whose start came to its end, also where the next one's raises."""
        started: list[Observer] = []
        ending.callback(self._finish, started)
        for observer in self._observers:
            with allowed():
                observer.start(self._run)
            started.append(observer)

    def _finish(self, started: Sequence[Observer]) -> None:
        """Finishes the observers in the given order, so that a recorder comes after the observers that add to the run."""
        with ExitStack() as ending:
            for observer in reversed(started):
                ending.callback(observer.finish, self._run)

    def see(self, boundary: Boundary) -> bool:
        """Shows a boundary; whether an observer handed something back, which is then in ``boundary.replaced``."""
        if quiet.now or self.failure is not None:
            return False
        quiet.now = True
        try:
            if not self._make_readable(boundary):
                return False
            with self._lock:
                for observer in self._observers:
                    new = observer.see(boundary)
                    if new and boundary.moment != "return":
                        self._gather(boundary, new)
        except BaseException as error:
            self.failure = error
            raise
        finally:
            quiet.now = False
        return bool(boundary.replaced)

    def _make_readable(self, boundary: Boundary) -> bool:
        """Evaluates the leaves and drops those that cannot be read; whether the boundary is worth showing.

        Where code is only traced, nothing of the boundary is: the next run does not pass there, and would not repeat what was shown.
        """
        if not self._why_unreadable(boundary.leaves):
            return True
        readable = []
        is_traced = False
        for leaf in boundary.leaves:
            why = self._why_unreadable([leaf])
            if why:
                self._run.miss(f"{f'{boundary.site} {leaf[0]}'.strip()}: {why}")
                is_traced = is_traced or why.startswith(TRACED)
            else:
                readable.append(leaf)
        boundary.leaves = [] if is_traced else readable
        return bool(boundary.leaves)

    def _why_unreadable(self, leaves: Leaves) -> str:
        return self._adapter.unreadable([tensor for _, tensor in leaves if not isinstance(tensor, str)])

    def _gather(self, boundary: Boundary, new: Mapping[str, Any]) -> None:
        """Takes over what an observer handed back, NumPy arrays as tensors of the framework.

        Raises CaptureError for an end that the boundary does not have.
        """
        old = dict(boundary.leaves)
        for end, value in new.items():
            if end not in old and boundary.moment != "raise":
                raise CaptureError(
                    f"An observer handed back {end!r} at the {boundary.moment} of {boundary.call!r}, "
                    f"where there is only: {', '.join(old) or 'nothing'}."
                )
            if isinstance(value, InPart):
                boundary.in_part.add(end)
                value = value.values
            is_array = type(value).__module__.partition(".")[0] == "numpy" and self._adapter.is_tensor(value)
            as_is = value.value if isinstance(value, AsIs) else value
            boundary.replaced[end] = self._adapter.from_numpy(value, old.get(end)) if is_array else as_is
