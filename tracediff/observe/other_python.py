"""Calls a function of this package in another Python, which has the other side's stack and need not have this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from tracediff import errors
from tracediff.errors import MissingDependencyError, RecipeError, TracediffError

NEEDED = ("numpy", "h5py", "ml_dtypes", "xxhash")
"""What that Python needs besides the framework of its side."""


def run_elsewhere(python: str | os.PathLike[str], function: str, arguments: Mapping[str, Any]) -> Any:
    """What ``module:function(**arguments)`` returns in another Python, where this package need not be installed.

    That Python needs NumPy, h5py, ml_dtypes and xxhash beside the side's own framework; this package is lent to it. Arguments and
    result are plain data (JSON). Its output goes to stderr. Raises MissingDependencyError for what it lacks, and the function's own
    TracediffError again.
    """
    interpreter = os.fspath(python)
    _check_interpreter(interpreter)
    with tempfile.TemporaryDirectory(prefix="tracediff-") as folder, _lent(Path(folder)) as path:
        answer = Path(folder) / "answer.json"
        request = json.dumps({"function": function, "arguments": dict(arguments), "answer": os.fspath(answer)})
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH")]))}
        command = [interpreter, "-c", "from tracediff.observe.other_python import serve; serve()"]
        status = subprocess.run(command, input=request, text=True, env=environment, stdout=2, check=False).returncode
        if not answer.is_file():
            raise RecipeError(f"{interpreter!r} ended with status {status} before it answered; what it printed is above.")
        return _unpacked(json.loads(answer.read_text(encoding="utf-8")))


def serve() -> None:
    """The other Python's part of `run_elsewhere`: reads the request from stdin and leaves the answer where it says."""
    request = json.loads(sys.stdin.read())
    module, _, name = request["function"].partition(":")
    try:
        answer = {"result": getattr(import_module(module), name)(**request["arguments"])}
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
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError) as error:
        raise RecipeError(
            f"{interpreter!r} does not run as a Python: {error}. Give the python of an environment, as in env/bin/python."
        ) from error
    if found[:1] != ["True"]:
        raise RecipeError(f"{interpreter!r} is older than Python 3.11, which is needed on both sides.")
    if found[1:]:
        missing = " ".join(found[1:])
        raise MissingDependencyError(f"{interpreter!r} lacks {', '.join(found[1:])}. Install with: {interpreter} -m pip install {missing}")


@contextmanager
def _lent(folder: Path) -> Iterator[str]:
    """A folder with this package alone in it: its own would bring everything else that is installed beside it."""
    package = Path(__file__).parents[1]
    place = folder / "lent"
    place.mkdir()
    (place / package.name).symlink_to(package, target_is_directory=True)
    yield os.fspath(place)
