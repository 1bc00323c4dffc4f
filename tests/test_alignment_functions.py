"""Calls of functions: a port that takes a softmax more, or less, per token shifts none of the others, forced and free."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import tracediff as td  # noqa: E402
from tracediff.alignment import align  # noqa: E402

WORDS, WIDTH, TOKENS = 12, 8, 5
START = torch.tensor(np.random.default_rng(3).standard_normal((1, WIDTH)).astype(np.float32))


def nucleus(logits: Any) -> Any:
    """Keeps the likeliest words, found by the softmax of the sorted logits."""
    ranked, places = torch.sort(logits, descending=True)
    shares = F.softmax(ranked, dim=-1)
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, places, shares.cumsum(-1) - shares < 0.9)
    return logits.masked_fill(~kept, -torch.inf)


def nucleus_unsorted(logits: Any) -> Any:
    """The same words, found by sorting the softmax."""
    shares = F.softmax(logits, dim=-1)
    ranked, places = torch.sort(shares, descending=True)
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, places, ranked.cumsum(-1) - ranked < 0.9)
    return logits.masked_fill(~kept, -torch.inf)


def confident(logits: Any) -> Any:
    """Looks at the probabilities and changes nothing, as an analyser does."""
    shares = F.softmax(0.5 * logits, dim=-1)
    return logits + 0 * shares.max()


def tempered(logits: Any) -> Any:
    return logits / 0.8


Filter = Callable[[Any], Any]


class Sampler(nn.Module):
    """Takes the likeliest word token after token; every filter works on the logits first."""

    def __init__(self, *filters: Filter, in_one: bool = False, tokens: int = TOKENS, axis: int = -1) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.head, self.words = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WORDS), nn.Embedding(WORDS, WIDTH)
        self.filters, self.in_one, self.tokens, self.axis = filters, in_one, tokens, axis

    def forward(self, x: Any) -> Any:
        for token in range(self.tokens):
            with td.scope("token", token):
                logits = self.head(torch.tanh(self.layer(x)))
                for change in self.filters:
                    logits = change(logits)
                shares = F.softmax(logits, dim=self.axis)
                x = x + shares @ self.words.weight
        return x


class NoScopes(Sampler):
    """The same without a word about tokens: only the calls around tell them apart."""

    def forward(self, x: Any) -> Any:
        for _ in range(self.tokens):
            logits = self.head(torch.tanh(self.layer(x)))
            for change in self.filters:
                logits = change(logits)
            x = x + F.softmax(logits, dim=self.axis) @ self.words.weight
        return x


def captured(folder: Path, reference: Any, port: Any, *, feed: bool = False) -> tuple[Any, Any]:
    ours, theirs = folder / "ref.h5", folder / "port.h5"
    with torch.no_grad():
        td.capture(reference.eval(), (START,), to=ours, repeat=False, floor=False, force=True)
        td.capture(port.eval(), (START,), to=theirs, repeat=False, floor=False, force=True, **({"feed": ours} if feed else {}))
    return td.open_trace(ours), td.open_trace(theirs)


def softmaxes(ours: Any, theirs: Any) -> list[tuple[int, int]]:
    """Which of the reference's calls of softmax is which of the port's, by their numbers."""
    found = set()
    for pair in align(ours, theirs).records:
        a, b = ours.records[pair.reference[0]], theirs.records[pair.port[0]]
        if "softmax" in a.site:
            found.add((a.ordinal, b.ordinal))
    return sorted(found)


KINDS = [Sampler, NoScopes]


@pytest.mark.parametrize("kind", KINDS)
def test_one_call_more_per_token_stays_alone_and_shifts_none(tmp_path: Path, kind: Any) -> None:
    found = softmaxes(*captured(tmp_path, kind(), kind(confident)))
    assert found == [(token, 2 * token + 1) for token in range(TOKENS)]


@pytest.mark.parametrize("kind", KINDS)
def test_one_call_less_per_token_stays_alone_and_shifts_none(tmp_path: Path, kind: Any) -> None:
    found = softmaxes(*captured(tmp_path, kind(confident, nucleus), kind(nucleus)))
    assert found == [pair for token in range(TOKENS) for pair in ((3 * token + 1, 2 * token), (3 * token + 2, 2 * token + 1))]


@pytest.mark.parametrize("kind", KINDS)
def test_lines_tell_the_calls_whose_values_a_fault_has_changed(tmp_path: Path, kind: Any) -> None:
    port = kind(confident)

    def later_wrong(module: Any, args: Any, result: Any, calls: list[int] = [0]) -> Any:  # noqa: B006
        calls[0] += 1
        return result * 3 - 1 if calls[0] > 2 else result

    port.layer.register_forward_hook(later_wrong)
    assert softmaxes(*captured(tmp_path, kind(), port)) == [(token, 2 * token + 1) for token in range(TOKENS)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_before_all_of_them_leaves_equal_counts_paired_one_to_one(tmp_path: Path, kind: Any) -> None:
    port = kind(confident)
    with torch.no_grad():
        port.layer.weight.mul_(-2)
    assert softmaxes(*captured(tmp_path, kind(confident), port)) == [(number, number) for number in range(2 * TOKENS)]


@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_tells_which_call_is_the_further_one_none_is_paired_wrongly(tmp_path: Path, kind: Any) -> None:
    port = kind(confident)
    with torch.no_grad():
        port.layer.weight.mul_(-2)
    found = softmaxes(*captured(tmp_path, kind(), port))
    assert set(found) <= {(token, 2 * token + 1) for token in range(TOKENS)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_softmax_of_sorted_numbers_is_not_that_of_the_unsorted_ones(tmp_path: Path, kind: Any) -> None:
    found = softmaxes(*captured(tmp_path, kind(nucleus), kind(nucleus_unsorted)))
    assert found == [(2 * token + 1, 2 * token + 1) for token in range(TOKENS)]


FILTERS = {
    "one more": ((), (confident,)),
    "one less": ((confident, nucleus), (nucleus,)),
    "another first": ((tempered, nucleus), (tempered, confident, nucleus)),
    "unsorted": ((nucleus,), (nucleus_unsorted,)),
    "unsorted, and one more": ((nucleus,), (confident, nucleus_unsorted)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_a_right_port_with_filters_of_its_own_is_the_same_by_force(tmp_path: Path, kind: Any, filters: Any) -> None:
    ours, theirs = captured(tmp_path, kind(*filters[0]), kind(*filters[1]), feed=True)
    assert td.bisect(ours, theirs).verdict == "same"
    assert theirs.meta["forced"] > 4 * TOKENS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_a_fault_beside_other_filters_is_named_by_force_and_nothing_else_is(tmp_path: Path, kind: Any, filters: Any) -> None:
    port = kind(*filters[1])
    with torch.no_grad():
        port.layer.weight.mul_(-2)
    ours, theirs = captured(tmp_path, kind(*filters[0]), port, feed=True)
    assert {one.culprit.reference for one in td.bisect(ours, theirs).divergences} == {"layer"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_wrong_softmax_does_is_charged_to_its_caller_although_the_port_calls_one_more(tmp_path: Path, kind: Any) -> None:
    class Wrong(kind):  # type: ignore[misc, valid-type]
        pass

    port = Wrong(confident, lambda logits: logits * 1.7)
    ours, theirs = captured(tmp_path, kind(), port, feed=True)
    report = td.bisect(ours, theirs)
    assert {one.culprit.reference for one in report.divergences} == {""}


@pytest.mark.parametrize("kind", KINDS)
def test_a_port_whose_own_run_takes_another_branch_than_the_forced_one_is_fed_what_belongs_there(tmp_path: Path, kind: Any) -> None:
    """The number of calls in a token may depend on what the port computes; after a fault its own run then has calls of its own."""

    def doubtful(logits: Any) -> Any:
        return confident(logits) if float(logits.detach().abs().max()) > 5 else logits

    class Louder(nn.Linear):
        calls = 0

        def forward(self, x: Any) -> Any:
            self.calls = self.calls % TOKENS + 1
            return super().forward(x) * (30 if self.calls == 3 else 1)

    port = kind(doubtful)
    louder = Louder(WIDTH, WORDS)
    louder.load_state_dict(port.head.state_dict())
    port.head = louder
    ours, theirs = captured(tmp_path, kind(), port, feed=True)
    assert {one.culprit.reference for one in td.bisect(ours, theirs).divergences} == {"head"}


def test_a_tap_and_a_function_whose_shape_went_wrong_are_still_compared(tmp_path: Path) -> None:
    class Framed(nn.Module):
        def __init__(self, frames: int) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.layer, self.frames = nn.Linear(WIDTH, WIDTH), frames

        def forward(self, x: Any) -> Any:
            h = td.tap("frames", self.layer(x).repeat(1, 4)[:, : self.frames])
            return F.softmax(h, dim=-1).sum(-1)

    ours, theirs = captured(tmp_path, Framed(30), Framed(27))
    shapes = [one.site.reference for one in td.bisect(ours, theirs, scan=True).divergences]
    assert "#frames" in shapes
    assert {"#frames", "!softmax"} <= {ours.records[pair.reference[0]].site for pair in align(ours, theirs).records}


class Routes(nn.Module):
    """Three rounds of routing; ``apart``: the last round is written out, ``gain``: what each round adds to the logits."""

    def __init__(self, *, apart: bool = False, gain: float = 1.0) -> None:
        super().__init__()
        self.apart, self.gain = apart, gain

    def forward(self, x: Any) -> Any:
        logits = torch.zeros_like(x)
        for _ in range(2 if self.apart else 3):
            shares = F.softmax(logits, dim=-1)
            logits = logits + self.gain * shares * x
        return F.softmax(logits, dim=-1) @ x.T if self.apart else shares @ x.T


def test_rounds_of_which_one_side_writes_out_the_last_are_paired_in_step_whatever_their_values(tmp_path: Path) -> None:
    td.capture(Routes(), (START,), to=tmp_path / "reference.h5").close()
    td.capture(Routes(apart=True, gain=2.0), (START,), to=tmp_path / "port.h5", repeat=False, floor=False).close()
    with td.open_trace(tmp_path / "reference.h5") as reference, td.open_trace(tmp_path / "port.h5") as port:
        pairs = align(reference, port).records
        calls = [
            (reference.records[one.reference[0]].ordinal, port.records[one.port[0]].ordinal) for one in pairs if _is_softmax(reference, one)
        ]
    assert dict(calls) == {0: 0, 1: 1, 2: 2}


def _is_softmax(reference: td.Trace, pair: Any) -> bool:
    record = reference.records[pair.reference[0]]
    return record.site.endswith("softmax") and record.end == "output"
