"""The page on the shipped Chatterbox port says what its generator says, with the lines of the packages that are installed here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tracediff.observe.recipe import load_file

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "chatterbox.md"

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("chatterbox", "mlx_audio", "s3tokenizer", "torchaudio")),
        reason="the pair is not installed",
    ),
]


@pytest.fixture(scope="module")
def mends() -> Any:
    return load_file(ROOT / "benchmarks" / "mends.py")


def block(name: str) -> str:
    return PAGE.read_text(encoding="utf-8").split(f"<!-- {name} -->\n")[1].split(f"<!-- /{name} -->")[0]


def test_every_difference_is_on_the_page_with_its_kind_lines_and_text(mends: Any) -> None:
    table = block("mends")
    for name, mend in mends.MENDS.MENDS.items():
        assert f"| `{name}` | {mend.kind} | `{mend.reference}` | `{mend.port}` |" in table, name
        assert f"- `{name}` ({mend.kind}). {mend.text}\n" in table, name


def test_what_was_only_read_is_on_the_page_with_the_lines_of_both_packages(mends: Any) -> None:
    assert block("read") == "\n".join(mends.read_lines()) + "\n"


def test_every_stage_of_the_recipe_has_its_line(mends: Any) -> None:
    assert [line.split("`")[1] for line in block("stages").splitlines()[2:]] == mends.MENDS_STAGES


def test_writing_keeps_what_is_outside_the_marks(mends: Any) -> None:
    page = "before\n<!-- one -->\nold\n<!-- /one -->\nafter\n"
    assert mends.written(page, {"one": ["new", "lines"]}) == "before\n<!-- one -->\nnew\nlines\n<!-- /one -->\nafter\n"


def test_a_page_without_marks_is_refused(mends: Any) -> None:
    with pytest.raises(ValueError, match="no marks '<!-- one -->'"):
        mends.written("a page", {"one": ["new"]})
