"""Jobs: functions that may have to be found again in another Python, by the name of their module and their name in it.

A job that is done with a recipe's run is called as

    job(models, run, to, options=..., observers=..., meta=..., force=..., progress=..., **own)

with the models that the recipe loaded, its run as a callable without arguments, the path of the trace to write, the `CaptureOptions` of
the run, and what the caller gave for this job alone. `tracediff.observe.recording.record_run` is such a job.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from tracediff.errors import RecipeError

Job = Callable[..., Any]


def name_of(job: Job) -> str:
    """The name by which another Python finds a job, as ``module:name``.

    Raises RecipeError for a function without such a name: one that was made inside another function, or in a notebook or script.

    >>> import os.path
    >>> find_job(name_of(os.path.isdir)) is os.path.isdir
    True
    """
    name = f"{getattr(job, '__module__', None)}:{getattr(job, '__qualname__', None)}"
    if name.startswith("__main__:") or not _is_found(name, job):
        raise RecipeError(f"{job!r} cannot be found by another Python; define it at the top of a module that can be imported there.")
    return name


def find_job(job: str | Job) -> Job:
    """A job itself, or the function of that name (``module:name``); RecipeError where there is none of that name."""
    if not isinstance(job, str):
        return job
    module, _, name = job.partition(":")
    try:
        found: Job = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(f"No function {job!r} ({error}); name it as 'module:function', or give the function itself.") from error
    return found


def _is_found(name: str, job: Job) -> bool:
    try:
        return find_job(name) is job
    except RecipeError:
        return False
