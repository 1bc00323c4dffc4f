"""Progress: what a long job says while it goes on, a line at a time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TypeAlias

from tracediff.site import printable

Progress: TypeAlias = Callable[[str], None]
"""Shows one line of what is being done."""


def silent(_: str) -> None:
    """Shows nothing: the progress of whoever wants none."""


def to_stderr() -> Progress:
    """Says each line on stderr, with the seconds since this was called; warnings stand by themselves."""
    begun = time.monotonic()

    def say(message: str) -> None:
        shown = message if message.startswith("warning: ") else f"{time.monotonic() - begun:5.0f} s  {message}"
        print(printable(shown), file=sys.stderr, flush=True)

    return say


def chosen(progress: Progress | bool) -> Progress:
    """What a caller chose: True says lines on stderr, False nothing, a function is given each line."""
    if callable(progress):
        return progress
    return to_stderr() if progress else silent
