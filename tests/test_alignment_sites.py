"""Sites: which module of the port is which of the reference's, whatever they are called and whatever has gone wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
from synthetic import Run, stack

from tracediff.alignment import align
from tracediff.errors import AlignmentError
from tracediff.trace import TraceWriter, open_trace


def drawn(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def stacked(tmp_path_factory):
    reference, port, truth = stack(tmp_path_factory.mktemp("stack"), 6)
    return open_trace(reference), open_trace(port), truth


@pytest.fixture
def aligned(tmp_path):
    def run(reference, port):
        traces = []
        for name, write in (("reference", reference), ("port", port)):
            with TraceWriter(tmp_path / f"{name}.h5", force=True) as writer:
                made = Run(writer)
                write(made)
                writer.set_meta(modules=made.modules)
            traces.append(open_trace(tmp_path / f"{name}.h5"))
        return align(*traces)

    return run


def test_a_stack_of_like_blocks_is_paired_block_by_block(stacked):
    reference, port, truth = stacked
    alignment = align(reference, port)
    assert {site: alignment.port_of.get(site) for site in truth} == truth
    assert not alignment.unpaired
    assert len(alignment.records) == len(reference.records)
    assert all(0.9 <= pair.confidence <= 1 and pair.evidence for pair in alignment.pairs)


def test_a_stack_is_paired_block_by_block_where_every_weight_differs(tmp_path):
    reference, port, truth = stack(tmp_path, 9, different=True)
    alignment = align(open_trace(reference), open_trace(port))
    assert {site: alignment.port_of.get(site) for site in truth} == truth
    assert all(pair.confidence < 0.9 for pair in alignment.pairs if pair.reference)


def test_records_are_paired_in_the_references_execution_order_each_at_most_once(stacked):
    alignment = align(*stacked[:2])
    rows = [row for pair in alignment.records for row in pair.reference]
    assert rows == sorted(set(rows))


def test_an_alignment_is_a_table_and_plain_json(stacked):
    alignment = align(*stacked[:2])
    frame = alignment.to_frame()
    assert list(frame.columns) == ["reference", "port", "layout", "evidence", "confidence"]
    assert len(frame) == len(alignment.pairs)
    assert json.loads(json.dumps(alignment.to_json(), allow_nan=False))["schema"] == "tracediff.alignment/1"


def test_hundreds_of_sites_are_aligned(tmp_path):
    reference, port, truth = stack(tmp_path, 60, width=8)
    alignment = align(open_trace(reference), open_trace(port))
    assert {site: alignment.port_of.get(site) for site in truth} == truth


def test_two_runs_that_share_nothing_are_refused(aligned):
    def reference(run):
        run.module("a", "Linear", {"weight": drawn(5, 4)})
        run.call("a", drawn(2, 5), _0=drawn(2, 4))

    def port(run):
        run.module("z", "Conv2d", {"weight": drawn(3, 3, 7, 7)})
        run.call("z", drawn(1, 3, 30, 30), _0=drawn(1, 3, 32, 32))

    with pytest.raises(AlignmentError, match=r"share nothing.*--map"):
        aligned(reference, port)


def test_a_trace_without_records_is_refused(aligned):
    with pytest.raises(AlignmentError, match="holds no records"):
        aligned(lambda run: run.call("a", drawn(2)), lambda run: None)


def test_swapped_weights_do_not_swap_the_sites(aligned):
    """The port loaded each norm's weights into the other: its sites are still where their inputs say they are."""
    x, y = drawn(3, 8, seed=1), drawn(3, 8, seed=2)
    weights = [1 + 0.2 * drawn(8, seed=seed) for seed in (3, 4)]

    def model(names, order):
        def write(run):
            run.module("", "Block")
            for name, which in zip(names, order, strict=True):
                run.module(name, "LayerNorm", {"weight": weights[which]}, eps=1e-5)
            entered = run.enter("", {"0": x})
            for name, which, given in zip(names, order, (x, y), strict=True):
                run.call(name, given * weights[which], _0=given)
            run.leave(entered, {"output": y})

        return write

    alignment = aligned(model(("norm1", "norm2"), (0, 1)), model(("ln_a", "ln_b"), (1, 0)))
    assert alignment.port_of["norm1"] == "ln_a"
    assert alignment.port_of["norm2"] == "ln_b"


def test_a_wrapper_is_transparent_and_said_to_be_one(aligned):
    w, x, y = drawn(6, 4, 3), drawn(1, 4, 9), drawn(1, 6, 9)

    def reference(run):
        run.module("conv", "Conv1d", {"weight": w})
        run.call("conv", y, _0=x)

    def port(run):
        run.module("conv", "WrappedConv")
        run.module("conv.inner", "Conv1d", {"weight": w.transpose(0, 2, 1)})
        entered = run.enter("conv", {"0": x})
        run.call("conv.inner", y.transpose(0, 2, 1), _0=x.transpose(0, 2, 1))
        run.leave(entered, {"output": y})

    alignment = aligned(reference, port)
    assert alignment.port_of == {"conv": "conv.inner"}
    (wrapper,) = alignment.unpaired
    assert "a wrapper of 'conv.inner'" in wrapper.evidence
    assert {str(pair.layout) for pair in alignment.records} == {"(0, 2, 1)"}


