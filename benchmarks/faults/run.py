"""The benchmark as a script: `python benchmarks/faults/run.py` is `python -m benchmarks.faults`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.faults.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
