"""show.text: what a tired engineer reads. Snapshots in tests/snapshots; write them anew with TRACEDIFF_SNAPSHOTS=write."""

from __future__ import annotations

import io
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tracediff import Report
from tracediff.alignment import Layout, RecordPair
from tracediff.locate import Length
from tracediff.report import Cause, Coverage, Culprit, Divergence, Measured, Row, Stage, Weights, Where
from tracediff.show import text, words
from tracediff.verdict import Withheld

SNAPSHOTS = Path(__file__).parent / "snapshots"
JARGON = ("certificate", "amplification", "observer", "predecessor", "probe", "None", "nan", "infinite", "untold")


def where(site: str, port: str = "", end: str = "output", stage: str = "s3gen.encoder", call: str = "s3gen[0]/.flow[0]") -> Where:
    return Where(site, port or site.replace("flow.encoder.encoders", "encoder.layers").replace("self_attn", "attn"), call, end, stage)


SITE = where("s3gen.flow.encoder.encoders.3.self_attn", call="s3gen[0]/.flow[0]/@ode=3/.encoder[3]/.encoders.3[0]/.self_attn[0]")
METRICS = Measured(0.4123, 1.1e-3, 2.2e-3, 3.21e-2, 0.9994871, 1 << 20, 11203, 65536, (0, 17, 203))
DIVERGENCE = Divergence(
    site=SITE,
    culprit=Culprit(SITE.reference, SITE.port),
    introduced=3.21e-2,
    inherited=2.1e-7,
    floor=None,
    metrics=METRICS,
    shapes={"reference": (1, 128, 512), "port": (1, 512, 128)},
    dtypes={"reference": "float32", "port": "float32"},
    layout="(0, 2, 1)",
    last_same=where("s3gen.flow.encoder.encoders.3.norm_mha"),
    causes=(Cause("weights.missing_bias", 0.98, True, "linear_out.bias is zero in the port; adding the reference's reproduces it"),),
)
JUDGED = {
    "limit": 1e-4,
    "by": "no floor",
    "blame": "module",
    "source": {
        "reference": "MultiHeadedAttention in chatterbox/models/s3gen/transformer/attention.py, called at encoder_layer.py:201",
        "port": "Attention in mlx_audio/tts/models/chatterbox/s3gen/attention.py, called at encoder.py:88",
    },
    "suspects": [{"side": "reference", "site": f"s3gen.flow.encoder.encoders.3.self_attn.dropout{i}"} for i in ("", ".0", ".1")],
    "shared_by": 1,
    "pattern": "",
}


def row(site: Where, error: float | None, **more: Any) -> Row:
    known: dict[str, Any] = {
        "how": "read" if error is not None else "",
        "at_least": 0.0,
        "limit": 1e-4,
        "by": "no floor",
        "floor": None,
        "diverged": None if error is None else error > 1e-4,
        "introduced": False,
        "effect": "",
        "layout": "same",
        "pair": RecordPair((0,), (0,), Layout(()), "", 1.0, 0),
        "max_abs": None if error is None else error * 12,
    }
    return Row(where=site, rel_l2=error, **{**known, **more})


ROWS = (
    row(where("t3.cond.perceiver", end="input[h]", stage="t3.cond", call="t3.cond[0]"), 0.0, how="digest"),
    row(where("t3.cond.perceiver", stage="t3.cond", call="t3.cond[0]"), 3.3e-7),
    row(where("s3gen.flow.encoder.encoders.3.norm_mha"), 2.1e-7),
    row(where("s3gen.flow.encoder.encoders.3.self_attn", end="input[mask]"), 1.9, effect="no effect", by="exact", limit=0.0),
    row(SITE, 3.21e-2, introduced=True),
    row(where("s3gen.flow.encoder.encoders.3", end="output"), 8.8e-3),
    row(where("s3gen.flow.encoder.embed"), None, at_least=2e-9),
)

DIFFERENT = Report(
    verdict="different",
    mode="free",
    method="scan",
    reference={"path": "ref.h5", "impl": "torch", "complete": True, "repeats": True},
    port={"path": "mlx.h5", "impl": "mlx", "complete": True, "repeats": None},
    coverage=Coverage(
        900, 861, 812, 812, 640, 10**8, (*(f"s3gen.layers.{i}.dropout" for i in range(12)), "t3.rope"), ("enc.pe",), ("port: x",)
    ),
    divergences=(DIVERGENCE,),
    stages=(Stage("t3.cond", "same", 3.3e-7, None, None), Stage("s3gen.encoder", "different", 3.21e-2, None, SITE)),
    weights=Weights(311, ("1 x flow.encoder.embed.out.0.weight (transposed)",), ("56 x *.attn1.to_out.0.bias",), unequal=57),
    certificate={
        "judged": [JUDGED],
        "moved": [],
        "without_effect": [{"reference": "s3gen.flow.encoder.encoders.3.self_attn", "end": "input[mask]"}],
    },
    rows=ROWS,
)
SAME = replace(DIFFERENT, verdict="same", divergences=(), stages=DIFFERENT.stages[:1], rows=ROWS[:3], certificate={}, weights=Weights(367))


