"""Little more than noise, and like noise, is borderline; what has a structure, or shows at siblings too, is a divergence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from judging import Fault, Run, aligned, inputs, weights

import tracediff as td
from tracediff.dtype import Array
from tracediff.locate import Located, locate
from tracediff.metrics import compare
from tracediff.show.text import headline

SITES = ["first", "blocks.0.mlp", "blocks.1.mlp", "blocks.2.mlp", "last"]
DEFAULT = 1e-4
"""What is allowed in float32 where no floor was measured."""


def run(recorder: Run, x: Array) -> None:
    with recorder("", x=x) as leave:
        for site, weight in zip(SITES, weights(len(SITES)), strict=True):
            x = recorder.layer(site, x, weight)
        leave(x)


def like_noise(times: float) -> Fault:
    """An error of so many times what is allowed, at random."""
    generator = np.random.default_rng(3)

    def change(value: Array) -> Array:
        error = generator.standard_normal(value.shape)
        return value + error * (times * DEFAULT * np.linalg.norm(value) / np.linalg.norm(error))

    return change


def gain(times: float) -> Fault:
    return lambda value: value * (1 + times * DEFAULT)


def offset(times: float) -> Fault:
    return lambda value: value + times * DEFAULT * np.linalg.norm(value) / np.sqrt(value.size)


def gain_of_each_row(times: float) -> Fault:
    """As another epsilon of a norm gives: each token has a gain of its own."""
    return lambda value: value * (1 + times * DEFAULT * np.linspace(0.2, 1.5, len(value))[:, None])


def gain_of_each_channel(times: float) -> Fault:
    return lambda value: value * (1 + times * DEFAULT * np.linspace(-1.5, 1.5, value.shape[-1]))


def traces(folder: Path, faults: Mapping[str, Fault], **meta: Any) -> tuple[td.Trace, td.Trace]:
    made = []
    for side, planted in (("ref", {}), ("port", faults)):
        recorder = Run(folder / f"{side}.h5", faults=planted, **(meta if side == "port" else {}))
        run(recorder, inputs())
        made.append(recorder.close())
    return made[0], made[1]


def located(folder: Path, faults: Mapping[str, Fault], **options: Any) -> Located:
    reference, port = traces(folder, faults)
    return locate(aligned(reference, port), reference, port, **options)


def culprits(findings: Any) -> list[str]:
    return [finding.culprit[0] for finding in findings]


@pytest.mark.parametrize("scan", [True, False], ids=["scan", "bisect"])
class TestOneError:
    def test_little_more_than_noise_and_like_noise_is_borderline(self, tmp_path: Path, scan: bool) -> None:
        found = located(tmp_path, {"last": like_noise(1.5)}, scan=scan)
        assert (culprits(found.findings), culprits(found.borderline)) == ([], ["last"])

    def test_it_says_how_many_times_what_is_allowed(self, tmp_path: Path, scan: bool) -> None:
        (finding,) = located(tmp_path, {"last": like_noise(1.5)}, scan=scan).borderline
        assert finding.times == pytest.approx(1.5, rel=0.01)

    def test_far_more_than_noise_is_a_divergence(self, tmp_path: Path, scan: bool) -> None:
        found = located(tmp_path, {"last": like_noise(5)}, scan=scan)
        assert (culprits(found.findings), found.borderline) == (["last"], ())
        assert found.findings[0].times == pytest.approx(5, rel=0.01)

    @pytest.mark.parametrize("structured", [gain, offset, gain_of_each_row, gain_of_each_channel])
    def test_an_error_with_a_structure_is_a_divergence(self, tmp_path: Path, scan: bool, structured: Any) -> None:
        found = located(tmp_path, {"last": structured(1.5)}, scan=scan)
        assert (culprits(found.findings), found.borderline) == (["last"], ())

    def test_strictly_it_is_a_divergence(self, tmp_path: Path, scan: bool) -> None:
        found = located(tmp_path, {"last": like_noise(1.5)}, scan=scan, strict=True)
        assert (culprits(found.findings), found.borderline) == (["last"], ())

    def test_beyond_a_given_tolerance_nothing_is_borderline(self, tmp_path: Path, scan: bool) -> None:
        found = located(tmp_path, {"last": like_noise(1.5)}, scan=scan, rtol=1e-6, atol=1e-6)
        assert (culprits(found.findings), found.borderline) == (["last"], ())

    def test_what_lies_behind_is_judged_without_it(self, tmp_path: Path, scan: bool) -> None:
        found = located(tmp_path, {"first": like_noise(1.5), "last": gain(300)}, scan=scan)
        assert (culprits(found.findings)[0], culprits(found.borderline)) == ("last", ["first"])

    def test_what_only_carries_it_on_is_not_listed(self, tmp_path: Path, scan: bool) -> None:
        found = located(tmp_path, {"first": like_noise(1.8)}, scan=scan)
        carried = [one for one in found.comparisons if one.effect == "borderline"]
        assert (culprits(found.findings), culprits(found.borderline)) == ([], ["first"])
        assert len(carried) > 1 or not scan


def test_an_error_that_siblings_introduce_too_is_a_divergence(tmp_path: Path) -> None:
    reference, port = traces(tmp_path, {"blocks.0.mlp": like_noise(1.5), "blocks.2.mlp": like_noise(1.4)}, mode_run="forced")
    metrics = {}
    for row, (left, right) in enumerate(zip(reference.records, port.records, strict=True)):
        is_wrong = left.site in ("blocks.0.mlp", "blocks.2.mlp") and left.end == "output"
        shifted = like_noise(1.5)(left.read()).astype(np.float32) if is_wrong else left.read()
        metrics[row, right.row] = compare(left.read(), shifted)
    found = locate(aligned(reference, port), reference, port, compared=metrics)
    assert (culprits(found.findings), found.borderline) == (["blocks.0.mlp", "blocks.2.mlp"], ())


class TestReport:
    def report(self, folder: Path, **options: Any) -> td.Report:
        for trace in traces(folder, {"last": like_noise(1.5)}):
            trace.close()
        return td.bisect(folder / "ref.h5", folder / "port.h5", **options)

    def test_the_verdict_is_same_and_the_first_line_counts(self, tmp_path: Path) -> None:
        report = self.report(tmp_path)
        assert report.verdict == "same"
        assert "1 place borderline, up to 1.5 times what is allowed" in headline(report)

    def test_it_survives_json(self, tmp_path: Path) -> None:
        report = self.report(tmp_path)
        again = td.Report.from_json(report.to_json())
        assert again.borderline == report.borderline
        assert again.borderline[0].times == pytest.approx(1.5, rel=0.01)

    def test_strictly_the_exit_status_is_1(self, tmp_path: Path) -> None:
        from tracediff.cli import main

        self.report(tmp_path)
        asked = ["bisect", str(tmp_path / "ref.h5"), str(tmp_path / "port.h5")]
        statuses = [CliRunner().invoke(main, [*asked, *more]).exit_code for more in ([], ["--strict"])]
        assert statuses == [0, 1]
