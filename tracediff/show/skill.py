"""The page for coding agents, as it lies in the package or in the checkout that the package runs from."""

from __future__ import annotations

from pathlib import Path

from tracediff.errors import TracediffError

_PACKAGE = Path(__file__).parents[1]
PLACES = (_PACKAGE / "SKILL.md", _PACKAGE.parent / "docs" / "skill" / "SKILL.md")


def skill() -> str:
    """The page's text; TracediffError where the installation lacks it."""
    for path in PLACES:
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise TracediffError("This installation lacks SKILL.md; install the package anew.")
