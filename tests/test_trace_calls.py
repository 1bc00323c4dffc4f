"""The calls of a trace as a tree: parents and children, what goes in and out, who made and who takes each record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from judging import Run, aligned, inputs, weights

from tracediff.locate.flow import PairFlow, is_moved_boundary
from tracediff.trace import Trace
from tracediff.trace.calls import TOP


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    """model(x): a and b in order, b takes what a returned; then a outside of the model."""
    run, x, (first, second) = Run(tmp_path / "run.h5"), inputs(), weights(2)
    with run("model", x=x) as leave:
        leave(run.layer("model.b", run.layer("model.a", x, first), second))
    run.layer("model.a", x, first)
    return run.close()


def test_calls_are_numbered_by_their_first_records_and_know_their_parents(trace):
    calls = trace.calls
    assert calls.texts == ["model[0]", "model[0]/.a[0]", "model[0]/.b[0]", "model.a[0]"]
    assert calls.outer == [TOP, 0, 0, TOP]
    assert (calls.children[0], calls.children[TOP]) == ([1, 2], [0, 3])
    assert [calls.site_of(call) for call in range(4)] == ["model", "model.a", "model.b", "model.a"]
    assert list(calls.above(2)) == [0]


def test_each_call_knows_what_went_in_and_out_and_each_record_who_made_and_takes_it(trace):
    calls, records = trace.calls, trace.records
    assert [records[row].end for row in calls.inputs(0)] == ["input[x]"]
    (made,), (taken,) = calls.outputs(1), calls.inputs(2)
    assert calls.producers[taken] == made
    assert taken in calls.takers[made]
    assert not calls.inputs(TOP)


def test_the_tree_is_built_once(trace):
    assert trace.calls is trace.calls


def test_a_call_that_recorded_nothing_stands_between_those_around_and_inside_it(tmp_path):
    from tracediff.trace import TraceWriter, open_trace

    with TraceWriter(tmp_path / "run.h5") as writer:
        writer.add(site="m", call="m[0]", ordinal=0, end="input[x]", values=np.zeros(2))
        writer.add(site="m.block.inner", call="m[0]/.block[0]/@step=1/.inner[0]", ordinal=0, end="output", values=np.zeros(2), parent=0)
    calls = open_trace(tmp_path / "run.h5").calls
    unrecorded = calls.outer[1]
    assert not calls.is_recorded(unrecorded)
    assert (calls.texts[unrecorded], calls.site_of(unrecorded)) == ("m[0]/.block[0]", "m.block")
    assert (calls.outer[unrecorded], calls.children[0], calls.children[unrecorded]) == (0, [unrecorded], [1])
    assert calls.rows_of(unrecorded).size == 0
    assert calls.parent.tolist() == [TOP, 0]  # what the recorder noted passes over it


def test_consumers_are_found_on_either_side_and_behind_the_pair_only_if_asked(tmp_path):
    def model(path: Path, names: tuple[str, str]) -> Trace:
        """A value that two calls take in, which the port makes in the other order."""
        run, x = Run(path), inputs()
        value = run.tap("value", x)
        for name in names:
            run.layer(name, value, weights(1)[0])
        return run.close()

    reference, port = model(tmp_path / "reference.h5", ("a", "b")), model(tmp_path / "port.h5", ("b", "a"))
    pairs = aligned(reference, port).records
    flow, backwards = PairFlow(reference, port, pairs), PairFlow(reference, port, pairs[::-1])
    assert flow.recorded_consumers(0, only_later=True, only_last_of_row=False) == [1, 3]
    last = len(pairs) - 1
    assert backwards.recorded_consumers(last, only_later=True, only_last_of_row=False) == []
    assert backwards.recorded_consumers(last, only_later=False, only_last_of_row=False) == [last - 3, last - 1]


def test_a_boundary_is_moved_only_if_something_consumes_it_and_all_of_that_agrees():
    assert is_moved_boundary([1, 2], lambda i: True)
    assert not is_moved_boundary([1, 2], lambda i: i == 1)
    assert not is_moved_boundary([], lambda i: True)
