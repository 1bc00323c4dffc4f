"""The figures of a benchmark, kept with the version that they were measured with: ``benchmarks/results/VERSION/NAME.json``.

All files have one schema: the benchmark, tracediff's version and commit, the day, the kind of machine, the options that say how large the
run was, and the figures, a list of rows. They name no host, no user and no path.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import tracediff

SCHEMA = "tracediff.benchmark/1"
RESULTS = Path(__file__).with_name("results")
PACKAGES = ("numpy", "torch", "mlx", "transformers", "mlx-lm", "mlx-whisper", "chatterbox-tts", "mlx-audio")
Row = Mapping[str, Any]


def add_option(parser: argparse.ArgumentParser) -> None:
    """Gives a benchmark's command line ``--record [NAME]``."""
    parser.add_argument(
        "--record",
        nargs="?",
        const="",
        metavar="NAME",
        help="keep the figures in benchmarks/results/VERSION/BENCHMARK.json, or in BENCHMARK-NAME.json there, as of a small run",
    )


def record(benchmark: str, rows: Iterable[Row], options: argparse.Namespace, folder: Path = RESULTS) -> Path | None:
    """Writes the figures where ``--record`` was given, and returns the file."""
    if options.record is None:
        return None
    path = folder / tracediff.__version__ / f"{benchmark}{'-' if options.record else ''}{options.record}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    written = json.dumps(result(benchmark, rows, options), indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(written + "\n", encoding="utf-8")
    return path


def result(benchmark: str, rows: Iterable[Row], options: argparse.Namespace) -> dict[str, Any]:
    """The figures with all that says what they were measured on."""
    return {
        "schema": SCHEMA,
        "benchmark": benchmark,
        "version": tracediff.__version__,
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "options": {name: value for name, value in sorted(vars(options).items()) if name != "record" and _says_size(value)},
        "figures": [dict(row) for row in rows],
    }


def commit() -> str:
    """The commit of the checkout, with ``+`` where files differ from it; "" outside of one."""

    def git(*command: str) -> str:
        ran = subprocess.run(["git", *command], cwd=RESULTS.parent, capture_output=True, text=True, check=False)
        return ran.stdout.strip()

    changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    return git("rev-parse", "--short", "HEAD") + changed


def machine() -> dict[str, Any]:
    """The kind of machine: its processors and the versions of what computes, nothing that tells one machine from another."""
    return {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _says_size(value: Any) -> bool:
    """Whether an option's value is one that others can read: no path and nothing that was not given."""
    if isinstance(value, list | tuple):
        return all(_says_size(one) for one in value) and bool(value)
    if isinstance(value, str):
        return bool(value) and os.sep not in value and not value.endswith(".json")
    return isinstance(value, bool | int | float)
