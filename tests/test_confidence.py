"""Confidences are shares: how they are looked up, and how the benchmark that measures them counts."""

from __future__ import annotations

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("torch")
pytest.importorskip("mlx.core")

from benchmarks.confidence import END, START, UNKNOWN, Stated, as_others_say, fitted, summary, table, written_into
from tracediff.causes.cause import Cause
from tracediff.causes.confidence import calibrated, share_right
from tracediff.causes.thresholds import CONFIDENCE


def stated(pair: str, confidence: float, *, is_right: bool, kind: str = "scale", confirmed: bool = True, held_out: bool = True) -> Stated:
    return Stated(pair, held_out, "fault", ("scale",), "run", "a | a", True, 0, 0, kind, confidence, confirmed, "", is_right)


def test_a_confidence_is_the_share_of_its_likelihood_between_two_in_proportion() -> None:
    assert share_right(((0.5, 0.2), (0.9, 0.8)), 0.7) == 0.5
    assert share_right(((0.5, 0.2), (0.9, 0.8)), 0.1) == 0.2


def test_each_family_has_a_rising_table_of_its_own() -> None:
    for levels in CONFIDENCE.values():
        assert list(levels) == sorted(levels)
        assert [share for _, share in levels] == sorted(share for _, share in levels)
    likely, proven = (calibrated(Cause("scale", 0.8, confirmed, "")) for confirmed in (False, True))
    assert likely.confidence < proven.confidence


def test_tables_rise_with_what_is_stated_and_unknown_causes_count_in_none() -> None:
    rows = [stated("a", 0.9, is_right=number < 9) for number in range(10)] + [stated("a", 0.5, is_right=False) for _ in range(10)]
    (levels,) = fitted([*rows, stated("a", 0.0, is_right=False, kind=UNKNOWN, confirmed=False)]).values()
    assert [level for level, _, _ in levels] == [0.5, 0.9]
    assert levels[0][1] < 0.1 < 0.8 < levels[1][1] < 0.9


def test_a_pair_is_judged_by_what_the_other_pairs_give() -> None:
    rows = [stated(pair, 0.9, is_right=pair == "good") for pair in ("good", "bad") for _ in range(20)]
    found = {one.pair: one.confidence for one in as_others_say(rows)}
    assert found["good"] < 0.1 < 0.9 < found["bad"]


def test_the_table_counts_and_the_summary_tells_confirmed_and_wrong() -> None:
    rows = [stated("a", 0.92, is_right=True), stated("a", 0.92, is_right=False)]
    assert "| 0.9 to 0.95 | 1 / 2 (50%) | 1 / 2 (50%) | 1 / 2 (50%) | - | - |" in list(table(rows))
    assert list(summary(rows))[1].endswith("2 causes confirmed, of them 1 wrong")


def test_the_table_takes_its_place_in_a_page() -> None:
    page = f"before\n{START}\nold\n{END}\nafter\n"
    assert written_into(page, ["new"]) == f"before\n{START}\n\nnew\n\n{END}\nafter\n"
