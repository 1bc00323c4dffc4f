"""show.html: a page that stands by itself, says what the report says, and runs nothing that a trace brought along."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from judging import bumped
from test_report import compared
from test_show_text import DIFFERENT, DIVERGENCE, JUDGED, REPORTS, SITE, row

from tracediff import Report, cli
from tracediff.errors import TracediffError
from tracediff.report import Cause, Culprit, Stage, Weights
from tracediff.show import html, plot, text

HOSTILE = '<script>alert("x")</script>'
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A page taken apart: its tags, its texts, the sources of its pictures; every tag must be closed in its turn."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.words.append(data)

    @property
    def seen(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def pictures(self) -> list[bytes]:
        sources = [value for name, value in self.attributes if name == "src"]
        return [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources]


def test_a_page_says_the_answer_the_causes_and_how_much_was_compared(tmp_path: Path) -> None:
    cause = Cause("weights.layout", 0.9, True, "it equals the reference permuted (1, 0)")
    weights = Weights(equal=3, missing=("2 x dec.*.bias",))
    report = compared(tmp_path, faults={"dec.a": bumped}, causes={"dec.a": [cause]}, weights=weights)
    seen = Page(html.page(report)).seen
    assert text.headline(report) in seen
    for words in (
        "weights.layout (confirmed) it equals the reference",
        "Compared 12 of 12 records",
        "2 x dec.*.bias",
        "Last same",
        "12 of 12",
    ):
        assert words in seen


def test_a_page_shows_every_pair_and_the_culprit_as_pictures(tmp_path: Path) -> None:
    pictures = Page(html.page(compared(tmp_path, faults={"dec.a": bumped}))).pictures
    assert [picture[:8] for picture in pictures] == [b"\x89PNG\r\n\x1a\n"] * 2


def test_a_page_fetches_nothing_and_runs_nothing(tmp_path: Path) -> None:
    source = html.page(compared(tmp_path, faults={"dec.a": bumped}))
    page = Page(source)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?://|url\(|@import|\son\w+=", re.sub(r"base64,[^\"]+", "", source))
    assert all(value.startswith("data:image/png;base64,") for name, value in page.attributes if name == "src")


def test_a_page_serves_light_and_dark(tmp_path: Path) -> None:
    source = html.page(compared(tmp_path))
    assert "prefers-color-scheme: dark" in source
    used, defined = set(re.findall(r"var\((--[\w-]+)\)", source)), re.findall(r"(--[\w-]+):", source)
    assert used
    assert {defined.count(name) for name in used} == {2}


@pytest.mark.parametrize("name", REPORTS)
def test_every_kind_of_report_makes_a_sound_page(name: str) -> None:
    assert text.headline(REPORTS[name]).split(":")[0] in Page(html.page(REPORTS[name])).seen


def hostile() -> Report:
    """A report in which every text that a trace can bring is markup."""
    site = replace(SITE, reference=HOSTILE, port=HOSTILE, call=HOSTILE, end=HOSTILE, stage=HOSTILE)
    divergence = replace(
        DIVERGENCE,
        site=site,
        culprit=Culprit(HOSTILE, HOSTILE),
        last_same=site,
        causes=(Cause.read({"kind": HOSTILE, "confidence": 0.5, "confirmed": False, "evidence": HOSTILE}),),
    )
    source = {"reference": HOSTILE, "port": HOSTILE}
    return replace(
        DIFFERENT,
        reference={**DIFFERENT.reference, "path": HOSTILE, "impl": HOSTILE},
        port={**DIFFERENT.port, "path": HOSTILE, "created": HOSTILE},
        divergences=(divergence, divergence),
        rows=(row(site, 1.0, introduced=True),),
        stages=(Stage(HOSTILE, "different", 1.0, None, site),),
        coverage=replace(DIFFERENT.coverage, unpaired_port=(HOSTILE,), not_seen=(HOSTILE,)),
        weights=Weights(1, (HOSTILE,), (HOSTILE,), (HOSTILE,)),
        certificate={"judged": [{**JUDGED, "source": source, "pattern": HOSTILE, "shared_by": 3}] * 2},
    )


def test_hostile_names_are_shown_and_not_run() -> None:
    source = html.page(hostile())
    page = Page(source)
    assert "script" not in page.tags
    assert HOSTILE in page.seen
    assert "<script" not in source


def test_hostile_names_are_not_html_in_markdown_either() -> None:
    assert not re.search(r"(?<!\\)<script", text.markdown(hostile()))


def test_names_that_look_like_formulas_are_drawn_as_they_are() -> None:
    site = replace(SITE, port="a.$\\frac$", stage="$x")
    report = replace(
        DIFFERENT, divergences=(replace(DIVERGENCE, culprit=Culprit("a", "a.$\\frac$")),), rows=(row(site, 1.0, introduced=True),)
    )
    figure = plot.sites(report)
    figure.canvas.draw()
    assert "$\\frac$" in Page(html.page(report)).seen


def test_pictures_that_cannot_be_drawn_are_left_out_with_the_reason(tmp_path: Path) -> None:
    report = compared(tmp_path, faults={"dec.a": bumped})
    (tmp_path / "ref.h5").unlink()
    page = Page(html.page(report))
    assert len(page.pictures) == 1
    assert "No picture:" in page.seen
    assert "No picture: This report has no table of pairs" in Page(html.page(Report.from_json(report.to_json()))).seen


def test_of_many_pairs_those_that_tell_something_are_listed() -> None:
    rows = tuple(row(replace(SITE, port=f"layer.{i}"), 1e-7 if i != 5000 else 1.0, introduced=i == 5000) for i in range(10_000))
    seen = Page(html.page(replace(DIFFERENT, rows=rows))).seen
    assert "3 of 10,000" in seen
    assert "layer.5000" in seen


@pytest.mark.parametrize("draw", [text.headline, lambda report: text.plain(text.report(report))])
def test_saving_writes_the_page(tmp_path: Path, draw: Callable[[Report], str]) -> None:
    report = compared(tmp_path, faults={"dec.a": bumped})
    assert draw(report).splitlines()[0][:40] in Page(report.save(tmp_path / "x.HTML").read_text(encoding="utf-8")).seen


def test_another_suffix_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(TracediffError, match=r"suffixes are \.html, \.md"):
        compared(tmp_path).save(tmp_path / "x.htm")


def test_the_command_writes_the_report_and_its_exit_status_is_that_of_diff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared(tmp_path, faults={"dec.a": bumped})
    monkeypatch.chdir(tmp_path)
    for name, start in (("x.html", "<!DOCTYPE html>"), ("x.md", "**First divergence"), ("x.json", "{")):
        done = CliRunner().invoke(cli.main, ["report", "ref.h5", "port.h5", "-o", name])
        assert (done.exit_code, done.stdout) == (1, f"{name}\n")
        assert (tmp_path / name).read_text(encoding="utf-8").startswith(start)
    shutil.copy("ref.h5", "again.h5")
    assert CliRunner().invoke(cli.main, ["report", "ref.h5", "again.h5", "-o", "same.html"]).exit_code == 0
    refused = CliRunner().invoke(cli.main, ["report", "ref.h5", "port.h5", "-o", "x.md"])
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
