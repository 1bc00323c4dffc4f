"""What a recorded run says: values, producers, parents, flags, parameters, meta, and what was selected."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tracediff as td
from tracediff.errors import CaptureError
from tracediff.observe import observe, record
from tracediff.observe.recorder import Recorder
from tracediff.observe.repeat import Digests
from tracediff.trace import Trace, TraceWriter, open_trace, schema


def recorded(models: Any, run: Any, folder: Path, **options: Any) -> Trace:
    with record(models, folder / "x.h5", force=True, **options):
        run()
    return open_trace(folder / "x.h5")


def one(trace: Trace, site: str, end: str, ordinal: int = 0) -> Any:
    return next(r for r in trace.records if (r.site, r.end, r.ordinal) == (site, end, ordinal))


def test_every_input_and_output_is_recorded_as_it_was(side: SimpleNamespace, x: Any, tmp_path: Path) -> None:
    model = side.Changed()
    values = side.numpy(x)
    trace = recorded(model, lambda: model(x), tmp_path)
    assert [(r.site, r.end) for r in trace.records] == [
        ("", "input[0]"),
        ("changes", "input[0]"),
        ("changes.lin", "input[0]"),
        ("changes.lin", "output"),
        ("changes", "output"),
        ("changes", "output.input[0]"),
        ("after", "input[0]"),
        ("after", "output"),
        ("", "output"),
    ]
    assert (one(trace, "changes.lin", "input[0]").read() == values).all()
    changed = values + 1
    changed[0] = 7
    assert (one(trace, "after", "input[0]").read() == changed).all()
    assert [r.flags for r in trace.records if r.end == "output.input[0]"] == [schema.MUTATED]


def test_an_input_names_the_record_that_produced_it(side: SimpleNamespace, x: Any, tmp_path: Path) -> None:
    model = side.Net()
    trace = recorded(model, lambda: model(x), tmp_path)
    rows = {(r.site, r.end): r for r in trace.records}

    def produced(site: str, end: str) -> tuple[str, str, int] | None:
        record = rows[site, end]
        maker = trace.records[record.producer] if record.producer >= 0 else None
        return (maker.site, maker.end, record.producer_how) if maker else None

    assert produced("", "input[0]") is None
    assert produced("first", "input[0]") == ("", "input[0]", schema.PRODUCER_IDENTITY)
    assert produced("#mid", "value") == ("first", "output", schema.PRODUCER_IDENTITY)
    assert produced("second", "input[0]") == ("#mid", "value", schema.PRODUCER_IDENTITY)
    assert produced("second", "input[gain]") == ("", "input[0]", schema.PRODUCER_IDENTITY)
    assert produced("", "output") == ("second", "output", schema.PRODUCER_IDENTITY)


def test_a_copied_input_names_its_producer_by_content_and_a_changed_one_names_none(side: SimpleNamespace, x: Any, tmp_path: Path) -> None:
    block = side.Block(8)
    wide = side.array(np.random.default_rng(1).standard_normal((2, 8)).astype(np.float32))

    def run() -> None:
        y = block(wide)
        block(y + 0)
        side.set_item(y, 0, 1.5)
        block(y)

    trace = recorded(block, run, tmp_path)
    first = one(trace, "", "output")
    assert (one(trace, "", "input[0]", 1).producer, one(trace, "", "input[0]", 1).producer_how) == (first.row, schema.PRODUCER_DIGEST)
    assert one(trace, "", "input[0]", 2).producer == -1
    assert (one(trace, "", "input[0]", 2).read()[0] == 1.5).all()


def test_ids_that_are_used_again_are_no_identity(side: SimpleNamespace, tmp_path: Path) -> None:
    block = side.Block()

    def run() -> None:
        for seed in range(50):
            block(side.array(np.random.default_rng(seed).standard_normal((2, 4)).astype(np.float32)))

    trace = recorded(block, run, tmp_path)
    assert all(r.producer == -1 for r in trace.records if r.site == "" and r.end == "input[0]")


def test_the_parent_is_the_first_record_of_the_enclosing_call(side: SimpleNamespace, x: Any, tmp_path: Path) -> None:
    model = side.Net()
    trace = recorded(model, lambda: model(x), tmp_path)
    parents = {(r.site, r.end): trace.records[r.parent].site if r.parent >= 0 else None for r in trace.records}
    assert parents["", "input[0]"] is None
    assert parents["first", "output"] == ""
    assert parents["first.lin", "input[0]"] == "first"
    assert parents["#mid", "value"] == ""


def test_equal_content_is_stored_once(side: SimpleNamespace, x: Any, tmp_path: Path) -> None:
    model = side.Net()
    trace = recorded(model, lambda: [model(x) for _ in range(5)], tmp_path)
    places = {(int(row["segment"]), int(row["offset"])) for row in trace.index}
    assert len(places) == len({r.digest for r in trace.records}) < len(trace.records) / 5


def test_parameters_are_recorded_before_the_run_with_their_aliases(side: SimpleNamespace, x: Any, tmp_path: Path) -> None:
    model = side.Holder()
    before = side.numpy(model.shared.lin.weight)

    def run() -> None:
        model(x)
        model.shared.lin.bias = side.nn.Parameter(x[0]) if side.name == "torch" else x[0]

    trace = recorded({"m": model}, run, tmp_path, save_params=True)
    parameter = trace.params["m._private.lin.weight"]
    assert (parameter.path, parameter.kind, list(parameter.aliases)) == ("m._private.lin", "parameter", ["m.shared.lin.weight"])
    assert (parameter.read() == before).all()
    assert (trace.params["m._private.lin.bias"].read() != side.numpy(x)[0]).any()
    assert "m.blocks.1.0.lin.weight" in trace.params


def test_buffers_are_told_from_parameters(side: SimpleNamespace, tmp_path: Path) -> None:
    norm = side.nn.BatchNorm1d(3) if side.name == "torch" else side.nn.BatchNorm(3)
    trace = recorded(norm, lambda: None, tmp_path)
    kinds = {name: parameter.kind for name, parameter in trace.params.items()}
    assert (kinds["weight"], kinds["running_mean"], kinds["running_var"]) == ("parameter", "buffer", "buffer")


def test_the_module_list_has_attributes_modes_aliases_and_children(side: SimpleNamespace, x: Any, tmp_path: Path) -> None:
    model = side.Holder()
    model.eval()
    model._private.train()
    trace = recorded({"m": model}, lambda: model(x), tmp_path)
    modules = {module["path"]: module for module in trace.meta["modules"]}
    assert list(modules)[:3] == ["m", "m.blocks.0", "m.blocks.0.lin"] or list(modules)[:3] == ["m", "m._private", "m._private.lin"]
    block = modules["m._private"]
    assert block["attrs"] == {"eps": 1e-3, "_slope": 0.25, "sizes": [2, 3]}
    assert (block["type"], block["training"], block["aliases"]) == ("Block", True, ["m.shared"])
    assert block["children"] == ["m._private.lin"]
    assert modules["m"]["training"] is False
    assert "m.table.b%2Ec%2Fd" in modules["m"]["children"]
    assert modules["m._private.lin"]["file"].startswith(("torch/nn", "mlx/nn"))


def test_the_meta_tells_where_a_trace_comes_from(side: SimpleNamespace, x: Any, tmp_path: Path) -> None:
    model = side.Net()
    meta = recorded(model, lambda: model(x), tmp_path).meta
    assert (meta["impl"], meta["dtype"], meta["mode"], meta["complete"]) == (side.name, "float32", "train", True)
    assert meta["device"] in ("cpu", "gpu", "cuda:0", "mps:0")
    assert {"python", "numpy", side.name} <= set(meta["versions"])
    assert meta["command"]
    assert meta["wall_seconds"] > 0
    json.dumps(meta, allow_nan=False)


def test_scalars_scopes_stages_and_source_lines_are_kept(side: SimpleNamespace, x: Any, tmp_path: Path) -> None:
    model = side.Net()

    def run() -> None:
        with td.stage("outer"), td.stage("inner"), td.scope("ode", 2):
            model.first(x, float("nan"))
            model.first(x, gain=2)

    trace = recorded(model, run, tmp_path)
    first, second = one(trace, "first", "input[0]"), one(trace, "first", "input[0]", 1)
    assert (first.note, second.note) == ({"scalars": {"input[1]": "nan"}}, {"scalars": {"input[gain]": 2}})
    assert (second.stage, second.scope, second.call) == ("inner", "ode=2", "@ode=2/first[1]")
    assert (Path(second.file).name, second.line > 0) == ("test_observe_record.py", True)
    assert trace.meta["stages"] == {"outer": "", "inner": "outer"}


def test_draws_are_recorded_as_they_were_handed_out(side: SimpleNamespace, x: Any, tmp_path: Path) -> None:
    from test_observe_replace import Answers

    model = side.Draws()
    supply = Answers(lambda b: {"draw": np.full((2, 4), 0.5)} if b.site == "!random.normal" else None)
    trace = recorded(model, lambda: model(x), tmp_path, observers=[supply])
    normal, uniform = one(trace, "!random.normal", "draw"), one(trace, "!random.uniform", "draw")
    assert (normal.read() == 0.5).all()
    assert normal.dtype == "float32"
    assert (normal.flags, uniform.flags) == (schema.REPLACED, 0)
    assert (uniform.note["low"], uniform.note["high"], uniform.note["shape"]) == (-3.0, 3.0, [2, 4])


def test_a_replaced_output_is_recorded_as_the_run_made_it(side: SimpleNamespace, x: Any, tmp_path: Path) -> None:
    from test_observe_replace import at

    model = side.Net()
    own = side.numpy(model.first(x))
    trace = recorded(model, lambda: model(x), tmp_path, observers=[at("first", "leave", output=np.ones((2, 4), np.float32))])
    output = one(trace, "first", "output")
    assert (output.read() == own).all()
    assert output.flags == schema.REPLACED
    assert (one(trace, "second", "input[0]").read() == 1).all()
    assert trace.records[one(trace, "#mid", "value").producer].row == output.row


def test_a_failure_is_recorded_where_it_happened_and_the_trace_is_incomplete(side: SimpleNamespace, x: Any, tmp_path: Path) -> None:
    model = side.Failing()
    with pytest.raises(ValueError, match="no such axis"):
        recorded(model, lambda: model(x), tmp_path)
    trace = open_trace(tmp_path / "x.h5")
    assert trace.meta["complete"] is False
    assert [(r.site, r.text()) for r in trace.records if r.dtype == "text"] == [("broken", "ValueError: no such axis")]
    assert [r.site for r in trace.records if r.end == "output"] == ["first.lin", "first", "broken"]


def test_texts_and_token_ids_are_recorded(side: SimpleNamespace, tmp_path: Path) -> None:
    trace = recorded(side.Net(), lambda: (td.tap("text", "grüß\0e"), td.tap("ids", [3, 1, 2])), tmp_path)
    assert one(trace, "#text", "value").text() == "grüß\0e"
    assert one(trace, "#ids", "value").read().tolist() == [3, 1, 2]
    assert one(trace, "#ids", "value").dtype == "int64"


@pytest.mark.parametrize(
    ("options", "sites"),
    [
        ({"include": ["first*"]}, ["first", "first.lin", "first.lin", "first"]),
        ({"exclude": ["*.lin", "#*"]}, ["", "first", "first", "second", "second", "second", ""]),
        ({"include": ["*!*", "second"], "exclude": ["*.lin"]}, ["second", "second", "second"]),
        ({"stages": ["b*"], "include": ["first", "second"]}, ["first", "first", "second", "second", "second"]),
    ],
)
def test_a_selection_by_site_and_stage(
    side: SimpleNamespace, x: Any, tmp_path: Path, options: dict[str, list[str]], sites: list[str]
) -> None:
    model = side.Net()

    def run() -> None:
        with td.stage("a"):
            model.first(x) if "stages" in options else None
        with td.stage("b"), td.stage("inner"):
            model(x)

    trace = recorded(model, run, tmp_path, **options)
    assert [r.site for r in trace.records] == sites
    assert all(r.parent < r.row for r in trace.records)


@pytest.mark.parametrize(
    ("calls", "ordinals"), [(["1"], {1}), (["1-2", "4"], {1, 2, 4}), (["0:3"], {0, 1, 2, 3}), (["3-"], {3, 4}), (["*@n=2*"], {2})]
)
def test_a_selection_of_calls(side: SimpleNamespace, x: Any, tmp_path: Path, calls: list[str], ordinals: set[int]) -> None:
    model = side.Block()

    def run() -> None:
        for n in range(5):
            with td.scope("n", n):
                model(x)

    assert {r.ordinal for r in recorded(model, run, tmp_path, calls=calls).records} == ordinals


def test_a_selection_that_makes_no_sense_is_refused(side: SimpleNamespace, x: Any, tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="'5-2' end before they begin"):
        recorded(side.Net(), lambda: None, tmp_path, calls=["5-2"])


def test_patterns_that_matched_nothing_are_said(side: SimpleNamespace, x: Any, tmp_path: Path) -> None:
    model = side.Net()
    trace = recorded(model, lambda: model(x), tmp_path, include=["first*", "frist*"], exclude=["nothing"], stages=["*", "absent"])
    assert trace.meta["not_seen"] == [
        "include 'frist*': matched no site",
        "exclude 'nothing': matched no site",
        "stages 'absent': matched no stage",
    ]


def test_statistics_only_keeps_no_values(side: SimpleNamespace, x: Any, tmp_path: Path) -> None:
    model = side.Net()
    trace = recorded(model, lambda: model(x), tmp_path, save="stats")
    assert not any(r.stored for r in trace.records)
    assert one(trace, "", "input[0]").stats.count == 8


def test_a_repeating_run_has_no_first_difference_and_another_one_has(side: SimpleNamespace, x: Any, tmp_path: Path) -> None:
    model = side.Draws()
    side.seed(5)
    trace = recorded(model, lambda: model(x), tmp_path)
    again, other = Digests(), Digests()
    side.seed(5)
    observe(model, lambda: model(x), [again])
    observe(model, lambda: model(x), [other])
    assert again.first_difference(trace) is None
    assert other.first_difference(trace) == ("!random.normal", "[0]/!random.normal[0]", "draw")
    assert other.first_difference(again) == ("!random.normal", "[0]/!random.normal[0]", "draw")


def test_the_recorder_may_stand_beside_other_observers(side: SimpleNamespace, x: Any, tmp_path: Path) -> None:
    model = side.Net()
    digests = Digests()
    with TraceWriter(tmp_path / "y.h5") as writer:
        observe(model, lambda: model(x), [digests, Recorder(writer)])
    assert digests.first_difference(open_trace(tmp_path / "y.h5")) is None
