"""Fixtures shared by all tests, and the tier that each test belongs to.

A test is `real` where it says so: it runs the real Chatterbox pair. It is of `frameworks` where its file uses torch or MLX, or where it
takes the fixture `side`. Every other test is of the `core`: it needs neither. `slow` says a test itself: it takes seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from models import SIDES

from tracediff.trace.known import FOLDER_VARIABLE

FRAMEWORKS = {"torch", "mlx"}
TESTS = Path(__file__).parent
sys.path.append(str(TESTS.parent))  # the benchmarks, where the project is not installed in editable form


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
        if item.get_closest_marker("real") is not None:
            continue
        module = getattr(item, "module", None)
        if module is not None and module not in needs:
            needs[module] = uses_frameworks(module)
        is_of_frameworks = "side" in getattr(item, "fixturenames", ()) or needs.get(module, False)
        item.add_marker(pytest.mark.frameworks if is_of_frameworks else pytest.mark.core)


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
