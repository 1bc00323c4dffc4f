"""Measurements of tracediff. Each is run from the checkout, as `python -m benchmarks.NAME` or `python benchmarks/NAME.py`.

The second way needs the project to be installed in editable form, as by `uv run`, or the checkout on PYTHONPATH.
"""

from __future__ import annotations

import sys
from pathlib import Path

_TESTS = str(Path(__file__).parents[1] / "tests")
if _TESTS not in sys.path:  # the pairs of models that tests and benchmarks share
    sys.path.append(_TESTS)  # behind everything: a file there may bear the name of a library
