"""What a trace says of where it comes from: versions, git revision, command line, platform."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from tracediff.dtype import Array


def digest_of(array: Array) -> bytes:
    """The digest of an array's bytes in C order, as a trace stores them: little-endian."""
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return xxhash.xxh3_128_digest(flat)


def digest_of_bytes(blob: bytes) -> bytes:
    """The digest of some bytes."""
    return xxhash.xxh3_128_digest(blob)


def provenance(packages: Iterable[str]) -> dict[str, Any]:
    """Where and when a run was made; ``packages`` are the top-level names whose versions matter."""
    versions = {name: version for name in packages if (version := version_of(name))}
    return {
        "versions": {"python": platform.python_version(), "numpy": np.__version__, **versions},
        "git": git_revision(Path.cwd()),
        "command": command_line(),
        "platform": platform.platform(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def command_line() -> str:
    """The command that is running, without the folder that its program lies in."""
    program = Path(sys.argv[0])
    name = f"python -m {program.parent.name}" if program.name == "__main__.py" else program.name
    return " ".join([name, *map(shlex.quote, sys.argv[1:])])


def version_of(package: str) -> str:
    """The version of an imported top-level package, or the empty text."""
    version = getattr(sys.modules.get(package), "__version__", None)
    if isinstance(version, str):
        return version
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def git_revision(folder: Path) -> str:
    """The commit that a folder is at, with ``+`` where files differ from it; the empty text outside of git."""
    if not any((parent / ".git").exists() for parent in (folder, *folder.parents)):
        return ""
    described = _git(folder, "rev-parse", "HEAD")
    return f"{described}+" if described and _git(folder, "status", "--porcelain", "--untracked-files=no") else described


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
