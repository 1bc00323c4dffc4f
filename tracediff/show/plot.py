"""Plots: the error of every site in execution order, and reference against port at the culprit.

Figures are made without pyplot, so they need no display and leave no state behind; a notebook shows what a cell returns.
Colours are Okabe and Ito's, which people who confuse colours can tell apart; shapes say the same as colours.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from tracediff.alignment import axes as layouts
from tracediff.dtype import Array
from tracediff.errors import TracediffError
from tracediff.locate import EXCUSED
from tracediff.show.words import counted, lengths, module, number, same, short_call
from tracediff.site import printable
from tracediff.trace import open_trace

if TYPE_CHECKING:
    from tracediff.report import Divergence, Report, Row

BLUE, VERMILION, ORANGE, GREEN, GREY, INK, PALE = "#0072B2", "#D55E00", "#E69F00", "#009E73", "#8A8A8A", "#222222", "#F0F0F0"
NAMED_SITES = 24
"""Up to so many pairs are named on the axis."""
DENSE = 5000
"""Above so many values a scatter becomes a density."""
_LOWEST, _HIGHEST = 1e-12, 1e12


class Picture(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        self.savefig(stream, format="png", dpi=100, bbox_inches="tight")
        return stream.getvalue()


# ------------------------------------------------------------------------------------------------ every site, in order


@dataclass(frozen=True, slots=True)
class _Scale:
    """The vertical axis: decades from ``low`` to ``high``; what is zero, or no number, stands on a line of its own below or above.

    ``beyond`` names what is no number: other lengths and shapes, calls that raised, values that are not finite; "" where there is none.
    """

    low: float
    high: float
    has_zero: bool
    beyond: str

    @property
    def zero(self) -> float:
        return self.low / 10**0.7

    @property
    def top(self) -> float:
        return self.high * 10**0.7

    def place(self, value: float) -> float:
        if value <= 0:
            return self.zero
        return self.top if math.isinf(value) or value > _HIGHEST else max(value, self.low)


def sites(result: Report, *, width: float = 11.0, height: float = 5.0) -> Picture:
    """The error of every pair in execution order on a log axis, with what was allowed, the stages, and the culprit named.

    Pairs whose values were not read stand at what their statistics prove at least. Raises TracediffError where nothing was compared.
    """
    rows = result.rows
    if not rows:
        raise TracediffError("This report has no table of pairs (it was read from JSON, or nothing was paired); compare the traces again.")
    figure = Picture(figsize=(width, height), layout="constrained")
    ax = figure.add_subplot()
    scale = _scale(rows)
    _draw_stages(ax, rows, scale)
    _draw_limits(ax, rows, scale)
    _draw_pairs(ax, rows, scale)
    _draw_culprits(ax, result, scale)
    _dress(figure, ax, result, scale)
    return figure


def _error(row: Row) -> float:
    return row.rel_l2 if row.rel_l2 is not None else row.at_least


def _scale(rows: Sequence[Row]) -> _Scale:
    """Whole decades around all errors and limits."""
    limits = {row.limit for row in rows if row.limit}
    shown = [_error(row) for row in rows if not (row.diverged is None and not _error(row))]
    known = [value for value in (*shown, *limits) if _LOWEST < value < _HIGHEST] or [1e-6]
    low, high = 10.0 ** math.floor(math.log10(min(known))), 10.0 ** math.ceil(math.log10(max(known) * 1.2))
    low = min(low, high / 1e4)
    return _Scale(low, high, any(value <= 0 for value in shown), "\n".join(dict.fromkeys(filter(None, map(_beyond, rows)))))


def _beyond(row: Row) -> str:
    """What a pair differs in that is no number; "" where its error is one."""
    if _error(row) <= _HIGHEST:
        return ""
    return "other length" if row.length is not None else {"shape": "other shape", "raised": "raised"}.get(row.how, "not finite")


def _draw_stages(ax: Axes, rows: Sequence[Row], scale: _Scale) -> None:
    """A band for each stage, with its name where there is room."""
    starts = [0, *(i for i in range(1, len(rows)) if rows[i].where.stage != rows[i - 1].where.stage), len(rows)]
    if len(starts) == 2 and not rows[0].where.stage:
        return
    for place, (start, stop) in enumerate(pairwise(starts)):
        if place % 2 == 0:
            ax.axvspan(start - 0.5, stop - 0.5, color=PALE, zorder=0, linewidth=0)
        name = printable(rows[start].where.stage)
        room = (stop - start) / len(rows) * 120  # characters of small print across the whole figure
        if room >= 2.5:
            upright = len(name) > room
            ax.annotate(
                name,
                ((start + stop - 1) / 2, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center" if not upright else "left",
                va="bottom",
                rotation=35 if upright else 0,
                fontsize=8,
                color=INK,
                annotation_clip=False,
                parse_math=False,
            )


def _draw_limits(ax: Axes, rows: Sequence[Row], scale: _Scale) -> None:
    """What was allowed and the noise floor, as lines; they run on where values are exact."""
    x = np.arange(len(rows))
    for name, values, style in (
        ("allowed", [row.limit for row in rows], {"color": INK, "linestyle": "--", "linewidth": 1.1}),
        ("noise floor", [row.floor for row in rows], {"color": GREEN, "linestyle": ":", "linewidth": 1.3}),
    ):
        line = _carried_on([value if value and value > 0 else math.nan for value in values])
        if np.isfinite(line).any():
            ax.plot(*_steps(x, np.maximum(line, scale.low)), label=name, zorder=2, **style)  # type: ignore[arg-type]


def _carried_on(values: Sequence[float]) -> Array:
    """The values with each gap filled by the last one before it."""
    line = np.array(values, float)
    last = np.maximum.accumulate(np.where(np.isnan(line), 0, np.arange(line.size)))
    return np.asarray(line[last])


def _steps(x: Array, y: Array) -> tuple[Array, Array]:
    """A line that is level from half a place before each point to half a place after it."""
    return np.stack([x - 0.5, x + 0.5], 1).reshape(-1), np.repeat(y, 2)


def _draw_pairs(ax: Axes, rows: Sequence[Row], scale: _Scale) -> None:
    size = float(np.clip(2200 / len(rows), 6, 42))
    filled, hollow = {"linewidths": 0}, {"facecolors": "none", "edgecolors": GREY, "linewidths": 0.8}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "same": ("within what is allowed", {"marker": "o", "color": BLUE, "s": size, **filled}),
        "differs": ("beyond it, inherited", {"marker": "^", "color": ORANGE, "s": size * 1.3, **filled}),
        "bound": ("not read: at least", {"marker": "^", "s": size, **hollow}),
        "excused": ("moved, borderline, or without effect", {"marker": "s", "s": size * 1.3, **hollow}),
    }
    points: dict[str, list[tuple[int, float]]] = {kind: [] for kind in kinds}
    for x, row in enumerate(rows):
        if not row.introduced and not (row.diverged is None and not row.at_least):
            points[_kind(row)].append((x, scale.place(_error(row))))
    for kind, (label, style) in kinds.items():
        if points[kind]:
            ax.scatter(*zip(*points[kind], strict=True), label=label, zorder=3, alpha=0.85, **style)


def _kind(row: Row) -> str:
    if row.effect in EXCUSED:
        return "excused"
    if row.rel_l2 is None and row.how != "shape":
        return "bound"
    return "differs" if row.diverged else "same"


def _draw_culprits(ax: Axes, result: Report, scale: _Scale) -> None:
    """The introduced divergences, numbered; the first one named."""
    places = [x for x, row in enumerate(result.rows) if row.introduced]
    if not places:
        return
    heights = [scale.place(_error(result.rows[x])) for x in places]
    ax.scatter(places, heights, marker="D", s=70, color=VERMILION, edgecolors="white", linewidths=0.8, zorder=5, label="introduced here")
    for order, (x, y) in enumerate(zip(places[1:6], heights[1:6], strict=True), 2):
        ax.annotate(str(order), (x, y), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=8, color=VERMILION, zorder=6)
    _name_first(ax, result, places[0], heights[0], scale)


def _name_first(ax: Axes, result: Report, x: int, y: float, scale: _Scale) -> None:
    """The first divergence's name, where the picture is empty.

    What precedes it is within what is allowed, so the left of it is free; on the right it is the height at which least is drawn.
    """
    assert result.first is not None
    is_left = x > 0.4 * len(result.rows)
    ax.annotate(
        f"{_short(module(result.first.culprit.port))}\n{_seen(result.first)}, {_told(result.first, result.rows[x])}",
        (x, y),
        xytext=(-24, 0) if is_left else (x + 0.02 * len(result.rows), _free_height(result, x, y, scale)),
        textcoords="offset points" if is_left else "data",
        ha="right" if is_left else "left",
        va="center",
        fontsize=9,
        color=VERMILION,
        fontweight="bold",
        arrowprops={"arrowstyle": "-", "color": VERMILION, "linewidth": 1.0, "shrinkB": 5, "relpos": (1, 0.5) if is_left else (0, 0.5)},
        bbox={"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": VERMILION, "linewidth": 0.8, "alpha": 0.95},
        zorder=7,
        parse_math=False,
    )


def _free_height(result: Report, x: int, y: float, scale: _Scale) -> float:
    """The height, nearest to ``y``, at which a name beginning at ``x`` covers the fewest points and limits."""
    behind = result.rows[x + 1 : x + 1 + len(result.rows) // 3]
    drawn = [scale.place(_error(row)) for row in behind] + [row.limit for row in behind if row.limit]
    heights = np.geomspace(scale.low, scale.high, 25)[2:-1]
    half = math.sqrt(heights[1] / heights[0]) * 1.5

    def covered(height: float) -> tuple[int, float]:
        return sum(height / half < other < height * half for other in drawn), abs(math.log(height / y))

    return float(min(heights, key=covered))


def _told(divergence: Divergence, row: Row) -> str:
    """The size of a divergence: two lengths, its error, or what else it is."""
    return lengths(divergence.length) if divergence.length is not None else _beyond(row) or number(_error(row))


def _seen(divergence: Divergence) -> str:
    """The end, and whose it is where that is not the culprit."""
    site, call = divergence.site, short_call(divergence.site.call)
    end = site.end if site.port == divergence.culprit.port else f"{site.end} of {_short(site.port)}"
    return f"{end} ({_short(call, 30)})" if call else end


def _short(name: str, most: int = 46) -> str:
    """The end of a long name, from a dot on where there is one."""
    if len(name) <= most:
        return name
    kept = name[len(name) - most + 1 :]
    return "…" + (kept.partition(".")[2] if "." in kept[:-8] else kept)


def _dress(figure: Picture, ax: Axes, result: Report, scale: _Scale) -> None:
    """Axes, ticks, title and legend."""
    rows = result.rows
    ax.set_yscale("log")
    bottom, top = (
        scale.zero / 10**0.5 if scale.has_zero else scale.low / 2,
        scale.top * 10**0.5 if scale.beyond else scale.high * 1.5,
    )
    ax.set_ylim(bottom, top)
    ax.set_xlim(-0.5 - 0.01 * len(rows), len(rows) - 0.5 + 0.01 * len(rows))
    _tick_errors(ax, scale)
    _tick_places(ax, rows)
    ax.set_ylabel("relative L2 error")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.grid(axis="y", color="#DDDDDD", linewidth=0.6, zorder=0)
    ax.set_axisbelow(True)
    figure.suptitle(_title(result), x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK, parse_math=False)
    legend = figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([32.0])


def _tick_errors(ax: Axes, scale: _Scale) -> None:
    """Decades, at most a dozen, and the lines of what is zero and what is no number."""
    low, high = round(math.log10(scale.low)), round(math.log10(scale.high))
    step = max(1, math.ceil((high - low) / 10))
    ticks = [10.0**exponent for exponent in range(low, high + 1, step)]
    ticks += [scale.zero] * scale.has_zero + [scale.top] * bool(scale.beyond)
    names = {scale.zero: "bit-identical", scale.top: scale.beyond}
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: names.get(value, f"$10^{{{round(math.log10(value))}}}$")))
    for line, exists in ((scale.low / 10**0.35, scale.has_zero), (scale.high * 10**0.35, scale.beyond)):
        if exists:
            ax.axhline(line, color="#BBBBBB", linewidth=0.6, zorder=1)


def _tick_places(ax: Axes, rows: Sequence[Row]) -> None:
    if len(rows) > NAMED_SITES:
        ax.set_xlabel("pair of records, in execution order")
        return
    names = [f"{_short(module(row.where.port), 26)} {printable(row.where.end)}" for row in rows]
    ax.set_xticks(range(len(rows)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=8, parse_math=False)


def _title(result: Report) -> str:
    compared = f"{result.coverage.compared:,} of {counted(result.coverage.reference_records, 'record')} compared"
    if result.verdict == "same":
        return f"{same(result)}: {compared}"
    if result.first is None:
        return f"No verdict: {compared}"
    return f"First divergence: {_short(module(result.first.culprit.port), 60)}   ({compared})"


# ------------------------------------------------------------------------------------------- reference and port at one site


def culprit(result: Report, place: int = 0, *, width: float = 11.0, height: float = 4.6) -> Picture:
    """Reference against port at a divergence, and how the error lies along the axis that tells most.

    The values are read from the two traces that the report names. ``place`` counts divergences from 0. Raises TracediffError where there
    is no such divergence, or its values cannot be laid over each other.
    """
    if not result.divergences:
        raise TracediffError("Nothing diverged, so there is no culprit to draw.")
    if not 0 <= place < len(result.divergences):
        raise TracediffError(
            f"There is no divergence {place + 1} to draw; the report has {counted(len(result.divergences), 'divergence')}."
        )
    divergence = result.divergences[place]
    reference, port = _values(result, divergence)
    figure = Picture(figsize=(width, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.35])
    _draw_against(left, reference, port)
    _draw_along(right, reference, port)
    title = f"{_short(module(divergence.culprit.port), 60)}: {_seen(divergence)}, relative L2 {number(divergence.introduced)}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK, parse_math=False)
    return figure


def _values(result: Report, divergence: Divergence) -> tuple[Array, Array]:
    """Both tensors of a divergence in one layout; complex ones as moduli."""
    row = next((row for row in result.rows if row.introduced and row.where == divergence.site), None)
    if row is None:
        raise TracediffError("This report has no table of pairs (it was read from JSON); compare the traces again to draw its culprit.")
    layout = row.pair.layout
    if layout is None or "text" in divergence.dtypes.values():
        why = lengths(divergence.length) if divergence.length else f"shapes {divergence.shapes} cannot be laid over each other"
        raise TracediffError(f"Nothing to draw at {divergence.site.port!r}: {why}.")
    with open_trace(result.reference["path"]) as first, open_trace(result.port["path"]) as second:
        ours = [first.records[number] for number in row.pair.reference]
        theirs = [second.records[number] for number in row.pair.port]
        reference, port = layouts.side_by_side(layout, ours, theirs)
    return _real(reference), _real(port)


def _real(array: Array) -> Array:
    """Numbers to draw: moduli of complex ones, in float64, without NaN and infinities, masks left out."""
    wide = np.abs(array) if array.dtype.kind == "c" else array.astype(np.float64)
    return np.where(np.isfinite(wide) & (wide > -1e4), wide, np.nan)


def _draw_against(ax: Axes, reference: Array, port: Array) -> None:
    """The port's values over the reference's: all on the diagonal where they agree."""
    kept = np.isfinite(reference) & np.isfinite(port)
    x, y = reference[kept], port[kept]
    if not x.size:
        ax.text(0.5, 0.5, "no finite values on both sides", ha="center", transform=ax.transAxes)
        return
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    margin = 0.04 * (high - low) or 1.0
    ends = (low - margin, high + margin)
    if x.size > DENSE:
        drawn = ax.hexbin(x, y, gridsize=60, extent=(*ends, *ends), norm=LogNorm(), cmap="cividis_r", mincnt=1, linewidths=0.1)
        ax.figure.colorbar(drawn, ax=ax, label="values", shrink=0.8, pad=0.02)
    else:
        ax.scatter(x, y, s=float(np.clip(4000 / x.size, 5, 25)), color=BLUE, alpha=0.55, linewidths=0)
    ax.plot(ends, ends, color=INK, linewidth=0.9, linestyle="--", zorder=3)
    ax.text(0.98, 0.03, "dashed: equal", ha="right", transform=ax.transAxes, fontsize=8, color=INK)
    ax.set(xlim=ends, ylim=ends, xlabel="reference", ylabel="port", aspect="equal")
    _plain(ax)


def _draw_along(ax: Axes, reference: Array, port: Array) -> None:
    """The RMS error for each index of the most telling axis, over the RMS of the reference."""
    reference, port = np.atleast_1d(reference), np.atleast_1d(port)
    axis = telling_axis(reference, port)
    others = tuple(other for other in range(reference.ndim) if other != axis)
    x = np.arange(reference.shape[axis])
    error, size = (_rms(values, others) for values in (port - reference, reference))
    style = {"marker": "o", "markersize": 3.5} if x.size <= 64 else {"linewidth": 1.0}
    ax.plot(x, size, color=GREY, label="reference", **style)
    ax.plot(x, error, color=VERMILION, label="port - reference", **style)
    positive = np.concatenate([size[size > 0], error[error > 0]])
    if positive.size and positive.max() > 30 * positive.min():
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if positive.max() < 1e3 * positive.min() else (1.0,)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_locator(NullLocator())
    ax.set(xlabel=f"index along axis {axis} of {reference.shape}", ylabel="RMS over the other axes" if others else "magnitude")
    ax.legend(fontsize=8, framealpha=0.9)
    _plain(ax)


def telling_axis(reference: Array, port: Array) -> int:
    """The axis along which the error is spread least evenly, against what chance would do: where it sits tells most."""
    square = np.nan_to_num(port - reference) ** 2
    total = square.sum()
    best, most = reference.ndim - 1, -1.0
    for axis, length in enumerate(square.shape):
        if length < 2 or not total:
            continue
        share = square.sum(axis=tuple(other for other in range(square.ndim) if other != axis)) / total * length
        unevenness = float(share.std()) * math.sqrt(square.size / length)
        if unevenness > most:
            best, most = axis, unevenness
    return best


def _rms(values: Array, over: tuple[int, ...]) -> Array:
    kept = np.isfinite(values)
    total = np.where(kept, values, 0.0) ** 2
    return np.asarray(np.sqrt(total.sum(axis=over) / np.maximum(kept.sum(axis=over), 1)))


def _plain(ax: Axes) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.grid(color="#DDDDDD", linewidth=0.6)
    ax.set_axisbelow(True)
