"""show.page: a page that stands by itself, says what the report says, and runs nothing that a trace brought along."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from judging import Run, bumped
from test_report import compared
from test_show_text import DIFFERENT, DIVERGENCE, JUDGED, REPORTS, SITE, row

import tracediff as td
from tracediff import Report, cli
from tracediff.errors import SiteError, TracediffError, TraceExistsError
from tracediff.project.outcome import CaseOutcome, Outcome, faults_of, write_outcome
from tracediff.report import Cause, Culprit, Stage, Weights
from tracediff.show import page as pages
from tracediff.show import plot, text
from tracediff.show.page import LIBRARIES, SCRIPTS, STYLES, excerpts, is_page, page, tensors
from tracediff.show.page.token_texts import texts_of
from tracediff.site import printable

HOSTILE = '<script>alert("x")</script>'
VOID = {"meta", "img", "br", "input"}


class Page(HTMLParser):
    """A page taken apart: its tags, its texts, the sources of its pictures; every tag must be closed in its turn."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
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
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.open[-1:] == ["style"]:
            self.styles.append(data)
        else:
            self.words.append(data)

    @property
    def seen(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def data(self) -> dict[str, Any]:
        """What the page's script draws from."""
        found: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(self.scripts[0])))
        return found


def test_a_page_says_the_answer_the_causes_and_how_much_was_compared(tmp_path: Path) -> None:
    cause = Cause("weights.layout", 0.9, True, "it equals the reference permuted (1, 0)")
    weights = Weights(equal=3, missing=("2 x dec.*.bias",))
    report = compared(tmp_path, faults={"dec.a": bumped}, causes={"dec.a": [cause]}, weights=weights)
    seen = Page(page(report)).seen
    assert text.headline(report) in seen
    for words in (
        "weights.layout (confirmed) it equals the reference",
        "Compared 12 of 12 records",
        "2 x dec.*.bias",
        "Last same",
        "12 of 12",
    ):
        assert words in seen


def test_a_page_holds_every_pair_and_the_tensors_of_the_culprit(tmp_path: Path) -> None:
    report = compared(tmp_path, faults={"dec.a": bumped})
    data = Page(page(report)).data
    (run,) = data["runs"]
    assert [data["names"][place] for place in run["port"]] == [one.where.port for one in report.rows]
    assert [data["names"][place] for place in run["state"]] == [text.state(one) for one in report.rows]
    assert run["cards"] == [next(place for place, one in enumerate(report.rows) if one.introduced)]
    (panel,) = [panel for panel in data["panels"] if panel["row"] == run["cards"][0]]
    assert len(base64.b64decode(panel["difference"])) == panel["height"] * panel["width"] * len(panel["slices"])
    worst = panel["worst"]
    assert abs(worst["port"] - worst["reference"]) == pytest.approx(report.divergences[0].metrics.max_abs, rel=1e-3)


def test_a_page_fetches_nothing_and_runs_only_what_it_came_with(tmp_path: Path) -> None:
    source = page(compared(tmp_path, faults={"dec.a": bumped}))
    found = Page(source)
    assert not {"link", "iframe", "object", "img", "base", "form"} & set(found.tags)
    (policy,) = [value for name, value in found.attributes if name == "content" and "default-src" in value]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")}
    assert rules["default-src"] == ["'none'"]
    assert rules["script-src"] == [digest(script) for script in found.scripts[1:]]
    assert rules["style-src"] == [digest(style) for style in found.styles]
    assert not re.search(r"url\(|@import|\son\w+=\"|style=\"|javascript:", source)
    own = source.replace((pages.FOLDER / LIBRARIES[0]).read_text(encoding="utf-8").strip(), "")
    assert "http" not in own.replace("http-equiv", "")


def digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def test_the_library_is_the_released_one_and_comes_with_its_licence() -> None:
    folder = pages.FOLDER / "vendor"
    sums = dict(reversed(line.split()) for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert sums == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sums}
    assert {name.removeprefix("vendor/") for name in (*STYLES, *LIBRARIES) if "/" in name} == set(sums)
    assert "MIT License" in (folder / "uPlot.LICENSE").read_text()


@pytest.mark.parametrize("name", [*STYLES, *LIBRARIES, *SCRIPTS])
def test_what_stands_in_a_page_ends_no_element_and_hides_no_character(name: str) -> None:
    source = (pages.FOLDER / name).read_text(encoding="utf-8")
    assert printable(source) == source
    assert "</" not in source
    assert "<!--" not in source


