"""What observers are shown: sites, calls, ends, moments, scopes, stages and source lines."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_observe_inert import Sites

import tracediff as td
from tracediff.errors import CaptureError
from tracediff.observe import observe, record
from tracediff.observe.observer import Boundary
from tracediff.observe.tree import discover


class Boundaries(Sites):
    """Keeps the boundaries too."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[Boundary] = []

    def see(self, boundary: Boundary) -> None:
        super().see(boundary)
        self.all.append(boundary)

    def one(self, site: str, moment: str = "enter", ordinal: int = 0) -> Boundary:
        return next(b for b in self.all if (b.site, b.moment, b.ordinal) == (site, moment, ordinal))

    def ends(self, site: str, moment: str = "enter") -> list[str]:
        return [end for end, _ in self.one(site, moment).leaves]


def seen(models: Any, run: Any, **options: Any) -> Boundaries:
    boundaries = Boundaries()
    observe(models, run, [boundaries], **options)
    return boundaries


def test_modules_in_lists_dicts_private_attributes_and_under_two_names_are_seen(side: SimpleNamespace, x: Any) -> None:
    model = side.Holder()
    found = seen(model, lambda: model(x))
    expected = ["blocks.0", "blocks.1.0", "table.a", "table.b%2Ec%2Fd", "_private", "_private"]
    assert [site for site in found.sites() if site and not site.endswith(".lin")] == expected
    shared = next(node for node in found.run.modules if node.path == "_private")
    assert shared.aliases == ["shared"]
    assert [call for site, moment, call in found.seen if (site, moment) == ("_private", "enter")] == [
        "[0]/_private[0]",
        "[0]/_private[1]",
    ]


def test_several_models_are_named_by_their_keys_or_positions(side: SimpleNamespace, x: Any) -> None:
    one, two = side.Block(), side.Block()
    assert seen({"enc": one, "dec": two}, lambda: two(one(x))).sites() == ["enc.lin", "enc", "dec.lin", "dec"]
    assert seen((one, two), lambda: two(x)).sites() == ["1.lin", "1"]


def test_an_object_that_holds_models_is_as_good_as_a_mapping(side: SimpleNamespace, x: Any) -> None:
    class Pipeline:
        def __init__(self) -> None:
            self.voice = side.Block()
            self.tools = SimpleNamespace(tokenizer=side.Block())
            self.layers = [side.Block()]

        def generate(self, x: Any) -> Any:
            return self.layers[0](self.tools.tokenizer(self.voice(x)))

    pipeline = Pipeline()
    found = seen(pipeline, lambda: pipeline.generate(x), methods=[":generate"])
    assert [site for site in found.sites() if "lin" not in site] == ["voice", "tools.tokenizer", "layers.0", ":generate"]
    assert found.one("voice").call == ":generate[0]/voice[0]"


def test_inputs_keep_their_names_and_scalars_are_noted(side: SimpleNamespace, x: Any) -> None:
    model = side.Net()
    found = seen(model, lambda: (model(x), model.first(x, gain=2.5)))
    assert found.ends("second") == ["input[0]", "input[gain]"]
    assert found.ends("second", "leave") == ["output"]
    assert found.one("first", ordinal=1).note == {"scalars": {"input[gain]": 2.5}}


def test_containers_are_flattened_with_their_keys(side: SimpleNamespace, x: Any) -> None:
    model = side.Middle()
    found = seen(model, lambda: model(x))
    assert found.ends("inner") == ["input[0][0]", "input[0][1]", "input[1].bias[0]"]
    assert found.ends("inner", "leave") == [
        "output.hidden",
        "output.extras.pair.first",
        "output.extras.pair.second",
        "output.extras.list[0]",
        "output.extras.list[2]",
        "output.extras.frozen.hidden",
    ]


