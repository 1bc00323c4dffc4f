"""show.stage_table: the table of stages at three widths; write the golden texts anew with TRACEDIFF_SNAPSHOTS=write."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_show_text import SITE, check

from tracediff.report import Cause, Coverage, Culprit, Weights, Where
from tracediff.show.stage_table import markdown, render
from tracediff.show.words import plain
from tracediff.stage_table import Outcome, RunInfo, StageStatus, Status

CAUSE = Cause("weights.missing_bias", 0.95, False, "vocoder.ups.1.bias: all 64 values are zero; the reference's are not")
TOLD = Outcome("same", 1100, 1102, 2.1e-7, 3.3e-7)
WRONG = Outcome(
    "different", 1102, 2145, 3.4e-3, 2.2e-7, replace(SITE, port="voice.resample"), Culprit("voice", "voice.resample"), 1, (CAUSE,)
)
TEXT = Outcome("different", 12, 12, None, None, Where("#text", "#text", "#text[0]", "value", "text"), None, 0)
NAMES = (
    "voice",
    "voice.resample",
    "voice.mel",
    "text",
    "t3.transformer",
    "s3gen.flow.decoder",
    "vocoder.hift.source_module_with_a_long_name",
)


def run(mode: str) -> RunInfo:
    return RunInfo(f"{mode}.h5", "mlx", "float32", "cpu", "eval", "chatterbox", "seeded", 0, "", "", "", "", (), {}, True, True)


def status(*modes: str) -> Status:
    outcomes = {"voice": WRONG, "voice.resample": WRONG, "text": TEXT}
    stages = tuple(
        StageStatus(
            name, "voice" if name.startswith("voice.") else "", int(name.startswith("voice.")), told, told if "free" in modes else None
        )
        for name in NAMES
        for told in [outcomes.get(name, TOLD)]
    )
    covered = Coverage(3515, 3300, 3214, 3214, 0, 0, ("a", "b"), ("c",))
    return Status(
        verdict="different",
        why=() if "free" in modes else ("no free run was given",),
        next=() if "free" in modes else ("tracediff capture --impl mlx --random ref.h5 -o free.h5",),
        notes=("the reference's noise floor was not measured, so errors are judged by fixed tolerances",),
        reference=run("ref"),
        forced=run("forced"),
        free=run("free") if "free" in modes else None,
        stages=stages,
        coverage={"forced": covered, **({"free": covered} if "free" in modes else {})},
        weights=Weights(),
    )


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_reads_well(width: int) -> None:
    shown = "\n".join(plain(render(status(*modes)), width=width) for modes in (("forced",), ("forced", "free")))
    check(f"status_{width}", shown)
    assert max(map(len, shown.splitlines())) <= width


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("modes", [("forced",), ("forced", "free")])
def test_every_stage_is_one_line_with_its_verdict(modes: tuple[str, ...], width: int) -> None:
    lines = plain(render(status(*modes)), width=width).splitlines()
    start = next(place for place, line in enumerate(lines) if line.split()[:2] == ["Stage", "Forced"])
    for name, line in zip(NAMES, lines[start + 1 :], strict=False):
        assert name[-8:] in line
        assert ("different" in line) == (name in ("voice", "voice.resample", "text"))


def test_without_a_verdict_it_is_said_whether_something_was_not_compared() -> None:
    agreeing = replace(status("forced"), verdict=None, stages=(StageStatus("a", "", 0, TOLD, None),))
    assert plain(render(agreeing)).startswith("Cannot tell: ")
    partly = replace(agreeing, stages=(StageStatus("a", "", 0, replace(TOLD, state="unfinished"), None),))
    assert plain(render(partly)).startswith("Not compared: ")


def test_a_stage_says_how_many_more_faults_it_has() -> None:
    several = replace(WRONG, introduced=8)
    told = replace(status("forced"), stages=(StageStatus("voice", "", 0, several, None),))
    assert "voice.resample output (@ode=3/.encoder[3]), and 7 more faults" in " ".join(plain(render(told), width=200).split())
    assert "and 7 more faults" in markdown(told)
