"""One observed run: each call, tap and draw tells the observers what came and went, and takes what they hand back."""

from __future__ import annotations

import inspect
import math
import re
import threading
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from tracediff.errors import CaptureError
from tracediff.observe import frames
from tracediff.observe.adapters.base import Adapter, Function, Random
from tracediff.observe.containers import Leaves, Nest, built, number
from tracediff.observe.frames import Frame
from tracediff.observe.observer import AsIs, Boundary, Moment, Observer, Run, raised_note
from tracediff.observe.patching.install import Installation
from tracediff.observe.patching.wrappers import Place, quiet
from tracediff.observe.randomness import ODDS, probabilities
from tracediff.observe.tree import discover
from tracediff.observe.unseen import hidden_regions, made_later, uncalled
from tracediff.site import escape

Call = Callable[..., Any]
Args = tuple[Any, ...]
Kwargs = dict[str, Any]

_ORDINARY = Function(None, "", "")
"""How the arguments of modules and methods are named: by position and keyword."""


class Session:
    """The observation of one run of ``models`` by ``observers``, as a context manager.

    Leaving it puts everything back, tells the observers that the run is over, and raises what an observer raised even where the
    model's own code caught it.
    """

    def __init__(
        self,
        models: Any,
        observers: Sequence[Observer],
        adapter: Adapter,
        *,
        methods: Iterable[str] = (),
        functions: Iterable[str] = (),
        compile: bool | None = None,
    ) -> None:
        self.adapter = adapter
        self.nodes = discover(models, adapter, compile=compile)
        self.run = Run(adapter, tuple(self.nodes))
        self.finished = False
        self.watched: set[int] = set()
        self._models = models
        self._observers = tuple(observers)
        self._root = Frame(self, None)
        self._failure: BaseException | None = None
        self._nest = Nest(adapter.is_tensor, adapter.is_model)
        self._lock = threading.RLock()
        self._ordinals: dict[str, int] = {}
        self._entered_from: dict[str, str] = {}
        self._names: dict[tuple[str, str], Function] = {}
        self._module_at = {node.path: node.module for node in self.nodes}
        self._installation = Installation(self, methods=methods, functions=functions, compile=compile)
        self._ending = ExitStack()

    def __enter__(self) -> Session:
        with ExitStack() as ending:
            started: list[Observer] = []
            ending.callback(self._finish, started)
            for observer in self._observers:
                started.append(observer)
                observer.start(self.run)
            ending.callback(self._list_unseen)
            ending.callback(frames.leave, self)
            ending.callback(self._installation.take_out)
            self._installation.put_in()
            frames.push(self._root)
            self._ending = ending.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        self.finished = True
        self.run.error = error if isinstance(error, Exception) and error is not self._failure else None
        self._ending.close()
        if self._failure is not None and error is not self._failure and (error is None or isinstance(error, Exception)):
            raise self._failure

    def _finish(self, started: Sequence[Observer]) -> None:
        """Tells the observers in the given order that the run is over, so that a recorder comes after what adds to the run."""
        with ExitStack() as ending:
            for observer in reversed(started):
                ending.callback(observer.finish, self.run)

    def warn(self, text: str) -> None:
        """Adds a warning to the run's, once."""
        if text not in self.run.warnings:
            self.run.warnings.append(text)

    def _list_unseen(self) -> None:
        sites = set(self._ordinals)
        for what in (
            *hidden_regions(self.nodes),
            *self._installation.unused(sites),
            *uncalled(self.nodes, sites, self.adapter, self._entered_from),
            *made_later(self._models, self.nodes, self.adapter),
        ):
            self.run.miss(what)

    # -- calls

    def call(self, place: Place, original: Call, args: Args, kwargs: Kwargs) -> Any:
        """Calls ``original`` as a frame of this session."""
        if self._is_blind(place.site):
            return original(*args, **kwargs)
        frame, ordinal = self._entered(place)
        entered = self._boundary(place, frame, ordinal)
        frames.push(frame)
        try:
            args, kwargs, swapped = self._enter(entered, place, args, kwargs)
            arrays = [(end, tensor) for end, tensor in entered.leaves if end.startswith("input") and not isinstance(tensor, str)]
            tokens = [(end, tensor, self.adapter.token(tensor)) for end, tensor in arrays]
            result = self._run(entered, original, args, kwargs)
            result = self._leave(entered, tokens, result, is_own=_is_own(place))
            for callers, fresh, token in swapped:
                if self.adapter.is_changed(fresh, token):
                    self.adapter.assign(callers, fresh)
        finally:
            frames.pop(frame)
        return self._continued(frame, place, result) if place.is_method or _is_own(place) else result

    def _entered(self, place: Place) -> tuple[Frame, int]:
        parent = frames.current_of(self) or self._root
        with self._lock:
            frame = parent.call(place.site, place.path)
            ordinal = self._ordinals.get(place.site, 0)
            self._ordinals[place.site] = ordinal + 1
        frame.is_function = place.function is not None and not place.function.is_own
        return frame, ordinal

    def _boundary(self, place: Place, frame: Frame, ordinal: int) -> Boundary:
        caller = frames.caller()
        file, line = frames.source(caller)
        if caller is not None and ordinal == 0:
            self._entered_from[place.site] = f"{caller.f_code.co_qualname} ({file}:{line})"
        assert frame.parent is not None
        return Boundary(
            place.site, frame.text, ordinal, "enter", [], place.path, frame.stage, frame.scope, file, line, frame.id, frame.parent.id
        )

    def _enter(self, entered: Boundary, place: Place, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs, list[tuple[Any, Any, Any]]]:
        """The arguments to go on with; and where some were replaced: the caller's tensor, the one for the call, its token."""
        function = place.function or _ORDINARY
        names = function.renames or {}
        named = {names.get(key, key): value for key, value in kwargs.items()} if names else kwargs
        entered.leaves, scalars = self._nest.inputs(args, named, function.keys)
        if function.is_own and not entered.leaves:  # then texts are what it works on
            entered.leaves = [(end, value) for end, value in scalars.items() if isinstance(value, str)]
            scalars = {end: value for end, value in scalars.items() if not isinstance(value, str)}
        if function.attributes is not None:
            attributes = function.attributes(args, kwargs).items()
            entered.leaves += [(f"attr[{key}]", number(value)) for key, value in attributes if value is not None]
        if function.hides is not None and (what := function.hides(args, kwargs)):
            self._miss(place.site, what)
        if scalars:
            entered.note["scalars"] = scalars
        if not self._see(entered):
            return args, kwargs, []
        old, new = dict(entered.leaves), entered.replaced
        swapped = [(old[end], tensor, self.adapter.token(tensor)) for end, tensor in new.items() if not isinstance(tensor, str)]
        args, named = self._nest.replace_inputs(args, named, new, function.keys)
        entered.leaves = [(end, new.get(end, tensor)) for end, tensor in entered.leaves]
        back = {names.get(key, key): key for key in kwargs}
        return args, {back[key]: value for key, value in named.items()}, swapped

    def _run(self, entered: Boundary, original: Call, args: Args, kwargs: Kwargs) -> Any:
        try:
            return original(*args, **kwargs)
        except Exception as error:
            if error is self._failure:
                raise
            raised = _again(entered, "raise", entered.leaves)
            raised.error = error
            raised.note = raised_note(error)
            if not self._see(raised):
                raise
            return built(raised.replaced)

    def _leave(self, entered: Boundary, tokens: Sequence[tuple[str, Any, Any]], result: Any, *, is_own: bool) -> Any:
        left = _again(entered, "leave", self._nest.values(result, "output"))
        if is_own and not entered.leaves:  # a function of numbers: its numbers are none of interest
            left.leaves = [(end, value) for end, value in left.leaves if isinstance(value, str) or self.adapter.describe(value)[1]]
        changed = {id(tensor): (end, tensor) for end, tensor, token in tokens if self.adapter.is_changed(tensor, token)}
        if changed:
            kept = [end for end, tensor in left.leaves if id(tensor) in changed]
            returned = {id(tensor) for _, tensor in left.leaves}
            lost = [(f"output.{end}", tensor) for end, tensor in changed.values() if id(tensor) not in returned]
            left.leaves += lost
            left.mutated = (*kept, *(end for end, _ in lost))
        if not self.adapter.is_tensor(result) and (absent := self._nest.absent(result, "output")):
            left.note["absent"] = absent
        if not self._see(left):
            return result
        for end, tensor in left.leaves:
            if end in left.mutated and end in left.replaced and self._is_alike(tensor, left.replaced[end]):
                self.adapter.assign(tensor, left.replaced[end])
        return self._nest.replace(result, "output", left.replaced)

    def name_in(self, path: str, function: Function) -> str:
        """The name of an own function among those called in a module: the longer one if another has its name there."""
        known = self._names.setdefault((path, function.name), function)
        return function.name if known is function or not function.longer else function.longer

    def _is_alike(self, tensor: Any, other: Any) -> bool:
        """Whether a tensor can hold the values of another as they are."""
        return self.adapter.describe(tensor)[:2] == self.adapter.describe(other)[:2]

    def _continued(self, frame: Frame, place: Place, result: Any) -> Any:
        """What a call returned; a generator or a coroutine goes on inside the frame of the call that made it."""
        if inspect.isgenerator(result):
            return self._stepped(frame, place, result)
        return self._awaited(frame, place, result) if inspect.iscoroutine(result) else result

    async def _awaited(self, frame: Frame, place: Place, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """A coroutine that a function returned: its code runs inside the function's frame, and what it returns is a tap."""
        return await _Steps(self._stepped(frame, place, coroutine, is_coroutine=True))

    def _stepped(self, frame: Frame, place: Place, steps: Any, *, is_coroutine: bool = False) -> Generator[Any, Any, Any]:
        """A generator that a call returned: its code runs inside the frame of that call, and each value it yields is a tap.

        Of a coroutine not what it yields to its loop is one, but what it returns.
        """
        name = re.split("[:!]", place.site)[-1]
        resume: Callable[[], Any] = lambda: steps.send(None)  # noqa: E731
        while True:
            again = frame.again(frames.current_of(self) or self._root)
            frames.push(again)
            try:
                value = resume()
                if not self.finished and not is_coroutine:
                    value = self.tap(again, name, value, escaped=True)
            except StopIteration as done:
                if is_coroutine and not self.finished:
                    return self.tap(again, name, done.value, escaped=True)
                return done.value
            finally:
                frames.pop(again)
            try:
                sent = yield value
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as error:  # noqa: BLE001  (the generator's to handle)
                resume = _throwing(steps, error)
            else:
                resume = _sending(steps, sent)

    # -- taps and draws

    def tap(self, frame: Frame, name: str, value: Any, *, escaped: bool = False) -> Any:
        """A tap inside ``frame``; returns the value to go on with."""
        site = f"{frame.path}#{name if escaped else escape(name)}"
        if self._is_blind(site):
            return value
        boundary = self._moment(frame, site, "value", self._nest.values(value, "value"))
        return self._nest.replace(value, "value", boundary.replaced) if self._see(boundary) else value

    def draw(self, frame: Frame, random: Random, original: Call, *args: Any, **kwargs: Any) -> Any:
        """A call of a random function; the framework draws first, so that its generator moves on as ever."""
        arguments = random.arguments(args, kwargs)
        if arguments is None or self._is_blind(f"{frame.path}!{random.name}"):
            return original(*args, **kwargs)
        if random.mask is not None and random.apply is not None:
            drawn = self._drawn(frame, random, random.mask(args, kwargs), arguments)
            return random.apply(args, kwargs, drawn["draw"]) if drawn else original(*args, **kwargs)
        value = original(*args, **kwargs)
        drawn = self._drawn(frame, random, value, arguments, self._odds(random, args, kwargs))
        if "draw" in drawn:
            self.adapter.assign(value, drawn["draw"])  # in place: many random functions fill the caller's tensor
        return value

    def _odds(self, random: Random, args: Args, kwargs: Kwargs) -> Any:
        """The probabilities that a call chooses by, in one form for all frameworks; None where it chooses by none."""
        if random.odds is None or quiet.now:
            return None
        weights, axis, is_log = random.odds(args, kwargs)
        return None if self.adapter.unreadable([weights]) else probabilities(self.adapter.view(weights), axis, is_log=is_log)

    def _drawn(self, frame: Frame, random: Random, value: Any, arguments: dict[str, Any], odds: Any = None) -> dict[str, Any]:
        dtype, shape, _ = self.adapter.describe(value)
        name = random.name_in(self._module_at.get(frame.path))
        boundary = self._moment(frame, f"{frame.path}!{escape(name)}", "draw", [("draw", value)])
        boundary.note = {"function": random.full_name, "shape": list(shape), "dtype": dtype, **arguments}
        if odds is not None:
            self._see(_again(boundary, "value", [(ODDS, odds)]))
        if self._see(boundary):
            _, supplied, _ = self.adapter.describe(boundary.replaced["draw"])
            if math.prod(supplied) != math.prod(shape):
                raise CaptureError(f"The draw {boundary.call!r} has shape {shape}, but was supplied with values of shape {supplied}.")
        return boundary.replaced

    def _moment(self, frame: Frame, site: str, moment: Moment, leaves: Leaves) -> Boundary:
        """The boundary of something that is no call: a tap, a draw."""
        with self._lock:
            inner = frame.call(site, frame.path)
            ordinal = self._ordinals.get(site, 0)
            self._ordinals[site] = ordinal + 1
        file, line = frames.source(frames.caller())
        return Boundary(site, inner.text, ordinal, moment, leaves, frame.path, frame.stage, frame.scope, file, line, inner.id, frame.id)

    # -- observers

    def _see(self, boundary: Boundary) -> bool:
        """Shows a boundary to the observers in turn; whether any handed something back, which is then in ``boundary.replaced``."""
        if quiet.now or self.finished or self._failure is not None:
            return False
        quiet.now = True
        try:
            if not self._make_readable(boundary):
                return False
            with self._lock:
                for observer in self._observers:
                    new = observer.see(boundary)
                    if new:
                        self._gather(boundary, new)
        except BaseException as error:
            self._failure = error
            raise
        finally:
            quiet.now = False
        return bool(boundary.replaced)

    def _make_readable(self, boundary: Boundary) -> bool:
        """Evaluates the leaves and drops those that cannot be read; whether the boundary is worth showing."""
        if not self._why_unreadable(boundary.leaves):
            return True
        kept = []
        for leaf in boundary.leaves:
            why = self._why_unreadable([leaf])
            if why:
                self._miss(f"{boundary.site} {leaf[0]}".strip(), why)
            else:
                kept.append(leaf)
        boundary.leaves = kept
        return bool(kept)

    def _why_unreadable(self, leaves: Leaves) -> str:
        return self.adapter.unreadable([tensor for _, tensor in leaves if not isinstance(tensor, str)])

    def _gather(self, boundary: Boundary, new: Mapping[str, Any]) -> None:
        old = dict(boundary.leaves)
        for end, value in new.items():
            if end not in old and boundary.moment != "raise":
                raise CaptureError(
                    f"An observer handed back {end!r} at the {boundary.moment} of {boundary.call!r}, "
                    f"where there is only: {', '.join(old) or 'nothing'}."
                )
            is_array = type(value).__module__.partition(".")[0] == "numpy" and self.adapter.is_tensor(value)
            as_is = value.value if isinstance(value, AsIs) else value
            boundary.replaced[end] = self.adapter.from_numpy(value, old.get(end)) if is_array else as_is

    def _is_blind(self, site: str) -> bool:
        """Whether nothing can or need be seen: the run is over or failed, or the framework hides what it does."""
        if self.finished or self._failure is not None:
            return True
        why = self.adapter.blind()
        if why:
            self._miss(site, why)
        return bool(why)

    def _miss(self, site: str, why: str) -> None:
        self.run.miss(f"{site or 'the root'}: {why}")


def _again(entered: Boundary, moment: Moment, leaves: Leaves) -> Boundary:
    """The boundary of another moment of the same call."""
    other = Boundary(entered.site, entered.call, entered.ordinal, moment, leaves, entered.path, entered.stage, entered.scope)
    other.file, other.line, other.frame_id, other.parent_id = entered.file, entered.line, entered.frame_id, entered.parent_id
    return other


@dataclass(frozen=True, slots=True)
class _Steps:
    """Steps that can be awaited."""

    steps: Generator[Any, Any, Any]

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.steps


def _is_own(place: Place) -> bool:
    """Whether a place is a function or method of the model's own code."""
    return place.function is not None and place.function.is_own


def _sending(steps: Generator[Any, Any, Any], value: Any) -> Callable[[], Any]:
    return lambda: steps.send(value)


def _throwing(steps: Generator[Any, Any, Any], error: BaseException) -> Callable[[], Any]:
    return lambda: steps.throw(error)
