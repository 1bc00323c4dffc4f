"""Joint decisions: what is known somewhere reaches all that it is tied to, and nothing that is wrong outvotes what is around it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tracediff.alignment.propagation import JointDecision
from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.thresholds import changed

SAME = {0: 0, 1: 1}
CROSSED = {0: 1, 1: 0}


def chosen(decision: JointDecision, count: int) -> list[int]:
    decision.settle()
    return [decision.settled(variable).best for variable in range(count)]


def chain(length: int, weight: float) -> JointDecision:
    decision = JointDecision()
    for place in range(length):
        decision.add(2)
        if place:
            decision.tie(place - 1, place, SAME, weight, "handed on")
    return decision


def test_what_is_known_at_one_end_turns_a_whole_chain_at_once():
    decision = chain(30, 2.0)
    for place in range(30):
        decision.hear(place, "plain", [0.0, -0.02])
    decision.hear(29, "channels", [-6.0, 0.0])
    assert chosen(decision, 30) == [1] * 30


def test_a_long_chain_settles_in_a_few_sweeps_in_whatever_order_it_was_tied():
    decision = JointDecision()
    for _ in range(400):
        decision.add(2)
    for place in (*range(0, 399, 2), *range(1, 399, 2)):
        decision.tie(place, place + 1, SAME, 2.0, "handed on")
    decision.hear(0, "channels", [-6.0, 0.0])
    with changed(THRESHOLDS, "propagation_sweeps", 4):
        assert chosen(decision, 400) == [1] * 400


def test_one_that_is_wrong_however_sure_does_not_outvote_those_around_it():
    decision = chain(3, 2.0)
    for place, evidence in enumerate(([0.0, -3.0], [-100.0, 0.0], [0.0, -3.0])):
        decision.hear(place, "values", evidence)
    assert chosen(decision, 3) == [0, 1, 0]


def test_a_tie_may_cross_the_options():
    decision = JointDecision()
    for _ in range(2):
        decision.add(2)
    decision.tie(0, 1, CROSSED, 3.0, "turned")
    decision.hear(0, "channels", [-6.0, 0.0])
    assert chosen(decision, 2) == [1, 0]


def test_the_account_names_every_source_and_what_it_says_for_the_choice_and_for_its_rival():
    decision = chain(2, 3.0)
    decision.hear(0, "channels", [-6.0, 0.0])
    decision.hear(1, "values", [0.0, -1.0])
    decision.settle()
    told = decision.settled(1)
    assert (told.best, told.rival) == (1, 0)
    assert [source for source, *_ in told.voices] == ["handed on", "values"]
    assert told.voices[0][1:] == (0.0, pytest.approx(-3.0))
    assert told.voices[1][1:] == (-1.0, 0.0)
    assert told.probability == pytest.approx(1 / (1 + np.exp(-2.0)))


@pytest.mark.parametrize("seed", range(12))
def test_of_a_graph_without_loops_the_best_of_all_choices_is_found(seed):
    """Against every choice there is."""
    chance = np.random.default_rng(seed)
    count = 7
    evidence = chance.normal(0, 2, (count, 3))
    ties = [
        (int(chance.integers(0, place)), place, chance.permutation(3).tolist(), float(chance.uniform(0, 3))) for place in range(1, count)
    ]
    decision = JointDecision()
    for place in range(count):
        decision.add(3)
        decision.hear(place, "values", evidence[place].tolist())
    for first, second, match, weight in ties:
        decision.tie(first, second, dict(enumerate(match)), weight, "tie")

    def worth(choice: tuple[int, ...]) -> float:
        agreed = sum(weight for first, second, match, weight in ties if match[choice[first]] == choice[second])
        return agreed + sum(float(evidence[place, option]) for place, option in enumerate(choice))

    best = max(itertools.product(range(3), repeat=count), key=worth)
    assert worth(tuple(chosen(decision, count))) == pytest.approx(worth(best))


@pytest.mark.parametrize("length", [3, 4, 5])
def test_a_loop_takes_what_its_evidence_says_and_comes_to_rest(length):
    decision = chain(length, 2.0)
    decision.tie(length - 1, 0, SAME, 2.0, "round")
    decision.hear(1, "values", [-3.0, 0.0])
    decision.hear(2, "values", [0.0, -1.0])
    assert chosen(decision, length) == [1] * length
