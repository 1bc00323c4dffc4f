"""For tests: `assert_traces_close`, and the pytest fixture ``tracediff_folder`` for the traces that a test makes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tracediff.show.drawn import Report
    from tracediff.trace import Trace


def assert_traces_close(reference: str | Path | Trace, port: str | Path | Trace, **options: Any) -> Report:
    """The report of two traces that agree; raises AssertionError with the report's text where they part.

    ``options`` are those of `tracediff.diff`. Traces of which nothing could be compared do not agree.
    """
    from tracediff import api

    report = api.diff(reference, port, **options)
    if report.verdict != "same":
        raise AssertionError(str(report))
    return report


@pytest.fixture
def tracediff_folder(tmp_path: Path) -> Path:
    """A folder for one test's traces, which pytest shows and keeps when the test fails."""
    folder = tmp_path / "traces"
    folder.mkdir()
    return folder
