"""The random generators that are no framework's: Python's and NumPy's, which models use too."""

from __future__ import annotations

import random
from typing import Any

import numpy as np


def state() -> Any:
    """The states of both."""
    return random.getstate(), np.random.get_state()


def restore(kept: Any) -> None:
    """Puts both back into states that `state` returned."""
    random.setstate(kept[0])
    np.random.set_state(kept[1])
