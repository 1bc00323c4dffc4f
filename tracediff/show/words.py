"""How results are worded, numbered and coloured: what every text shares.

Names of sites are never taken for markup. Colour is only ever an addition to words, so that nothing is lost without it.
"""

from __future__ import annotations

import io
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.terminal_theme import TerminalTheme

from tracediff.site import RETURNED, pattern_of, printable

if TYPE_CHECKING:
    from tracediff.locate import Length
    from tracediff.report import Report

GOOD, BAD, DOUBTFUL, QUIET, LABEL = "bold green", "bold red", "yellow", "dim", "bold"
PLAIN_WIDTH = 120


class _Console(Console):
    """A console on which what names hold is shown and does nothing."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


_SEGMENT_NUMBER = re.compile(r"(?<![^.])\d+(?![^.:#! ])")
UNWRAPPED = 1 << 14
"""The width of what is no terminal: a name that a line break cuts is found by no search."""


def console(*, file: Any = None, width: int | None = None) -> Console:
    """The console for answers: stdout, coloured on a terminal unless NO_COLOR is set, as wide as the terminal.

    What goes into a pipe or a file is not wrapped, unless COLUMNS says how wide it is to be.
    """
    stream = file or sys.stdout
    if width is None and not stream.isatty() and "COLUMNS" not in os.environ:
        width = UNWRAPPED
    return _Console(file=stream, width=width, highlight=False, soft_wrap=False, markup=False)


def put(shown: RenderableType) -> None:
    """Prints an answer on stdout; without blanks at the ends of lines where that is no terminal."""
    to = console()
    if to.is_terminal:
        to.print(shown, crop=False)
    else:
        to.file.write(plain(shown, width=to.width))


def plain(shown: RenderableType, *, width: int = PLAIN_WIDTH) -> str:
    """What would be printed, without colour, as one string."""
    stream = io.StringIO()
    _Console(file=stream, width=width, highlight=False, markup=False, color_system=None).print(shown, crop=False)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def html(shown: RenderableType, *, width: int = PLAIN_WIDTH) -> str:
    """What would be printed, as HTML for a notebook's cell, in the page's own colours."""
    recorded = _Console(
        file=io.StringIO(),
        width=width,
        highlight=False,
        markup=False,
        record=True,
        force_terminal=True,
        force_jupyter=False,  # else the console shows it too, beside what the cell returns
        color_system="standard",
    )
    recorded.print(shown)
    looks = "white-space:pre;overflow-x:auto;line-height:1.35;background:none;color:inherit;font:90% ui-monospace,Menlo,Consolas,monospace"
    return recorded.export_html(inline_styles=True, theme=_theme(), code_format=f'<pre style="{looks}">{{code}}</pre>')


def _theme() -> TerminalTheme:
    """Colours that can be read on a white page and on a dark one: each stands out by 3 to 1 or more from both."""
    red, green, yellow, blue, grey = (217, 72, 65), (46, 140, 87), (178, 120, 0), (36, 130, 200), (128, 128, 128)
    colours = [grey, red, green, yellow, blue, grey, blue, grey]
    return TerminalTheme((255, 255, 255), (0, 0, 0), colours, colours)  # what is dim lies halfway between these two: grey


# ------------------------------------------------------------------------------------------------------------ small words


def number(value: float | None) -> str:
    """A number in three characters of precision: ``3.2e-02``; "-" where there is none.

    >>> number(0.03217), number(0.0), number(None)
    ('3.2e-02', '0', '-')
    """
    if value is None:
        return "-"
    if math.isnan(value) or math.isinf(value):
        return "not finite" if math.isinf(value) else "NaN"
    return f"{value:.1e}" if value else "0"


def counted(count: int, one: str, many: str = "") -> str:
    """A count with its noun.

    >>> counted(1, "record"), counted(2000, "record"), counted(2, "boundary", "boundaries")
    ('1 record', '2,000 records', '2 boundaries')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def module(path: str) -> str:
    """A module path as it is printed."""
    return printable({"": "the root", RETURNED: "what the run returned"}.get(path, path))


def same(result: Report) -> str:
    """How much is the same, in the words that begin the answer where nothing diverged."""
    words = "Same as far as compared" if result.coverage.unseen_outputs else "Same"
    return f"{words}, outputs not recorded" if result.outputs == "not recorded" else words


_UNCOMPARED = ("nothing paired", "no values", "outputs", "port outputs", "modules", "served")
"""The reasons to withhold a verdict that mean that something was not compared."""


def verdict_word(result: Report) -> str:
    """The verdict as screens show it: same, different, cannot tell, not compared. `Report.withheld` has the finer reasons."""
    if result.verdict is not None:
        return result.verdict
    code = result.withheld.code if result.withheld else ""
    return "not compared" if code in _UNCOMPARED or not result.coverage.compared else "cannot tell"


