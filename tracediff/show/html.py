"""HTML: a report as one page that stands by itself, its pictures inside it; nothing is fetched and no script runs."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracediff.errors import TracediffError
from tracediff.show import plot, text
from tracediff.show.words import counted, grouped, module, number, short_call

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tracediff.report import Report, Where

TEMPLATE = "report.html.j2"
MOST_DRAWN = 3
"""Of so many divergences reference and port are drawn."""
MOST_PAIRS = 2000
DOTS = 144


def page(result: Report) -> str:
    """The report as an HTML page. Every name in it is escaped; pictures that cannot be drawn are left out with the reason."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    return environment.get_template(TEMPLATE).render(**_content(result))


def _content(result: Report) -> dict[str, Any]:
    """What the template fills in."""
    return {
        "result": result,
        "title": f"{_name(result.port)} against {_name(result.reference)}",
        "verdict": result.verdict or "no verdict",
        "headline": text.headline(result),
        "overview": _drawn(lambda: plot.sites(result)),
        "sides": _sides(result),
        "divergences": [_divergence(result, place) for place in range(len(result.divergences))],
        "stages": _stages(result),
        "remarks": text.remarks(result, brief=True),
        "unpaired": [
            (side, counted(len(names), "site"), [name or "the root" for name in grouped(names)])
            for side, names in (("reference", result.coverage.unpaired_reference), ("port", result.coverage.unpaired_port))
            if names
        ],
        "not_seen": result.coverage.not_seen,
        "weights": _weights(result),
        "heads": text.HEADS,
        "pairs": text.pairs(result, most=MOST_PAIRS),
        "total_pairs": len(result.rows),
    }


def _name(side: Mapping[str, Any]) -> str:
    return f"{Path(str(side.get('path', ''))).name}" + (f" ({side['impl']})" if side.get("impl") else "")


def _sides(result: Report) -> list[tuple[str, str, str]]:
    """What is known of both runs, a line for each thing that either knows."""
    known = [
        key
        for key in dict.fromkeys((*result.reference, *result.port))
        if any(side.get(key) is not None for side in (result.reference, result.port))
    ]
    return [(key, _worded(result.reference.get(key)), _worded(result.port.get(key))) for key in known]


def _worded(value: Any) -> str:
    return {True: "yes", False: "no", None: "-"}[value] if value is None or isinstance(value, bool) else str(value)


def _divergence(result: Report, place: int) -> dict[str, Any]:
    """A row of the table of divergences, with all that is known of it."""
    divergence = result.divergences[place]
    facts: dict[str, list[str]] = {}
    for label, value in text.facts(result, place):
        facts.setdefault(label, []).append(value)
    return {
        "culprit": module(divergence.culprit.port),
        "count": divergence.count,
        "reference": module(divergence.culprit.reference),
        "seen": _seen(divergence.site),
        "stage": divergence.site.stage,
        "introduced": text.introduced(divergence),
        "floor": number(divergence.floor),
        "limit": text.limit(result, place),
        "causes": divergence.causes,
        "facts": facts,
        "picture": _drawn(lambda: plot.culprit(result, place)) if place < MOST_DRAWN else None,
    }


def _seen(where: Where) -> str:
    call = short_call(where.call)
    return f"{where.end} of {module(where.port)}" + (f" ({call})" if call else "")


def _stages(result: Report) -> list[dict[str, Any]]:
    """A row for each stage, unless the run has none."""
    if not result.has_stages:
        return []
    paired = Counter(row.where.stage for row in result.rows)
    compared = Counter(row.where.stage for row in result.rows if row.diverged is not None)
    return [
        {
            "name": stage.stage or "(no stage)",
            "verdict": stage.verdict or "not told",
            "worst": number(stage.worst),
            "floor": number(stage.floor),
            "compared": f"{compared[stage.stage]:,}/{paired[stage.stage]:,}" if result.rows else "",
            "first": _seen(stage.first) if stage.first else "",
        }
        for stage in result.stages
    ]


def _weights(result: Report) -> list[tuple[str, tuple[str, ...]]]:
    weights = result.weights
    named = (("different", weights.different), ("missing in the port", weights.missing), ("unexpected in the port", weights.unexpected))
    return [(label, lines) for label, lines in named if lines]


def _drawn(draw: Any) -> dict[str, str]:
    """A picture as a data URI, or why there is none."""
    try:
        return {"source": _png(draw()), "why": ""}
    except (TracediffError, OSError) as error:  # the traces may be elsewhere by now
        return {"source": "", "why": str(error)}


def _png(figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS, bbox_inches="tight", facecolor="white")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
