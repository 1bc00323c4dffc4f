"""locate: the first divergence is where the error was made, by scan and by bisection alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from judging import Fault, Run, aligned, bumped, inputs, noisy, scaled, weights

from tracediff.alignment import Alignment, Layout, RecordPair, SitePair
from tracediff.alignment.axes import Part
from tracediff.dtype import Array
from tracediff.errors import TracediffError
from tracediff.locate import Length, Located, locate
from tracediff.metrics import Metrics
from tracediff.trace import Record, Trace

BLOCKS = 5
SITES = [
    "",
    "embed",
    *(f"blocks.{i}{part}" for i in range(BLOCKS) for part in ("", ".norm", ".attn", ".attn.q", ".attn.k", ".mlp")),
    "head",
]
LEAVES = [site for site in SITES if site and not site.endswith(".attn") and not site[-1].isdigit()]


def model(run: Run, x: Array) -> Array:
    """A small residual model: embed, blocks of norm, attention (q and k) and mlp, head."""
    w = iter(weights(2 + 4 * BLOCKS))
    x = run.hand("", x)
    with run("", ids=x) as leave:
        h = run.layer("embed", x, next(w))
        for i in range(BLOCKS):
            h = block(run, f"blocks.{i}", h, w)
        return np.asarray(leave(run.layer("head", h, next(w))))


def block(run: Run, site: str, h: Array, w: Any) -> Array:
    h = run.hand(site, h)
    with run(site, h=h) as leave:
        normed = run.layer(f"{site}.norm", h, next(w))
        with run(f"{site}.attn", x=run.hand(f"{site}.attn", normed)) as attended:
            q = run.layer(f"{site}.attn.q", normed, next(w))
            k = run.layer(f"{site}.attn.k", normed, next(w))
            mixed = attended((q * k + q).astype(np.float32))
        h = (h + mixed).astype(np.float32)
        made: Array = leave((h + run.layer(f"{site}.mlp", h, next(w))).astype(np.float32))
    return made


Pair = Callable[..., tuple[Trace, Trace]]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Records the reference, and a port with faults and the noise of another order of summation everywhere."""
    return lambda **planted: record_pair(tmp_path, **planted)


def record_pair(
    folder: Path,
    *,
    run: Callable[[Run, Array], Any] = model,
    faults: Mapping[str, Fault] | None = None,
    glue: Mapping[str, Fault] | None = None,
    noise: float = 3e-7,
    **meta: Any,
) -> tuple[Trace, Trace]:
    traces = []
    quiet = dict.fromkeys(SITES, noisy(noise)) if noise else {}
    for side, planted in (("ref", {}), ("port", {**quiet, **(faults or {})})):
        file = folder / f"{side}.h5"
        file.unlink(missing_ok=True)
        recorder = Run(file, faults=planted, glue=glue if side == "port" else {}, **meta)
        run(recorder, inputs())
        traces.append(recorder.close())
    return traces[0], traces[1]


def found(traces: tuple[Trace, Trace], **options: Any) -> Located:
    return locate(aligned(*traces), *traces, **options)


def place(located: Located, traces: tuple[Trace, Trace]) -> tuple[str, str, str] | None:
    """Site and end of the first divergence, and its culprit."""
    if located.first is None:
        return None
    record = traces[0].records[located.comparisons[located.first.place].pair.reference[0]]
    return record.site, record.end, located.first.culprit[0]


def _is_output_of(record: Record, site: str) -> bool:
    return record.site == site and record.end == "output"