def test_what_was_never_called_in_the_port_is_paired_by_its_parameters(aligned):
    w, b, x = drawn(8, 4), drawn(8, 8, seed=1), drawn(2, 4)

    def model(norm_is_called):
        def write(run):
            run.module("", "Model")
            run.module("up", "Linear", {"weight": w})
            run.module("norm", "LayerNorm", {"weight": 1 + 0.1 * drawn(8)})
            run.module("down", "Linear", {"weight": b})
            entered = run.enter("", {"0": x})
            h = run.call("up", x @ w.T, _0=x)
            h = run.call("norm", h - h.mean(-1, keepdims=True), _0=h) if norm_is_called else h
            run.leave(entered, {"output": run.call("down", h @ b.T, _0=h)})

        return write

    alignment = aligned(model(True), model(False))
    assert alignment.port_of == {"": "", "up": "up", "norm": "norm", "down": "down"}
    assert len(alignment.unpaired_reference) == 2


def test_what_has_no_counterpart_is_listed_with_the_nearest_candidates(aligned):
    def model(*names):
        def write(run):
            run.module("", "Model")
            entered = run.enter("", {"0": drawn(2, 4)})
            for place, name in enumerate(names):
                run.module(name, "Linear", {"weight": drawn(4, 4, seed=place)})
                run.call(name, drawn(2, 4, seed=10 + place), _0=drawn(2, 4, seed=20 + place))
            run.leave(entered, {"output": drawn(2, 4, seed=9)})

        return write

    alignment = aligned(model("a", "b", "c"), model("a", "b"))
    (alone,) = alignment.unpaired
    assert (alone.reference, alone.port, alone.confidence) == ("c", None, 0.0)
    assert alone.evidence == "no counterpart found"


def test_sites_that_only_order_tells_apart_are_called_ambiguous(aligned):
    def model(prefix, seed):
        def write(run):
            run.module("", "Model")
            entered = run.enter("", {"0": drawn(2, 4)})
            for place in range(3):
                run.module(f"{prefix}{place}", "Linear", {"weight": drawn(4, 4, seed=seed + place)})
                run.call(f"{prefix}{place}", drawn(2, 4, seed=seed + 10 + place), _0=drawn(2, 4, seed=seed + 20 + place))
            run.leave(entered, {"output": drawn(2, 4, seed=seed)})

        return write

    alignment = aligned(model("a", 0), model("z", 500))
    assert [alignment.port_of[f"a{place}"] for place in range(3)] == ["z0", "z1", "z2"]
    unsure = {pair.reference: pair for pair in alignment.ambiguous}
    assert set(unsure) == {"a0", "a1", "a2"}
    assert set(unsure["a1"].ambiguous) == {"z0", "z2"}
    assert all(pair.confidence < 0.6 for pair in unsure.values())


def test_a_level_that_one_side_lacks_is_taken_apart(aligned):
    weights = [drawn(8, 8, seed=seed) for seed in range(4)]

    def model(*levels):
        def write(run):
            run.module("", "Model")
            outer = run.enter("", {"0": drawn(2, 8)})
            for level, places in levels:
                entered = run.enter(level, {"0": drawn(2, 8, seed=50)}) if level else None
                if level:
                    run.module(level, "Block")
                for place in places:
                    path = f"{level}.{place}" if level else f"l{place}"
                    run.module(path, "Linear", {"weight": weights[place]})
                    run.call(path, drawn(2, 8, seed=10 + place), _0=drawn(2, 8, seed=20 + place))
                if entered:
                    run.leave(entered, {"output": drawn(2, 8, seed=60)})
            run.leave(outer, {"output": drawn(2, 8, seed=70)})

        return write

    alignment = aligned(model(("body", (0, 1, 2)), ("", (3,))), model(("", (0, 1, 2, 3))))
    assert {ours: theirs for ours, theirs in alignment.port_of.items() if ours} == {
        "body.0": "l0",
        "body.1": "l1",
        "body.2": "l2",
        "l3": "l3",
    }
    assert alignment.nearest_paired("body.9.inner") == ""


def test_a_level_is_paired_although_the_reference_also_runs_what_lies_in_it_by_itself(aligned):
    """A reference with more stages than the port: its layers are called at the top first, and only later inside the method."""
    weights = [drawn(8, 8, seed=seed) for seed in range(8)]

    def model(*runs):
        def write(run):
            run.module("net", "Net")
            for place in range(8):
                run.module(f"net.{place}", "Linear", {"weight": weights[place]})
            for method, places in runs:
                entered = run.enter(method, {"0": drawn(2, 8, seed=50 + len(places))}) if method else None
                for place in places:
                    run.call(f"net.{place}", drawn(2, 8, seed=10 * len(places) + place), _0=drawn(2, 8, seed=20 * len(places) + place))
                if entered:
                    run.leave(entered, {"output": drawn(2, 8, seed=60 + len(places))})

        return write

    both, one = model(("", range(7)), ("net:infer", range(8))), model(("net:infer", range(8)))
    for sides in ((both, one), (one, both)):
        alignment = aligned(*sides)
        assert alignment.port_of["net:infer"] == "net:infer"
        assert {f"net.{place}" for place in range(8)} <= alignment.port_of.keys()
