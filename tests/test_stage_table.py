"""status: a row a stage, forced and free, and never more said than was compared."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judging import Run, bumped, inputs, noisy, weights
from test_report import SITES

import tracediff as td
from tracediff import Status
from tracediff.dtype import Array
from tracediff.errors import TracediffError
from tracediff.report import Cause
from tracediff.show.stage_table import headline, markdown, written
from tracediff.show.words import plain
from tracediff.stage_table import Outcome, build

QUIET = dict.fromkeys(SITES, noisy())
STAGES = {"enc": "", "dec": ""}


def staged(run: Run, x: Array, *, only: tuple[str, ...] = ("enc", "dec"), flows: bool = False) -> None:
    """An encoder and a decoder of two layers, each a stage; where it ``flows`` the decoder takes what the encoder gave."""
    w, given = iter(weights(4)), x
    for stage in ("enc", "dec"):
        pair = next(w), next(w)
        if stage in only:
            run.stage = stage
            with run(stage, x=given if flows else x) as leave:
                given = leave(run.layer(f"{stage}.b", run.layer(f"{stage}.a", given if flows else x, pair[0]), pair[1]))


def nested(run: Run, x: Array, **options: Any) -> None:
    """The two stages inside a third, "all", which records nothing of its own."""
    staged(run, x, **options)


def two_outputs(run: Run, x: Array, *, name: str, factor: float, both: bool = True) -> None:
    """A stage that gives out what its layer does and, unless not ``both``, so many times that under a name."""
    run.stage = "enc"
    given = run.layer("enc.a", x, weights(4)[0])
    with run("enc", x=x) as leave:
        leave(given)
        if both:
            run.give(f"output.{name}", given if factor == 1 else factor * given)


class Pair:
    """Traces of a toy pair in a folder, made when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str, *, work: Callable[..., None] = staged, faults: Any = None, closed: bool = True, **options: Any) -> Path:
        work_options = {key: options.pop(key) for key in ("only", "flows") if key in options}
        meta = {"stages": STAGES, "recipe": "chatterbox", "weights": "seeded", "seed": 0, **options}
        (self.folder / f"{name}.h5").unlink(missing_ok=True)
        run = Run(self.folder / f"{name}.h5", faults=faults, **meta)
        work(run, inputs(), **work_options)
        run.writer.close(complete=closed)
        return self.folder / f"{name}.h5"

    def reference(self, **options: Any) -> Path:
        return self("ref", **options)

    def forced(self, **faults: Any) -> Path:
        return self("forced", faults={**QUIET, **faults.pop("faults", {})}, mode_run="forced", **faults)

    def free(self, **faults: Any) -> Path:
        return self("free", faults={**QUIET, **faults.pop("faults", {})}, **faults)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def outcomes(told: Status, mode: Any) -> dict[str, str]:
    return {stage.stage: outcome.state for stage in told.stages if (outcome := stage.outcome(mode))}


