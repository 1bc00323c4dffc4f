"""Interrupts a capture at any moment, and looks at what it leaves behind.

    python tests/interrupting.py --points 1000
    python tests/interrupting.py --phases floor --seed 7
    python tests/interrupting.py --phases forced --at 1234        # one point again

Python asks for signals when it enters a function and when a function written in C has returned. A profiler sees exactly these events, so
that SIGINT can be sent at the n-th of them, wherever that lies: in tracediff, in the standard library, in the model. ``--clock`` sends
SIGINT by a timer instead, at random times. Each point has a process of its own.

Right is that KeyboardInterrupt comes out, and that everything is as it was: parameters, buffers, classes, patches, recursion limit,
the handler of SIGINT. The trace is closed: there is no journal, nothing locks it, and it can be read; or there is none yet.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tracediff as td
from tracediff.errors import TraceFileError
from tracediff.observe import exchange, frames
from tracediff.observe.patching import wrappers
from tracediff.observe.patching.places import quiet
from tracediff.trace import open_trace
from tracediff.trace.container import is_locked

PATIENCE = 120
"""Seconds after which a process counts as one that hangs."""
X = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32))


class Model(torch.nn.Module):
    """Everything that a capture touches: patched functions, draws, buffers, a list."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)])
        self.norm, self.dropout, self.seen = torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.2), list[int]()

    def forward(self, x: Any) -> Any:
        self.seen.append(len(self.seen))
        for layer in self.layers:
            x = td.tap("x", torch.nn.functional.softmax(layer(x), -1))
        return self.dropout(self.norm(x)) + torch.randn(2, 6)


def _captured(model: Any, folder: Path, **options: Any) -> None:
    td.capture(model, (X,), to=folder / "a.h5", **options).close()


def _blocked(model: Any, folder: Path) -> None:
    with td.record(model, folder / "a.h5"):
        model(X)


PHASES: dict[str, Callable[[Any, Path], None]] = {
    "repeat": lambda model, folder: _captured(model, folder, floor=False),
    "floor": lambda model, folder: _captured(model, folder, floor_dtypes=("float64", "bfloat16")),
    "forced": lambda model, folder: _captured(model, folder, feed=folder / "ref.h5"),
    "block": _blocked,
}


@dataclass(slots=True)
class World:
    """All that a capture may change and has to put back."""

    model: Any

    def now(self) -> dict[str, Any]:
        """What it is at present; of the model's state only what no run changes, if it is trained or not."""
        return {
            "parameters": {name: value.detach().numpy().tobytes() for name, value in self.model.named_parameters()},
            "dtypes": {name: str(value.dtype) for name, value in self.model.state_dict().items()},
            "default dtype": str(torch.get_default_dtype()),
            "attributes": sorted(vars(self.model)),
            "classes": [(type(module).__name__, type(module).forward) for module in self.model.modules()],
            "functions": (torch.nn.functional.softmax, torch.randn, torch.jit.script),
            "patches": len(exchange._patches),
            "tracked": len(wrappers._tracked),
            "frames": len(frames.current()),
            "quiet": quiet.now,
            "recursion limit": sys.getrecursionlimit(),
            "handler": signal.getsignal(signal.SIGINT),
        }

    def runs(self) -> set[int]:
        """How many runs the model's own state has seen; one that was interrupted may have left only one of two marks."""
        return {int(self.model.norm.num_batches_tracked), len(self.model.seen)}


class Sending:
    """Sends SIGINT once; ``dropped``: whether Python dropped what the handler raised, as it does in callbacks of weak references."""

    def __init__(self, where: str = "") -> None:
        self.where, self.sent, self.dropped = where, False, False

    def drop(self, what: Any) -> None:
        """Takes what Python could not raise."""
        self.dropped |= what.exc_type is KeyboardInterrupt and "tracediff" not in repr(what.object)


