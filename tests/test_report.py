"""report: plain data that is the same in JSON, in a table and in text, and never more than was compared."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judging import Fault, Run, aligned, bumped, inputs, noisy, scaled, weights

import tracediff as td
from tracediff import Report
from tracediff.causes import from_pair, from_tensors
from tracediff.causes.explanation import explain
from tracediff.causes.scene_reader import SceneReader
from tracediff.dtype import Array
from tracediff.errors import TracediffError
from tracediff.locate import Length, locate
from tracediff.report import Cause, Weights, build

SITES = ["enc.a", "enc.b", "dec.a", "dec.b"]


def staged(run: Run, x: Array) -> None:
    """Two stages, each fed the same input: an encoder and a decoder of two layers."""
    w = iter(weights(4))
    for stage in ("enc", "dec"):
        run.stage = stage
        with run(stage, x=x) as leave:
            leave(run.layer(f"{stage}.b", run.layer(f"{stage}.a", x, next(w)), next(w)))


def compared(
    folder: Path,
    *,
    faults: Mapping[str, Fault] | None = None,
    run: Callable[[Run, Array], None] = staged,
    scan: bool = True,
    without: tuple[str, ...] = (),
    port_meta: Mapping[str, Any] | None = None,
    meta: Mapping[str, Any] | None = None,
    **options: Any,
) -> Report:
    """The report of a toy pair with planted faults."""
    traces = []
    quiet = dict.fromkeys(SITES, noisy())
    for side, planted in (("ref", {}), ("port", {**quiet, **(faults or {})})):
        file = folder / f"{side}.h5"
        file.unlink(missing_ok=True)
        recorder = Run(file, faults=planted, **{**(meta or {}), **((port_meta or {}) if side == "port" else {})})
        run(recorder, inputs())
        traces.append(recorder.close())
    alignment = aligned(*traces, without=without)
    weights_found, further_causes = options.pop("weights", Weights()), options.pop("causes", {})
    located = locate(alignment, *traces, scan=scan, **options)
    causes = [tuple(from_pair.causes(finding, located.comparisons[finding.place], *traces)) for finding in located.findings]
    return Report.of(replace(build(located, alignment, *traces, causes=causes).with_causes(further_causes), weights=weights_found))


class TestJson:
    def test_has_the_stable_keys(self, tmp_path: Path) -> None:
        data = json.loads(compared(tmp_path, faults={"dec.a": bumped}).to_json())
        assert list(data) == [
            *("schema", "verdict", "mode", "method", "reference", "port", "coverage"),
            *(
                "first",
                "divergences",
                "stages",
                "weights",
                "certificate",
                "equivalent",
                "borderline",
                "caveats",
                "withheld",
                "outputs",
                "quantised",
            ),
        ]
        assert list(data["coverage"]) == [
            *("reference_records", "port_records", "paired", "compared", "read", "bytes_read"),
            *("unpaired_reference", "unpaired_port", "not_seen", "unseen_outputs", "not_returned"),
        ]
        first = data["first"]
        assert first == data["divergences"][0]
        assert list(first) == [
            *("site", "culprit", "introduced", "inherited", "floor", "metrics"),
            *("shapes", "dtypes", "layout", "last_same", "causes", "times", "count", "length"),
        ]
        assert list(first["site"]) == ["reference", "port", "call", "end", "stage"]
        assert list(first["culprit"]) == ["reference", "port"]
        assert list(first["metrics"]) == ["max_abs", "mean_abs", "rms", "rel_l2", "cosine", "max_ulp", "mismatched", "count", "argmax"]
        assert list(data["stages"][0]) == ["stage", "verdict", "worst", "floor", "first"]
        assert list(data["weights"]) == ["equal", "different", "missing", "unexpected", "unequal"]
        assert data["schema"] == "tracediff.report/1"

    def test_comes_back_as_it_went(self, tmp_path: Path) -> None:
        causes = {"dec.a": [Cause("norm.eps", 0.9, True, "eps 1e-6 reproduces the port")]}
        report = compared(tmp_path, faults={"dec.a": bumped}, weights=Weights(3, ("a",), ("b",)), causes=causes)
        again = Report.from_json(report.to_json())
        assert again.to_dict() == report.to_dict()
        assert again.first == report.first

    def test_that_a_user_reads_gives_a_report_that_can_be_printed_drawn_and_saved(self, tmp_path: Path) -> None:
        report = compared(tmp_path, faults={"dec.a": bumped})
        again = Report.from_json(report.to_json())
        assert again == report
        assert type(again) is type(report) is td.Report
        assert "<pre" in again._repr_html_()
        assert again.save(tmp_path / "again.txt").read_text().startswith("First divergence: dec.a")

    def test_spells_out_what_is_not_finite(self, tmp_path: Path) -> None:
        report = compared(tmp_path, faults={"dec.a": lambda value: value * np.nan})
        text = report.to_json()
        assert json.loads(text, parse_constant=pytest.fail)["first"]["introduced"] == "Infinity"
        again = Report.from_json(text)
        assert again.first is not None
        assert again.first.introduced == math.inf

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "tracediff.report/2"}', '{"schema": "tracediff.report/1"}'])
    def test_that_is_no_report_is_refused(self, text: str) -> None:
        with pytest.raises(TracediffError):
            Report.from_json(text)


class TestVerdict:
    def test_is_different_where_something_diverged(self, tmp_path: Path) -> None:
        report = compared(tmp_path, faults={"dec.a": bumped})
        assert report.verdict == "different"
        assert report.first is not None
        assert (report.first.culprit.reference, report.first.site.end) == ("dec.a", "output")

    def test_is_same_only_beside_what_was_compared(self, tmp_path: Path) -> None:
        report = compared(tmp_path)
        assert (report.verdict, report.first, report.divergences) == ("same", None, ())
        assert report.coverage.compared == report.coverage.reference_records == 12

    def test_is_none_where_nothing_was_compared(self, tmp_path: Path) -> None:
        report = compared(tmp_path, without=(*SITES, "enc", "dec"))
        assert (report.verdict, report.coverage.paired, report.coverage.compared) == (None, 0, 0)
        assert "nothing was compared" in str(report)

    def test_is_none_where_a_run_did_not_come_to_its_end(self, tmp_path: Path) -> None:
        def cut_short(run: Run, x: Array) -> None:
            staged(run, x)
            if run.path.name == "port.h5":
                run.writer.close(complete=False)

        report = compared(tmp_path, run=cut_short)
        assert report.verdict is None
        assert "the port's run did not come to its end" in str(report)

    def test_is_none_where_statistics_alone_are_known_and_prove_nothing(self, tmp_path: Path) -> None:
        def only_statistics(run: Run, x: Array) -> None:
            run.save = "stats"
            staged(run, x)

        report = compared(tmp_path, run=only_statistics, faults={"dec.a": noisy(1e-6)})
        assert report.coverage.compared < report.coverage.paired
        assert {stage.stage: stage.verdict for stage in report.stages}["dec"] is None

    def test_has_no_truth_value_of_its_own(self) -> None:
        assert "__bool__" not in vars(Report)


class TestStages:
    def test_each_has_a_verdict(self, tmp_path: Path) -> None:
        stages = compared(tmp_path, faults={"dec.a": bumped}).stages
        assert [(stage.stage, stage.verdict) for stage in stages] == [("enc", "same"), ("dec", "different")]
        assert stages[1].first is not None
        assert stages[1].first.reference == "dec.a"
        assert stages[0].worst is not None
        assert stages[1].worst is not None
        assert stages[0].worst < 1e-5 < 1e-2 < stages[1].worst

    def test_an_outer_stage_is_as_bad_as_the_worst_inside_it(self, tmp_path: Path) -> None:
        stages = compared(tmp_path, faults={"dec.a": bumped}, meta={"stages": {"dec": "all", "enc": "all", "all": ""}}).stages
        assert [(stage.stage, stage.verdict) for stage in stages] == [("all", "different"), ("enc", "same"), ("dec", "different")]

    def test_a_bisection_tells_no_verdict_of_a_stage_that_it_did_not_read(self, tmp_path: Path) -> None:
        stages = compared(tmp_path, faults={"enc.a": bumped}, scan=False).stages
        assert [(stage.stage, stage.verdict) for stage in stages] == [("enc", "different"), ("dec", None)]


class TestCoverage:
    def test_names_what_has_no_partner(self, tmp_path: Path) -> None:
        coverage = compared(tmp_path, without=("enc.b",)).coverage
        assert (coverage.unpaired_reference, coverage.unpaired_port) == (("enc.b",), ("enc.b",))
        assert (coverage.compared, coverage.paired) == (10, 10)

    def test_tells_what_was_not_seen_on_either_side(self, tmp_path: Path) -> None:
        coverage = compared(tmp_path, port_meta={"not_seen": ["module 'x': never called"]}).coverage
        assert coverage.not_seen == ("port: module 'x': never called",)


class TestCauses:
    def test_are_unknown_unless_something_explains_them(self, tmp_path: Path) -> None:
        report = compared(tmp_path, faults={"dec.a": bumped})
        assert report.first is not None
        assert report.first.causes == ()

    def test_are_attached_by_the_culprits_path_best_first(self, tmp_path: Path) -> None:
        weak, strong = Cause("norm.eps", 0.4, False, "close"), Cause("weights.swapped", 0.9, True, "equal to dec.b")
        report = compared(tmp_path, faults={"dec.a": bumped}).with_causes({"dec.a": [weak, strong]})
        assert report.first is not None
        assert report.first.causes == (strong, weak)

    def test_a_lone_nan_is_its_own_cause(self, tmp_path: Path) -> None:
        report = compared(tmp_path, faults={"dec.a": lambda value: np.where(value > 0.5, np.nan, value)})
        assert report.first is not None
        assert [cause.kind for cause in report.first.causes] == ["nonfinite"]
        assert "NaN" in report.first.causes[0].evidence

    def test_a_scalar_argument_is_told_with_its_two_values(self, tmp_path: Path) -> None:
        def scaled(run: Run, x: Array) -> None:
            scale = 0.25 if run.path.name == "ref.h5" else 0.5
            with run("enc", x=x) as leave, run("enc!attention", q=x) as attended:
                run._add("attr[scale]", np.array(scale))
                leave(attended(x * np.float32(scale)))

        report = compared(tmp_path, run=scaled)
        assert report.first is not None
        assert (report.first.site.end, report.first.culprit.port) == ("attr[scale]", "enc")
        assert [cause.kind for cause in report.first.causes] == ["scale"]
        assert "attr[scale] of enc!attention: 0.5, in the reference 0.25" in str(report).replace("\n", " ")

    @pytest.mark.parametrize("never", [-np.inf, -1e10])
    def test_a_mask_that_only_one_side_applies_is_told(self, tmp_path: Path, never: float) -> None:
        def masking(run: Run, x: Array) -> None:
            with run("attn", x=x) as leave:
                open_to = np.tril(np.ones(x.shape, bool)) | (run.path.name == "port.h5")
                leave(np.where(open_to, x, never).astype(np.float32))

        report = compared(tmp_path, run=masking)
        assert report.first is not None
        assert [cause.kind for cause in report.first.causes] == ["mask.missing"]
        assert "in the reference only" in report.first.causes[0].evidence

    def test_all_findings_are_explained(self, tmp_path: Path) -> None:
        names = [f"{first}{second}" for first in "abcdef" for second in "uvwxyz"]

        def wide(run: Run, x: Array) -> None:
            run.flags = 2 if run.path.name == "port.h5" else 0
            with run("", x=x) as leave:
                for name, weight in zip(names, weights(len(names)), strict=True):
                    run.layer(name, x, weight)
                leave(x)

        traces = []
        for side, faults in (("ref", {}), ("port", dict.fromkeys(names, scaled(1.25)))):
            recorder = Run(tmp_path / f"{side}.h5", faults=faults)
            wide(recorder, inputs())
            traces.append(recorder.close())
        alignment = aligned(*traces)
        explained = explain(locate(alignment, *traces, mode="forced"), alignment, *traces)
        assert len(explained.causes) == len(names) == 36
        assert {causes[0].kind for causes in explained.causes} == {"scale"}
        assert explained.notes == ()

    def test_findings_at_which_no_formula_was_looked_for_are_counted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(from_tensors, "DETECTORS", ())
        monkeypatch.setattr(from_tensors, "THRESHOLDS", replace(from_tensors.THRESHOLDS, formulas_searched=3))
        faults = dict.fromkeys(SITES, lambda value: np.roll(value, 1, 0) ** 2)
        traces = []
        for side, planted in (("ref", {}), ("port", faults)):
            recorder = Run(tmp_path / f"{side}.h5", faults=planted)
            recorder.flags = 2 if side == "port" else 0
            staged(recorder, inputs())
            traces.append(recorder.close())
        alignment = aligned(*traces)
        located = locate(alignment, *traces, mode="forced")
        assert from_tensors.causes(located, SceneReader(located, alignment, *traces)).unsearched == len(located.findings) - 3 > 0
        assert len(explain(located, alignment, *traces).notes) == 1

    def test_shapes_that_differ_are_told(self, tmp_path: Path) -> None:
        def shorter(run: Run, x: Array) -> None:
            with run("enc", x=x) as leave:
                leave(x if run.path.name == "ref.h5" else x[:-1])

        report = compared(tmp_path, run=shorter)
        assert report.first is not None
        assert report.first.metrics is None
        assert report.first.shapes == {"reference": (6, 16), "port": (5, 16)}
        assert report.first.length == Length((0,), 6, 5, 5)
        assert report.first.causes[0].kind == "length"
        assert report.first.causes[0].evidence.endswith("along axis 0 the first 5 agree")

    def test_a_length_that_differs_is_told_as_lengths_everywhere(self, tmp_path: Path) -> None:
        def shorter(run: Run, x: Array) -> None:
            with run("enc", x=x) as leave:
                leave(x if run.path.name == "ref.h5" else x[:-1])

        report = compared(tmp_path, run=shorter)
        page, markdown = (report.save(tmp_path / f"page.{suffix}").read_text(encoding="utf-8") for suffix in ("html", "md"))
        for shown in (str(report), markdown, page):
            assert "length 5, in the reference 6 (axis 0); the first 5 agree" in shown.replace("\n", " ")
        for shown in (
            str(report),
            markdown,
            re.sub(r"<style>.*?</style>|<script.*?</script>", "", page, flags=re.DOTALL),
            report.to_json(),
        ):
            assert not re.search(r"\binf(inite|inity)?\b|untold", shown, re.IGNORECASE)
        data = json.loads(report.to_json())["first"]
        assert (data["introduced"], data["length"]) == (None, {"axes": [0], "reference": 6, "port": 5, "agree": 5, "at_end": False})
        assert Report.from_json(report.to_json()).first == report.first
        frame = report.to_frame()
        assert frame.loc[frame["introduced"], ["reference_length", "port_length"]].values.tolist() == [[6, 5]]

    def test_different_inputs_are_no_modules_fault(self, tmp_path: Path) -> None:
        def other_input(run: Run, x: Array) -> None:
            staged(run, x if run.path.name == "ref.h5" else x[::-1].copy())

        report = compared(tmp_path, run=other_input)
        assert report.first is not None
        assert [cause.kind for cause in report.first.causes] == ["input"]


class TestTable:
    def test_has_one_row_a_compared_pair_in_execution_order(self, tmp_path: Path) -> None:
        report = compared(tmp_path, faults={"dec.a": bumped})
        frame = report.to_frame()
        assert list(frame.columns[:11]) == [
            *("reference", "port", "call", "end", "stage", "rel_l2", "max_abs", "limit", "floor", "diverged", "introduced")
        ]
        assert frame["reference"].tolist()[:4] == ["enc", "enc.a", "enc.a", "enc.b"]
        assert frame.loc[frame["introduced"], "reference"].tolist() == ["dec.a"]
        assert (frame["rel_l2"] > frame["limit"]).tolist() == frame["diverged"].tolist()
        assert frame.dtypes["diverged"].kind == "b"

    def test_leaves_out_what_a_bisection_did_not_compare(self, tmp_path: Path) -> None:
        report = compared(tmp_path, faults={"enc.a": bumped}, scan=False)
        assert len(report.to_frame()) == report.coverage.compared < len(report.rows)

    def test_of_nothing_is_empty(self, tmp_path: Path) -> None:
        assert compared(tmp_path, without=(*SITES, "enc", "dec")).to_frame().empty


class TestSaving:
    @pytest.mark.parametrize(
        ("name", "start"),
        [
            *(("x.json", b"{"), ("x.txt", b"First"), ("x.md", b"**First"), ("x.html", b"<!DOCTYPE html>")),
            *(("x.PNG", b"\x89PNG"), ("x.svg", b"<?xml"), ("x.pdf", b"%PDF")),
        ],
    )
    def test_writes_what_the_suffix_says(self, tmp_path: Path, name: str, start: bytes) -> None:
        report = compared(tmp_path, faults={"dec.a": bumped})
        assert report.save(tmp_path / name).read_bytes().startswith(start)

    def test_refuses_other_suffixes(self, tmp_path: Path) -> None:
        report = compared(tmp_path)
        for name in ("x.htm", "x"):
            with pytest.raises(TracediffError, match=r"are \.html, \.md, \.json, \.csv, \.txt, \.png, \.svg, \.pdf and \.modelexplorer\."):
                report.save(tmp_path / name)

    def test_a_report_is_frozen(self, tmp_path: Path) -> None:
        report = compared(tmp_path)
        with pytest.raises(AttributeError):
            report.verdict = "same"  # type: ignore[misc]
        assert replace(report, verdict=None).verdict is None
