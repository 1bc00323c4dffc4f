"""What an observer is shown, and what it may hand back.

An *observer* is shown every boundary of a run: a module, method or function is entered or left, a tap is passed, a random draw is
made, a call raises. It may hand back other values, with which the run goes on. Recording is the plainest observer; measuring the
noise floor and forcing a port onto its reference are others.

Observers see a boundary in the order given. Each finds in `Boundary.replaced` what earlier observers handed back; so observers that
replace values come before a recorder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tracediff.dtype import Array
from tracediff.observe import frames
from tracediff.observe.types import Adapter, Args, Call, Kwargs, Node, Tensor

Moment = Literal["enter", "leave", "value", "draw", "raise", "return"]


@dataclass(frozen=True, slots=True)
class AsIs:
    """A NumPy array to go on with as it is: it takes over neither the dtype nor the shape of what it replaces."""

    value: Any


@dataclass(frozen=True, slots=True)
class InPart:
    """A NumPy array to go on with that holds the run's own values in part: wherever these are kept, nothing was replaced."""

    values: Array


@dataclass(slots=True)
class Boundary:
    """One moment of a run at one site, with the live tensors that are there.

    - ``site``, ``call``, ``ordinal`` (counted per site), ``stage`` (the innermost), ``scope`` (``ode=3/token=1``, outermost first):
      where, as `tracediff.site` prints it. ``path`` is the module's path;
    - ``moment``: ``enter`` and ``leave`` of a call; ``value`` of a tap; ``draw`` of random numbers; ``raise`` where a call failed
      (its leaves are the call's inputs, ``error`` the exception); ``return`` of the whole run (nothing handed back is taken);
    - ``leaves``: (end, tensor) in the order of the arguments. Tensors are the run's own objects: whoever keeps values copies them;
    - ``file``, ``line``: the model code that made the call;
    - ``frame_id``: one number for the enter, leave and raise of one call; ``parent_id``: that of the enclosing call, 0 at the root;
    - ``note``: ``scalars`` {end: value} among the inputs; of a returned container ``absent``, where it holds None or an object that is
      not entered (`tracediff.observe.containers.Nest.absent`); a draw's ``function``, ``shape``, ``dtype`` and arguments;
    - ``mutated``: at leave, the ends of the leaves that hold an input which the call changed in place. An input that was changed and not
      returned is added as ``output.input[0]``, as the call left it;
    - ``replaced``: what earlier observers handed back, by end; ``in_part``: the ends of those that came as `InPart`;
    - ``instead``: at enter, where an observer sets it: what is called in the place of the call. It takes the call, its positional and its
      named arguments, and what it returns counts as what the call returned.
    """

    site: str
    call: str
    ordinal: int
    moment: Moment
    leaves: list[tuple[str, Tensor]]
    path: str = ""
    stage: str = ""
    scope: str = ""
    file: str = ""
    line: int = 0
    frame_id: int = 0
    parent_id: int = 0
    note: dict[str, Any] = field(default_factory=dict)
    mutated: tuple[str, ...] = ()
    replaced: dict[str, Tensor] = field(default_factory=dict)
    error: BaseException | None = None
    instead: Callable[[Call, Args, Kwargs], Any] | None = None
    in_part: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Returned:
    """Where what a run returned is seen: the printed call that returned it, or the reserved tap; "" where nothing of it could be.

    ``type`` is the name of its type, "" of a block, which returns nothing.
    """

    call: str = ""
    type: str = ""


@dataclass(slots=True)
class Run:
    """What is known of an observed run: its adapter, its modules in tree order, and (growing) its stages and what was not seen.

    ``stages`` maps each stage to the one around it. ``not_seen`` and ``warnings`` are complete when `Observer.finish` is called; an
    observer may add to both. ``error`` is then the exception that ended the run, None where the run came to its end. ``raised`` are the
    exceptions that ended a stage, each with the name of the stage, where the run went on with the next stage. ``returned`` says where
    what the run returned is seen. ``bypassed``: the modules inside of which others were called without them
    (`tracediff.observe.unseen.bypassed`).
    """

    adapter: Adapter
    modules: tuple[Node, ...]
    stages: dict[str, str] = field(default_factory=dict)
    not_seen: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    error: Exception | None = None
    raised: list[tuple[Exception, str]] = field(default_factory=list)
    returned: Returned = Returned()
    bypassed: list[dict[str, Any]] = field(default_factory=list)

    def miss(self, what: str) -> None:
        """Adds something that was not seen, once."""
        if what not in self.not_seen:
            self.not_seen.append(what)


class Observer:
    """Sees a run and leaves it alone; subclasses override what they need."""

    def start(self, run: Run) -> None:
        """Called before the run, with everything still as it was."""

    def see(self, boundary: Boundary) -> Mapping[str, Tensor] | None:
        """Called at every boundary; returns the values to go on with, by end, or None.

        Values are tensors of the framework, used as they are, or NumPy arrays, converted to the dtype and device of what they
        replace unless they come as `AsIs`. At ``enter`` they replace inputs, at ``leave`` outputs, at ``value`` what the tap returns.
        At ``draw`` the one end is ``draw`` and its leaf is what the framework drew: the values returned are reshaped and cast to it.
        At ``raise`` they are the outputs (``output``, ``output[0]``...) that the failed call is made to return; without them the
        exception goes on.
        """
        return None

    def finish(self, run: Run) -> None:
        """Called after the run, also where it raised, with everything as it was before."""


def raised_note(error: BaseException) -> dict[str, str]:
    """What is noted of an exception: its type and message, and the line of code that raised it."""
    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    file, _ = frames.source(innermost.tb_frame if innermost is not None else None)
    at = {} if innermost is None else {"raised_at": f"{file}:{innermost.tb_lineno} in {innermost.tb_frame.f_code.co_name}"}
    return {"error": f"{type(error).__name__}: {error}", **at}