def caller(blame: str, **more: Any) -> Report:
    site = where("s3gen.flow.decoder.blocks.2.mlp", end="input[x]", stage="s3gen.flow", call="s3gen[0]/.flow[0]/.decoder[1]/.mlp[0]")
    divergence = replace(DIVERGENCE, site=site, culprit=Culprit("s3gen.flow.decoder.blocks.2", "decoder.blocks.2"), causes=(), **more)
    return replace(DIFFERENT, divergences=(divergence,), certificate={"judged": [{**JUDGED, "blame": blame, "suspects": [], "source": {}}]})


def drawn() -> Report:
    site = Where("flow!random.normal", "decoder!random.normal", "flow[0]/!random.normal[0]", "draw", "s3gen.flow")
    told = caller("random")
    return replace(told, divergences=(replace(told.divergences[0], site=site, culprit=Culprit("flow", "decoder")),))


def exact() -> Report:
    told = caller("module")
    ids = replace(METRICS, mismatched=1, count=128, max_ulp=None)
    judged = {"judged": [{**JUDGED, "by": "exact", "limit": 0.0}]}
    return replace(told, divergences=(replace(told.divergences[0], metrics=ids),), certificate=judged)


def shapes() -> Report:
    told = caller("module")
    shapes = {"reference": (1, 100, 8), "port": (1, 98)}
    one = replace(told.divergences[0], introduced=math.inf, metrics=None, shapes=shapes, layout="no layout")
    return replace(told, divergences=(one,))


def lengths() -> Report:
    told = caller("module")
    length = Length((1,), 48, 52, 48)
    shapes = {"reference": (1, 48), "port": (1, 52)}
    one = replace(told.divergences[0], introduced=math.inf, metrics=None, shapes=shapes, layout="no layout", length=length)
    unequal = row(one.site, None, how="shape", at_least=math.inf, limit=0.0, by="exact", diverged=True, introduced=True, length=length)
    unclear = replace(unequal, where=where("s3gen.flow.decoder.blocks.3", end="input[x]"), introduced=False, effect="unclear")
    return replace(told, divergences=(one, replace(one, count=3)), rows=(*ROWS[:3], unequal, unclear), certificate={"judged": [JUDGED] * 2})


def several() -> Report:
    second = replace(DIVERGENCE, site=where("vocoder.ups.1", stage="vocoder"), culprit=Culprit("vocoder.ups.1", "voc.ups.1"), causes=())
    shared = {**JUDGED, "calls": 10, "shared_by": 12, "pattern": "vocoder.layers.*.self_attn"}
    third = replace(DIVERGENCE, site=where("vocoder.layers.0.self_attn", stage="vocoder"), culprit=Culprit("vocoder", "voc"), count=52)
    return replace(DIFFERENT, divergences=(DIVERGENCE, second, third), certificate={"judged": [JUDGED, JUDGED, shared]}, mode="forced")


def shared() -> Report:
    told = caller("module")
    judged = {**JUDGED, "blame": "module", "calls": 10, "shared_by": 5, "siblings": 12, "pattern": "s3gen.flow.decoder.blocks.*.mlp"}
    return replace(told, divergences=(replace(told.divergences[0], count=52),), certificate={"judged": [judged]})


def bisected() -> Report:
    coverage = replace(DIFFERENT.coverage, compared=120, read=34)
    return replace(DIFFERENT, method="bisect", coverage=coverage)


def nothing() -> Report:
    empty = replace(DIFFERENT.coverage, paired=0, compared=0, read=0, bytes_read=0)
    why = "no record of the one side could be paired with one of the other, so nothing was compared"
    return replace(SAME, verdict=None, coverage=empty, rows=(), stages=(), withheld=Withheld("nothing paired", (), why))


def check(name: str, shown: str) -> None:
    file = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("TRACEDIFF_SNAPSHOTS") == "write":
        file.parent.mkdir(exist_ok=True)
        file.write_text(shown, encoding="utf-8")
    assert shown == file.read_text(encoding="utf-8")


REPORTS = {
    "different": DIFFERENT,
    "same": SAME,
    "caller": caller("caller"),
    "inputs": caller("input"),
    "draw": drawn(),
    "exact": exact(),
    "shapes": shapes(),
    "lengths": lengths(),
    "several": several(),
    "shared": shared(),
    "bisected": bisected(),
    "nothing": nothing(),
    "many": replace(DIFFERENT, divergences=(replace(DIVERGENCE, count=10),) * 40, certificate={"judged": [{**JUDGED, "calls": 10}] * 40}),
    "gradual": replace(DIFFERENT, divergences=(replace(DIVERGENCE, introduced=1.2e-4, inherited=9e-5),)),
}


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_reads_well(name: str) -> None:
    check(f"report_{name}", text.plain(text.report(REPORTS[name]), width=110))