class TestVerdict:
    def test_every_stage_the_same_forced_and_free_is_the_same(self, pair: Pair) -> None:
        told = td.status(pair.reference(), pair.forced(), pair.free())
        assert told.verdict == "same"
        assert told.why == told.next == ()
        assert outcomes(told, "forced") == outcomes(told, "free") == {"enc": "same", "dec": "same"}
        assert headline(told).startswith("Same: each of 2 stages")

    def test_forced_alone_is_never_the_same_and_says_what_to_run(self, pair: Pair) -> None:
        told = td.status(pair.reference(), pair.forced())
        assert told.verdict is None
        assert told.free is None
        assert headline(told) == "Cannot tell: every compared part is right; run the port free to show that the whole works"
        assert told.next == (f"tracediff capture --impl numpy --random {pair.folder / 'ref.h5'} -o free.h5",)
        assert "not run" in plain(str(told))

    def test_free_alone_is_never_the_same_either(self, pair: Pair) -> None:
        told = td.status(pair.reference(), pair.free())
        assert told.verdict is None
        assert "run the port forced" in headline(told)
        assert told.next[0].startswith("tracediff capture --impl numpy --feed ")

    @pytest.mark.parametrize("where", ["forced", "free"])
    def test_a_stage_that_differs_in_either_run_makes_the_whole_different(self, pair: Pair, where: str) -> None:
        faults = {"faults": {"dec.a": bumped}}
        told = td.status(
            pair.reference(), pair.forced(**(faults if where == "forced" else {})), pair.free(**(faults if where == "free" else {}))
        )
        assert told.verdict == "different"
        assert outcomes(told, where) == {"enc": "same", "dec": "different"}
        assert headline(told) == "Different: 1 of 2 stages (dec)"

    def test_the_runs_may_be_given_in_any_order(self, pair: Pair) -> None:
        runs = pair.reference(), pair.forced(), pair.free()
        assert td.status(*runs).to_dict() == td.status(runs[0], runs[2], runs[1]).to_dict()

    def test_two_runs_of_one_mode_are_refused(self, pair: Pair) -> None:
        reference, free = pair.reference(), pair.free()
        with pytest.raises(TracediffError, match="both free runs; a status takes one forced and one free"):
            td.status(reference, free, free)
        with pytest.raises(TracediffError, match="at least one trace of the port"):
            td.status(reference)

    @pytest.mark.parametrize(("name", "value"), [("dtype", "bfloat16"), ("impl", "mlx"), ("weights", "seeded:full"), ("seed", 3)])
    def test_runs_of_two_different_ports_are_not_the_same(self, pair: Pair, name: str, value: Any) -> None:
        told = td.status(pair.reference(), pair.forced(**{name: value}), pair.free())
        assert told.verdict is None
        assert any(f"not of one port: {name} {value} in the forced run" in line for line in told.why)

    def test_a_free_run_whose_stages_started_from_the_reference_does_not_show_the_whole(self, pair: Pair) -> None:
        told = td.status(pair.reference(), pair.forced(), pair.free(**{"from": "ref.h5"}))
        assert told.verdict is None
        assert "--from" in told.why[0]
        assert "--random" in told.next[0]

    def test_a_forced_run_is_no_reference(self, pair: Pair) -> None:
        with pytest.raises(td.TracediffError, match="is a forced run"):
            td.status(pair.reference(mode_run="forced"), pair.forced(), pair.free())


