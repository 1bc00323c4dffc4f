"""Records: ends, calls and layouts of paired sites, on made-up traces small enough to read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from synthetic import Run

from tracediff.alignment import Alignment, align
from tracediff.alignment.axes import apply, apply_reference, relative_error
from tracediff.trace import Trace, TraceWriter, open_trace

Write = Callable[[Run], None]


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


class Stored(Run):
    """A run whose values are stored, and whose records know their producers by content."""

    def add(self, site: str, number: int, end: str, values: np.ndarray) -> int:
        made = self.__dict__.setdefault("made", {})
        key = values.tobytes()
        parent = self.frames[-1][1] if self.frames else -1
        row = self.writer.add(
            site=site,
            call=f"{site}[{number}]",
            ordinal=number,
            end=end,
            values=values,
            parent=parent,
            producer=made.get(key, -1) if end.startswith("input") else -1,
        )
        made.setdefault(key, row)
        return row


@pytest.fixture
def aligned(tmp_path: Path) -> Callable[[Write, Write], tuple[Alignment, Trace, Trace]]:
    def run(reference: Write, port: Write) -> tuple[Alignment, Trace, Trace]:
        traces = []
        for name, write in (("reference", reference), ("port", port)):
            with TraceWriter(tmp_path / f"{name}.h5") as writer:
                run = Stored(writer)
                write(run)
                writer.set_meta(modules=run.modules)
            traces.append(open_trace(tmp_path / f"{name}.h5"))
        return align(*traces), traces[0], traces[1]

    return run


def found(result: tuple[Alignment, Trace, Trace]) -> dict[tuple[str, str], tuple[str, str, str]]:
    """By the reference's (site, end): the port's, and the layout."""
    alignment, reference, port = result
    return {
        (reference.records[pair.reference[0]].site, reference.records[pair.reference[0]].end): (
            port.records[pair.port[0]].site,
            port.records[pair.port[0]].end,
            "no layout" if pair.layout is None else str(pair.layout),
        )
        for pair in alignment.records
    }


W = drawn(6, 4, seed=9)


def linear(run: Run, path: str) -> None:
    run.module(path, "Linear", {"weight": W})


def test_arguments_are_paired_by_what_they_hold_not_by_their_position(aligned):
    x, mask = drawn(2, 4), drawn(2, 4, seed=1)

    def reference(run):
        linear(run, "f")
        run.call("f", x @ W.T, _0=x, _1=mask)

    def port(run):
        linear(run, "g")
        run.call("g", x @ W.T, _0=mask, _1=x)

    pairs = found(aligned(reference, port))
    assert pairs["f", "input[0]"][1] == "input[1]"
    assert pairs["f", "input[1]"][1] == "input[0]"


def test_arguments_with_names_are_paired_by_them_even_after_a_fault(aligned):
    def run_with(names, seed):
        def write(run):
            linear(run, "f")
            run.call("f", drawn(2, 6, seed=seed), **{name: drawn(2, 4, seed=seed + place) for place, name in enumerate(names)})

        return write

    pairs = found(aligned(run_with(["key", "value"], 3), run_with(["value", "key"], 30)))
    assert pairs["f", "input[key]"][1] == "input[key]"
    assert pairs["f", "input[value]"][1] == "input[value]"


def test_one_call_of_a_sequence_is_many_calls_of_its_steps(aligned):
    x = drawn(1, 8, 4)

    def reference(run):
        linear(run, "f")
        run.call("f", x @ W.T, _0=x)

    def port(run):
        linear(run, "g")
        for step in range(8):
            run.call("g", x[:, step] @ W.T, _0=x[:, step])

    alignment, a, b = result = aligned(reference, port)
    assert found(result)["f", "output"][2] == "stacked on axis 1"
    for pair in alignment.records:
        assert len(pair.port) == 8
        theirs = apply([b.records[row].read() for row in pair.port], pair.layout)
        assert relative_error(apply_reference(a.records[pair.reference[0]].read(), pair.layout), theirs) < 1e-6


@pytest.mark.parametrize("fault", [0.0, 5.0])
def test_steps_as_many_as_sequences_are_stacked_on_the_axis_that_values_say(aligned, fault):
    """Also where a fault silenced what the steps return."""
    x = drawn(4, 4, 4)

    def reference(run):
        linear(run, "f")
        run.call("f", x @ W.T, _0=x)

    def port(run):
        linear(run, "g")
        for step in range(4):
            run.call("g", x[:, step] @ W.T + fault * drawn(4, 6, seed=step), _0=np.ascontiguousarray(x[:, step]))

    assert {layout for _, _, layout in found(aligned(reference, port)).values()} == {"stacked on axis 1"}


def test_a_prefill_in_unequal_chunks_and_a_last_token_are_joined(aligned):
    x = drawn(1, 9, 4)

    def in_chunks(*lengths):
        def write(run):
            linear(run, "f")
            for start, stop in zip(np.cumsum([0, *lengths]), np.cumsum(lengths), strict=False):
                run.call("f", x[:, start:stop] @ W.T, _0=x[:, start:stop])

        return write

    alignment, _, _ = aligned(in_chunks(8, 1), in_chunks(3, 5, 1))
    assert [(len(pair.reference), len(pair.port)) for pair in alignment.records] == [(1, 2), (1, 2), (1, 1), (1, 1)]


def test_a_missing_call_shifts_the_later_ones(aligned):
    xs = [drawn(2, 4, seed=seed) for seed in range(5)]

    def calling(*which):
        def write(run):
            linear(run, "f")
            for number in which:
                run.call("f", xs[number] @ W.T, _0=xs[number])

        return write

    alignment, a, b = aligned(calling(0, 1, 2, 3, 4), calling(0, 2, 3, 4))
    ordinals = [(a.records[pair.reference[0]].ordinal, b.records[pair.port[0]].ordinal) for pair in alignment.records]
    assert sorted(set(ordinals)) == [(0, 0), (2, 1), (3, 2), (4, 3)]
    assert [a.records[row].ordinal for row in alignment.unpaired_reference] == [1, 1]


def test_calls_are_paired_inside_the_calls_of_their_callers(aligned):
    x = drawn(2, 4)

    def calling(*counts):
        def write(run):
            run.module("", "Model")
            linear(run, "f")
            for step, count in enumerate(counts):
                entered = run.enter("", {"0": drawn(3, seed=step)})
                for number in range(count):
                    y = x + step + 10 * number
                    run.call("f", y @ W.T, _0=y)
                run.leave(entered, {"output": drawn(3, seed=step + 50)})

        return write

    alignment, a, b = aligned(calling(2, 2, 1), calling(2, 1, 1))
    pairs = {
        (a.records[p.reference[0]].ordinal, b.records[p.port[0]].ordinal)
        for p in alignment.records
        if a.records[p.reference[0]].site == "f"
    }
    assert pairs == {(0, 0), (1, 1), (2, 2), (4, 3)}


def test_a_transposed_square_is_a_layout_where_its_consumer_agrees(aligned):
    x, deep = drawn(1, 4, 4), drawn(4, 4, seed=2)

    def write(port: bool):
        def run_it(run):
            run.module("a", "Linear", {"weight": drawn(4, 4, seed=5)})
            run.module("b", "Linear", {"weight": deep})
            made = x.transpose(0, 2, 1) if port else x
            run.call("a", made, _0=drawn(1, 4, 4, seed=6))
            run.call("b", x @ deep, _0=made)

        return run_it

    assert found(aligned(write(False), write(True)))["a", "output"][2] == "(0, 2, 1)"


def test_a_transposed_square_is_an_error_where_its_consumer_gives_out_something_else(aligned):
    x, deep = drawn(1, 4, 4), drawn(4, 4, seed=2)

    def write(port: bool):
        def run_it(run):
            run.module("a", "Linear", {"weight": drawn(4, 4, seed=5)})
            run.module("b", "Linear", {"weight": deep})
            made = x.transpose(0, 2, 1) if port else x
            run.call("a", made, _0=drawn(1, 4, 4, seed=6))
            run.call("b", made @ deep, _0=made)

        return run_it

    assert found(aligned(write(False), write(True)))["a", "output"][2] == "same"


def test_padding_before_the_call_is_seen_through_but_an_output_of_another_length_is_not(aligned):
    x = drawn(1, 6, 10)

    def write(port: bool):
        def run_it(run):
            run.module("conv", "Conv1d", {"weight": drawn(6, 6, 3).transpose(0, 2, 1) if port else drawn(6, 6, 3)})
            given = np.pad(x, ((0, 0), (0, 0), (2, 0))).transpose(0, 2, 1) if port else x
            run.call("conv", drawn(1, 11, 6) if port else drawn(1, 6, 10), _0=given)

        return run_it

    pairs = found(aligned(write(False), write(True)))
    assert "window" in pairs["conv", "input[0]"][2]
    assert pairs["conv", "output"][2] == "no layout"


def test_the_parts_of_a_fused_projection_are_read_out_of_its_output(aligned):
    x, heads = drawn(1, 5, 4), [drawn(6, 4, seed=seed) for seed in range(3)]

    def reference(run):
        for name, weight in zip("qkv", heads, strict=True):
            run.module(name, "Linear", {"weight": weight})
            run.call(name, x @ weight.T, _0=x)

    def port(run):
        whole = np.concatenate(heads)
        run.module("qkv", "Linear", {"weight": whole})
        run.call("qkv", x @ whole.T, _0=x)

    for first, second in ((reference, port), (port, reference)):
        alignment, a, b = aligned(first, second)
        outputs = [pair for pair in alignment.records if a.records[pair.reference[0]].end == "output"]
        assert len(outputs) == 3
        for pair in outputs:
            ours, theirs = a.records[pair.reference[0]].read(), b.records[pair.port[0]].read()
            assert relative_error(apply_reference(ours, pair.layout), apply(theirs, pair.layout)) < 1e-6
        a.close(), b.close()
        a.path.unlink(), b.path.unlink()


def test_an_output_that_one_side_alone_has_is_left_unpaired(aligned):
    x = drawn(2, 4)

    def write(*more):
        def run_it(run):
            linear(run, "f")
            entered = run.enter("f", {"0": x})
            run.leave(entered, {"output[0]": x @ W.T, **{f"output[{1 + place}]": values for place, values in enumerate(more)}})

        return run_it

    alignment, a, _ = aligned(write(drawn(7, 3), drawn(3)), write(drawn(5, 5)))
    assert [a.records[row].end for row in alignment.unpaired_reference] == ["output[1]", "output[2]"]
