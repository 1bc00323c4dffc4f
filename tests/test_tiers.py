"""`.ci/run` runs every test but the nightly ones in one tier, that whose environment it needs; the README's command runs all of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression
from conftest import asking_for_frameworks

from benchmarks.nightly import STEPS

ROOT = Path(__file__).parents[1]
RUN = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
BY_DEFAULT = next(iter(re.findall(r'in "\$\{@:-([a-z ]+)\}"', RUN))).split()
CHOICES = dict(re.findall(r'tier_(\w+)\(\) \{.*"\$\{tests\[@\]\}" -m "?([a-z ]+)"?', RUN))


def tiers_of(*marks: str) -> list[str]:
    """The tiers that `.ci/run` runs by default and that choose a test with these marks."""
    return [tier for tier in BY_DEFAULT if tier in CHOICES and Expression.compile(CHOICES[tier]).evaluate(lambda name, **_: name in marks)]


@pytest.mark.parametrize("tier", ["core", "frameworks", "real"])
def test_every_test_runs_in_its_tier_and_in_no_other(tier: str) -> None:
    assert tiers_of(tier) == tiers_of(tier, "slow") == [tier]


@pytest.mark.parametrize("tier", ["core", "frameworks", "real"])
def test_a_nightly_test_runs_at_night_alone(tier: str) -> None:
    assert tiers_of(tier, "slow", "nightly") == []
    assert "-m" not in STEPS["tests"][2:]


def test_every_test_has_one_tier(request: pytest.FixtureRequest) -> None:
    for item in request.session.items:
        assert len({mark.name for mark in item.iter_markers()} & {"core", "frameworks", "real"}) == 1, item.nodeid


def test_the_command_of_the_readme_is_the_one_that_is_run_here() -> None:
    (whole,) = re.findall(r"^whole\(\) \{ (uv run .*) \"\$@\"; \}", RUN, re.MULTILINE)
    (tests,) = re.findall(r"^tests=\((.*)\)", RUN, re.MULTILINE)
    assert f"\n{whole.replace(' --quiet', '')} {tests} " in (ROOT / "README.md").read_text(encoding="utf-8")


FILE = """
import pytest

def made():
    from torch import nn

def helped():
    return made()

@pytest.fixture
def given():
    pytest.importorskip("mlx.core")

def test_by_itself():
    import mlx_lm.models

def test_by_a_helper():
    helped()

def test_by_a_fixture(given):
    pass

def test_of_the_core(tmp_path):
    import torchless
    pytest.importorskip("selenium")
"""


def test_what_imports_a_framework_inside_needs_one_and_nothing_else_does(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text(FILE)
    tests = {name for name in asking_for_frameworks(tmp_path / "test_a.py") if name.startswith("test_")}
    assert tests == {"test_by_itself", "test_by_a_helper", "test_by_a_fixture"}


def test_all_tests_of_a_file_that_is_skipped_without_a_framework_need_it(tmp_path: Path) -> None:
    (tmp_path / "test_b.py").write_text('import pytest\npytest.importorskip("torch")\ndef test_a(): ...\n')
    assert "" in asking_for_frameworks(tmp_path / "test_b.py")
