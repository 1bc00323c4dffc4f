"""The random generators that are no framework's: Python's and NumPy's, which models use too."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

SEEDING: tuple[tuple[Any, str], ...] = ((random, "seed"), (np.random, "seed"))
"""The functions by which code seeds both: what holds each, and its name there."""


def state() -> Any:
    """The states of both."""
    return random.getstate(), np.random.get_state()


def restore(kept: Any) -> None:
    """Puts both back into states that `state` returned."""
    random.setstate(kept[0])
    np.random.set_state(kept[1])
