"""show.plot: figures that say what the report says, whatever its size, without a display."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judging import Run, bumped
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from test_report import compared
from test_show_text import DIFFERENT, ROWS, row, where

from tracediff import Report
from tracediff.dtype import Array
from tracediff.errors import TracediffError
from tracediff.locate import Length
from tracediff.show import plot


def long(count: int, first: int, *, stages: int = 8) -> Report:
    """A report of many pairs that diverge from ``first`` on."""
    generator = np.random.default_rng(0)
    errors = 10.0 ** generator.normal(np.where(np.arange(count) < first, -6.0, -2.0), 0.3)
    rows = tuple(
        row(
            where(f"s3gen.decoder.estimator.mid_blocks.{i}.attn1.to_out", stage=f"stage{i * stages // count}" if stages else ""),
            float(error),
            introduced=i == first,
        )
        for i, error in enumerate(errors)
    )
    return replace(DIFFERENT, rows=rows)


def texts(figure: Figure) -> list[str]:
    """Every text that is seen in a figure."""
    FigureCanvasAgg(figure).draw()
    return [text.get_text() for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


def points(figure: Figure, label: str) -> Array:
    """Where the points with this label in the legend stand."""
    found = [one for one in figure.axes[0].collections if isinstance(one, PathCollection) and one.get_label() == label]
    return np.asarray(found[0].get_offsets()) if found else np.empty((0, 2))


class TestSites:
    def test_every_pair_is_drawn_and_the_culprit_is_marked_and_named(self) -> None:
        figure = plot.sites(long(200, 120))
        drawn = sum(len(points(figure, label)) for label in ("within what is allowed", "beyond it, inherited", "introduced here"))
        assert drawn == 200
        assert points(figure, "introduced here")[:, 0].tolist() == [120]
        assert any("encoder.layers.3.attn" in text for text in texts(figure))

    def test_what_is_zero_stands_on_a_line_of_its_own(self) -> None:
        figure = plot.sites(replace(DIFFERENT, rows=ROWS))
        ax = figure.axes[0]
        assert "bit-identical" in [label.get_text() for label in ax.get_yticklabels()]
        lowest = points(figure, "within what is allowed")[0, 1]
        assert lowest == min(tick for tick in ax.get_yticks())
        assert ax.get_ylim()[0] < lowest

    @pytest.mark.parametrize(
        ("line", "more"),
        [
            ("not finite", {"rel_l2": math.inf}),
            ("raised", {"how": "raised"}),
            ("other shape", {"how": "shape"}),
            ("other length", {"how": "shape", "length": Length((1,), 48, 52)}),
        ],
    )
    def test_what_is_no_number_stands_above_under_its_name(self, line: str, more: dict[str, Any]) -> None:
        beyond = replace(row(where("a"), None, introduced=True, diverged=True, at_least=math.inf), **more)
        figure = plot.sites(replace(DIFFERENT, rows=(*ROWS[:3], beyond)))
        assert line in [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert points(figure, "introduced here")[0, 1] < figure.axes[0].get_ylim()[1]

    def test_the_tolerance_is_a_line_and_so_is_the_noise_floor_where_there_is_one(self) -> None:
        figure = plot.sites(replace(DIFFERENT, rows=tuple(replace(one, floor=2e-6, limit=1e-5) for one in ROWS)))
        lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
        assert lines["allowed"][0] == 1e-5
        assert lines["noise floor"][0] == 2e-6
        assert "noise floor" not in {line.get_label() for line in plot.sites(DIFFERENT).axes[0].lines}

    def test_pairs_that_were_not_read_stand_at_what_is_known_of_them(self) -> None:
        assert points(plot.sites(DIFFERENT), "not read: at least")[:, 0].tolist() == [6]

    @pytest.mark.parametrize(("count", "first", "stages"), [(5, 0, 0), (5, 4, 2), (24, 12, 3), (2000, 40, 8), (2000, 1990, 30)])
    def test_no_text_lies_over_another_or_outside(self, count: int, first: int, stages: int) -> None:
        figure = plot.sites(long(count, first, stages=stages))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        ax = figure.axes[0]
        seen = [one for one in (*ax.texts, *figure.texts) if one.get_text() and one.get_rotation() == 0]
        boxes = [Text.get_window_extent(one, renderer) for one in seen]  # without the arrows
        width, height = figure.canvas.get_width_height()
        for place, box in enumerate(boxes):
            assert box.x0 >= 0
            assert box.y0 >= 0
            assert box.y1 <= height
            assert box.x1 <= width
            assert not any(box.overlaps(other) for other in boxes[place + 1 :])

    def test_the_culprits_name_stands_where_no_point_is(self) -> None:
        report = long(60, 6, stages=0)
        ax = (figure := plot.sites(report)).axes[0]
        (name,) = (one for one in ax.texts if "layers.3.attn" in one.get_text())
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        box = Text.get_window_extent(name, canvas.get_renderer())
        drawn = points(figure, "within what is allowed"), points(figure, "beyond it, inherited")
        assert not any(box.contains(*at) for side in drawn for at in ax.transData.transform(side))

    def test_a_report_without_pairs_says_so(self) -> None:
        with pytest.raises(TracediffError, match="no table of pairs"):
            plot.sites(Report.from_json(DIFFERENT.to_json()))

    def test_many_pairs_are_counted_along_the_axis_and_few_are_named(self) -> None:
        many, few = (plot.sites(long(count, 2)).axes[0] for count in (2000, plot.NAMED_SITES))
        assert many.get_xlabel() == "pair of records, in execution order"
        assert not any("to_out" in label.get_text() for label in many.get_xticklabels())
        assert sum("to_out" in label.get_text() for label in few.get_xticklabels()) == plot.NAMED_SITES

    def test_a_notebook_shows_the_figure(self) -> None:
        assert plot.sites(DIFFERENT)._repr_png_().startswith(b"\x89PNG")

    def test_no_display_and_no_pyplot_is_needed(self) -> None:
        code = "import sys, tracediff.show.plot; sys.exit('matplotlib.pyplot' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def values_of(shape: tuple[int, ...]) -> Array:
    """The values that the reference's module returns in a run of `shaped`."""
    return np.random.default_rng(3).standard_normal(shape).astype("f4")


