"""Ctrl-C at any moment comes out as KeyboardInterrupt, and leaves the model whole and the trace closed."""

from __future__ import annotations

import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tracediff import interrupts
from tracediff.interrupts import allowed, held, owning, whole

sys.path.insert(0, str(Path(__file__).parent))


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def python_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def outcome(done: list[str], run: Callable[[], None]) -> str:
    """What came out of a run, and all that it did before."""
    try:
        run()
    except BaseException as error:
        done.append(type(error).__name__)
        if error.__context__ is not None:
            done.append(f"after {type(error.__context__).__name__}")
    return ", ".join(done)


def test_an_interrupt_waits_until_the_outermost_region_ends() -> None:
    done: list[str] = []

    def run() -> None:
        with held():
            with held():
                interrupt()
                done.append("inner")
            done.append("outer")

    assert outcome(done, run) == "inner, outer, KeyboardInterrupt"


def test_an_interrupt_that_waits_is_raised_where_it_is_allowed() -> None:
    done: list[str] = []

    def run() -> None:
        with held():
            interrupt()
            done.append("noted")
            with allowed():
                done.append("never")

    assert outcome(done, run) == "noted, KeyboardInterrupt"


def test_an_interrupt_is_raised_at_once_where_it_is_allowed_and_what_puts_back_is_held_again() -> None:
    done: list[str] = []

    def run() -> None:
        with held():
            try:
                with allowed():
                    interrupt()
                    done.append("never")
            finally:
                interrupt()
                done.append("put back")

    assert outcome(done, run) == "put back, KeyboardInterrupt, after KeyboardInterrupt"


def test_an_error_in_a_region_gives_way_to_the_interrupt_and_is_its_context() -> None:
    done: list[str] = []

    def run() -> None:
        with held():
            interrupt()
            raise ValueError("lost")

    assert outcome(done, run) == "KeyboardInterrupt, after ValueError"


def test_a_handler_of_the_user_is_called_and_stays() -> None:
    heard = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    with held():
        interrupt()
        assert not heard
    assert heard == [signal.SIGINT]
    interrupt()
    assert len(heard) == 2
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_handler_that_is_set_in_a_region_stays() -> None:
    heard = []
    with held():
        signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    interrupt()
    assert heard == [signal.SIGINT]
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_signal_that_is_ignored_or_ends_the_process_stays_so(handler: Any) -> None:
    signal.signal(signal.SIGINT, handler)
    with held():
        assert signal.getsignal(signal.SIGINT) is handler
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_another_thread_holds_nothing_of_the_main_one() -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with held():
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(60)
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    leave.set()
    thread.join(60)


def test_a_whole_function_returns_before_it_is_interrupted() -> None:
    done = []

    @whole
    def both() -> None:
        interrupt()
        done.append("both")

    with pytest.raises(KeyboardInterrupt):
        both()
    assert done == ["both"]


@pytest.mark.parametrize("at", ["begin", "block", "end"])
def test_what_owns_something_gives_it_back_wherever_it_is_interrupted(at: str) -> None:
    done = []

    def maybe(now: str) -> None:
        if now == at:
            interrupt()
        done.append(now)

    @owning
    def owner() -> Iterator[None]:
        maybe("begin")
        try:
            yield
        finally:
            maybe("end")

    with pytest.raises(KeyboardInterrupt), owner():
        maybe("block")
    assert done == {"begin": ["begin", "end"], "block": ["begin", "end"], "end": ["begin", "block", "end"]}[at]


def test_what_owns_something_raises_what_its_block_raises() -> None:
    @owning
    def owner() -> Iterator[int]:
        yield 1

    with pytest.raises(ValueError, match="mine"), owner():
        raise ValueError("mine")


@contextmanager
def plain() -> Iterator[None]:
    yield


class AtEvent:
    """Interrupts at the n-th event at which Python asks for signals, as a profiler sees them."""

    def __init__(self, at: int) -> None:
        self.at, self.count, self.opened = at, 0, list[str]()

    def event(self, frame: Any, kind: str, argument: Any) -> None:
        if kind in ("call", "c_return"):
            self.count += 1
            if self.count == self.at:
                signal.getsignal(signal.SIGINT)(signal.SIGINT, frame)

    def run(self) -> None:
        with held(), plain():
            self.opened.append("open")
            try:
                with allowed():
                    sorted([3, 1, 2], key=abs)
            finally:
                self.opened.remove("open")


def test_wherever_regions_are_interrupted_nothing_is_left() -> None:
    for at in range(1, 400):
        one = AtEvent(at)
        with suppress(KeyboardInterrupt):
            try:
                sys.setprofile(one.event)
                one.run()
            finally:
                sys.setprofile(None)
        assert not one.opened
        assert (interrupts._depth.now, interrupts._depth.regions, interrupts._Interrupt.waits) == (0, 0, False)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if one.count < at:
            break
    assert 10 < at < 400


@pytest.mark.parametrize("phase", ["repeat", "floor", "forced", "block"])
def test_a_capture_that_is_interrupted_anywhere_leaves_everything_whole(phase: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import interrupting

    reference = interrupting.make_reference(tmp_path)
    number, chance = interrupting.events(phase, reference), random.Random(0)
    points = sorted(chance.sample(range(1, number), 8))
    found = {at: interrupting.point(phase, reference, interrupting.Interrupting(at)) for at in points}
    assert {at: what for at, what in found.items() if what not in interrupting.RIGHT} == {}
    assert "interrupted" in found.values()