class TestCulprits:
    @pytest.mark.parametrize("scan", [True, False])
    @pytest.mark.parametrize("site", ["embed", "blocks.0.norm", "blocks.2.attn.k", "blocks.4.mlp", "head"])
    def test_a_faulty_leaf_is_named_not_its_victims_or_containers(self, pair: Pair, site: str, scan: bool) -> None:
        traces = pair(faults={site: bumped})
        assert place(found(traces, scan=scan), traces) == (site, "output", site)

    def test_every_leaf_is_found_wherever_it_stands(self, pair: Pair) -> None:
        for site in LEAVES:
            traces = pair(faults={site: bumped})
            for scan in (True, False):
                assert place(found(traces, scan=scan), traces) == (site, "output", site)

    @pytest.mark.parametrize("scan", [True, False])
    def test_a_containers_own_code_is_named_by_its_output(self, pair: Pair, scan: bool) -> None:
        traces = pair(faults={"blocks.1.attn": bumped})
        assert place(found(traces, scan=scan), traces) == ("blocks.1.attn", "output", "blocks.1.attn")

    @pytest.mark.parametrize("scan", [True, False])
    def test_a_faulty_input_with_clean_sources_blames_the_caller(self, pair: Pair, scan: bool) -> None:
        traces = pair(glue={"blocks.3.mlp": bumped})
        assert place(found(traces, scan=scan), traces) == ("blocks.3.mlp", "input[x]", "blocks.3")

    @pytest.mark.parametrize("scan", [True, False])
    def test_inputs_that_differ_from_the_start_are_no_modules_fault(self, pair: Pair, scan: bool) -> None:
        traces = pair(glue={"": bumped})
        located = found(traces, scan=scan)
        assert place(located, traces) == ("", "input[ids]", "")
        assert located.first is not None
        assert located.first.blame == "input"

    def test_an_input_that_is_a_modules_uncompared_output_blames_that_module(self, pair: Pair) -> None:
        traces = pair(faults={"blocks.2.norm": bumped})
        whole = aligned(*traces)
        kept = tuple(one for one in whole.records if not _is_output_of(traces[0].records[one.reference[0]], "blocks.2.norm"))
        located = locate(replace(whole, records=kept), *traces, scan=True)
        assert located.first is not None
        assert located.first.culprit == ("blocks.2.norm", "blocks.2.norm")

    def test_noise_of_a_place_that_the_port_does_not_have_passes_on_in_a_forced_run(self, pair: Pair) -> None:
        traces = pair(glue={"blocks.3.mlp": lambda value: value * np.float32(1 + 1e-3)}, mode_run="forced")
        row = next(one.row for one in traces[0].records if one.site == "blocks.3.mlp" and one.end == "input[x]")
        before = traces[0].records[row - 1]
        assert before.end == "output"
        floors = dict.fromkeys(range(len(traces[0].records)), 1e-6)
        alignment = aligned(*traces, without=(before.site,))
        noisy_before = locate(alignment, *traces, floors={**floors, row - 1: 1e-3})
        assert [one.place for one in noisy_before.findings if noisy_before.comparisons[one.place].pair.reference == (row,)] == []
        quiet = locate(alignment, *traces, floors=floors)
        assert [one.place for one in quiet.findings if quiet.comparisons[one.place].pair.reference == (row,)] != []

    def test_a_clean_pair_has_no_divergence_and_everything_was_compared(self, pair: Pair) -> None:
        for scan in (True, False):
            located = found(pair(), scan=scan)
            assert located.findings == ()
            assert all(comparison.diverged is False for comparison in located.comparisons)

    def test_draws_that_differ_are_the_culprit(self, pair: Pair) -> None:
        def sampled(run: Run, x: Array) -> None:
            with run("", x=x) as leave:
                noise = run.draw("random.normal", x[::-1].copy())
                leave(run.layer("embed", (x + noise).astype(np.float32), weights(1)[0]))

        traces = pair(run=sampled, faults={"!random.normal": bumped})
        located = found(traces, scan=True)
        assert place(located, traces) == ("!random.normal", "draw", "")
        assert located.first is not None
        assert located.first.blame == "random"

    def test_what_a_draw_went_into_is_not_blamed_even_where_the_draw_was_played(self, pair: Pair) -> None:
        def sampled(run: Run, x: Array) -> None:
            with run("source", x=x) as leave:
                run.flags = 2  # as playback marks its draws
                noise = run.draw("random.normal", x[::-1].copy())
                run.flags = 0
                leave((x + noise).astype(np.float32))

        located = found(pair(run=sampled, faults={"source!random.normal": bumped}), scan=True)
        assert [finding.blame for finding in located.findings] == ["random"]

    def test_two_faults_in_parallel_branches_are_both_found(self, pair: Pair) -> None:
        traces = pair(faults={"blocks.2.attn.q": bumped, "blocks.2.attn.k": bumped})
        located = found(traces, scan=True)
        assert [finding.culprit[0] for finding in located.findings] == ["blocks.2.attn.q", "blocks.2.attn.k"]

    def test_what_arrives_and_the_last_same_pair_are_told(self, pair: Pair) -> None:
        traces = pair(faults={"blocks.2.attn.k": bumped})
        located = found(traces, scan=True)
        first = located.first
        assert first is not None
        assert first.last_same is not None
        assert first.inherited is not None
        assert first.introduced > 1e-2 > 1e-5 > first.inherited > 0
        last = traces[0].records[located.comparisons[first.last_same].pair.reference[0]]
        assert (last.site, last.end) == ("blocks.2.attn.k", "input[x]")

    def test_the_ports_names_are_given_beside_the_references(self, tmp_path: Path) -> None:
        reference, port = record_pair(tmp_path, faults={"blocks.2.mlp": bumped})
        located = locate(aligned(reference, port), reference, port)
        assert located.first is not None
        assert located.first.culprit == ("blocks.2.mlp", "blocks.2.mlp")


class TestUnpairedSites:
    @pytest.mark.parametrize("scan", [True, False])
    def test_a_fault_in_an_unpaired_module_is_charged_to_its_paired_caller_and_suspected(self, pair: Pair, scan: bool) -> None:
        traces = pair(faults={"blocks.1.attn.q": bumped})
        located = locate(aligned(*traces, without=("blocks.1.attn.q",)), *traces, scan=scan)
        assert place(located, traces) == ("blocks.1.attn", "output", "blocks.1.attn")
        assert located.first is not None
        assert ("reference", "blocks.1.attn.q") in located.first.suspects

    @pytest.mark.parametrize("scan", [True, False])
    def test_an_unpaired_wrapper_is_seen_through(self, pair: Pair, scan: bool) -> None:
        for fault in ("blocks.1.attn.q", "blocks.0.mlp"):
            traces = pair(faults={fault: bumped})
            located = locate(aligned(*traces, without=("blocks.1", "blocks.1.attn", "blocks.0")), *traces, scan=scan)
            assert place(located, traces) == (fault, "output", fault)

    def test_outputs_alone_still_give_the_first_in_order(self, pair: Pair) -> None:
        traces = pair(faults={"blocks.2.attn.k": bumped})
        alignment = aligned(*traces)
        outputs = [pair for pair in alignment.records if traces[0].records[pair.reference[0]].end == "output"]
        located = locate(type(alignment)(alignment.pairs, tuple(outputs), (), ()), *traces, scan=True)
        assert [finding.culprit[0] for finding in located.findings] == ["blocks.2.attn.k"]


