"""Traces that version 0.1.0 wrote are read, compared and judged as version 0.1.0 did.

`fixtures/v0_1/` holds a small PyTorch reference with its floor, a forced and a free MLX run of a port with another GELU, and the reports of
version 0.1.0 on them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracediff as td

OLD = Path(__file__).parent / "fixtures" / "v0_1"


def missing_keys(was: Any, now: Any, at: str = "") -> list[str]:
    """The places of a JSON value that another one lacks; what was added there does not count."""
    if isinstance(was, dict):
        lost = [f"{at}.{key}" for key in was if key not in now]
        return lost + [place for key in was if key in now for place in missing_keys(was[key], now[key], f"{at}.{key}")]
    if isinstance(was, list) and was and isinstance(now, list) and now:
        return missing_keys(was[0], now[0], f"{at}[0]")
    return []


@pytest.mark.parametrize("mode", ["forced", "free"])
def test_a_report_on_old_traces_says_what_it_said_under_the_same_keys(mode: str) -> None:
    was = json.loads((OLD / f"{mode}.json").read_text(encoding="utf-8"))
    now = json.loads(td.bisect(OLD / "reference.h5", OLD / f"{mode}.h5").to_json())
    assert missing_keys(was, now) == []
    assert [now[key] for key in ("schema", "verdict", "mode", "method")] == [was[key] for key in ("schema", "verdict", "mode", "method")]
    for key in ("site", "culprit", "floor", "shapes", "layout"):
        assert [one[key] for one in now["divergences"]] == [one[key] for one in was["divergences"]]
    # Which processor sums an error up moves its last digits.
    assert [one["introduced"] for one in now["divergences"]] == pytest.approx([one["introduced"] for one in was["divergences"]], rel=1e-6)


def test_an_old_trace_gives_its_records_and_their_values() -> None:
    with td.open_trace(OLD / "reference.h5") as trace:
        assert trace.complete
        assert len(trace.records) == 24
        first = next(record for record in trace.records if record.site == "embed" and record.end == "output")
        assert first.read().shape == (1, 6, 8)
        assert first.stage == "body"


def test_a_report_of_an_old_version_is_read() -> None:
    text = (OLD / "forced.json").read_text(encoding="utf-8")
    assert td.Report.from_json(text).verdict == "different"


def test_a_trace_that_was_fed_is_no_reference() -> None:
    with pytest.raises(td.TracediffError, match=r"forced\.h5' is a forced run.*Are the arguments swapped\?"):
        td.bisect(OLD / "forced.h5", OLD / "reference.h5")


def test_a_trace_is_not_compared_with_itself() -> None:
    with pytest.raises(td.TracediffError, match="as reference and as port"):
        td.diff(OLD / "reference.h5", OLD / "reference.h5")


def test_a_forced_run_feeds_no_other(tmp_path: Path) -> None:
    with pytest.raises(td.TracediffError, match="is no reference"):
        td.capture(None, lambda: td.tap("x", np.zeros(3)), to=tmp_path / "x.h5", feed=OLD / "forced.h5")
    assert not (tmp_path / "x.h5").exists()
