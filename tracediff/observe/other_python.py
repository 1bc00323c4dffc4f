"""Calls a function in another Python, which has the other side's stack and need not have this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tracediff import errors
from tracediff.errors import MissingDependencyError, RecipeError, TracediffError
from tracediff.observe.jobs import Job, find_job, name_of

NEEDED = ("numpy", "h5py", "ml_dtypes", "xxhash")
"""What that Python needs besides the framework of its side."""


def run_elsewhere(python: str | os.PathLike[str], job: Job, arguments: Mapping[str, Any]) -> Any:
    """What ``job(**arguments)`` returns in another Python, where this package need not be installed.

    ``job`` is a function of a module (`tracediff.observe.jobs`). That Python needs NumPy, h5py, ml_dtypes and xxhash beside the side's
    own framework; this package is lent to it. Arguments and result are plain data (JSON). Its output goes to stderr. Raises
    MissingDependencyError for what it lacks, and the job's own TracediffError again.
    """
    interpreter = os.fspath(python)
    _check_interpreter(interpreter)
    with tempfile.TemporaryDirectory(prefix="tracediff-") as folder, _lent(Path(folder)) as path:
        answer = Path(folder) / "answer.json"
        request = json.dumps({"job": name_of(job), "arguments": dict(arguments), "answer": os.fspath(answer)})
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH")]))}
        command = [interpreter, "-c", f"from {__name__} import serve; serve()"]
        status = subprocess.run(command, input=request, text=True, env=environment, stdout=2, check=False).returncode
        if not answer.is_file():
            raise RecipeError(f"{interpreter!r} ended with status {status} before it answered; what it printed is above.")
        return _unpacked(json.loads(answer.read_text(encoding="utf-8")))


def serve() -> None:
    """The other Python's part of `run_elsewhere`: reads the request from stdin and leaves the answer where it says."""
    request = json.loads(sys.stdin.read())
    try:
        answer = {"result": find_job(request["job"])(**request["arguments"])}
    except TracediffError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


def _unpacked(answer: Mapping[str, Any]) -> Any:
    if "error" in answer:
        raise getattr(errors, answer["error"], RecipeError)(answer["message"])
    return answer["result"]


def _check_interpreter(interpreter: str) -> None:
    probe = f"import sys, importlib.util as u; print(sys.version_info >= (3, 11), *[n for n in {NEEDED!r} if u.find_spec(n) is None])"
    command = [interpreter, "-c", probe]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError) as error:
        raise RecipeError(
            f"{interpreter!r} does not run as a Python: {error}. Give the python of an environment, as in env/bin/python."
        ) from error
    if answer[:1] != ["True"]:
        raise RecipeError(f"{interpreter!r} is older than Python 3.11, which is needed on both sides.")
    missing = answer[1:]
    if missing:
        command_line = f"{interpreter} -m pip install {' '.join(missing)}"
        raise MissingDependencyError(f"{interpreter!r} lacks {', '.join(missing)}. Install with: {command_line}")


@contextmanager
def _lent(folder: Path) -> Iterator[str]:
    """A folder with this package alone in it: its own would bring everything else that is installed beside it."""
    package = Path(__file__).parents[1]
    place = folder / "lent"
    place.mkdir()
    (place / package.name).symlink_to(package, target_is_directory=True)
    yield os.fspath(place)
