"""Lines of code around a place that a trace names, as they stand on disk now."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

AROUND = 3
"""So many lines before and after the one that is meant."""
BODY = 16
"""So many lines of the function in which a module computes."""
FRAMEWORKS = ("torch/", "mlx/")
"""Files of layers that nobody who ports a model has written: the line that calls one tells more."""
_FORWARD = re.compile(r"\s*def (?:forward|__call__)\b")


def around_line(place: str, beside: Iterable[Path] = ()) -> dict[str, Any] | None:
    """The lines around ``FILE:LINE``; None where that is no Python file that can be found, or a shorter one."""
    file, _, number = place.rpartition(":")
    lines = lines_of(file, tuple(beside))
    if not number.isdigit() or not 0 < int(number) <= len(lines):
        return None
    first = max(1, int(number) - AROUND)
    return _excerpt(file, lines, first, int(number) + AROUND, marked=int(number))


def of_class(file: str, name: str, beside: Iterable[Path] = ()) -> dict[str, Any] | None:
    """The beginning of the function in which a module of this class computes; None where it cannot be found."""
    lines = lines_of(file, tuple(beside))
    heads = [number for number, line in enumerate(lines, 1) if re.match(rf"\s*class {re.escape(name)}\b", line)]
    if not heads:
        return None
    start = next((number for number in range(heads[0], len(lines) + 1) if _FORWARD.match(lines[number - 1])), heads[0])
    return _excerpt(file, lines, start, _end_of_body(lines, start), marked=0)


def of_module(path: str, modules: Iterable[Mapping[str, Any]], beside: Iterable[Path] = ()) -> dict[str, Any] | None:
    """The same for the module of this path, among those that a trace describes; None too where its class is a framework's own."""
    known = next((module for module in modules if module.get("path") == path), None)
    if not known or not known.get("file") or str(known["file"]).startswith(FRAMEWORKS):
        return None
    return of_class(str(known["file"]), str(known.get("type", "")), beside)


def _end_of_body(lines: list[str], start: int) -> int:
    """The last line of the block that begins at a line, or the `BODY`-th."""
    indent = len(lines[start - 1]) - len(lines[start - 1].lstrip())
    last = min(start + BODY - 1, len(lines))
    for number in range(start + 1, last + 1):
        line = lines[number - 1]
        if line.strip() and len(line) - len(line.lstrip()) <= indent and line.lstrip()[:1] not in (")", "#"):
            last = number - 1
            break
    while not lines[last - 1].strip():
        last -= 1
    return last


def _excerpt(file: str, lines: list[str], first: int, last: int, *, marked: int) -> dict[str, Any]:
    shown = [line.rstrip() for line in lines[first - 1 : last]]
    margin = min((len(line) - len(line.lstrip()) for line in shown if line.strip()), default=0)
    return {"file": file, "first": first, "marked": marked, "lines": [line[margin:] for line in shown]}


@lru_cache(maxsize=256)
def lines_of(file: str, beside: tuple[Path, ...]) -> list[str]:
    """The lines of a Python file: as it is named, below the folders of the traces, or below where Python imports from."""
    if not file.endswith(".py"):
        return []
    for folder in (Path(), *beside, *map(Path, sys.path)):
        path = folder / file
        try:
            if path.is_file():
                return path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            continue
    return []
