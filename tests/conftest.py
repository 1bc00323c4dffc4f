"""Fixtures shared by all tests."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from models import SIDES

sys.path.append(str(Path(__file__).parents[1]))  # the benchmarks, where the project is not installed in editable form


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
