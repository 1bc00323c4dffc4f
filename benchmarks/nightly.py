"""What takes longer than a run of `.ci/run`: each step is one command, and the result of the night is one file.

    python -m benchmarks.nightly                    # all steps; writes benchmarks/results/nightly.json
    python -m benchmarks.nightly golden faults      # some of them; the others keep their last result

A step is good where its command ends with exit status 0. The file holds each step's command, seconds, status and last lines.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

from benchmarks import results

STEPS = {
    "tests": ["-m", "pytest", "-n", "auto", "--dist", "loadfile"],
    "coverage": ["-m", "pytest", "-n", "auto", "--dist", "loadfile", "-m", "core", "--cov=tracediff", "--cov-report=term:skip-covered"],
    "golden": ["-m", "benchmarks.golden"],
    "golden-chatterbox": ["-m", "benchmarks.golden", "--groups", "chatterbox"],
    "faults": ["-m", "benchmarks.faults", "--quick", "--dtypes", "float32", "bfloat16"],
    "clean": ["-m", "benchmarks.clean", "--seeds", "1"],
    "variants": ["-m", "benchmarks.variants", "--seed", "today", "--share", "3", "--faults", "1", "--most-alarms", "1"],
    "generated": ["-m", "pytest", "-n", "auto", "tests/test_generated_models.py"],
    "bisection": ["-m", "benchmarks.bisection"],
}
ENVIRONMENT = {"tests": {"TRACEDIFF_INPUTS": "1000"}, "generated": {"TRACEDIFF_EXAMPLES": "300"}}
"""What a step's process has in its environment besides this one's."""
LAST_LINES = 12
RESULT = results.RESULTS / "nightly.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"some of {', '.join(STEPS)}; all by default")
    options = parser.parse_args()
    if unknown := set(options.steps) - set(STEPS):
        parser.error(f"no step {min(unknown)!r}; there are {', '.join(STEPS)}")
    kept = {row["step"]: row for row in json.loads(RESULT.read_text(encoding="utf-8"))["figures"]} if RESULT.is_file() else {}
    for name in options.steps or STEPS:
        kept[name] = step(name)
        figures = [kept[known] for known in STEPS if known in kept]
        RESULT.write_text(json.dumps(results.result("nightly", figures, options), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(any(row["status"] for row in kept.values()))


def step(name: str) -> dict[str, Any]:
    """Runs one step with its output passed on, and returns how it went."""
    started, lines = time.monotonic(), []
    print(f"== {name}", flush=True)
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": {**os.environ, **ENVIRONMENT.get(name, {})}}
    with subprocess.Popen([sys.executable, *STEPS[name]], text=True, **given) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    seconds = round(time.monotonic() - started)
    commit = results.commit()
    return {"step": name, "commit": commit, "seconds": seconds, "status": process.returncode, "last_lines": lines[-LAST_LINES:]}


if __name__ == "__main__":
    sys.exit(main())
