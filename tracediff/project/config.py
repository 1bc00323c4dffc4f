"""The cases of a project, as ``[tool.tracediff]`` of its pyproject.toml, or its tracediff.toml, declares them.

    [tool.tracediff]
    golden = "golden"                        # the folder of the kept references

    [tool.tracediff.cases.encoder]
    recipe = "my_model"                      # hooks/my_model_torch.py and hooks/my_model_mlx.py
    stages = ["encoder"]

    [tool.tracediff.cases.decoder]
    reference = "cases.py:reference"         # each returns (model, run), as `tracediff.capture` takes them
    port = "cases.py:port"
    keep = "full"

    [tool.tracediff.cases.swift]
    reference = "cases.py:reference"
    run = "xcodebuild test -scheme Dump"     # writes the dump anew
    dump = "build/out.safetensors"

In tracediff.toml the same without ``tool.tracediff``.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from tracediff.errors import TracediffError

Keep = Literal["samples", "full"]
FILE, PYPROJECT = "tracediff.toml", "pyproject.toml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_OF_THE_PROJECT = {"golden": "golden", "accepted": "tracediff-accepted.toml"}
_EXAMPLE = 'such as [tool.tracediff.cases.encoder] with recipe = "my_model" in pyproject.toml'


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case: how its reference is made, and how its port is run. A recipe makes both, unless a command runs the port.

    Files are relative to the project's folder.
    """

    name: str
    recipe: str | None = None
    """The recipe of both sides: its name, or the name that its files in a folder begin with."""
    reference: str | None = None
    """``FILE:CALLABLE`` that returns the reference's model and run."""
    port: str | None = None
    """``FILE:CALLABLE`` that returns the port's model and run."""
    run: str | None = None
    """A command of the shell that writes ``dump`` anew."""
    dump: str | None = None
    """The file of arrays (.safetensors, .npz, a folder of .npy) or the trace that ``run`` writes."""
    stored: str = ""
    """The dtype in which a port in float32 stored its dump, as in `tracediff.convert`."""
    weights: str = "seeded"
    """Where a recipe's weights come from."""
    seed: int = 0
    """Seeds a recipe's weights, inputs and draws; of two callables their draws."""
    dtype: str | None = None
    """The dtype in which a recipe's port runs."""
    stages: tuple[str, ...] = ()
    """Only these stages are run and compared."""
    keep: Keep | Literal[""] = ""
    """What is kept of the reference: statistics and a few values of each tensor, small enough for git, or everything. By default samples,
    and everything where a command writes the port's dump, whose arrays are paired by their values."""
    mode: Literal["forced", "free", ""] = ""
    """How the port runs: fed the reference's tensors, which takes ``keep = "full"``, or free. By default forced where it can be."""
    python: Mapping[str, str] = field(default_factory=dict)
    """By side, ``torch`` or ``mlx``: another environment's Python in which a recipe's side runs."""
    map: str | None = None
    """A mapping file that overrides the alignment."""
    strict: bool = False
    """Whether what is borderline counts as a divergence."""

    @property
    def kept(self) -> Keep:
        """What is kept of the reference."""
        return self.keep or ("full" if self.run is not None else "samples")

    @property
    def is_forced(self) -> bool:
        """Whether the port is fed the reference's tensors."""
        return self.mode == "forced" or (not self.mode and self.kept == "full" and self.run is None)


@dataclass(frozen=True, slots=True)
class Project:
    """A project: its folder, where its references are kept, the file of what was accepted, and its cases by name."""

    root: Path
    file: Path
    golden: Path
    accepted: Path
    cases: Mapping[str, Case]

    def golden_of(self, case: Case) -> Path:
        """Where the reference of a case is kept."""
        return self.golden / f"{case.name}.h5"

    def chosen(self, names: tuple[str, ...]) -> list[Case]:
        """The cases of these names, all where none is given; TracediffError for a name that is none."""
        for name in names:
            if name not in self.cases:
                raise TracediffError(f"No case {name!r} in {os.fspath(self.file)!r}; its cases are {', '.join(self.cases)}.")
        return [self.cases[name] for name in names or self.cases]

    @property
    def last(self) -> Path:
        """Where the outcome of the last check is kept."""
        return self.root / ".tracediff" / LAST


LAST = "check.json"
"""The file in which the outcome of the last check is kept, beside the traces of the ports."""