@pytest.mark.parametrize("width", [60, 200])
def test_a_report_fits_narrow_and_wide_terminals(width: int) -> None:
    shown = text.plain(text.report(several()), width=width)
    assert max(map(len, shown.splitlines())) <= width
    check(f"report_width_{width}", shown)


@pytest.mark.parametrize(
    ("name", "every", "width"), [("diff", False, 120), ("diff_all", True, 120), ("diff_narrow", True, 80), ("diff_tiny", True, 50)]
)
def test_the_table_of_pairs_reads_well(name: str, every: bool, width: int) -> None:
    shown = text.plain(text.diff(DIFFERENT, every=every), width=width)
    assert max(map(len, shown.splitlines())) <= width
    check(name, shown)


def test_the_table_of_pairs_tells_lengths_as_lengths() -> None:
    lines = text.plain(text.diff(lengths(), every=True), width=200).splitlines()
    shown = [line for line in lines if "52, not 48" in line]
    assert [line.split()[-1] for line in shown] == ["INTRODUCED", "unclear"]


def test_markdown_tells_lengths_as_lengths() -> None:
    shown = text.markdown(lengths())
    assert "length 52, in the reference 48 (axis 1); the first 48 agree" in shown
    assert "| decoder.blocks.2 (3 places) | s3gen.flow.decoder.blocks.2 | length 52, not 48 |" in shown


def test_markdown_reads_well() -> None:
    check("report_markdown", text.markdown(several()))


@pytest.mark.parametrize("name", REPORTS)
def test_the_first_line_is_the_answer(name: str) -> None:
    first = text.plain(text.report(REPORTS[name]), width=400).splitlines()[0]
    told = REPORTS[name]
    assert first.startswith({"same": "Same: ", "different": "First divergence: ", None: "No verdict: "}[told.verdict])
    if told.first is not None:
        assert f"{told.first.culprit.port} (reference {told.first.culprit.reference})" in first


@pytest.mark.parametrize("name", REPORTS)
def test_no_jargon_is_shown(name: str) -> None:
    shown = text.plain(text.report(REPORTS[name])) + text.plain(text.diff(REPORTS[name], every=True))
    assert not [word for word in JARGON if word in shown]


def test_same_always_comes_with_how_much_was_compared() -> None:
    assert "812 of 900 records of the reference compared" in text.plain(text.report(SAME)).splitlines()[0]


def test_the_largest_error_stands_beside_the_relative_one() -> None:
    assert "relative L2 3.2e-02, max abs 4.1e-01 at (0, 17, 203)" in text.plain(text.report(DIFFERENT))


def test_names_with_brackets_are_not_taken_for_markup() -> None:
    site = replace(SITE, end="input[bold]", port="a[/red]")
    shown = text.plain(text.report(replace(DIFFERENT, divergences=(replace(DIVERGENCE, site=site),))))
    assert "input[bold]" in shown
    assert "a[/red]" in shown


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured, monochrome = Terminal(), Terminal()
    text.console(file=coloured, width=100).print(text.report(DIFFERENT))
    monkeypatch.setenv("NO_COLOR", "1")
    text.console(file=monochrome, width=100).print(text.report(DIFFERENT))
    assert "\x1b[1;31m" in coloured.getvalue()
    assert not [code for code in ("31m", "32m", "33m") if code in monochrome.getvalue()]


def test_a_pipe_gets_plain_lines_that_no_width_breaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    name = "a_very_long_name_of_a_module." * 20
    words.put(text.report(replace(DIFFERENT, divergences=(replace(DIVERGENCE, culprit=Culprit("a", name)),))))
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert name in shown.splitlines()[0]
    assert not [line for line in shown.splitlines() if line.endswith(" ")]
    monkeypatch.setenv("COLUMNS", "70")
    words.put(text.report(DIFFERENT))
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 70


def test_a_notebook_gets_html_with_names_escaped() -> None:
    site = replace(SITE, port="<script>")
    html = replace(DIFFERENT, divergences=(replace(DIVERGENCE, site=site, culprit=Culprit("a", "<script>")),))._repr_html_()
    assert html.startswith("<pre")
    assert "monospace" in html
    assert "&lt;script&gt;" in html


def contrast(first: str, second: str) -> float:
    """The contrast of two colours as WCAG has it, 1 to 21."""

    def light(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    bright, dark = sorted((light(first), light(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_a_notebooks_colours_can_be_read_on_white_and_on_dark() -> None:
    used = set(re.findall(r"color: (#[0-9a-f]{6})", DIFFERENT._repr_html_() + SAME._repr_html_()))
    assert used
    assert min(contrast(colour, page) for colour in used for page in ("#ffffff", "#1e1e1e")) >= 3


def test_a_long_table_is_printed_fast() -> None:
    long = replace(DIFFERENT, rows=ROWS * 3000)
    assert len(text.plain(text.diff(long, every=True)).splitlines()) > 20_000
