"""Generators and coroutines that a call returned: their code runs later, and still belongs to that call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any

from tracediff.observe import frames
from tracediff.observe.frames import Frame


@dataclass(frozen=True, slots=True)
class Steps:
    """Runs the steps of a generator or a coroutine inside ``frame``, the frame of the call that returned it.

    ``current`` returns the frame that is current where a step begins. ``shown`` shows a value in a frame and returns the value to go
    on with.
    """

    frame: Frame
    current: Callable[[], Frame]
    shown: Callable[[Frame, Any], Any]

    def of_generator(self, generator: Any) -> Generator[Any, Any, Any]:
        """The generator, with each value that it yields shown."""
        return self._stepped(generator, is_coroutine=False)

    async def of_coroutine(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """The coroutine, with its return value shown; the values that it yields to the event loop are none of the model's."""
        return await _Awaitable(self._stepped(coroutine, is_coroutine=True))

    def _stepped(self, steps: Any, *, is_coroutine: bool) -> Generator[Any, Any, Any]:
        resume: Callable[[], Any] = functools.partial(steps.send, None)
        while True:
            again = self.frame.again(self.current())
            frames.push(again)
            try:
                value = resume()
                if not is_coroutine:
                    value = self.shown(again, value)
            except StopIteration as done:
                return self.shown(again, done.value) if is_coroutine else done.value
            finally:
                frames.pop(again)
            try:
                sent = yield value
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as error:  # noqa: BLE001  (the generator's to handle)
                resume = functools.partial(steps.throw, error)
            else:
                resume = functools.partial(steps.send, sent)


@dataclass(frozen=True, slots=True)
class _Awaitable:
    """Steps that can be awaited."""

    steps: Generator[Any, Any, Any]

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.steps
