"""The errors that tracediff raises: what went wrong, where, and what to do next.

Each is also the built-in error that a caller would expect, so ``except FileNotFoundError`` and
``except TracediffError`` both work.
"""

from __future__ import annotations

from typing import Any


class TracediffError(Exception):
    """Something tracediff was asked for cannot be done; the message says what, where and what to do next."""


class TraceFileError(TracediffError, OSError):
    """A trace cannot be read or written: absent, truncated, foreign, hostile, locked, of a newer version, or a full disk."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class TraceExistsError(TraceFileError, FileExistsError):
    """The output exists already and ``force`` was not given."""


class TraceNotFoundError(TraceFileError, FileNotFoundError):
    """No such trace."""


class UnsafeTraceError(TraceFileError, ValueError):
    """A trace holds what a trace never holds (external storage, soft links to elsewhere, filters, object dtypes)."""


class DamagedRecordError(TraceFileError):
    """The values of a record are not those that were written; from then on they count as not stored."""


class SiteError(TracediffError, KeyError):
    """No such site, call or record; the message names the nearest ones."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class CaptureError(TracediffError, RuntimeError):
    """A model could not be observed, or its run was not what was asked for."""


class RecipeError(TracediffError, ValueError):
    """A recipe cannot be found, loaded or run."""


class AlignmentError(TracediffError, ValueError):
    """Two traces share nothing that could be paired, or a mapping file is wrong.

    ``skeleton``: an alignment without pairs, from which a mapping to edit can be written; None where the two cannot be aligned at all.
    """

    def __init__(self, message: str, skeleton: Any = None) -> None:
        super().__init__(message)
        self.skeleton = skeleton


class WeightsError(TracediffError, ValueError):
    """What was given as weights cannot be read as such, or two sets of weights share nothing that could be compared."""


class MissingDependencyError(TracediffError, ImportError):
    """A package that is needed for this step is not installed; the message gives the command that installs it."""


def install(extra: str) -> str:
    """The command that installs the project with one of its extras; the distribution is not on PyPI yet.

    >>> install("mlx")
    "pip install '.[mlx]' (in a checkout of tracediff)"
    """
    return f"pip install '.[{extra}]' (in a checkout of tracediff)"
