"""Differences that a project lives with: each with its reason and its size, in a small TOML file that lies in git.

An accepted difference is quiet as long as it is as large as it was, and fails again when it grows.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any

from tracediff.errors import TracediffError
from tracediff.outputs import write_output
from tracediff.thresholds import threshold

_HEAD = "# Differences that are accepted, each with its reason: written by `tracediff accept`, read by `tracediff check`.\n"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The numbers that decide whether an accepted difference is still the one that was accepted."""

    grown: float = threshold(
        1.5,
        "times its accepted size, or number of places, above which a difference has grown",
        "set by hand: one run on two machines differs by rounding alone; tests/test_check.py guards it",
    )


THRESHOLDS = Thresholds()


@dataclass(frozen=True, slots=True)
class Accepted:
    """One accepted difference: its case, the reference's site and end, the reason, its relative L2 (infinite: no number), its places."""

    case: str
    site: str
    end: str
    because: str
    size: float
    places: int = 1
    since: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.case, self.site, self.end

    def has_grown(self, size: float, places: int) -> bool:
        """Whether a difference of this size at so many places is more than what was accepted.

        >>> one = Accepted("enc", "norm", "output", "eps of the checkpoint", 1e-3)
        >>> one.has_grown(1.1e-3, 1), one.has_grown(2e-3, 1), one.has_grown(1e-3, 2)
        (False, True, True)
        """
        return size > THRESHOLDS.grown * self.size or places > THRESHOLDS.grown * self.places


def read_accepted(path: Path) -> list[Accepted]:
    """What a file accepts, none where there is no such file; TracediffError where it is not as `write_accepted` writes it."""
    if not path.exists():
        return []
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8")).get("accepted", [])
        return [_read(row) for row in rows]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise TracediffError(
            f"{os.fspath(path)!r} is no file of accepted differences ({error}). Mend it, or write it anew with: tracediff accept SITE"
        ) from error


def _read(row: dict[str, Any]) -> Accepted:
    given = {one.name: row[one.name] for one in fields(Accepted) if one.name in row}
    made = Accepted(**{**given, "size": float(row["size"])})
    texts = (made.case, made.site, made.end, made.because)
    if not all(isinstance(text, str) for text in texts) or not made.because.strip() or math.isnan(made.size) or made.places < 1:
        raise ValueError("each has case, site, end, a reason in because, a size, and places of 1 or more")
    return made


def write_accepted(path: Path, rows: Iterable[Accepted]) -> Path:
    """Writes the file anew, its rows by case and site; raises as `tracediff.outputs.write_output` does."""
    ordered = sorted(rows, key=lambda one: one.key)
    return write_output(path, _HEAD + "".join(map(_written, ordered)), force=True)


def _written(one: Accepted) -> str:
    size = "inf" if math.isinf(one.size) else repr(one.size)
    cells = {name: _toml(getattr(one, name)) for name in ("case", "site", "end", "because")}
    cells |= {"size": size, "places": str(one.places), "since": _toml(one.since)}
    return "\n[[accepted]]\n" + "".join(f"{name} = {value}\n" for name, value in cells.items())


def _toml(text: str) -> str:
    """A text as TOML's basic string.

    >>> print(_toml('a "b"\\n'))
    "a \\"b\\"\\n"
    """
    marks = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return '"' + "".join(marks.get(c, c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}") for c in text) + '"'


def today() -> str:
    """The date that a difference is accepted on."""
    return date.today().isoformat()