def test_attention_and_softmax_are_sites_with_canonical_names(side: SimpleNamespace, x: Any) -> None:
    model = side.Attention()
    mask = side.array(np.zeros((2, 2), np.float32))
    found = seen({"attn": model}, lambda: model(x, mask))
    assert found.ends("attn!attention") == ["input[q]", "input[k]", "input[v]", "input[mask]", "attr[scale]", "attr[causal]"]
    assert found.values["attn[0]/!attention[0]", "attr[scale]"] == 0.5
    assert found.ends("attn!attention", "leave") == ["output"]
    assert found.ends("attn!softmax") == ["input[0]", "attr[axis]"]
    assert found.values["attn[0]/!softmax[0]", "attr[axis]"] == -1


def test_methods_are_sites_by_name_and_by_glob(side: SimpleNamespace, x: Any) -> None:
    model = side.Bypassed()
    for pattern in ("net:encode", "n*:enc*"):
        found = seen(model, lambda: model(x), methods=[pattern])
        assert found.one("net:encode").call == "[0]/net:encode[0]"
        assert found.one("net.first").call == "[0]/net:encode[0]/.first[0]"


def test_a_generator_keeps_its_frame_and_each_value_is_a_tap(side: SimpleNamespace, x: Any) -> None:
    model = side.Net()

    def run() -> list[Any]:
        values = []
        for value in model.steps(x):
            td.tap("between", value)
            values.append(side.numpy(value))
        return values

    bare = run()
    found = Boundaries()
    values = observe(model, run, [found], methods=[":steps"])
    assert [v.tobytes() for v in values] == [v.tobytes() for v in bare]
    assert [b.call for b in found.all if b.site == "first" and b.moment == "enter"] == [f":steps[0]/first[{n}]" for n in range(3)]
    assert [b.call for b in found.all if b.site == "#steps"] == [f":steps[0]/#steps[{n}]" for n in range(3)]
    assert [b.call for b in found.all if b.site == "#between"] == [f"#between[{n}]" for n in range(3)]


def test_a_generator_left_half_way_leaves_no_frame(side: SimpleNamespace, x: Any) -> None:
    model = side.Net()

    def scoped() -> Any:
        for token in range(5):
            with td.scope("token", token):
                yield model.first(x)

    def run() -> None:
        loop = scoped()
        next(loop)
        next(loop)
        loop.close()
        td.tap("after", x)

    found = seen(model, run)
    assert [b.scope for b in found.all if b.site == "first" and b.moment == "enter"] == ["token=0", "token=1"]
    assert found.one("#after", "value").call == "#after[0]"


def test_a_call_says_frames_numbers_and_scopes(side: SimpleNamespace, x: Any) -> None:
    model = side.Net()

    def run() -> None:
        for step in range(2):
            with td.scope("ode", step), td.scope("half", "a/b"):
                model(x)

    found = seen({"flow": model}, run)
    assert found.one("flow.first.lin", ordinal=1).call == "@ode=1/@half=a%2Fb/flow[1]/.first[0]/.lin[0]"
    assert found.one("flow.first.lin", ordinal=1).scope == "ode=1/half=a%2Fb"


def test_a_record_belongs_to_the_innermost_stage(side: SimpleNamespace, x: Any) -> None:
    model = side.Net()

    def run() -> None:
        with td.stage("whole"):
            model.first(x)
            with td.stage("part"):
                model.second(x)
        model(x)

    found = seen(model, run)
    assert [found.one(site, ordinal=n).stage for site, n in (("first", 0), ("second", 0), ("first", 1))] == ["whole", "part", ""]
    assert found.run.stages == {"whole": "", "part": "whole"}


def test_a_tap_may_hold_tensors_text_numbers_token_ids_and_arrays(side: SimpleNamespace, x: Any) -> None:
    values = {"text": "halló", "ids": [1, 2, 3], "count": 3, "numpy": np.arange(2), "tensor": x, "none": None}

    def run() -> Any:
        return td.tap("all", values)

    found = seen(side.Net(), run)
    assert observe(side.Net(), run, [Sites()]) is values
    assert found.ends("#all", "value") == ["value.text", "value.ids", "value.count", "value.numpy", "value.tensor"]
    assert found.values["#all[0]", "value.ids"].dtype == np.int64
    assert found.values["#all[0]", "value.text"] == "halló"


