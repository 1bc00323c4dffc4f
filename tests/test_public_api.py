"""The public names and their signatures are those of `public_api.txt`; a change of one is a change of that file."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import tracediff as td
import tracediff.observe

SNAPSHOT = Path(__file__).with_name("public_api.txt")


def public_api() -> list[str]:
    """A line for each public function or class: its signature, and of a class also its public methods and attributes."""
    lines = []
    for package, names in ((td, td.__all__), (tracediff.observe, tracediff.observe.__all__)):
        for name in sorted(names):
            value = getattr(package, name)
            home = f"{package.__name__}.{name}"
            if inspect.isclass(value) and not issubclass(value, BaseException):
                lines += [f"{home}.{member}" for member in sorted(vars(value)) if not member.startswith("_")]
                lines += [f"{home}.{member} (inherited)" for member in sorted(dir(value)) if member not in vars(value) and member[0] != "_"]
            elif callable(value) and not inspect.isclass(value):
                lines.append(f"{home}({', '.join(inspect.signature(value).parameters)})")
            else:
                lines.append(home)
    return lines


def test_public_names_and_signatures_are_those_that_were_promised() -> None:
    """With UPDATE_PUBLIC_API=1 the file is written anew."""
    if os.environ.get("UPDATE_PUBLIC_API"):
        SNAPSHOT.write_text("\n".join(public_api()) + "\n", encoding="utf-8")
    assert public_api() == SNAPSHOT.read_text(encoding="utf-8").splitlines()


def test_what_version_0_1_called_capture_is_importable() -> None:
    from tracediff.capture import record, scope, stage, tap

    assert (tap, scope, stage, record) == (td.tap, td.scope, td.stage, tracediff.observe.record)
    assert callable(td.capture)
