"""The planted-fault benchmark is honest: what has no effect is dropped, what is planted is scored, and nothing stays planted."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlx.core")
pytest.importorskip("torch")

import mlx.core as mx
import pairs
from mlx import nn

from benchmarks.faults.catalogue import all_faults, chosen, couples, everywhere
from benchmarks.faults.measure import Bench, Options
from benchmarks.faults.pairs import known
from benchmarks.faults.plant import Fault, around, edited, module_at, planted, replacement, running
from benchmarks.faults.score import Case, Planted, as_json, caller, cause_of, judge, outcome, share, tallied
from benchmarks.faults.table import failures, table


@pytest.fixture(scope="module")
def conv() -> Any:
    return pairs.conv(0)


def report(*culprits: tuple[str, str], causes: tuple[str, ...] = ()) -> Any:
    return SimpleNamespace(
        divergences=[
            SimpleNamespace(
                culprit=SimpleNamespace(reference=one, port=other),
                site=SimpleNamespace(reference=one, end="output"),
                introduced=0.5,
                causes=[SimpleNamespace(kind=kind) for kind in causes],
            )
            for one, other in culprits
        ]
    )


def case() -> Case:
    return Case("toy", "float32", "forced", 0, ("fault",), ("scale",))


# -- accounting ----------------------------------------------------------------------------------------------------------------------------

CALLED = {"", "enc", "enc.layers.0", "enc.layers.0.fc", "dec"}
FC = Planted("enc.layers.0.fc", ("encoder.0.linear",), ("scale",))


@pytest.mark.parametrize(
    ("culprit", "expected"),
    [
        (("other", "enc.layers.0.fc"), "exact"),
        (("encoder.0.linear", "elsewhere"), "exact"),
        (("encoder.0", "enc.layers.0"), "near"),
        (("encoder", "enc"), "wrong"),
        (("decoder", "dec"), "wrong"),
    ],
)
def test_a_culprit_is_exact_on_either_side_and_near_only_one_call_away(culprit: tuple[str, str], expected: str) -> None:
    assert outcome([culprit], [FC], CALLED) == expected


def test_no_divergence_is_a_miss_and_what_is_flagged_besides_is_extra() -> None:
    assert outcome([], [FC], CALLED) == "missed"
    judged = judge(case(), report(("encoder.0.linear", "enc.layers.0.fc"), ("decoder", "dec")), [FC], CALLED)
    assert (judged.outcome, judged.named, judged.extra) == ("exact", 1, 1)


def test_a_divergence_in_a_clean_run_is_an_alarm() -> None:
    clean = judge(Case("toy", "float32", "free", 0, (), ()), report(("decoder", "dec")), [], CALLED)
    assert tallied([clean])["float32", "free", "built on"].numbers()["alarms"] == 1


def test_both_of_two_count_only_where_both_are_named() -> None:
    other = Planted("dec", ("decoder",), ("norm.eps",))
    two = Case("toy", "float32", "forced", 0, ("a", "b"), ("scale", "norm.eps"))
    assert judge(two, report(("encoder.0.linear", "x")), [FC, other], CALLED).named == 1
    assert tallied([two])["float32", "forced", "built on"].numbers()["both"] == 0.0


def test_the_other_of_two_swapped_modules_is_neither_extra_nor_needed() -> None:
    swapped = Planted("enc.layers.0.fc", ("encoder.0.linear",), ("weights.swapped",), others=(Planted("dec", ("decoder",), ()),))
    judged = judge(case(), report(("decoder", "dec"), ("encoder.0.linear", "enc.layers.0.fc")), [swapped], CALLED)
    assert (judged.outcome, judged.extra) == ("exact", 0)


def test_a_fault_that_is_named_once_more_is_counted() -> None:
    judged = judge(case(), report(*[("encoder.0.linear", "enc.layers.0.fc")] * 3, ("decoder", "dec")), [FC], CALLED)
    assert (judged.named, judged.again, judged.extra) == (1, 2, 1)


def test_causes_are_first_any_wrong_or_none() -> None:
    assert [cause_of(stated, ("scale",)) for stated in (("scale", "clamp"), ("clamp", "scale"), ("clamp",), ())] == [
        "first",
        "any",
        "wrong",
        "none",
    ]


def test_held_out_pairs_are_counted_apart_and_never_listed() -> None:
    held = judge(Case("secret", "float32", "forced", 0, ("f",), ("scale",), held_out=True), report(), [FC], CALLED)
    lines = list(failures([held]))
    assert list(tallied([held])) == [("float32", "forced", "held out")]
    assert lines == ["and 1 of pairs held out"]


def test_a_share_of_nothing_is_unknown_and_the_json_has_every_case() -> None:
    assert share(0, 0) is None
    written = as_json([judge(case(), report(), [FC], CALLED)], {"toy": 3})
    assert written["no_effect"] == {"toy": 3}
    assert written["cases"][0]["outcome"] == "missed"
    assert list(table([case()], {}))[-1].endswith("left out: 0")


def test_the_caller_of_a_module_in_a_list_is_the_nearest_that_runs() -> None:
    assert caller("enc.layers.0", CALLED) == "enc"
    assert caller("", CALLED) is None


# -- planting ------------------------------------------------------------------------------------------------------------------------------


def test_after_a_fault_the_port_is_what_it_was_even_if_its_run_raises(conv: Any) -> None:
    before = {name: np.array(value) for name, value in pairs.mlx_flat(conv.port.parameters())}
    kinds = [type(module) for module in conv.port.modules()]
    faults = [Fault("zero", "weights.missing_bias", "first.conv", edited("first.conv", "bias", mx.zeros_like))]
    faults.append(Fault("raises", "raised", "norm", around("norm", lambda call, module, *args: 1 / 0)))
    with planted(conv.port, *faults):
        assert not np.array(module_at(conv.port, "first.conv")["bias"]).any()
        with pytest.raises(ZeroDivisionError):
            conv.run_port()
    assert [type(module) for module in conv.port.modules()] == kinds
    assert all(np.array_equal(before[name], value) for name, value in pairs.mlx_flat(conv.port.parameters()))


def test_rewritten_code_bears_no_mark_in_its_class(conv: Any) -> None:
    fault = next(fault for fault in all_faults(conv) if fault.kind == "residual.missing")
    with planted(conv.port, fault):
        assert type(module_at(conv.port, fault.port)).__qualname__ == "PortBlock"


def test_only_what_a_run_enters_is_offered(conv: Any) -> None:
    entered = running(conv.port, conv.run_port)
    assert "blocks.0.conv1.conv" in entered
    assert {fault.port for fault in all_faults(conv)} <= set(entered)


def test_a_piece_of_source_that_is_not_there_once_is_refused() -> None:
    class Twice(nn.Module):
        def __call__(self, x: mx.array) -> mx.array:
            return x + x

    with pytest.raises(ValueError, match="2 times"):
        replacement("", "__call__", "mx.array", "y")(Twice(), ExitStack())


def test_couples_never_lie_in_one_another_and_choices_follow_the_seed(conv: Any) -> None:
    faults = chosen(all_faults(conv), 3, 1)
    assert [fault.text for fault in faults] == [fault.text for fault in chosen(all_faults(conv), 3, 1)]
    assert len({(fault.kind, fault.name.partition(":")[0]) for fault in faults}) == len(faults)
    for one, other in couples(faults, 3, 5):
        assert not f"{one.port}.".startswith(f"{other.port}.")
        assert not f"{other.port}.".startswith(f"{one.port}.")


def test_a_slip_everywhere_is_planted_at_all_modules_of_a_role_and_taken_back(conv: Any) -> None:
    slip = next(fault for fault in everywhere(all_faults(conv), 0, 50) if fault.name.startswith("twice as large") and "norm" in fault.port)
    paths = {slip.port, *slip.others}
    assert paths == {f"blocks.{i}.norm" for i in range(4)}
    before = {path: type(module_at(conv.port, path)) for path in paths}
    with planted(conv.port, slip):
        assert all(type(module_at(conv.port, path)) is not kind for path, kind in before.items())
    assert all(type(module_at(conv.port, path)) is kind for path, kind in before.items())


def test_pairs_are_held_out_in_both_groups() -> None:
    held = {entry.group for entry in known().values() if entry.held_out}
    assert held == {"own", "real"}


# -- the whole of it -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The convolutional pair with one fault that shows, and one that cannot: a bias after which nothing changes."""
    pair = pairs.conv(0)
    bench = Bench("conv", pair, 0, tmp_path_factory.mktemp("faults"), Options(couples=0))
    doubled = Fault("twice", "scale", "up0.conv", around("up0.conv", lambda call, module, x: call(x) * 2))
    nothing = Fault("nothing", "scale", "norm", edited("norm", "weight", lambda weight: weight * (1 + 1e-9)))
    import torch

    import tracediff as td

    with torch.no_grad():
        td.capture(pair.reference, pair.run_reference, to=bench.folder / "ref.h5").close()
    with td.open_trace(bench.folder / "ref.h5") as reference:
        bench._measure(reference, "float32", [doubled, nothing], [])
    return bench


def test_a_fault_of_no_effect_is_dropped_and_counted(measured: Bench) -> None:
    assert measured.dropped == {"conv float32": 1}
    assert not [case for case in measured.found if "nothing at norm" in case.faults]


def test_a_planted_fault_is_scored_in_both_modes_and_a_clean_run_raises_no_alarm(measured: Bench) -> None:
    clean = [case for case in measured.found if not case.kinds]
    faulty = [case for case in measured.found if case.kinds]
    assert [(case.mode, case.extra) for case in clean] == [("forced", 0), ("free", 0)]
    assert [(case.mode, case.outcome, case.extra, case.named) for case in faulty] == [("forced", "exact", 0, 1), ("free", "exact", 0, 1)]
    assert faulty[0].effect > 1000
    assert faulty[1].is_scans is True
    assert 0 < faulty[1].read <= faulty[1].read_scan <= faulty[1].compared
