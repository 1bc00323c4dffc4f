"""The forms in which a report is written to a file, as one table: the suffix of the file names the form."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tracediff.errors import TracediffError
from tracediff.outputs import check_output, exists_already, write_output
from tracediff.report import Report
from tracediff.show import text
from tracediff.site import printable


@dataclass(frozen=True, slots=True)
class Reporter:
    """One form of a report: the suffix of its files, and the function that returns the whole content of such a file."""

    suffix: str
    content: Callable[[Report], bytes]


def _html(report: Report) -> bytes:
    from tracediff.show.page import page  # loads Jinja

    return page(report).encode()


def _json(report: Report) -> bytes:
    """The report and the table of all pairs as one JSON object."""
    whole = {**report.to_dict(), "pairs": report.pairs_to_dict()}
    return (printable(json.dumps(whole, indent=2, allow_nan=False, ensure_ascii=False)) + "\n").encode()


def _picture(form: str) -> Callable[[Report], bytes]:
    """The function that draws the error of every site, in one of matplotlib's file formats."""

    def content(report: Report) -> bytes:
        from tracediff.show import plot  # loads matplotlib

        stream = io.BytesIO()
        plot.sites(report).savefig(stream, format=form)
        return stream.getvalue()

    return content


REPORTERS: tuple[Reporter, ...] = (
    Reporter(".html", _html),
    Reporter(".md", lambda report: printable(text.markdown(report)).encode()),
    Reporter(".json", _json),
    Reporter(".csv", lambda report: printable(report.to_frame().to_csv(index=False)).encode()),
    Reporter(".txt", lambda report: text.plain(text.report(report)).encode()),
    Reporter(".png", _picture("png")),
    Reporter(".svg", _picture("svg")),
    Reporter(".pdf", _picture("pdf")),
)


FOLDER = ".modelexplorer"
"""The suffix of a folder with a report for Google's Model Explorer (`tracediff.show.model_explorer`)."""

PICTURES = (".png", ".svg", ".pdf")
"""The suffixes of reports that are pictures."""


def check_picture(path: str | Path) -> None:
    """TracediffError for a path whose suffix names no form of picture."""
    if Path(path).suffix.lower() not in PICTURES:
        raise TracediffError(
            f"A picture cannot be saved as {Path(path).name!r}; the suffixes are {', '.join(PICTURES[:-1])} and {PICTURES[-1]}."
        )


def save(report: Report, path: str | Path, *, force: bool = False) -> Path:
    """Writes a report in the form that the suffix of ``path`` names, and returns the path; ``.modelexplorer`` is a folder of files.

    Raises as `reporter_of` and `write_output` do.
    """
    folder = Path(path)
    if folder.suffix == FOLDER:
        from tracediff.show.model_explorer import files

        check_report(folder, force=force)
        contents = files(report)
        folder.mkdir(exist_ok=force)
        for name, content in contents.items():
            write_output(folder / name, content, force=force)
        return folder
    return write_output(path, reporter_of(path).content(report), force=force)


def check_report(path: str | Path, *, force: bool = False) -> Path:
    """The path, if a report may be written there; raises as `reporter_of` and `check_output` do."""
    to = Path(path)
    if to.suffix != FOLDER:
        reporter_of(to)
        return check_output(to, force=force)
    if to.is_dir() and not force:
        raise exists_already(to)
    return to if to.is_dir() else check_output(to)


def reporter_of(path: str | Path) -> Reporter:
    """What writes a report to this path; TracediffError for a suffix that `REPORTERS` does not list."""
    to = Path(path)
    reporter = next((reporter for reporter in REPORTERS if reporter.suffix == to.suffix.lower()), None)
    if reporter is None:
        *others, last = (*(reporter.suffix for reporter in REPORTERS), FOLDER)
        raise TracediffError(f"A report cannot be saved as {to.name!r}; the suffixes are {', '.join(others)} and {last}.")
    return reporter