def find_project(file: str | os.PathLike[str] | None = None) -> Project:
    """The project of a file, or of the nearest folder from here upwards that declares one.

    Raises TracediffError where there is none, or where what it declares is wrong.
    """
    if file is not None:
        return _read(Path(file))
    for folder in (Path.cwd(), *Path.cwd().parents):
        for path in (folder / FILE, folder / PYPROJECT):
            if path.is_file() and (path.name == FILE or _table(path) is not None):
                return _read(path)
    raise TracediffError(f"No {FILE} and no [tool.tracediff] in a {PYPROJECT} here or above. Declare a case, {_EXAMPLE}.")


def _table(path: Path) -> dict[str, Any] | None:
    """The table of tracediff in a file; None where a pyproject.toml has none."""
    try:
        whole = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TracediffError(f"{os.fspath(path)!r} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TracediffError(f"{os.fspath(path)!r} is no TOML: {error}.") from error
    if path.name != PYPROJECT:
        return whole
    tool = whole.get("tool")
    table = tool.get("tracediff") if isinstance(tool, dict) else None
    return table if isinstance(table, dict) else None


def _read(path: Path) -> Project:
    table = _table(path) or {}
    name = os.fspath(path)
    if unknown := sorted(set(table) - {*_OF_THE_PROJECT, "cases"}):
        raise TracediffError(f"{name!r} declares {unknown[0]!r}, which is unknown; known are {', '.join((*_OF_THE_PROJECT, 'cases'))}.")
    cases = table.get("cases")
    if not isinstance(cases, dict) or not cases:
        raise TracediffError(f"{name!r} declares no case, so there is nothing to check. Declare one, {_EXAMPLE}.")
    root = path.resolve().parent
    golden, accepted = (_text(table.get(key, default), f"{key} in {name!r}") for key, default in _OF_THE_PROJECT.items())
    return Project(root, path, root / golden, root / accepted, {key: _case(key, value, name) for key, value in cases.items()})


def _case(name: str, given: Any, file: str) -> Case:
    """A declared case; TracediffError where it says too little, too much, or something else than is meant."""
    where = f"Case {name!r} in {file!r}"
    if not _NAME.fullmatch(name):
        raise TracediffError(f"{where}: a case's name names a file, so it has letters, digits, dots, hyphens and underscores only.")
    if not isinstance(given, dict):
        raise TracediffError(f"{where} is no table; write [tool.tracediff.cases.{name}].")
    known = {one.name for one in fields(Case)} - {"name"}
    for key in given:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else f" Known are {', '.join(sorted(known))}."
            raise TracediffError(f"{where} says {key!r}, which is unknown.{hint}")
    values: dict[str, Any] = {key: _value(key, value, where) for key, value in given.items()}
    case = Case(name=name, **values)
    _check(case, where)
    return case


def _check(case: Case, where: str) -> None:
    if (case.recipe is None) == (case.reference is None):
        raise TracediffError(f'{where} says how its reference is made by one of recipe = "NAME" and reference = "FILE:CALLABLE".')
    if (case.run is None) != (case.dump is None):
        raise TracediffError(f"{where}: run and dump go together, the command and the file that it writes.")
    ports = [key for key in ("recipe", "port", "run") if getattr(case, key) is not None]
    if not ports or ("port" in ports and len(ports) > 1):
        raise TracediffError(f'{where} says how its port is run by one of recipe, port = "FILE:CALLABLE", and run with dump.')
    if case.keep not in ("", *get_args(Keep)):
        raise TracediffError(f"{where}: keep is one of {', '.join(map(repr, get_args(Keep)))}, not {case.keep!r}.")
    if case.mode not in ("", "forced", "free"):
        raise TracediffError(f"{where}: mode is 'forced' or 'free', not {case.mode!r}.")
    if case.mode == "forced" and (case.kept != "full" or case.run is not None):
        why = "a command's port is not fed" if case.run is not None else 'it is fed whole tensors; write keep = "full"'
        raise TracediffError(f"{where} cannot be forced: {why}.")


def _value(key: str, value: Any, where: str) -> Any:
    if key == "stages":
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise TracediffError(f'{where}: stages is a list of texts, such as ["encoder"].')
        return tuple(value)
    if key == "python":
        if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
            raise TracediffError(f'{where}: python is a table of paths by side, such as {{torch = "env/bin/python"}}.')
        return value
    if key in ("seed", "strict"):
        kind = int if key == "seed" else bool
        if type(value) is not kind:
            raise TracediffError(f"{where}: {key} is {'a whole number' if kind is int else 'true or false'}, not {value!r}.")
        return value
    return _text(value, f"{where}: {key}")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise TracediffError(f"{where} is a text, not {value!r}.")
    return value
