"""The exact versions in pyproject.toml: each dependency has one, no registry is named, and they resolve."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
DECLARED = tomllib.loads(TEXT)
PINS = DECLARED["tool"]["uv"]["constraint-dependencies"]


def name_of(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_each_dependency_has_an_exact_version() -> None:
    project = DECLARED["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    wanted += [one for group in DECLARED["dependency-groups"].values() for one in group]
    pinned = {name_of(one) for one in PINS if re.match(r"[A-Za-z0-9._-]+==[^*]+$", one.partition(" ; ")[0])}
    assert len(pinned) > 100
    assert {name_of(one) for one in wanted} - pinned == {"tensor-tracediff"}


def test_no_registry_is_named() -> None:
    assert "://" not in TEXT.partition("[tool.uv]")[2]
    assert not DECLARED["tool"]["uv"].keys() & {"index", "index-url", "extra-index-url", "find-links", "sources"}


@pytest.mark.slow
def test_the_exact_versions_resolve(tmp_path: Path) -> None:
    if shutil.which("uv") is None:
        pytest.skip("uv, which resolves them, is not installed")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    ran = subprocess.run(["uv", "lock"], cwd=tmp_path, capture_output=True, text=True, check=False)
    if re.search(r"Failed to fetch|offline|network|error sending request", ran.stderr, re.IGNORECASE):
        pytest.skip("no registry can be reached")
    assert ran.returncode == 0, ran.stderr
    locked = {(one["name"], one["version"]) for one in tomllib.loads((tmp_path / "uv.lock").read_text(encoding="utf-8"))["package"]}
    pins = {(name_of(one), one.partition("==")[2].partition(" ; ")[0]) for one in PINS}
    assert locked - pins <= {("tensor-tracediff", DECLARED["project"]["version"])}
