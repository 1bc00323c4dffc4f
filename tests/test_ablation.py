"""The ablation changes one thing at a time, puts it back whatever happens, and counts which answers change in what way."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("mlx.core")

from benchmarks import ablation
from benchmarks.ablation import Baseline, Variant
from tracediff.thresholds import threshold


@dataclass(frozen=True)
class Table:
    """A toy."""

    likely: float = threshold(0.5, "a share of this is likely", "a toy")
    fewest: int = threshold(1, "so many are enough", "a toy")
    words: tuple[str, ...] = ()


def first(found: list[str]) -> None:
    found.append("first")


def second(found: list[str]) -> None:
    found.append("second")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module with a table and a tuple of passes, and another one that has imported them."""
    made = ModuleType("toy")
    made.THRESHOLDS, made.PASSES = Table(), (first, second)  # type: ignore[attr-defined]
    user = ModuleType("user")
    user.THRESHOLDS, user.PASSES = made.THRESHOLDS, made.PASSES  # type: ignore[attr-defined]
    for module in (made, user):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


def answer(verdict: str, *divergences: tuple[str, str], pairs: str = "a") -> dict[str, Any]:
    listed = [{"site": site, "culprit": "", "layout": "", "causes": [cause]} for site, cause in divergences]
    return {"verdict": verdict, "divergences": listed, "weights": [], "pairs": pairs}


def test_every_number_is_tried_as_zero_half_double_and_a_float_as_infinity(capsys: pytest.CaptureFixture[str]) -> None:
    tried = [(one.target, one.what, one.value) for one in ablation.of_table("toy", "toy", Table())]
    assert tried == [
        ("toy.likely", "zero", 0.0),
        ("toy.likely", "halved", 0.25),
        ("toy.likely", "doubled", 1.0),
        ("toy.likely", "infinite", float("inf")),
        ("toy.fewest", "zero", 0),
        ("toy.fewest", "doubled", 2),
    ]
    assert "toy.words is no number, and is left out" in capsys.readouterr().err


def test_a_number_is_otherwise_for_all_who_read_it_and_put_back_after_an_error(toy: Any) -> None:
    user = sys.modules["user"]
    with suppress(RuntimeError), Variant("toy.likely", "doubled", "toy", "likely", value=1.0).made():
        assert user.THRESHOLDS.likely == 1.0
        raise RuntimeError
    assert user.THRESHOLDS.likely == 0.5


def test_a_pass_is_left_out_wherever_the_tuple_is_known_and_put_back_after_an_error(toy: Any) -> None:
    user = sys.modules["user"]
    with suppress(RuntimeError), Variant("toy.first", "left out", "toy", "PASSES", index=0).made():
        assert toy.PASSES == user.PASSES == (second,)
        raise RuntimeError
    assert toy.PASSES == user.PASSES == (first, second)


def test_a_tuple_that_is_not_there_is_said_and_skipped(
    toy: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ablation, "PASSES", (("toy", "PASSES"), ("toy", "STEPS"), ("no_such_module", "PASSES")))
    assert [one.target for one in ablation.of_passes()] == ["toy.first", "toy.second"]
    assert capsys.readouterr().err.count("is not there, and is left out") == 2


def test_only_what_was_asked_for_is_tried(monkeypatch: pytest.MonkeyPatch, toy: Any) -> None:
    monkeypatch.setattr(ablation, "tables", lambda: [("toy", "toy", toy.THRESHOLDS)])
    monkeypatch.setattr(ablation, "PASSES", (("toy", "PASSES"),))
    assert {one.target for one in ablation.variants(["toy.likely", "toy.second"])} == {"toy.likely", "toy.second"}
    assert {one.target for one in ablation.variants(["toy.like"])} == set()
    assert len({one.target for one in ablation.variants()}) == 4


def test_what_is_read_of_a_table_is_noted_and_the_table_is_as_it_was() -> None:
    table, read = Table(), set[tuple[str, str]]()
    with ablation.noting(table, "toy", read):
        assert table.likely == 0.5
    assert read == {("toy", "likely")}
    assert type(table) is Table


def test_an_answer_that_takes_too_long_is_stopped() -> None:
    with pytest.raises(TimeoutError, match="more than 0 s"), ablation.limited(0.05):
        time.sleep(60)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (answer("different", ("a", "scale")), []),
        (answer("same"), ["verdict", "divergences"]),
        (answer("different", ("a", "clamp")), ["causes"]),
        (answer("different", ("b", "scale")), ["divergences"]),
        (answer("different", ("a", "scale"), pairs="b"), ["pairs"]),
        ({"error": "ValueError"}, ["error"]),
    ],
)
def test_a_change_is_counted_by_its_kind(now: dict[str, Any], expected: list[str]) -> None:
    assert ablation.kinds(answer("different", ("a", "scale")), now) == expected


def test_each_variant_answers_every_run_and_a_number_that_is_never_read_none(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def answered(reference: Any, port: Any, *, lists_pairs: bool) -> dict[str, Any]:
        return answer("same" if toy.THRESHOLDS.likely > 0.3 and first in toy.PASSES else "different")

    monkeypatch.setattr(ablation, "runs_of", lambda *pair: [("one run", None, None, True)])
    monkeypatch.setattr(ablation, "answer", answered)
    monkeypatch.setattr(ablation, "tables", lambda: [("toy", "toy", toy.THRESHOLDS)])
    monkeypatch.setattr(ablation, "PASSES", (("toy", "PASSES"),))
    pair, tried = ("models", "toy", None), list(ablation.variants())
    before: Baseline = ablation.baseline(pair, None)  # type: ignore[arg-type]
    assert before.read == {("toy", "likely")}
    table = list(ablation.rows([ablation.changes(pair, tried, None, before)], tried, 1))  # type: ignore[arg-type]
    worth = {(row["target"], row["what"]) for row in table if row["changed"]}
    assert worth == {("toy.likely", "zero"), ("toy.likely", "halved"), ("toy.first", "left out")}
    assert list(ablation.lines(table))[-1] == "2 of 4 change no answer: toy.fewest, toy.second"
    assert "6 variants" in ablation.estimate([before], tried[:6], 2)