class TestStages:
    def test_a_stage_that_the_port_did_not_run_is_not_run_and_never_the_same(self, pair: Pair) -> None:
        told = td.status(pair.reference(), pair.forced(only=("enc",), stages={"enc": ""}), pair.free())
        assert told.verdict is None
        assert outcomes(told, "forced") == {"enc": "same", "dec": "not run"}
        assert told.why == ("forced, dec: the port did not run it",)
        assert headline(told) == "Not compared: what was compared agrees, but not everything was compared"

    def test_a_run_that_was_cut_short_is_not_the_same(self, pair: Pair) -> None:
        told = td.status(pair.reference(), pair.forced(), pair.free(only=("enc",), stages={"enc": ""}, closed=False))
        assert told.verdict is None
        assert outcomes(told, "free") == {"enc": "same", "dec": "not run"}
        assert "the free run did not come to its end" in told.why

    def test_a_stage_cut_before_its_end_is_unfinished(self, pair: Pair) -> None:
        def cut(run: Run, x: Array) -> None:
            run.stage = "enc"
            run.layer("enc.a", x, weights(4)[0])

        stages = {"enc": ""}
        told = td.status(pair.reference(only=("enc",), stages=stages), pair("free", work=cut, faults=QUIET, stages=stages))
        assert outcomes(told, "free") == {"enc": "unfinished"}
        assert told.stages[0].free is not None
        assert told.stages[0].free.why == "of what it gave at its end enc output was not compared"

    def test_a_stage_of_whose_outputs_one_was_not_compared_is_unfinished(self, pair: Pair) -> None:
        two, stages = partial(two_outputs, name="scores", factor=2.0), {"enc": ""}
        reference = pair.reference(work=two, stages=stages)
        same = td.status(reference, pair.forced(work=two, stages=stages), pair.free(work=two, stages=stages))
        assert same.verdict == "same"
        fewer = td.status(reference, pair("fewer", work=partial(two, both=False), faults=QUIET, stages=stages))
        assert outcomes(fewer, "free") == {"enc": "unfinished"}
        assert "free, enc: of what it gave at its end enc output.scores was not compared" in fewer.why

    def test_an_output_seen_elsewhere_with_the_same_values_counts_as_compared(self, pair: Pair) -> None:
        two, stages = partial(two_outputs, name="hidden", factor=1.0), {"enc": ""}
        told = td.status(pair.reference(work=two, stages=stages), pair.free(work=partial(two, both=False), stages=stages))
        assert outcomes(told, "free") == {"enc": "same"}

    def test_what_was_stored_without_values_is_not_the_same(self, pair: Pair) -> None:
        def bare(run: Run, x: Array) -> None:
            run.save = "stats"
            staged(run, x)

        told = td.status(pair.reference(), pair.forced(), pair("free", work=bare, faults=QUIET))
        assert outcomes(told, "free") == {"enc": "not compared", "dec": "not compared"}
        assert told.verdict is None

    def test_an_outer_stage_is_as_bad_as_the_worst_inside_it(self, pair: Pair) -> None:
        stages = {"all": "", "enc": "all", "dec": "all"}
        reference = pair.reference(stages=stages, work=nested)
        told = td.status(reference, pair.forced(stages=stages, faults={"dec.b": bumped}), pair.free(stages=stages, only=("enc",)))
        assert [(stage.stage, stage.outer, stage.depth) for stage in told.stages] == [("all", "", 0), ("enc", "all", 1), ("dec", "all", 1)]
        assert outcomes(told, "forced") == {"all": "different", "enc": "same", "dec": "different"}
        assert outcomes(told, "free")["all"] == "unfinished"
        assert told.stages[0].forced is not None
        assert told.stages[0].forced.compared == told.stages[0].forced.total == 12
        assert td.status(reference, pair.forced(stages=stages), pair.free(stages=stages)).verdict == "same"

    def test_a_stage_in_which_the_reference_recorded_nothing_is_not_the_same(self, pair: Pair) -> None:
        stages = {**STAGES, "vocoder": ""}
        told = td.status(pair.reference(stages=stages), pair.forced(stages=stages), pair.free(stages=stages))
        assert told.verdict is None
        assert outcomes(told, "free")["vocoder"] == "not recorded"

    def test_a_run_without_stages_is_one_row(self, pair: Pair) -> None:
        def plainly(run: Run, x: Array) -> None:
            staged(run, x)

        class Unstaged(Run):
            stage = property(lambda _: "", lambda *_: None)  # type: ignore[assignment]

        for name, mode in (("ref", "free"), ("forced", "forced"), ("free", "free")):
            run = Unstaged(pair.folder / f"{name}.h5", faults=None if name == "ref" else QUIET, mode_run=mode)
            plainly(run, inputs())
            run.close()
        told = td.status(*(pair.folder / f"{name}.h5" for name in ("ref", "forced", "free")))
        assert [stage.stage for stage in told.stages] == [""]
        assert told.verdict == "same"
        assert "the whole run" in str(told)

    def test_only_the_stages_asked_for_are_told(self, pair: Pair) -> None:
        traces = pair.reference(), pair.forced(faults={"dec.a": bumped}), pair.free()
        assert td.status(*traces, stages=["enc"]).verdict == "same"
        assert outcomes(td.status(*traces, stages=["dec"]), "forced") == {"dec": "different"}

    def test_a_cell_has_worst_error_floor_counts_first_divergence_and_cause(self, pair: Pair) -> None:
        told = td.status(pair.reference(), pair.forced(faults={"dec.a": bumped}), pair.free())
        outcome = told.stages[1].forced
        assert outcome is not None
        assert outcome.worst is not None
        assert outcome.worst > 1e-2
        assert (outcome.compared, outcome.total) == (6, 6)
        assert outcome.first is not None
        assert outcome.culprit is not None
        assert (outcome.first.port, outcome.culprit.port) == ("dec.a", "dec.a")
        assert outcome.introduced == 1

    def test_what_has_no_error_to_measure_is_shown_as_other_and_not_as_no_error(self, pair: Pair) -> None:
        told = td.status(pair.reference(), pair.forced(faults={"dec.b": lambda values: values[:, :-1]}))
        outcome = told.stages[1].forced
        assert outcome is not None
        assert (outcome.state, outcome.worst) == ("different", None)
        assert re.search(r"dec +different +other", plain(str(told)))
        assert "| other (-) |" in markdown(told)

    def test_a_finding_that_two_stages_share_is_the_fault_of_both(self, pair: Pair) -> None:
        def twice(run: Run, x: Array) -> None:
            weight = next(iter(weights(1)))
            for stage in STAGES:
                run.stage = stage
                with run("net", x=x) as leave:
                    leave(run.layer("net.a", x, weight))

        told = td.status(pair.reference(work=twice), pair.forced(work=twice, faults={"net.a": bumped}))
        for stage in told.stages:
            assert stage.forced is not None
            assert (stage.forced.state, stage.forced.introduced) == ("different", 1)
            assert stage.forced.culprit is not None
            assert stage.forced.culprit.port == "net.a"

    def test_what_a_stage_is_handed_is_inherited_and_not_its_fault(self, pair: Pair) -> None:
        reference = pair.reference(flows=True)
        told = td.status(reference, pair.free(flows=True, faults={"enc.b": bumped}))
        assert outcomes(told, "free") == {"enc": "different", "dec": "different"}
        enc, dec = (stage.free for stage in told.stages)
        assert enc is not None
        assert dec is not None
        assert (enc.introduced, dec.introduced) == (1, 0)
        assert "may be inherited: something before it is off already" in str(told)

    def test_the_likely_cause_is_that_of_the_first_divergence(self, pair: Pair) -> None:
        reference, port = td.open_trace(pair.reference()), td.open_trace(pair.forced(faults={"dec.a": bumped}))
        report = td.diff(reference, port).with_causes({"dec.a": [Cause("scale", 0.7, False, "a <gain> of 2")]})
        told = Status.of(build(reference, [(port, report)]))
        assert told.stages[1].forced is not None
        assert told.stages[1].forced.causes[0].kind == "scale"
        assert "scale (70%): a <gain> of 2" in str(told)
        assert r"a \<gain\> of 2" in markdown(told)