def test_the_source_line_is_the_models_own(side: SimpleNamespace, x: Any) -> None:
    model = side.Net()
    found = seen(model, lambda: model(x))
    lines, first = inspect.getsourcelines(type(model).forward)
    line = next(number for number, text in enumerate(lines, first) if "self.second(" in text)
    for site, moment in (("second", "enter"), ("second", "leave"), ("first", "enter"), ("#mid", "value")):
        assert (found.one(site, moment).file.rpartition("/")[2], found.one(site, moment).line) == ("models.py", line)


def test_a_sequential_container_is_not_the_caller(side: SimpleNamespace, x: Any) -> None:
    model = side.nn.Sequential(side.nn.Linear(4, 4), side.nn.ReLU())
    found = seen(model, lambda: model(x))
    assert {b.file.rpartition("/")[2] for b in found.all} == {"test_observe_sites.py"}


def test_a_changed_input_is_shown_as_it_was_and_as_it_became(side: SimpleNamespace, x: Any) -> None:
    model = side.Changed()
    found = seen(model, lambda: model(x))
    before = found.values["[0]/changes[0]", "input[0]"]
    assert (before == side.numpy(x)).all()
    after = found.values["[0]/changes[0]", "output.input[0]"]
    assert (after[0] == 7).all()
    assert (after[1] == before[1] + 1).all()
    assert found.one("changes", "leave").mutated == ("output.input[0]",)


def test_inputs_of_a_single_model_may_be_given_instead_of_a_run(side: SimpleNamespace, x: Any) -> None:
    model = side.Block()
    expected = side.numpy(model(x))
    values = side.numpy(x)
    for inputs in (x, values, (values,), {"x": values}):
        assert side.numpy(observe(model, inputs, [])).tobytes() == expected.tobytes()
    assert side.numpy(observe({"m": model}, values, [])).tobytes() == expected.tobytes()
    with pytest.raises(CaptureError, match="no single model"):
        observe({"a": model, "b": model}, values, [])


def test_a_run_that_needs_arguments_is_refused_with_what_to_give_instead(side: SimpleNamespace, x: Any) -> None:
    with pytest.raises(CaptureError, match=r"The run '<lambda>' is called without arguments.*lambda: model\(x\)"):
        observe(side.Block(), lambda model: model(x), [])


def test_draws_are_shown_with_their_arguments(side: SimpleNamespace, x: Any) -> None:
    model = side.Draws()
    found = seen({"m": model}, lambda: model(x))
    draws = {b.site: b for b in found.all if b.moment == "draw"}
    assert list(draws) == ["m!random.normal", "m!random.uniform", "m!random.categorical"]
    assert draws["m!random.normal"].note.items() >= {"mean": 0.0, "std": 1.0, "shape": [2, 4], "dtype": "float32"}.items()
    assert draws["m!random.uniform"].note.items() >= {"low": -3.0, "high": 3.0}.items()
    assert all(end == "draw" for b in draws.values() for end, _ in b.leaves)


def test_dropout_is_a_draw_in_training_and_nothing_in_evaluation(side: SimpleNamespace, x: Any) -> None:
    model = side.Dropping()
    model.train()
    found = seen(model, lambda: model(x))
    draw = found.one("drop!dropout", "draw")
    assert (draw.call, draw.note["p"], draw.note["dtype"]) == ("[0]/drop[0]/!dropout[0]", 0.5, "bool")
    kept = found.values["[0]/drop[0]/!dropout[0]", "draw"]
    assert ((found.values["[0]/drop[0]", "output"] != 0) == kept).all()
    model.eval()
    assert not [b for b in seen(model, lambda: model(x)).all if b.moment == "draw"]


