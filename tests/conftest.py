"""Fixtures shared by all tests, and the tier that each test belongs to.

A test is `real` where it says so: it runs the real Chatterbox pair. It is of `frameworks` where its file uses torch or MLX, where it or a
function of its file that it names imports or asks for one, or where it takes the fixture `side`. Every other test is of the `core`: it
needs neither. `slow` says a test itself: it takes seconds; so does `nightly`: it repeats a claim that others of its file make in less time.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from models import SIDES

from tracediff.trace.known import FOLDER_VARIABLE

FRAMEWORKS = {"torch", "mlx"}
RESTING = {"transformers", "peft", "mlx_lm", "mlx_vlm", "mlx_audio", "chatterbox"}
"""Libraries that need one of them."""
TESTS = Path(__file__).parent
sys.path.append(str(TESTS.parent))  # the benchmarks, where the project is not installed in editable form
# Tests start many processes; where bytecode is not kept, each of them compiles torch and all else anew, which is half of its time.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=list(SIDES))
def side(request: pytest.FixtureRequest) -> SimpleNamespace:
    """The toy models of one framework; a test with it runs once for each that is installed."""
    chosen = SIDES[request.param]()
    chosen.seed(0)
    return chosen


@pytest.fixture
def x(side: SimpleNamespace) -> Any:
    """An input of the toy models: (2, 4), float32."""
    return side.array(np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test with its tier."""
    needs: dict[ModuleType, bool] = {}
    for item in items:
        if item.get_closest_marker("real") is not None or item.get_closest_marker("frameworks") is not None:
            continue
        module = getattr(item, "module", None)
        if module is not None and module not in needs:
            needs[module] = uses_frameworks(module)
        is_of_frameworks = "side" in getattr(item, "fixturenames", ()) or needs.get(module, False) or _asks_for_one(item)
        item.add_marker(pytest.mark.frameworks if is_of_frameworks else pytest.mark.core)


def _asks_for_one(item: pytest.Item) -> bool:
    """Whether a test, or a function or fixture of its file that it names, imports a framework or asks for one when it runs."""
    function = getattr(item, "function", None)
    if function is None:
        return False
    asking = asking_for_frameworks(item.path)
    return not asking.isdisjoint(("", function.__qualname__.partition(".")[0]))


@cache
def asking_for_frameworks(path: Path) -> set[str]:
    """The names of a test file in whose statements, or in those of a name that they use, a framework is imported; "" is the file itself."""
    statements: dict[str, ast.stmt] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            statements[node.name] = node
        elif any(map(_is_import, ast.walk(node))):
            return {""}
    asking = {name for name, node in statements.items() if any(map(_is_import, ast.walk(node)))}
    names = {name: {getattr(one, "id", getattr(one, "arg", None)) for one in ast.walk(node)} for name, node in statements.items()}
    while more := {name for name in names.keys() - asking if names[name] & asking}:
        asking |= more
    return asking


def _is_import(node: ast.AST) -> bool:
    """Whether a piece of code imports a framework, or skips the test where there is none."""
    imported: list[str | None] = []
    if isinstance(node, ast.Import):
        imported = [one.name for one in node.names]
    elif isinstance(node, ast.ImportFrom):
        imported = [node.module]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "importorskip":
        imported = [one.value for one in node.args if isinstance(one, ast.Constant)]
    return any(str(name).partition(".")[0] in FRAMEWORKS | RESTING for name in imported)


def uses_frameworks(module: ModuleType) -> bool:
    """Whether a test file, or a file of the tests that it imports, has torch or MLX (or something of theirs) among its names."""
    for value in vars(module).values():
        source = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if str(source).partition(".")[0] in FRAMEWORKS:
            return True
        if isinstance(value, ModuleType) and _is_of_tests(value) and value is not module and uses_frameworks(value):
            return True
    return False


def _is_of_tests(module: ModuleType) -> bool:
    return Path(getattr(module, "__file__", None) or "/").parent == TESTS