class TestBisection:
    @given(st.sets(st.sampled_from(LEAVES), min_size=1, max_size=3), st.sampled_from([1e-3, 1e-2, 1.0]))
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_names_the_pair_that_a_scan_names(self, tmp_path: Path, sites: set[str], size: float) -> None:
        generator = np.random.default_rng(len(sites))
        fault: Fault = lambda value: value * (1 + size * generator.standard_normal(value.shape))  # noqa: E731
        traces = record_pair(tmp_path, faults=dict.fromkeys(sites, fault))
        bisected, scanned = found(traces), found(traces, scan=True)
        assert place(bisected, traces) == place(scanned, traces)
        assert bisected.first is not None
        assert scanned.first is not None
        assert bisected.first.culprit == scanned.first.culprit
        assert bisected.read <= scanned.read

    def test_reads_a_fraction_of_a_long_run(self, pair: Pair) -> None:
        def long(run: Run, x: Array) -> None:
            w = weights(1)[0]
            with run("", x=x) as leave:
                for i in range(150):
                    x = run.layer(f"layers.{i}", x + np.float32(0.1), w)
                leave(x)

        quiet = {f"layers.{i}": noisy() for i in range(150)}
        traces = pair(run=long, faults={**quiet, "layers.60": bumped})
        located = found(traces)
        assert place(located, traces) == ("layers.60", "output", "layers.60")
        assert located.read < 0.2 * len(located.comparisons)

    def test_finds_a_fault_that_the_end_of_the_run_does_not_show(self, pair: Pair) -> None:
        def masked(run: Run, x: Array) -> None:
            w = weights(3)
            with run("", x=x) as leave:
                a = run.layer("left", x, w[0])
                run.layer("dead_end", a, w[1])
                leave(run.layer("right", x, w[2]))

        traces = pair(run=masked, faults={"dead_end": lambda value: value[:, ::-1]})
        for scan in (True, False):
            assert place(found(traces, scan=scan), traces) == ("dead_end", "output", "dead_end")

    def test_the_certificate_says_what_the_answer_rests_on(self, pair: Pair) -> None:
        located = found(pair(faults={"blocks.2.attn.k": bumped}))
        certificate = located.certificate
        assert (certificate.method, certificate.predecessors) == ("bisect", 1)
        assert certificate.unread_before + located.read < len(located.comparisons)
        assert located.bytes_read > 0

    def test_what_rests_on_statistics_and_samples_is_told_apart_from_what_was_read(self, pair: Pair) -> None:
        traces = pair(faults={"blocks.3.attn.k": bumped})
        located = found(traces)
        told, whole = located.certificate, found(traces, scan=True)
        assert 0 < told.sampled <= sum(comparison.how == "" for comparison in located.comparisons)
        assert told.unseen_before < told.unread_before
        assert 0 <= told.missed < 1
        assert (whole.certificate.sampled, whole.certificate.missed) == (0, 0.0)
        assert located.read <= whole.read / 10
        assert located.bytes_read < whole.bytes_read / 5

    def test_values_that_changed_places_are_found_although_the_statistics_are_the_same(self, pair: Pair) -> None:
        def turned(value: Array) -> Array:
            return np.ascontiguousarray(value[:, ::-1])

        for site in LEAVES:
            traces = pair(faults={site: turned})
            assert place(found(traces), traces) == (site, "output", site)

    def test_a_single_wrong_value_is_found_although_samples_miss_it(self, pair: Pair) -> None:
        def spoilt(value: Array) -> Array:
            other = value.copy()
            other.reshape(-1)[other.size // 2] += 3
            return other

        for site in LEAVES:
            traces = pair(faults={site: spoilt})
            assert place(found(traces), traces) == (site, "output", site)

    def test_with_a_given_tolerance_nothing_is_taken_to_agree_by_a_sample(self, pair: Pair) -> None:
        located = found(pair(faults={"blocks.3.attn.k": bumped}), rtol=1e-3, atol=1e-4)
        assert located.certificate.sampled == 0

    def test_same_is_never_said_from_a_probe(self, pair: Pair) -> None:
        located = found(pair(), probes=1)
        assert all(comparison.how for comparison in located.comparisons)

    def test_equal_bits_are_never_read(self, pair: Pair) -> None:
        for scan in (True, False):
            located = found(pair(noise=0.0), scan=scan)
            assert (located.read, located.bytes_read) == (0, 0)
            assert {comparison.how for comparison in located.comparisons} == {"digest"}


class TestNoDivergence:
    def scaled_outside(self, factor: float) -> Callable[[Run, Array], None]:
        def run_it(run: Run, x: Array) -> None:
            inner, outer = (1.0, factor) if run.path.name == "ref.h5" else (factor, 1.0)
            w = weights(2)
            with run("", x=x) as leave:
                with run("embed", x=x) as embedded:
                    e = embedded((x @ w[0] * inner).astype(np.float32))
                h = e if outer == 1.0 else (e * outer).astype(np.float32)
                leave(run.layer("layer", h, w[1]))

        return run_it

    @pytest.mark.parametrize("scan", [True, False])
    def test_a_scale_applied_inside_instead_of_outside_is_a_moved_boundary(self, pair: Pair, scan: bool) -> None:
        located = found(pair(run=self.scaled_outside(16.0), noise=0.0), scan=scan)
        assert located.findings == ()
        assert len(located.certificate.moved) == 1

    def test_a_scale_that_is_really_wrong_is_a_divergence(self, pair: Pair) -> None:
        traces = pair(faults={"embed": lambda value: value * 16})
        assert place(found(traces, scan=True), traces) == ("embed", "output", "embed")

    def test_a_bias_applied_outside_is_a_moved_boundary_where_the_consumer_was_recorded(self, pair: Pair) -> None:
        def run_it(run: Run, x: Array) -> None:
            inner, outer = (0.0, 1.0) if run.path.name == "ref.h5" else (1.0, 0.0)
            w = weights(2)
            with run("", x=x) as leave:
                with run("proj", x=x) as projected:
                    e = projected((x @ w[0] + inner).astype(np.float32))
                h = e if outer == 0.0 else (e + outer).astype(np.float32)
                leave(run.layer("layer", h, w[1]))

        assert found(pair(run=run_it, noise=0.0), scan=True).findings == ()

    def test_scalar_arguments_of_another_convention_are_no_divergence_even_beside_one(self, pair: Pair) -> None:
        def run_it(run: Run, x: Array) -> None:
            is_reference = run.path.name == "ref.h5"
            with run("", x=x) as leave:
                k = run.hand("attn", x)
                with run("attn", x=x, k=k) as attended:
                    run._add("attr[causal]", np.array(is_reference))
                    leave(attended((x * k).astype(np.float32)))

        located = found(pair(run=run_it), scan=True)
        assert located.findings == ()
        assert len(located.certificate.without_effect) == 1
        traces = pair(run=run_it, glue={"attn": bumped})
        located = found(traces, scan=True)
        assert [(finding.culprit[0], finding.blame) for finding in located.findings] == [("", "caller")]
        assert place(located, traces) == ("attn", "input[k]", "")

    @pytest.mark.parametrize(("hides", "end"), [(True, "output"), (False, "attr[causal]")])
    def test_a_mask_that_hides_what_comes_later_is_no_other_argument_than_causal(self, pair: Pair, hides: bool, end: str) -> None:
        def run_it(run: Run, x: Array) -> None:
            is_reference = run.path.name == "ref.h5"
            later = np.where(np.tri(len(x), dtype=bool) | (not hides), 0, -np.inf).astype(np.float32)
            with run("", x=x) as leave, run("attn", x=x) as attended:
                with run("attn!attention", x=x, **({} if is_reference else {"mask": later})) as made:
                    run._add("attr[causal]", np.array(is_reference))
                    weighted = made((x * x).astype(np.float32))
                leave(attended(weighted))

        traces = pair(run=run_it, faults={"attn!attention": bumped})
        assert place(found(traces, scan=True), traces) == ("attn!attention", end, "attn")

    @pytest.mark.parametrize("wrong", ["squared", "joined"])
    def test_a_module_that_the_port_writes_out_is_named_unless_it_was_handed_what_is_wrong(self, pair: Pair, wrong: str) -> None:
        def run_it(run: Run, x: Array) -> None:
            is_port = run.path.name == "port.h5"
            first, last = weights(2)
            with run("", x=x) as leave, run("block", x=x) as block:
                h = run.layer("block.norm", x, first)
                if is_port:
                    squared = h * h + (wrong == "squared")
                    made = run.layer("block.out", (squared + h + (wrong == "joined")).astype(np.float32), last)
                else:
                    with run("block.mix", x=h) as mix:
                        with run("block.mix.square", x=h) as square:
                            squared = square((h * h).astype(np.float32))
                        with run("block.mix.join", x=squared, y=h) as join:
                            made = join(run.layer("block.out", (squared + h).astype(np.float32), last))
                        made = mix(made)
                leave(block(made))

        traces = pair(run=run_it)
        assert place(found(traces, scan=True), traces) == ("block.out", "input[x]", "block.mix")

    def test_one_wrong_tensor_handed_to_three_calls_is_one_finding(self, pair: Pair) -> None:
        def run_it(run: Run, x: Array) -> None:
            with run("attn", x=x) as leave:
                wrong = run.hand("q", x)
                parts = []
                for site, weight in zip("qkv", weights(3), strict=True):
                    with run(f"attn.{site}", x=wrong) as made:
                        parts.append(made((wrong @ weight).astype(np.float32)))
                leave((parts[0] * parts[1] + parts[2]).astype(np.float32))

        traces = pair(run=run_it, glue={"q": bumped})
        located = found(traces, scan=True)
        assert [finding.culprit[0] for finding in located.findings] == ["attn"]
        assert place(located, traces) == ("attn.q", "input[x]", "attn")

    def masked_attention(self, effect: float) -> Callable[[Run, Array], None]:
        def run_it(run: Run, x: Array) -> None:
            is_reference = run.path.name == "ref.h5"
            mask = np.tril(np.ones((6, 6), bool))
            with run("", x=x) as leave, run("attn", x=x, mask=mask if is_reference else ~mask) as attended:
                scores = np.where(mask, x @ x.T, -1e9).astype(np.float32)
                e = np.exp(scores - scores.max(-1, keepdims=True))
                leave(attended((e / e.sum(-1, keepdims=True) @ x + (0 if is_reference else effect)).astype(np.float32)))

        return run_it

    @pytest.mark.parametrize("scan", [True, False])
    def test_a_mask_of_another_convention_has_no_effect(self, pair: Pair, scan: bool) -> None:
        located = found(pair(run=self.masked_attention(0.0)), scan=scan)
        assert located.findings == ()
        assert len(located.certificate.without_effect) == 1

    def test_but_counts_where_the_output_differs(self, pair: Pair) -> None:
        traces = pair(run=self.masked_attention(0.1), noise=0.0)
        assert place(found(traces, scan=True), traces) == ("attn", "input[mask]", "")

    def test_an_error_that_a_normalisation_hides_is_still_one(self, pair: Pair) -> None:
        def run_it(run: Run, x: Array) -> None:
            with run("", x=x) as leave:
                h = run.hand("norm", x)
                with run("norm", x=h) as normed:
                    leave(normed((x - x.mean(-1, keepdims=True)).astype(np.float32)))

        modules = [{"path": "norm", "type": "LayerNorm"}]
        traces = pair(run=run_it, glue={"norm": lambda value: value + 1}, noise=0.0, modules=modules)
        assert place(found(traces, scan=True), traces) == ("norm", "input[x]", "")

    def test_differences_of_equal_tensors_are_not_judged_by_their_noise(self, pair: Pair) -> None:
        def run_it(run: Run, x: Array) -> None:
            rng = np.random.default_rng(run.path.name == "ref.h5")
            with run("", x=x) as leave, run("delta", x=x) as delta:
                leave((x + delta((1e-7 * rng.standard_normal(x.shape)).astype(np.float32))).astype(np.float32))

        assert found(pair(run=run_it, noise=0.0), scan=True).findings == ()


class TestShapesAndValues:
    def test_a_shape_that_no_layout_reconciles_is_a_divergence(self, pair: Pair) -> None:
        def run_it(run: Run, x: Array) -> None:
            w = weights(1)[0]
            with run("conv", x=x) as made:
                made((x @ w)[: 6 if run.path.name == "ref.h5" else 5])

        traces = pair(run=run_it)
        for scan in (True, False):
            located = found(traces, scan=scan)
            assert place(located, traces) == ("conv", "output", "conv")
            assert located.first is not None
            assert located.comparisons[located.first.place].how == "shape"

    def test_a_lone_nan_is_the_first_divergence(self, pair: Pair) -> None:
        traces = pair(faults={"blocks.1.mlp": lambda value: np.where(np.arange(value.size).reshape(value.shape) == 3, np.nan, value)})
        for scan in (True, False):
            assert place(found(traces, scan=scan), traces) == ("blocks.1.mlp", "output", "blocks.1.mlp")

    def test_traces_of_statistics_alone_are_judged_by_what_these_prove(self, tmp_path: Path) -> None:
        def unstored(run: Run, x: Array) -> None:
            run.save = "stats"
            model(run, x)

        traces = record_pair(tmp_path, run=unstored, faults={"blocks.2.attn.k": bumped})
        located = found(traces, scan=True)
        assert place(located, traces) == ("blocks.2.attn.k", "output", "blocks.2.attn.k")
        assert {comparison.how for comparison in located.comparisons} == {"digest", "statistics"}
        assert located.read == 0

    def test_a_tolerance_overrides_the_defaults(self, pair: Pair) -> None:
        traces = pair(faults={"blocks.2.mlp": bumped})
        assert found(traces, rtol=1.0, atol=1.0, scan=True).findings == ()
        assert found(traces, rtol=1.0, atol=1.0).findings == ()
        with pytest.raises(TracediffError, match="together"):
            found(traces, rtol=1.0)

    def test_a_measured_floor_overrides_the_default_where_there_is_one(self, pair: Pair) -> None:
        traces = pair(faults={"blocks.2.mlp": lambda value: value * (1 + 1e-5)})
        assert found(traces, scan=True).findings == ()
        floors = {record.row: 1e-6 for record in traces[0].records}
        assert place(found(traces, scan=True, floors=floors), traces) == ("blocks.2.mlp", "output", "blocks.2.mlp")

    def test_a_run_in_half_precision_is_allowed_its_rounding_at_float32_sites_too(self, pair: Pair) -> None:
        traces = pair(faults={"blocks.2.mlp": lambda value: value * (1 + 1e-2)}, dtype="bfloat16")
        assert found(traces, scan=True).findings == ()


class TestForced:
    def forced(self, folder: Path, run: Callable[[Run, Array], None], **planted: Fault) -> Located:
        """A port that went on with the reference's tensors everywhere: `run` has to do so itself."""

        def marked(recorder: Run, x: Array) -> None:
            recorder.flags = 2 if recorder.path.name == "port.h5" else 0
            run(recorder, x)

        faults = {name.replace("_", "."): fault for name, fault in planted.items()}
        return found(record_pair(folder, run=marked, faults=faults, noise=0.0), mode="forced")

    def test_each_divergence_is_introduced_where_it_is_seen(self, tmp_path: Path) -> None:
        def run_it(run: Run, x: Array) -> None:
            w = weights(3)
            with run("", x=x) as leave:
                for i, site in enumerate(["a", "b", "c"]):  # each is handed the reference's input
                    last = run.layer(site, x * np.float32(i + 1), w[i])
                leave(last if run.path.name == "ref.h5" else np.tanh(x * 3 @ w[2]))

        located = self.forced(tmp_path, run_it, a=bumped, c=bumped)
        assert [finding.culprit[0] for finding in located.findings] == ["a", "c"]
        assert [finding.inherited for finding in located.findings] == [0.0, 0.0]

    def test_the_same_finding_at_several_calls_is_one_finding(self, tmp_path: Path) -> None:
        def steps(run: Run, x: Array) -> None:
            w = weights(1)[0]
            with run("solver", x=x) as leave:
                for i in range(4):
                    run.layer("solver.net", x * np.float32(i + 1), w)
                leave(x)

        located = self.forced(tmp_path, steps, **{"solver.net": bumped})
        assert [(finding.culprit[0], finding.calls) for finding in located.findings] == [("solver.net", 4)]

    def test_metrics_that_were_taken_in_the_run_are_not_taken_again(self, tmp_path: Path) -> None:
        traces = record_pair(tmp_path, faults={"blocks.2.mlp": bumped})
        worse = Metrics(96, rel_l2=0.5, reference_rms=1.0, port_rms=1.0)
        known = {(one.row, one.row): worse if (one.site, one.end) == ("embed", "output") else Metrics(96) for one in traces[0].records}
        located = found(traces, mode="forced", compared=known)
        assert (located.read, {comparison.how for comparison in located.comparisons}) == (0, {"forced"})
        assert [finding.culprit[0] for finding in located.findings] == ["embed"]

    def layered(self, run: Run, x: Array) -> None:
        w = weights(6)
        with run("dec", x=x) as leave:
            for i in range(3):
                run.layer(f"dec.layers.{i}.attn", x * np.float32(i + 1), w[2 * i])
                run.layer(f"dec.layers.{i}.mlp", x * np.float32(i + 2), w[2 * i + 1])
            leave(x)

    def test_a_finding_of_all_attentions_is_lifted_to_their_common_caller(self, tmp_path: Path) -> None:
        located = self.forced(tmp_path, self.layered, **{f"dec.layers.{i}.attn": bumped for i in range(3)})
        assert [(f.culprit, f.shared_by, f.pattern) for f in located.findings] == [(("dec", "dec"), 3, "dec.layers.*.attn")]

    def test_a_mask_that_acts_on_each_attention_in_its_own_way_is_still_one_fault(self, tmp_path: Path) -> None:
        gains = (1.02, 1.1, 1.4)
        located = self.forced(tmp_path, self.layered, **{f"dec.layers.{i}.attn": scaled(gain) for i, gain in enumerate(gains)})
        assert [(f.culprit, f.shared_by) for f in located.findings] == [(("dec", "dec"), 3)]

    def test_a_projection_with_attention_in_its_name_is_not_charged_to_the_caller(self, tmp_path: Path) -> None:
        def layered(run: Run, x: Array) -> None:
            run.flags = 2 if run.path.name == "port.h5" else 0
            with run("dec", x=x) as leave:
                for i, w in enumerate(weights(3)):
                    run.layer(f"dec.layers.{i}.c_attn", x, w)
                leave(x)

        sites = [f"dec.layers.{i}.c_attn" for i in range(3)]
        modules = [{"path": site, "type": "Conv1D"} for site in sites]
        traces = record_pair(tmp_path, run=layered, faults=dict.fromkeys(sites, bumped), noise=0.0, modules=modules)
        located = found(traces, mode="forced")
        assert [(f.culprit[0], f.shared_by) for f in located.findings] == [(sites[0], 3)]

    def handed(self, same: bool) -> Callable[[Run, Array], None]:
        def run_it(run: Run, x: Array) -> None:
            wrong = np.float32(1.5 if run.path.name == "port.h5" else 1.0)
            with run("dec", x=x) as leave:
                for i in range(3):
                    y = x * np.float32(i + 1)
                    with run(f"dec.layers.{i}", x=y) as made:
                        q = x if same else y
                        with run(f"dec.layers.{i}.attn", q=q * wrong) as attended:
                            attended(q)
                        made(y)
                leave(x)

        return run_it

    def test_what_all_siblings_were_handed_alike_comes_from_their_common_caller(self, tmp_path: Path) -> None:
        located = self.forced(tmp_path, self.handed(same=True))
        assert [(f.culprit[0], f.shared_by) for f in located.findings] == [("dec", 3)]

    def test_what_each_was_handed_of_its_own_comes_from_the_code_around_each(self, tmp_path: Path) -> None:
        located = self.forced(tmp_path, self.handed(same=False))
        assert [(f.culprit[0], f.shared_by) for f in located.findings] == [("dec.layers.0", 3)]

    def test_one_of_two_of_three_is_not(self, tmp_path: Path) -> None:
        located = self.forced(tmp_path, self.layered, **{f"dec.layers.{i}.attn": bumped for i in range(2)})
        assert [f.culprit[0] for f in located.findings] == ["dec.layers.0.attn", "dec.layers.1.attn"]

    def test_a_finding_of_all_other_siblings_is_one_finding(self, tmp_path: Path) -> None:
        located = self.forced(tmp_path, self.layered, **{f"dec.layers.{i}.mlp": bumped for i in range(3)})
        assert [(f.culprit[0], f.shared_by) for f in located.findings] == [("dec.layers.0.mlp", 3)]


class TestOneFaultIsOneFinding:
    """Forced runs of blocks of unequal length, each called several times, in which every call is handed the reference's input."""

    LENGTHS = (2, 3, 1)
    SITES = tuple(f"blocks.{i}.layers.{j}.norm" for i, length in enumerate(LENGTHS) for j in range(length))

    def found(self, folder: Path, faults: Mapping[str, Fault], *, calls: int = 1) -> Located:
        def blocks(run: Run, x: Array) -> None:
            run.flags = 2 if run.path.name == "port.h5" else 0
            with run("", x=x) as leave:
                for turn in range(calls):
                    for i, site in enumerate(self.SITES):
                        run.layer(site, x * np.float32(1 + 0.1 * turn), weights(len(self.SITES))[i])
                leave(x)

        return found(record_pair(folder, run=blocks, faults=dict(faults), noise=0.0), mode="forced")

    def test_a_slip_repeated_in_every_block_is_counted_over_blocks_of_unequal_length_and_later_calls(self, tmp_path: Path) -> None:
        located = self.found(tmp_path, dict.fromkeys(self.SITES, bumped), calls=4)
        told = [(f.culprit[0], f.places, f.calls, f.shared_by, f.siblings, f.pattern) for f in located.findings]
        assert told == [("blocks.0.layers.0.norm", 24, 4, 6, 6, "blocks.*.layers.*.norm")]

    def test_siblings_are_known_by_the_side_that_does_not_count_inside_of_names(self, tmp_path: Path) -> None:
        def blocks(run: Run, x: Array) -> None:
            is_port = run.path.name == "port.h5"
            run.flags = 2 if is_port else 0
            with run("", x=x) as leave:
                for i, site in enumerate(self.SITES):
                    run.layer(site if is_port else site.replace("s.", "").replace(".layer", ".unit"), x, weights(len(self.SITES))[i])
                leave(x)

        def of_port(site: str) -> str:
            return re.sub(r"block(\d)\.unit(\d)", r"blocks.\1.layers.\2", site)

        traces = record_pair(tmp_path, run=blocks, faults=dict.fromkeys(self.SITES, bumped), noise=0.0)
        located = locate(aligned(*traces, rename=of_port), *traces, mode="forced")
        told = [(f.culprit, f.places, f.shared_by, f.siblings, f.pattern) for f in located.findings]
        assert told == [(("block0.unit0.norm", "blocks.0.layers.0.norm"), 6, 6, 6, "blocks.*.layers.*.norm")]

    @pytest.mark.parametrize(("wrong", "findings"), [((1.2, 1.2), [2]), ((1.2, 0.8), [1, 1]), ((1.2, 1.0), [1])])
    def test_parts_of_a_fused_tensor_that_are_wrong_alike_are_one_finding(
        self, wrong: tuple[float, float], findings: list[int], tmp_path: Path
    ) -> None:
        traces = []
        parts = np.random.default_rng(0).standard_normal((2, 6, 16)).astype("f4")
        for side in ("ref", "port"):
            run = Run(tmp_path / f"{side}.h5")
            run.flags = 2 if side == "port" else 0
            with run("mlp", x=parts[0]) as leave:
                if side == "ref":
                    for name, part in zip(("gate", "up"), parts, strict=True):
                        with run(f"mlp.{name}", x=parts[0]) as made:
                            made(part)
                else:
                    with run("mlp.both", x=parts[0]) as made:
                        made(np.concatenate([part * np.float32(gain) for part, gain in zip(parts, wrong, strict=True)], 1))
                leave(parts[0])
            traces.append(run.close())
        ours, theirs = ({(one.site, one.end): one.row for one in trace.records} for trace in traces)
        whole = theirs["mlp.both", "output"]
        pairs = (SitePair("mlp.gate", "mlp.both", "module", "", 1.0), SitePair("mlp.up", "mlp.both", "module", "", 1.0))
        records = tuple(
            RecordPair((ours[f"mlp.{name}", "output"],), (whole,), Layout((6, 16), part=Part(1, 16 * i, 16 * i + 16)), "", 1.0, i)
            for i, name in enumerate(("gate", "up"))
        )
        located = locate(Alignment(pairs, records, (), ()), *traces, mode="forced")
        assert [(f.culprit[1], f.places) for f in located.findings] == [("mlp.both", places) for places in findings]

    def test_two_ends_of_a_call_are_two_places_and_one_call(self, tmp_path: Path) -> None:
        def turns(run: Run, x: Array) -> None:
            run.flags = 2 if run.path.name == "port.h5" else 0
            wrong = np.float32(1.2 if run.path.name == "port.h5" else 1)
            with run("", x=x) as leave:
                for turn in range(3):
                    with run("rnn", x=x * np.float32(turn + 1)) as made:
                        made(x * wrong * np.float32(turn + 1))
                        run.give("output.state", x[:2] * wrong * np.float32(turn + 2))
                leave(x)

        located = found(record_pair(tmp_path, run=turns, noise=0.0), mode="forced")
        assert [(f.culprit[0], f.places, f.calls) for f in located.findings] == [("rnn", 6, 3)]

    def test_a_slip_at_some_of_the_siblings_is_one_finding_that_says_at_how_many(self, tmp_path: Path) -> None:
        located = self.found(tmp_path, dict.fromkeys(self.SITES[1:4], bumped))
        assert [(f.culprit[0], f.places, f.shared_by, f.siblings) for f in located.findings] == [(self.SITES[1], 3, 3, 6)]

    def test_a_harmless_difference_at_all_siblings_does_not_absorb_the_fault_at_one(self, tmp_path: Path) -> None:
        faults = {**dict.fromkeys(self.SITES, scaled(1 + 3e-4)), self.SITES[2]: scaled(1 + 3e-2)}
        located = self.found(tmp_path, faults)
        assert [(f.culprit[0], f.shared_by) for f in located.findings] == [(self.SITES[0], 5), (self.SITES[2], 1)]

    @pytest.mark.parametrize(
        ("fault", "beside"),
        [
            (scaled(1.1), scaled(0.9)),
            (scaled(1.1), lambda value: value + np.float32(0.1 * np.sqrt((value**2).mean()))),
            (scaled(1.1), lambda value: np.where(value > 0.5, np.nan, value)),
            (scaled(1.1), lambda value: value[:-1]),
        ],
        ids=["the other sign", "offset for gain", "not finite", "another length"],
    )
    def test_an_error_of_another_kind_stands_by_itself(self, fault: Fault, beside: Fault, tmp_path: Path) -> None:
        located = self.found(tmp_path, {**dict.fromkeys(self.SITES, fault), self.SITES[4]: beside})
        assert [(f.culprit[0], f.shared_by) for f in located.findings] == [(self.SITES[0], 5), (self.SITES[4], 1)]

    def test_a_later_call_that_is_worse_by_far_stands_by_itself(self, tmp_path: Path) -> None:
        turns = iter((3e-4, 3e-4, 0.3, 3e-4))
        located = self.found(tmp_path, {self.SITES[0]: lambda value: value * np.float32(1 + next(turns))}, calls=4)
        assert [(f.culprit[0], f.places) for f in located.findings] == [(self.SITES[0], 3), (self.SITES[0], 1)]

    @pytest.mark.parametrize("broken", [np.nan, np.inf])
    def test_a_later_call_that_returns_no_number_stands_by_itself(self, broken: float, tmp_path: Path) -> None:
        turns = iter((1.3, broken, 1.3, broken))
        located = self.found(tmp_path, {self.SITES[0]: lambda value: value * np.float32(next(turns))}, calls=4)
        assert [(f.culprit[0], f.places) for f in located.findings] == [(self.SITES[0], 2), (self.SITES[0], 2)]

    def test_a_later_call_that_is_less_wrong_is_the_same_fault(self, tmp_path: Path) -> None:
        turns = iter((0.3, 0.3, 3e-4))
        located = self.found(tmp_path, {self.SITES[0]: lambda value: value * np.float32(1 + next(turns))}, calls=3)
        assert [(f.culprit[0], f.places) for f in located.findings] == [(self.SITES[0], 3)]


class TestLengths:
    def located(self, folder: Path, ours: Array, theirs: Array) -> Located:
        def one(run: Run, x: Array) -> None:
            with run("enc", x=x) as leave:
                leave(theirs if run.path.name == "port.h5" else ours)

        return found(record_pair(folder, run=one), scan=True)

    @pytest.mark.parametrize(
        ("shape", "cut", "length"),
        [
            ((2, 52, 8), np.s_[:, :48], Length((1,), 52, 48, 48)),
            ((2, 52, 8), np.s_[:, 4:], Length((1,), 52, 48, 48, at_end=True)),
            ((52, 52), np.s_[:48, :48], Length((0, 1), 52, 48, 48)),
            ((9,), np.s_[:5], Length((0,), 9, 5, 5)),
        ],
    )
    def test_tell_the_axis_and_how_far_both_agree(
        self, shape: tuple[int, ...], cut: tuple[slice, ...] | slice, length: Length, tmp_path: Path
    ) -> None:
        whole = np.random.default_rng(0).standard_normal(shape).astype("f4")
        assert [one.length for one in self.located(tmp_path, whole, whole[cut]).findings] == [length]

    def test_are_told_where_the_axes_lie_in_another_order(self, tmp_path: Path) -> None:
        whole = np.random.default_rng(0).standard_normal((2, 52, 80)).astype("f4")
        located = self.located(tmp_path, whole[:, :48], whole.swapaxes(1, 2))
        assert [one.length for one in located.findings] == [Length((1,), 48, 52, 48)]

    def test_tell_up_to_where_both_agree(self, tmp_path: Path) -> None:
        whole = np.random.default_rng(0).standard_normal((1, 52, 8)).astype("f4")
        wrong = whole[:, :48].copy()
        wrong[:, 30:] += 1
        assert [one.length for one in self.located(tmp_path, whole, wrong).findings] == [Length((1,), 52, 48, 30)]

    def test_of_ids_agree_exactly_or_not(self, tmp_path: Path) -> None:
        ids = np.arange(12)
        assert [one.length for one in self.located(tmp_path, ids, np.append(ids, 12)).findings] == [Length((0,), 12, 13, 12)]
        (tmp_path / "other").mkdir()
        other = np.append(ids[:7], np.zeros(6, ids.dtype))
        assert [one.length for one in self.located(tmp_path / "other", ids, other).findings] == [Length((0,), 12, 13, 7)]

    def test_that_differ_in_other_ways_are_shapes(self, tmp_path: Path) -> None:
        ours, theirs = np.zeros((2, 3, 4), "f4"), np.ones((2, 5, 7), "f4")
        assert [one.length for one in self.located(tmp_path, ours, theirs).findings] == [None]


class TestStages:
    def staged(self, run: Run, x: Array) -> None:
        for stage in ("encode", "decode"):
            run.stage = stage
            with run(stage, x=x) as leave:
                leave(run.layer(f"{stage}.layer", x, weights(1)[0]))

    def test_one_stage_can_be_asked_for(self, pair: Pair) -> None:
        traces = pair(run=self.staged, faults={"encode.layer": bumped})
        assert found(traces, stages=["decode"]).findings == ()
        assert place(found(traces, stages=["encode"]), traces) == ("encode.layer", "output", "encode.layer")
        with pytest.raises(TracediffError, match="'decode', 'encode'"):
            found(traces, stages=["vocode"])
