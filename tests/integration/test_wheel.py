"""What is installed from the wheel alone works: nothing of it needs a file of the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel holds."""
    if shutil.which("uv") is None:
        pytest.skip("uv, which builds the wheel, is not installed")
    built, folder = tmp_path_factory.mktemp("built"), tmp_path_factory.mktemp("installed")
    ran = subprocess.run(["uv", "build", "--wheel", "--out-dir", built, ROOT], capture_output=True, text=True, check=False)
    if "Failed to fetch" in ran.stderr:
        pytest.skip("the build backend cannot be fetched here")
    assert ran.returncode == 0, ran.stderr
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def test_a_demonstration_knows_its_faults_where_only_the_wheel_is_installed(installed: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(installed), *dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))])
    code = "import tracediff, sys; print(tracediff.__file__); from tracediff.__main__ import main; main()"
    ran = subprocess.run(
        [sys.executable, "-S", "-c", code, "demo", "--list"],  # -S: what an editable install puts on the path stays away
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert Path(lines[0]).is_relative_to(installed)
    assert len(lines) > 100
    assert any(line.startswith("dropped_bias: ") for line in lines)


def test_the_wheel_holds_what_the_page_is_made_of(installed: Path) -> None:
    from tracediff.show import page

    held = {path.name for path in (installed / "tracediff" / "show" / "page").rglob("*")}
    assert {Path(name).name for name in (page.TEMPLATE, *page.STYLES, *page.LIBRARIES, *page.SCRIPTS)} <= held
    assert {"uPlot.LICENSE", "SHA256SUMS"} <= held
