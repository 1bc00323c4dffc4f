"""One observed run: each call, tap and draw tells the observers what came and went, and takes what they hand back."""

from __future__ import annotations

import functools
import inspect
import math
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from tracediff.errors import CaptureError
from tracediff.observe import frames, recursion
from tracediff.observe.audience import Audience
from tracediff.observe.call_values import ORDINARY, CallValues, Input, Swap
from tracediff.observe.containers import Leaves, Nest, built
from tracediff.observe.frames import Frame
from tracediff.observe.observer import Boundary, Moment, Observer, Returned, Run, raised_note
from tracediff.observe.patching.install import Installation
from tracediff.observe.patching.places import Place, quiet
from tracediff.observe.randomness import ODDS, probabilities
from tracediff.observe.returned import code_of, leaves_of
from tracediff.observe.steps import Steps
from tracediff.observe.tree import discover
from tracediff.observe.types import Adapter, Args, Call, Function, Kwargs, Random, Tensor
from tracediff.observe.unseen import Entrance, bypassed, changed_later, hidden_regions, made_later, uncalled
from tracediff.site import RETURNED, escape


class Session:
    """The observation of one run of ``models`` by ``observers``, as a context manager.

    Leaving it puts everything back, tells the observers that the run is over, and raises what an observer raised even where the
    model's own code caught it. The class is long because it is the run: calls, taps and draws share its frames, numbers and observers.
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
        self.thread = threading.get_ident()
        self.watched: set[int] = set()
        self._models = models
        self._audience = Audience(observers, self.run)
        self._root = Frame(self, None)
        self._nest = Nest(adapter.is_tensor, adapter.is_model)
        self._call_values = CallValues(adapter, self._nest)
        self._passed_over = frames.OURS | adapter.passed_over()
        self._lock = threading.Lock()
        self._ordinals: dict[str, int] = {}
        self._entrances: dict[str, Entrance] = {}
        self._called_inside: set[str] = set()
        self._names: dict[tuple[str, str], Function] = {}
        self._module_at = {node.path: node.module for node in self.nodes}
        self._installation = Installation(self, methods=methods, functions=functions, compile=compile)
        self._ending = ExitStack()
        self._latest: tuple[str, Any] = "", None  # the last outermost call or tap, and what it gave to the code around it

    def __enter__(self) -> Session:
        with ExitStack() as ending:
            ending.enter_context(recursion.room())
            self._audience.start(ending)
            ending.callback(self._list_unseen)
            ending.callback(frames.leave, self)
            ending.callback(self._installation.take_out)
            self._installation.put_in()
            frames.push(self._root)
            self._ending = ending.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        failure = self._audience.failure
        self.finished = True
        self.run.error = error if isinstance(error, Exception) and error is not failure else None
        self._ending.close()
        if failure is not None and error is not failure and (error is None or isinstance(error, Exception)):
            raise failure

    def warn(self, text: str) -> None:
        """Adds a warning to the run's, once."""
        if text not in self.run.warnings:
            self.run.warnings.append(text)

    def name_in(self, path: str, function: Function) -> str:
        """The name of an own function among those called in a module: the longer one if another has its name there."""
        known = self._names.setdefault((path, function.name), function)
        return function.name if known is function or not function.longer else function.longer

    def _list_unseen(self) -> None:
        sites = set(self._ordinals)
        self.run.bypassed = list(bypassed(self.nodes, self._entrances, self.adapter, self._called_inside))
        for what in (
            *hidden_regions(self.nodes),
            *changed_later(self.nodes, self.adapter),
            *self._installation.unused(sites),
            *uncalled(self.nodes, sites, self.adapter),
            *(
                f"module {one['module'] or 'the root'!r}: bypassed; {one['called']!r} inside it was called by {one['code']} ({one['at']})"
                for one in self.run.bypassed
            ),
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
            args, kwargs, swaps = self._enter(entered, place.function or ORDINARY, args, kwargs)
            inputs = self._call_values.inputs(entered)
            result = self._run(entered, original, args, kwargs)
            result = self._leave(entered, inputs, result, is_own=place.is_own)
            self._call_values.write_back(swaps)
        finally:
            frames.pop(frame)
        result = self._continued(frame, place, result) if place.is_method or place.is_own else result
        self._gave(frame, result)
        return result

    def _gave(self, frame: Frame, value: Any) -> None:
        """Notes what an outermost call or tap gave to the code around it."""
        if frame.parent is not None and frame.parent.id == 0:
            self._latest = frame.text, value

    def returned(self, value: Any, run: Any) -> Any:
        """Shows what the run returned, and returns it as it is.

        Where the last outermost call or tap gave this very object, it was shown there, and is not shown again.
        """
        call, (latest, given) = "", self._latest
        if leaves := leaves_of(value, self._nest):
            call = latest
            if given is not value or not latest:
                file, line = code_of(run)
                shown = Boundary(RETURNED, f"{RETURNED}[0]", 0, "return", leaves, file=file, line=line, frame_id=next(frames.ids))
                self._see(shown)
                call = shown.call if shown.leaves else ""
        self.run.returned = Returned(call, type(value).__name__)
        if value is not None and not call:
            self.run.miss(f"what the run returned ({type(value).__name__}): nothing in it is a tensor, a number or a text")
        return value

    def _entered(self, place: Place) -> tuple[Frame, int]:
        """The frame of a call that begins, and the number of the call among those of its site."""
        parent = self._current()
        with self._lock:
            frame = parent.call(place.site, place.path)
            ordinal = self._ordinals.get(place.site, 0)
            self._ordinals[place.site] = ordinal + 1
        frame.is_function = place.function is not None and not place.function.is_own
        return frame, ordinal

    def _boundary(self, place: Place, frame: Frame, ordinal: int) -> Boundary:
        """The boundary at which a call is entered, still without leaves."""
        caller = frames.caller(self._passed_over)
        file, line = frames.source(caller)
        assert frame.parent is not None
        is_outermost = frame.parent.id == 0
        if not is_outermost:
            self._called_inside.add(place.site)
        if ordinal == 0:
            holders = frames.holders(caller) if is_outermost else frozenset[int]()
            code = "" if caller is None else caller.f_code.co_qualname
            self._entrances[place.site] = Entrance(f"{file}:{line}", code, holders, is_outermost)
        return Boundary(
            place.site, frame.text, ordinal, "enter", [], place.path, frame.stage, frame.scope, file, line, frame.id, frame.parent.id
        )

    def _enter(self, entered: Boundary, function: Function, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs, Sequence[Swap]]:
        """Shows the arguments of a call. Returns the arguments to go on with, and which of the caller's tensors were replaced."""
        self._call_values.read_arguments(entered, function, args, kwargs)
        if function.hides is not None and (hidden := function.hides(args, kwargs)):
            self._miss(entered.site, hidden)
        if not self._see(entered):
            return args, kwargs, ()
        return self._call_values.replaced_arguments(entered, function, args, kwargs)

    def _run(self, entered: Boundary, original: Call, args: Args, kwargs: Kwargs) -> Any:
        """What the call returns, or what observers hand back for one that raised."""
        try:
            return original(*args, **kwargs) if entered.instead is None else entered.instead(original, args, kwargs)
        except Exception as error:
            if error is self._audience.failure:
                raise
            raised = _again(entered, "raise", entered.leaves)
            raised.error = error
            raised.note = raised_note(error)
            if not self._see(raised):
                raise
            return built(raised.replaced)

    def _leave(self, entered: Boundary, inputs: Sequence[Input], result: Any, *, is_own: bool) -> Any:
        """Shows what a call returned and which inputs it changed. Returns the result to go on with."""
        left = _again(entered, "leave", [])
        is_of_numbers = is_own and not entered.leaves  # then the numbers that it returns are none of interest
        self._call_values.read_result(left, inputs, result, without_numbers=is_of_numbers)
        return self._call_values.replaced_result(left, result) if self._see(left) else result

    def _continued(self, frame: Frame, place: Place, result: Any) -> Any:
        """What a call returned; a generator or a coroutine goes on inside the frame of the call that made it."""
        is_generator = inspect.isgenerator(result)
        if not is_generator and not inspect.iscoroutine(result):
            return result
        name = re.split("[:!]", place.site)[-1]
        steps = Steps(frame, self._current, functools.partial(self._shown_step, name))
        return steps.of_generator(result) if is_generator else steps.of_coroutine(result)

    def _shown_step(self, name: str, frame: Frame, value: Any) -> Any:
        """A tap for a value that a generator yields or a coroutine returns, as long as the run lasts."""
        return value if self.finished else self.tap(frame, name, value, escaped=True)

    def _current(self) -> Frame:
        """The innermost open frame in this thread or task."""
        return frames.current_of(self) or self._root

    # -- taps and draws

    def tap(self, frame: Frame, name: str, value: Any, *, escaped: bool = False) -> Any:
        """A tap inside ``frame``; returns the value to go on with."""
        site = f"{frame.path}#{name if escaped else escape(name)}"
        if self._is_blind(site):
            return value
        inner, boundary = self._moment(frame, site, "value", self._nest.values(value, "value"))
        value = self._nest.replace(value, "value", boundary.replaced) if self._see(boundary) else value
        self._gave(inner, value)
        return value

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
        """The probabilities that a call chooses by, choices along the last axis; None where it chooses by none."""
        if random.odds is None or quiet.now:
            return None
        weights, axis, is_log = random.odds(args, kwargs)
        return None if self.adapter.unreadable([weights]) else probabilities(self.adapter.view(weights), axis, is_log=is_log)

    def _drawn(self, frame: Frame, random: Random, value: Tensor, arguments: dict[str, Any], odds: Any = None) -> Mapping[str, Tensor]:
        """Shows a draw, and before it the probabilities that it chose by; what observers handed back for it, by end.

        Raises CaptureError where that has another size than the draw.
        """
        dtype, shape, _ = self.adapter.describe(value)
        name = random.name_in(self._module_at.get(frame.path))
        _, boundary = self._moment(frame, f"{frame.path}!{escape(name)}", "draw", [("draw", value)])
        boundary.note = {"function": random.full_name, "shape": list(shape), "dtype": dtype, **arguments}
        if odds is not None:
            self._see(_again(boundary, "value", [(ODDS, odds)]))
        if self._see(boundary):
            _, supplied, _ = self.adapter.describe(boundary.replaced["draw"])
            if math.prod(supplied) != math.prod(shape):
                raise CaptureError(f"The draw {boundary.call!r} has shape {shape}, but was supplied with values of shape {supplied}.")
        return boundary.replaced

    def _moment(self, frame: Frame, site: str, moment: Moment, leaves: Leaves) -> tuple[Frame, Boundary]:
        """The frame and the boundary of something that is no call: a tap, a draw."""
        with self._lock:
            inner = frame.call(site, frame.path)
            ordinal = self._ordinals.get(site, 0)
            self._ordinals[site] = ordinal + 1
        file, line = frames.source(frames.caller(self._passed_over))
        at = frame.path, frame.stage, frame.scope, file, line, inner.id, frame.id
        return inner, Boundary(site, inner.text, ordinal, moment, leaves, *at)

    # -- observers

    def _see(self, boundary: Boundary) -> bool:
        """Shows a boundary as long as the run lasts; whether observers handed something back."""
        return not self.finished and self._audience.see(boundary)

    def _is_blind(self, site: str) -> bool:
        """Whether nothing can or need be seen: the run is over or failed, or the framework hides what it does."""
        if self.finished or self._audience.failure is not None:
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