def shortened(text: str, most: int) -> str:
    """A text of at most so many characters, cut at a word where it is longer.

    >>> shortened("all that arrives there agrees", 20)
    'all that arrives …'
    """
    if len(text) <= most:
        return text
    kept = text[: most - 1]
    return (kept.rpartition(" ")[0] or kept) + " …" if " " in kept[most // 2 :] else kept + "…"


def ended(text: str, most: int) -> str:
    """The end of a name of more than so many characters, which tells more than its beginning, and the last number before it.

    >>> ended("encoder.layers.3.attn", 12), ended("encoder.layers.17.self_attn.to_out", 18)
    ('…yers.3.attn', '…17…lf_attn.to_out')
    """
    if len(text) <= most:
        return text
    start = len(text) - most + 1
    cut = [number for number in _SEGMENT_NUMBER.finditer(text) if number.start() < start]
    mark = f"…{cut[-1][0]}…" if cut and _SEGMENT_NUMBER.search(text, start) is None else "…"
    return mark + text[len(text) - max(most - len(mark), 1) :]


def grouped(names: Iterable[str]) -> list[str]:
    """Names that differ only in their numbers as one, with their count, in order.

    >>> grouped(["layers.0.drop", "layers.1.drop", "norm"])
    ['2 x layers.*.drop', 'norm']
    """
    kept = list(names)
    patterns = Counter(pattern_of(name) for name in kept)
    first = {pattern_of(name): name for name in reversed(kept)}
    return [f"{patterns[p]} x {p}" if patterns[p] > 1 else first[p] for p in dict.fromkeys(pattern_of(name) for name in kept)]


def short_call(call: str) -> str:
    """Of a call the scopes, and the frames that were not entered for the first time.

    >>> short_call("flow[0]/.decoder[0]/@ode=3/.estimator[3]"), short_call("flow[0]")
    ('@ode=3/.estimator[3]', '')
    """
    return "/".join(part for part in call.split("/") if not part.endswith("[0]"))


def allowance(limit: float | None, by: str | None, floor: float | None = None, certificate: Mapping[str, Any] | None = None) -> str:
    """What was allowed, and why so much."""
    if by == "exact":
        return "none allowed (exact values)"
    if by == "sensitive":
        return f"up to {number(limit)} of the values allowed (exact values that noise changes in the reference too)"
    if by == "cannot tell":
        return f"of which rounding alone explains {number(floor)}"
    if by == "tolerance" and certificate:
        return f"allowed rtol {certificate.get('rtol'):g}, atol {certificate.get('atol'):g}"
    why = {"no floor": "no floor", "floor": f"noise floor {number(floor)}"}.get(by or "", "")
    return f"allowed {number(limit)}" + (f" ({why})" if why else "")


def table(*heads: str, numbers: Sequence[str] = ()) -> Table:
    """An empty table without rules; the columns named in ``numbers`` are aligned to the right."""
    empty = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=LABEL)
    for head in heads:
        empty.add_column(head, justify="right" if head in numbers else "left", no_wrap=head in numbers, overflow="fold")
    return empty


def shape(sizes: Sequence[int]) -> str:
    """A shape or an index as Python writes it.

    >>> shape((2, 3)), shape([4]), shape(())
    ('(2, 3)', '(4,)', '()')
    """
    return str(tuple(sizes))


def lengths(one: Length) -> str:
    """In which length two tensors differ, and how far what both have agrees.

    >>> from tracediff.locate import Length
    >>> lengths(Length((1,), 48, 52, 48)), lengths(Length((2, 3), 52, 48))
    ('length 52, in the reference 48 (axis 1); the first 48 agree', 'length 48, in the reference 52 (axes 2 and 3)')
    """
    *before, last = map(str, one.axes)
    axes = f"axes {', '.join(before)} and {last}" if before else f"axis {last}"
    return f"length {one.port}, in the reference {one.reference} ({axes}){_agreeing(one)}"


def _agreeing(one: Length) -> str:
    common, end = min(one.reference, one.port), "last" if one.at_end else "first"
    if one.agree is None or not common:
        return ""
    if not one.agree:
        return "; the first differs already"
    verb = "agrees" if one.agree == 1 else "agree"
    return f"; the {end} {one.agree}{f' of {common}' if one.agree < common else ''} {verb}"


def short_length(one: Length) -> str:
    """The same in a cell.

    >>> from tracediff.locate import Length
    >>> short_length(Length((1,), 48, 52))
    '52, not 48'
    """
    return f"{one.port}, not {one.reference}"


_MARKDOWN = re.compile(r"[\\`*<>|~]|\](?=\()|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])|&(?=#?\w+;)")


def markdown_text(text: str) -> str:
    r"""Plain text as Markdown shows it unchanged: what Markdown or HTML would read into it is escaped, line ends become spaces.

    >>> print(markdown_text("_istft of <script>, 2 * 3 in to_q"))
    \_istft of \<script\>, 2 \* 3 in to_q
    """
    return _MARKDOWN.sub(lambda match: "\\" + match[0], " ".join(text.split()))


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; bars inside cells that are not escaped yet, in code too, are escaped."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in cells) + " |"

    return [line(heads), line(["---"] * len(heads)), *map(line, rows)]
