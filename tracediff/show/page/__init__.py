"""The page: what comparing showed as one interactive HTML file that stands by itself, works from a disk and fetches nothing.

What is said stands in the page as text, so that it can be read without its script. The script draws what can be drawn of all pairs, from
data in the page: `pair_data` has every pair of records, `tensors` the pictures of those that tell most. Style and script are the files
beside this one; the page's Content-Security-Policy admits them, and nothing else, by their digests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracediff.show.page.content import content
from tracediff.show.page.pair_data import Calls, Names, columns
from tracediff.show.page.panels import Panels
from tracediff.site import printable

if TYPE_CHECKING:
    from tracediff.report import Report
    from tracediff.stage_table import Status

FOLDER = Path(__file__).parent
TEMPLATE = "page.html.j2"
STYLES = ("vendor/uPlot.min.css", "page.css")
LIBRARIES = ("vendor/uPlot.iife.min.js",)
SCRIPTS = ("core.js", "tree.js", "heat_map.js", "order.js", "models.js", "pairs.js", "tensor_panel.js", "main.js")
"""In the order in which they are read; together they are one script."""
MARK = "<!-- a page of tracediff -->"
"""Stands at the beginning of every page, so that one may be replaced by the next."""


def page(*reports: Report, status: Status | None = None, sites: Sequence[str] = ()) -> str:
    """The page of one comparison, or of a port's forced and its free run with their ``status``.

    ``sites``: of these all tensors are drawn too. Every name is escaped, or is text of the data; what cannot be drawn is left out with
    the reason. Raises SiteError for a site that no pair has.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    with closing(Panels(reports, sites)) as panels:
        data, said = _packed(_data(reports, panels)), content(reports, status, panels)
    style, library, script = ("\n".join(_asset(name) for name in names) for names in (STYLES, LIBRARIES, SCRIPTS))
    script = f'(async () => {{\n"use strict";\n{script}\n}})();'
    filled = environment.get_template(TEMPLATE).render(
        mark=MARK,
        style=style,
        library=library,
        script=script,
        policy=_policy([style], [library, script]),
        data=data,
        **said,
    )
    return printable(filled)


def is_page(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a page that was written before."""
    try:
        with open(path, "rb") as file:
            return MARK.encode() in file.read(len(MARK) + 64)
    except OSError:
        return False


def _asset(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8").replace("\r\n", "\n").strip()


def _policy(styles: Sequence[str], scripts: Sequence[str]) -> str:
    """The Content-Security-Policy: what stands in the page runs, by its digest, and nothing is fetched or sent anywhere."""
    rules = {
        "default-src": ["'none'"],
        "script-src": [_digest(text) for text in scripts],
        "style-src": [_digest(text) for text in styles],
        "img-src": ["data:"],
        "media-src": ["data:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }
    return "; ".join(" ".join([name, *values]) for name, values in rules.items())


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def _data(reports: Sequence[Report], panels: Panels) -> dict[str, Any]:
    """All pairs of all runs, and the panels, for the script."""
    names = Names()
    calls = Calls(names)
    runs = [columns(report, names, calls, traces) for report, traces in zip(reports, panels.traces, strict=True)]
    for run, cards in zip(runs, panels.cards, strict=True):
        run["cards"] = cards
    return {"names": names.texts, "calls": calls.nodes, "runs": runs, "panels": panels.drawn, "code": panels.code}


def _packed(data: Any) -> str:
    """Data as JSON, deflated, in base64: a tenth of the JSON, and nothing that HTML reads."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode("ascii"), 9)).decode("ascii")