class TestNotes:
    def test_stages_on_inputs_of_their_own_do_not_show_how_they_are_put_together(self, pair: Pair) -> None:
        told = td.status(pair.reference(), pair.free())
        assert any("no stage took what another gave" in line for line in told.notes)
        assert "no stage took what another gave" in str(told)
        told = td.status(pair.reference(flows=True), pair.free(flows=True))
        assert not any("no stage took" in line for line in told.notes)

    def test_a_reference_without_a_floor_and_a_run_that_does_not_repeat_are_noted(self, pair: Pair) -> None:
        told = td.status(pair.reference(), pair.free(repeats=False))
        assert any("noise floor was not measured" in line for line in told.notes)
        assert told.caveats == ("The port does not repeat itself: two runs of it differ.",)
        assert str(told).splitlines()[1] == told.caveats[0]

    def test_a_half_precision_port_without_its_column_is_noted_with_the_command_that_measures_it(
        self, pair: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tracediff.runs.floor_limits.port_dtypes", lambda port, stored=None: {"enc": "bfloat16", "dec": "float32"})
        told = td.status(pair.reference(), pair.free())
        assert any("free: " in line and "calibrate" in line and "bfloat16" in line for line in told.notes)

    def test_stages_that_only_the_port_ran_are_noted(self, pair: Pair) -> None:
        told = td.status(pair.reference(only=("enc",), stages={"enc": ""}), pair.free())
        assert "the free run made stages that the reference did not: dec" in told.notes
        assert [stage.stage for stage in told.stages] == ["enc"]


class TestViews:
    def test_json_has_stable_keys_and_no_nan(self, pair: Pair) -> None:
        def broken(value: Array) -> Array:
            return np.where(value > 0, np.nan, value)

        data = json.loads(td.status(pair.reference(), pair.forced(faults={"dec.a": broken})).to_json(), parse_constant=pytest.fail)
        assert list(data) == [
            *("schema", "verdict", "why", "next", "notes", "reference", "forced", "free", "stages", "coverage", "weights", "caveats"),
        ]
        assert data["schema"] == "tracediff.status/1"
        assert data["free"] is None
        assert list(data["stages"][0]) == ["stage", "outer", "depth", "forced", "free", "storage"]
        assert list(data["stages"][0]["forced"]) == [
            *("verdict", "state", "compared", "total", "worst", "floor", "first", "culprit", "introduced", "causes", "why"),
        ]
        assert data["stages"][0]["free"] is None
        assert data["coverage"]["forced"]["compared"] == 12

    def test_markdown_is_the_page_that_an_author_keeps(self, pair: Pair) -> None:
        told = td.status(
            pair.reference(command="tracediff capture --impl torch -o ref.h5", versions={"torch": "2.13.0"}, created="2026-01-02T03:04:05"),
            pair.forced(faults={"dec.a": bumped}, command="pytest", not_seen=["module 'x': never called"]),
            pair.free(),
        )
        page = markdown(told)
        assert page.startswith("# chatterbox: numpy port against the numpy reference\n\n**Different: 1 of 2 stages (dec).**\n")
        for text in (
            "| `enc` | same | ",
            "| `dec` | **different** | ",
            "| 6/6 |",
            "torch 2.13.0",
            "2026-01-02T03:04:05",
            "```sh\ntracediff capture --impl torch -o ref.h5\n#",
            "module 'x': never called",
            "compared 12 of 12 records",
            "--format markdown\n```",
        ):
            assert text in page
        rows = [line for line in page.splitlines() if line.startswith("|")]
        assert {line.count("|") - line.count("\\|") for line in rows[:4]} == {8}

    def test_markdown_cannot_be_broken_by_names(self, pair: Pair) -> None:
        hostile = "<script>|`x\n## y"
        stages = {hostile: ""}

        def work(run: Run, x: Array) -> None:
            run.stage = hostile
            run.layer(f"{'a'}`<b>", x, weights(1)[0])

        meta = {"stages": stages, "recipe": hostile, "command": hostile, "versions": {hostile: hostile}, "not_seen": [hostile]}
        told = td.status(pair("ref", work=work, **meta), pair("free", work=work, faults={"a`<b>": bumped}, **meta))
        page = markdown(told)
        outside = re.sub(r"`[^`\n]*`", "", re.sub(r"```sh\n.*?\n```\n", "", page, flags=re.DOTALL))
        assert "`" not in outside.replace("\\`", "")
        assert "<" not in outside.replace("\\<", "")
        assert "\n## y" not in page

    def test_text_json_and_markdown_end_with_a_line_end(self, pair: Pair) -> None:
        told = td.status(pair.reference(), pair.forced())
        assert all(written(told, form).endswith("\n") for form in ("text", "markdown", "json"))

    def test_a_notebook_shows_it(self, pair: Pair) -> None:
        assert "Cannot tell" in td.status(pair.reference(), pair.forced())._repr_html_()

    def test_it_is_plain_frozen_data(self, pair: Pair) -> None:
        told = td.status(pair.reference(), pair.forced())
        with pytest.raises(AttributeError):
            told.verdict = "same"  # type: ignore[misc]
        assert Outcome("not run", 0, 4).verdict is None


class TestCommand:
    def run(self, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tracediff", "status", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120, check=False)

    def test_the_exit_status_is_that_of_diff(self, pair: Pair) -> None:
        reference, forced, free = pair.reference(), pair.forced(), pair.free()
        assert self.run(reference, forced, free, cwd=pair.folder).returncode == 0
        assert self.run(reference, forced, cwd=pair.folder).returncode == 2
        wrong = pair.forced(faults={"dec.a": bumped})
        answer = self.run(reference, wrong, free, "--json", cwd=pair.folder)
        assert answer.returncode == 1
        assert json.loads(answer.stdout)["verdict"] == "different"

    def test_a_page_is_written_as_its_suffix_says_and_not_over_another(self, pair: Pair) -> None:
        traces = pair.reference(), pair.forced(), pair.free()
        assert self.run(*traces, "-o", "STATUS.md", cwd=pair.folder).returncode == 0
        assert (pair.folder / "STATUS.md").read_text(encoding="utf-8").startswith("# chatterbox")
        refused = self.run(*traces, "-o", "STATUS.md", cwd=pair.folder)
        assert refused.returncode == 2
        assert "--force" in refused.stderr