def test_a_page_serves_light_and_dark(tmp_path: Path) -> None:
    source = page(compared(tmp_path))
    assert "prefers-color-scheme: dark" in source
    used, defined = set(re.findall(r"var\((--[\w-]+)\)", source)), re.findall(r"(--[\w-]+):", source)
    assert used
    assert {name for name in used if defined.count(name) != 2} <= {"--mono"}


@pytest.mark.parametrize("name", REPORTS)
def test_every_kind_of_report_makes_a_sound_page(name: str) -> None:
    assert text.headline(REPORTS[name]).split(":")[0] in Page(page(REPORTS[name])).seen


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
    source = page(hostile())
    found = Page(source)
    assert found.tags.count("script") == 3
    assert HOSTILE in found.seen
    assert HOSTILE in found.data["names"]
    assert HOSTILE not in source


def test_a_name_that_hides_characters_is_shown_with_them() -> None:
    name = "enc\u202e.\x1b[2J\u2028.0"
    source = page(replace(DIFFERENT, rows=(row(replace(SITE, port=name, call=name), 1.0, introduced=True),)))
    assert not set("\u202e\x1b\u2028") & set(source)
    assert printable(name) in Page(source).data["names"]


def test_hostile_names_are_not_html_in_markdown_either() -> None:
    assert not re.search(r"(?<!\\)<script", text.markdown(hostile()))


def test_names_that_look_like_formulas_are_drawn_as_they_are() -> None:
    site = replace(SITE, port="a.$\\frac$", stage="$x")
    report = replace(
        DIFFERENT, divergences=(replace(DIVERGENCE, culprit=Culprit("a", "a.$\\frac$")),), rows=(row(site, 1.0, introduced=True),)
    )
    figure = plot.sites(report)
    figure.canvas.draw()
    assert "$\\frac$" in Page(page(report)).seen


def test_pictures_that_cannot_be_drawn_are_left_out_with_the_reason(tmp_path: Path) -> None:
    report = compared(tmp_path, faults={"dec.a": bumped})
    (tmp_path / "ref.h5").unlink()
    found = Page(page(report))
    assert not found.data["panels"]
    assert "No picture:" in found.seen
    assert "No picture: This report has no table of pairs" in Page(page(Report.from_json(report.to_json()))).seen


def test_a_page_of_many_pairs_stays_small() -> None:
    rows = tuple(row(replace(SITE, port=f"layer.{i}"), 1e-7 if i != 5000 else 1.0, introduced=i == 5000) for i in range(20_000))
    source = page(replace(DIFFERENT, rows=rows))
    assert len(Page(source).data["runs"][0]["port"]) == 20_000
    assert len(source) < 1_000_000


def test_of_large_tensors_few_cells_are_drawn_and_the_worst_value_is_among_them() -> None:
    reference = np.zeros((3, 5000, 300))
    port = reference.copy()
    port[1, 4321, 17] = -2.0
    drawn = tensors.pictures([reference, port, port - reference])
    cells = np.frombuffer(base64.b64decode(drawn["difference"]), np.uint8)
    assert (drawn["height"], drawn["width"], drawn["largest"]) == (tensors.TALLEST, tensors.WIDEST, 2.0)
    assert 0 in cells
    assert drawn["slices"] == ["axis 0: 1"]


@pytest.mark.parametrize("shape", [(), (1,), (7,), (1, 1), (2, 1, 3), (4, 3, 2, 5)])
def test_tensors_of_every_shape_are_drawn(shape: tuple[int, ...]) -> None:
    values = np.arange(math.prod(shape), dtype=float).reshape(shape)
    drawn = tensors.pictures([values, values, values * 0])
    assert len(base64.b64decode(drawn["values"][0])) == drawn["height"] * drawn["width"] * len(drawn["slices"]) == values.size