def drawn_points(ax: Axes) -> Array:
    """Where the points of a scatter stand: (points, 2)."""
    return np.concatenate([np.asarray(one.get_offsets()) for one in ax.collections])


def shaped(shape: tuple[int, ...], change: Callable[[Array], Array], *, kind: str = "f4") -> Callable[[Run, Array], None]:
    """A run whose one module returns a tensor of this shape, changed in the port."""

    def run_it(run: Run, x: Array) -> None:
        values = values_of(shape).astype(kind)
        with run("enc", x=x) as leave:
            leave(values if run.path.name == "ref.h5" else change(values.copy()).astype(kind))

    return run_it


def one_channel(values: Array) -> Array:
    values[..., 5] += 0.5
    return values


class TestCulprit:
    def test_draws_reference_against_port_and_the_error_along_an_axis(self, tmp_path: Path) -> None:
        figure = compared(tmp_path, faults={"dec.a": bumped}).plot("culprit")
        against, along = figure.axes
        assert (against.get_xlabel(), against.get_ylabel()) == ("reference", "port")
        assert {line.get_label() for line in along.lines} == {"reference", "port - reference"}
        assert any("dec.a" in text for text in texts(figure))

    def test_chooses_the_axis_along_which_the_error_is_least_even(self, tmp_path: Path) -> None:
        figure = compared(tmp_path, run=shaped((4, 30, 8), one_channel)).plot("culprit")
        along = figure.axes[-1]
        assert along.get_xlabel() == "index along axis 2 of (4, 30, 8)"
        error = next(line for line in along.lines if line.get_label() == "port - reference")
        assert int(np.argmax(error.get_ydata())) == 5

    @pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 1), (2, 90, 400)])
    def test_draws_tensors_of_any_shape(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        report = compared(tmp_path, run=shaped(shape, lambda values: values * 2 + 1))
        against, along = report.plot("culprit").axes[:2]
        values = values_of(shape)
        if values.size <= plot.DENSE:
            assert drawn_points(against).tolist() == np.stack([values, values * 2 + 1], -1).reshape(-1, 2).tolist()
        else:
            assert sum(np.asarray(density.get_array()).sum() for density in against.collections) == values.size
        assert {len(line.get_xdata()) for line in along.lines} <= set(shape or (1,))

    @pytest.mark.parametrize("change", [lambda v: np.where(v > 1, np.inf, v), lambda v: v * 0], ids=["infinite", "zero"])
    def test_draws_the_pairs_of_finite_values_only(self, tmp_path: Path, change: Any) -> None:
        figure = compared(tmp_path, run=shaped((3, 40), change)).plot("culprit")
        ours, theirs = values_of((3, 40)).reshape(-1), change(values_of((3, 40))).reshape(-1)
        finite = np.isfinite(theirs)
        assert drawn_points(figure.axes[0]).tolist() == np.stack([ours[finite], theirs[finite]], -1).tolist()
        assert all(np.isfinite(line.get_ydata()).all() for line in figure.axes[1].lines)

    def test_says_where_no_value_is_finite_on_both_sides(self, tmp_path: Path) -> None:
        figure = compared(tmp_path, run=shaped((3, 40), lambda values: values * np.nan)).plot("culprit")
        assert "no finite values on both sides" in texts(figure)
        assert not figure.axes[0].collections

    def test_draws_complex_tensors_by_their_moduli(self, tmp_path: Path) -> None:
        figure = compared(tmp_path, run=shaped((3, 40), lambda v: v * 2j, kind="c8")).plot("culprit")
        moduli = np.abs(values_of((3, 40))).reshape(-1)
        assert np.allclose(drawn_points(figure.axes[0]), np.stack([moduli, moduli * 2], -1))

    def test_says_where_nothing_can_be_drawn(self, tmp_path: Path) -> None:
        with pytest.raises(TracediffError, match="Nothing diverged"):
            compared(tmp_path).plot("culprit")
        with pytest.raises(TracediffError, match=r"length 2, in the reference 3 \(axis 0\); the first 2 agree"):
            compared(tmp_path, run=shaped((3, 4), lambda v: v[:2])).plot("culprit")
        with pytest.raises(TracediffError, match="cannot be laid over each other"):
            compared(tmp_path, run=shaped((3, 4), lambda v: v[0, :3])).plot("culprit")

    def test_takes_the_last_axis_where_there_is_no_error(self) -> None:
        assert plot.telling_axis(np.zeros((2, 3)), np.zeros((2, 3))) == 1
