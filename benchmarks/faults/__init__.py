"""Faults planted into ports of known models, and how well they are located: see README.md beside this file."""

from __future__ import annotations

import sys
from pathlib import Path

for _folder in (Path(__file__).parents[2] / "tests", Path(__file__).parents[1]):  # the pairs that tests and benchmarks share
    if str(_folder) not in sys.path:
        sys.path.append(str(_folder))  # behind everything: a file there may bear the name of a library