def test_what_was_not_seen_is_said(side: SimpleNamespace, x: Any) -> None:
    model = side.Bypassed()

    def run() -> None:
        model(x)
        model.late = side.Block()

    found = seen(model, run, methods=["net:decode", "net.second:forward"], functions=["no_such_package.**"])
    text = "\n".join(found.run.not_seen)
    assert "method 'net:decode': there is none" in text
    assert "functions 'no_such_package.**': there are none" in text
    assert "module 'unused': never called (Block)" in text
    assert "unused.lin" not in text
    assert "module 'net': bypassed; 'net.first' inside it was called by" in text
    assert "Net.encode" in text
    assert "module 'net.second': never called" in text
    assert "module 'late': made during the run (Block)" in text
    assert "late.lin" not in text


def test_named_functions_are_sites_wherever_they_were_imported(side: SimpleNamespace, x: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import ModuleType

    package = ModuleType("toy_dsp")
    exec("def loudness(x, gain=2.0):\n    return x * gain\ndef _hidden(x): return x\n", package.__dict__)
    user = ModuleType("toy_dsp.user")
    user.loudness = package.loudness
    monkeypatch.setitem(sys.modules, "toy_dsp", package)
    monkeypatch.setitem(sys.modules, "toy_dsp.user", user)
    original = package.loudness
    found = seen(None, lambda: user.loudness(x, gain=3.0), functions=["toy_dsp.**"], impl=side.name)
    assert found.ends("!loudness") == ["input[x]"]
    assert found.one("!loudness").note == {"scalars": {"input[gain]": 3.0}}
    assert user.loudness is package.loudness is original


def test_without_models_taps_and_draws_are_seen(side: SimpleNamespace, x: Any) -> None:
    found = seen(None, lambda: td.tap("x", side.softmax(x) + side.normal(2, 4)))
    assert [b.site for b in found.all] == ["!softmax", "!softmax", "!random.normal", "#x"]


def test_patterns_must_be_lists_and_well_formed(side: SimpleNamespace) -> None:
    with pytest.raises(CaptureError, match=r"methods=\['a:b'\]"):
        observe(side.Net(), lambda: None, [], methods="a:b")
    with pytest.raises(CaptureError, match="no method; write 'path:method'"):
        observe(side.Net(), lambda: None, [], methods=["encode"])


def test_no_module_at_all_is_an_error(side: SimpleNamespace) -> None:
    from tracediff.observe.adapters.registry import named

    with pytest.raises(CaptureError, match=r"No .* module found in 'int'"):
        discover(3, named(side.name))


def test_recording_a_block_of_code_sees_loops(side: SimpleNamespace, x: Any) -> None:
    model, sites = side.Net(), Boundaries()
    with record(model, [sites]) as run:
        for token in range(2):
            with td.scope("token", token):
                model(x)
    assert [b.call for b in sites.all if b.site == "" and b.moment == "enter"] == ["@token=0/[0]", "@token=1/[1]"]
    assert run.not_seen == []


def test_a_run_may_take_its_models_apart(side: SimpleNamespace, x: Any) -> None:
    models = [side.Block()]
    found = seen(models, lambda: models.pop()(x))
    assert found.sites() == ["0.lin", "0"]


def test_a_module_that_holds_its_owner_is_no_endless_tree(side: SimpleNamespace, x: Any) -> None:
    model = side.Net()
    model.first.owner = [model]
    found = seen({"m": model}, lambda: model(x))
    assert next(node for node in found.run.modules if node.path == "m").aliases == ["m.first.owner.0"]
    assert found.sites()[-1] == "m"


def test_parts_of_a_shared_module_have_all_their_names(side: SimpleNamespace) -> None:
    found = seen(side.Holder(), lambda: None)
    assert next(node for node in found.run.modules if node.path == "_private.lin").aliases == ["shared.lin"]