def test_code_is_taken_from_python_files_alone(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("class Net:\n    def forward(self, x):\n        return x\n\n    def other(self):\n        pass\n")
    (tmp_path / "secret.txt").write_text("a\nb\nc\n")
    assert excerpts.of_class("net.py", "Net", [tmp_path])["lines"] == ["def forward(self, x):", "    return x"]
    assert excerpts.around_line("net.py:3", [tmp_path])["marked"] == 3
    assert excerpts.around_line("secret.txt:2", [tmp_path]) is None
    assert excerpts.around_line("net.py:99", [tmp_path]) is None
    assert excerpts.of_class("net.py", "Another", [tmp_path]) is None


def test_forced_and_free_stand_side_by_side(tmp_path: Path) -> None:
    for name, meta in (("forced", {"mode_run": "forced"}), ("free", {})):
        compared(tmp_path, faults={"dec.a": bumped}, port_meta=meta)
        shutil.copy(tmp_path / "port.h5", tmp_path / f"{name}.h5")
    path = td.view(*(tmp_path / f"{name}.h5" for name in ("ref", "forced", "free")), to=tmp_path / "both.html")
    found = Page(path.read_text(encoding="utf-8"))
    assert [run["mode"] for run in found.data["runs"]] == ["forced", "free"]
    assert "Forced worst floor compared first divergence Free" in found.seen


def test_a_page_replaces_a_page_and_nothing_else(tmp_path: Path) -> None:
    compared(tmp_path, faults={"dec.a": bumped})
    sides, to = (tmp_path / "ref.h5", tmp_path / "port.h5"), tmp_path / "view.html"
    to.write_text("mine")
    with pytest.raises(TraceExistsError, match="--force"):
        td.view(*sides, to=to)
    assert not is_page(to)
    assert is_page(td.view(*sides, to=to, force=True))
    assert td.view(*sides, to=to) == to


def test_an_unknown_site_to_draw_is_an_error_with_the_nearest(tmp_path: Path) -> None:
    compared(tmp_path, faults={"dec.a": bumped})
    with pytest.raises(SiteError, match=r"'dec\.aa'; nearest: 'dec\.a'"):
        td.view(tmp_path / "ref.h5", tmp_path / "port.h5", to=tmp_path / "x.html", sites=["dec.aa"])


@pytest.mark.parametrize("draw", [text.headline, lambda report: text.plain(text.report(report))])
def test_saving_writes_the_page(tmp_path: Path, draw: Callable[[Report], str]) -> None:
    report = compared(tmp_path, faults={"dec.a": bumped})
    assert draw(report).splitlines()[0][:40] in Page(report.save(tmp_path / "x.HTML").read_text(encoding="utf-8")).seen


def test_another_suffix_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(TracediffError, match=r"suffixes are \.html, \.md"):
        compared(tmp_path).save(tmp_path / "x.htm")


def test_the_command_writes_the_report_and_its_exit_status_is_that_of_a_thing_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared(tmp_path, faults={"dec.a": bumped})
    monkeypatch.chdir(tmp_path)
    for name, start in (("x.html", "<!DOCTYPE html>"), ("x.md", "**First divergence"), ("x.json", "{")):
        done = CliRunner().invoke(cli.main, ["report", "ref.h5", "port.h5", "-o", name])
        assert (done.exit_code, done.stdout) == (0, f"{name}\n")
        assert (tmp_path / name).read_text(encoding="utf-8").startswith(start)
    done = CliRunner().invoke(cli.main, ["view", "ref.h5", "port.h5", "--site", "dec.a"])
    assert (done.exit_code, done.stdout) == (0, "view.html\n")
    refused = CliRunner().invoke(cli.main, ["report", "ref.h5", "port.h5", "-o", "x.md"])
    assert refused.exit_code == 2
    assert "--force" in refused.stderr


def panel_of(folder: Path, reference: np.ndarray, port: np.ndarray, site: str = "net") -> dict[str, Any]:
    """What the page draws of a pair that differs."""
    for name, values in (("ref", reference), ("port", port)):
        run = Run(folder / f"{name}.h5")
        with run(site, x=np.ones(3, np.float32)) as leave:
            leave(values)
        run.close()
    path = td.view(folder / "ref.h5", folder / "port.h5", to=folder / "x.html")
    data = Page(path.read_text(encoding="utf-8")).data
    (found,) = [panel for panel in data["panels"] if panel["row"] == data["runs"][0]["cards"][0]]
    return dict(found)


def test_ids_are_listed_with_the_first_that_differs(tmp_path: Path) -> None:
    ids = np.arange(5000).reshape(1, -1)
    panel = panel_of(tmp_path, ids, np.where(ids >= 4000, ids + 1, ids))
    assert (panel["kind"], panel["first"], panel["unequal"], panel["sizes"]) == ("ids", 4000, 1000, [5000, 5000])
    place = panel["first"] - panel["start"]
    assert [side[place] for side in panel["ids"]] == [4000, 4001]
    assert len(panel["ids"][0]) <= tensors.MOST_IDS


def test_attention_is_known_by_its_rows(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).random((1, 2, 6, 6)).astype(np.float32)
    weights /= weights.sum(-1, keepdims=True)
    assert panel_of(tmp_path, weights, weights[..., ::-1].copy())["kind"] == "attention"


def test_sound_can_be_heard_and_seen(tmp_path: Path) -> None:
    sound = np.sin(np.arange(20_000) / 9).astype(np.float32)[None]
    panel = panel_of(tmp_path, sound, sound * np.float32(0.5))
    assert panel["kind"] == "wave"
    for source in panel["players"]:
        assert base64.b64decode(source.removeprefix("data:audio/wav;base64,"))[:4] == b"RIFF"
    assert panel["height"] > 100
    assert max(panel["outline"][1][1]) == pytest.approx(0.5, rel=1e-2)


def test_a_cell_is_the_mean_of_what_it_covers_and_the_worst_of_the_difference() -> None:
    values = np.arange(512 * 2, dtype=float).reshape(512, 2)
    values[0, 0] = np.nan
    drawn = tensors.pictures([values, values, np.where(values == 7, -9.0, 1.0)])
    assert drawn["low"] == pytest.approx((2 + 4 + 6) / 3, rel=1e-2)
    assert drawn["largest"] == 9


def test_a_cell_holds_the_page_as_text_of_a_frame(tmp_path: Path) -> None:
    shown = compared(tmp_path, faults={"dec.a": bumped}).view(height=321)
    frame = Page(shown._repr_html_())
    assert frame.tags == ["iframe"]
    assert dict(frame.attributes)["srcdoc"] == shown.html
    assert (dict(frame.attributes)["height"], dict(frame.attributes)["sandbox"]) == ("321", "allow-scripts")
    assert len(repr(shown)) < 200


def test_the_front_says_what_became_of_a_cases_differences_since_the_check_before(tmp_path: Path) -> None:
    report = compared(tmp_path, faults={"dec.a": bumped})
    assert "Since the check before" not in Page(page(report)).seen
    (fault,) = faults_of(report)
    faults = (fault, replace(fault, state="fixed", site="enc.norm", end="output"))
    paths = str(report.reference["path"]), str(report.port["path"])
    case = CaseOutcome("toy", "different", "", faults, 1, 1, "free", paths)
    write_outcome(Path(paths[1]).parent / "check.json", Outcome("", (case,)))
    seen = Page(page(report)).seen
    assert "Since the check before: 1 fixed enc.norm output 1 new" in seen
    assert seen.index("Since the check before") < seen.index("Findings")


def test_ids_are_listed_with_the_texts_of_the_tokenizer_that_a_trace_names_for_their_site(tmp_path: Path) -> None:
    vocabulary = {"model": {"vocab": {"\u0120cat": 3, "<b>": 4}}, "added_tokens": [{"id": 9, "content": "<end>"}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary))
    trace: Any = SimpleNamespace(meta={"tokenizers": {"emb*": "tokenizer.json"}}, path=tmp_path / "x.h5")
    assert texts_of([3, 9, 7, 3], "embed", trace) == {"3": " cat", "9": "<end>"}
    assert texts_of([3], "speech", trace) == {}
    (tmp_path / "tokenizer.json").rename(tmp_path / "gone.json")
    pieces = {"model": {"vocab": [["<pad>", 0.0], ["\u2581dog", -1.5]]}}
    (tmp_path / "pieces.json").write_text(json.dumps(pieces))
    trace.meta = {"tokenizers": {"*": "pieces.json"}}
    assert texts_of([1], "embed", trace) == {"1": " dog"}
    trace.meta = {"tokenizers": {"*": "x.json"}}
    assert texts_of([1], "embed", trace) == {}


def test_a_trace_that_names_a_pipe_or_another_kind_of_file_as_its_tokenizer_has_no_texts_and_nothing_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "secret.txt").write_text(json.dumps({"model": {"vocab": {"cat": 3}}}))
    for name in ("pipe.json", "secret.txt"):
        trace: Any = SimpleNamespace(meta={"tokenizers": {"*": name}}, path=tmp_path / "x.h5")
        assert texts_of([3], "embed", trace) == {}