class Interrupting(Sending):
    """Sends SIGINT at the n-th event; without ``at`` it counts them only."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        self.at, self.count = at, 0

    def __enter__(self) -> Interrupting:
        sys.setprofile(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _event(self, frame: Any, event: str, argument: Any) -> None:
        if event not in ("call", "c_return"):
            return
        self.count += 1
        if self.count == self.at:
            called = f" after {getattr(argument, '__qualname__', argument)}" if event == "c_return" else ""
            self.where, self.sent = f"{_named(frame)}{called}{_called_by(frame)}", True
            signal.getsignal(signal.SIGINT)(signal.SIGINT, frame)  # what Python would call here, and what is raised goes out here


def _named(frame: Any) -> str:
    return f"{frame.f_code.co_qualname} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"


def _called_by(frame: Any) -> str:
    """The innermost three frames of tracediff on the way to a frame, in words."""
    ours = list[str]()
    while frame is not None and len(ours) < 3:
        if "tracediff" in Path(frame.f_code.co_filename).parts:
            ours.append(_named(frame))
        frame = frame.f_back
    return f", called by {', '.join(ours)}" if ours else ""


class Timed(Sending):
    """Sends SIGINT after so many seconds."""

    def __init__(self, after: float) -> None:
        super().__init__(f"after {after:.4f} s")
        self._after = after

    def __enter__(self) -> Timed:
        signal.signal(signal.SIGALRM, self._ring)
        signal.setitimer(signal.ITIMER_REAL, self._after)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _ring(self, *_: object) -> None:
        self.sent = True
        signal.raise_signal(signal.SIGINT)


RIGHT = ("interrupted", "came to its end", "dropped by Python, in a callback of a weak reference")


def outcome(phase: str, folder: Path, interrupting: Sending) -> str:
    """What became of one capture: one of `RIGHT`, or what is wrong, in words."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    model = Model().train()
    world, wrong = World(model), list[str]()
    before, came = world.now(), "came to its end"
    sys.unraisablehook = interrupting.drop
    try:
        with interrupting:
            PHASES[phase](model, folder)
    except KeyboardInterrupt:
        came = "interrupted"
    except BaseException as error:
        wrong.append(f"{type(error).__name__} came out: {error}")
    if interrupting.sent and came != "interrupted" and not wrong:
        if interrupting.dropped:
            came = "dropped by Python, in a callback of a weak reference"
        else:
            wrong.append("the interrupt was lost")
    after = world.now()
    wrong += [f"{name} is not what it was" for name, value in before.items() if after[name] != value]
    if not world.runs() <= {0, 1}:
        wrong.append(f"the model's state is that of {world.runs()} runs")
    wrong += _wrong_files(folder)
    return f"{came}: {'; '.join(wrong)}, at {interrupting.where}" if wrong else came


def _wrong_files(folder: Path) -> Iterator[str]:
    trace = folder / "a.h5"
    for path in folder.iterdir():
        if path.name not in ("a.h5", "ref.h5"):
            yield f"{path.name} is left behind"
    if trace.exists():
        if is_locked(trace):
            yield "the trace is locked"
        try:
            with open_trace(trace) as opened:
                [record.read() for record in opened.records]
                if opened.was_killed:
                    yield "the trace was not closed"
        except TraceFileError as error:
            yield f"the trace cannot be read: {error}"


def point(phase: str, reference: Path, sending: Sending, patience: float = PATIENCE) -> str:
    """The outcome of one point, in a process of its own."""
    hears, says = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        os.link(reference, Path(folder) / "ref.h5")
        child = os.fork()
        if child == 0:
            os.close(hears)
            try:
                text = outcome(phase, Path(folder), sending)
            except BaseException as error:
                text = f"the harness failed: {error!r}"
            os.write(says, text[:4000].encode())
            os._exit(0)
        os.close(says)
        until = time.monotonic() + patience
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return "hangs"
            time.sleep(0.001)
        with os.fdopen(hears, "rb") as pipe:
            return pipe.read().decode() or "died"


def events(phase: str, reference: Path) -> int:
    """How many events an undisturbed capture has; made before is everything that a process makes once."""
    for _ in range(2):
        counting = Interrupting()
        with tempfile.TemporaryDirectory() as folder:
            os.link(reference, Path(folder) / "ref.h5")
            found = outcome(phase, Path(folder), counting)
            assert found == "came to its end", found
    return counting.count


def duration(phase: str, reference: Path) -> float:
    """Seconds that an undisturbed capture takes."""
    with tempfile.TemporaryDirectory() as folder:
        os.link(reference, Path(folder) / "ref.h5")
        started = time.perf_counter()
        outcome(phase, Path(folder), Timed(PATIENCE))
        return time.perf_counter() - started


def make_reference(folder: Path) -> Path:
    """A trace that a forced run can be fed from."""
    path = folder / "ref.h5"
    td.capture(Model().train(), (X,), to=path, floor=False).close()
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100, help="of each phase")
    parser.add_argument("--phases", nargs="*", default=list(PHASES), choices=list(PHASES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at", type=int, help="one point, by its number")
    parser.add_argument("--clock", action="store_true", help="by a timer instead of at events")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        reference = make_reference(Path(folder))
        for phase in arguments.phases:
            chance = random.Random(arguments.seed)
            number = events(phase, reference)
            lasting = min(duration(phase, reference) for _ in range(2))
            outcomes: Counter[str] = Counter()
            for _ in range(1 if arguments.at else arguments.points):
                at = arguments.at or chance.randint(1, number)
                after = chance.uniform(0, lasting)
                sending = Timed(after) if arguments.clock else Interrupting(at)
                found = point(phase, reference, sending)
                is_right = found in RIGHT
                outcomes[found if is_right else "WRONG"] += 1
                if not is_right:
                    print(f"{phase} --at {at}: {found}", file=sys.stderr, flush=True)
            bad += outcomes["WRONG"]
            print(f"{phase}: {number} events, {dict(outcomes)}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
