"""What users hold: plain data (a report, a table of stages, compared weights, a look), with the views of this folder as methods."""

from __future__ import annotations

from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from rich.console import RenderableType

from tracediff import report as plain_report
from tracediff import stage_table as plain_stage_table
from tracediff.alarms import Look as PlainLook
from tracediff.errors import TracediffError
from tracediff.parameters.result import WeightsReport as PlainWeightsReport
from tracediff.show import alarms, formats, stage_table, text, weight_findings, words

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class _Drawn:
    """A frozen dataclass that prints as text, and as HTML in a notebook's cell."""

    @classmethod
    def of(cls, plain: Any) -> Self:
        """The same data with this class's views; ``plain`` is an instance of the dataclass that this class extends."""
        return cls(**{field.name: getattr(plain, field.name) for field in fields(plain)})

    def _rendered(self) -> RenderableType:
        raise NotImplementedError

    def __str__(self) -> str:
        return words.plain(self._rendered())

    def __repr__(self) -> str:
        first, _, rest = str(self).partition("\n")
        return f"<{type(self).__name__}: {first.strip()}{' …' if rest else ''}>"

    def _repr_html_(self) -> str:
        return words.html(self._rendered())


@dataclass(frozen=True, repr=False)
class Page:
    """The interactive page of a report, which a notebook's cell shows in a frame of its own; ``html`` is the whole file."""

    html: str
    height: int = 900

    def _repr_html_(self) -> str:
        content = escape(self.html, quote=True)
        return f'<iframe srcdoc="{content}" title="tracediff" sandbox="allow-scripts" width="100%" height="{self.height}"></iframe>'

    def __repr__(self) -> str:
        return f"<Page of {len(self.html):,} characters; a notebook shows it, and td.view writes it to a file>"


class Report(_Drawn, plain_report.Report):
    """What comparing two traces gave: the data of `tracediff.report.Report`, which can be printed, drawn and saved."""

    def plot(self, kind: Literal["sites", "culprit"] = "sites", **options: Any) -> Figure:
        """A figure: the error of every site in execution order, or reference against port at the culprit.

        Raises TracediffError for another kind.
        """
        from tracediff.show import plot  # loads matplotlib

        if kind not in ("sites", "culprit"):
            raise TracediffError(f"There is no plot {kind!r}; the plots are 'sites' and 'culprit'.")
        return plot.sites(self, **options) if kind == "sites" else plot.culprit(self, **options)

    def view(self, *sites: str, height: int = 900) -> Page:
        """The interactive page for a notebook's cell, so many pixels high; of ``sites`` all tensors are drawn too.

        Raises SiteError for a site that no pair has.
        """
        from tracediff.show.page import page  # loads Jinja

        return Page(page(self, sites=sites), height)

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Writes the report as its suffix says (.html, .md, .json, .csv, .txt, .png, .svg, .pdf) and returns the path.

        Raises TracediffError for another suffix, TraceExistsError where the file is there and not ``force``.
        """
        return formats.save(self, path, force=force)

    def _rendered(self) -> RenderableType:
        return text.report(self)


class Status(_Drawn, plain_stage_table.Status):
    """How far a port is, stage by stage: the data of `tracediff.stage_table.Status`, which can be printed."""

    def _rendered(self) -> RenderableType:
        return stage_table.render(self)


class WeightsReport(_Drawn, PlainWeightsReport):
    """How the weights of two sides differ: the data of `tracediff.parameters.result.WeightsReport`, which can be printed."""

    def _rendered(self) -> RenderableType:
        return weight_findings.render(self)


class Look(_Drawn, PlainLook):
    """What looks wrong in one trace: the data of `tracediff.alarms.Look`, which can be printed."""

    def _rendered(self) -> RenderableType:
        return alarms.render(self)
