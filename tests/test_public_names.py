"""The public names stay what they are, whatever is imported: no submodule takes one over."""

from __future__ import annotations

import importlib.util
import inspect
import pkgutil
import subprocess
import sys

import pytest

import tracediff as td


def submodules() -> list[str]:
    """The dotted names of all modules of the package, of which none is imported for it."""
    names: list[str] = []
    folders = [("tracediff.", list(td.__path__))]
    while folders:
        prefix, paths = folders.pop()
        for module in pkgutil.iter_modules(paths, prefix):
            names.append(module.name)
            if module.ispkg:
                folders.append((f"{module.name}.", [f"{path}/{module.name.rpartition('.')[2]}" for path in paths]))
    return names


FUNCTIONS = {name for name in td.__all__ if inspect.isfunction(getattr(td, name))}


def test_no_submodule_has_the_name_of_a_public_function() -> None:
    assert len(FUNCTIONS) > 10
    assert [name for name in submodules() if name.rpartition(".")[2] in FUNCTIONS] == []


def test_public_names_are_functions_and_classes_after_every_submodule_is_imported() -> None:
    frameworks = {"torch", "mlx"}
    missing = {name for name in frameworks if importlib.util.find_spec(name) is None}
    code = f"""
import importlib, inspect
import tracediff as td
for name in {[name for name in submodules() if name.rpartition(".")[2].partition("_")[0] not in missing]!r}:
    if name != "tracediff.__main__":
        importlib.import_module(name)
for name in td.__all__:
    value = getattr(td, name)
    assert inspect.isfunction(value) or inspect.isclass(value), (name, value)
    assert value.__name__ == name, (name, value)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", td.__all__)
def test_a_public_name_says_what_it_is(name: str) -> None:
    assert inspect.getdoc(getattr(td, name))
