"""One joint decision of many: each variable takes one of its options, as its own evidence and what it must agree with say together.

Evidence is a number for each option, in natural logarithms of odds. An *agreement* ties two variables: it is worth its weight that they
take options that match. Max-product propagation passes what each variable knows along all agreements until nothing changes. What an
agreement passes on is never worth more than its weight, so one variable that is wrong cannot outvote the others around it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tracediff.alignment.thresholds import THRESHOLDS

Message = list[float]


@dataclass(slots=True)
class _Agreement:
    """What ties two variables: by options of each, the options of the other that match; and the messages to either.

    ``heard``: how often either variable had learnt something when it last passed on what it knows.
    """

    variables: tuple[int, int]
    matches: tuple[Mapping[int, int], Mapping[int, int]]
    weight: float
    source: str
    messages: list[Message] = field(default_factory=lambda: [[], []])
    heard: list[int] = field(default_factory=lambda: [-1, -1])


@dataclass(frozen=True, slots=True)
class Voice:
    """What one source of evidence says of one variable: for each of its options a number, 0 for the option that it likes best."""

    source: str
    scores: Sequence[float]


@dataclass(frozen=True, slots=True)
class Settled:
    """What was decided of a variable: its best option, the next best, how probable the best is of the two, and what each source says.

    ``voices``: (source, what it says for the best option, what for the next best), what speaks most for the best first.
    """

    best: int
    rival: int
    probability: float
    voices: tuple[tuple[str, float, float], ...]


class JointDecision:
    """Variables with options, evidence for them, and agreements between them. A variable is known by its number."""

    def __init__(self) -> None:
        self._own: list[list[Voice]] = []
        self._sizes: list[int] = []
        self._total: list[Message] = []
        self._learnt: list[int] = []
        self._ties: list[list[tuple[_Agreement, int]]] = []
        self._agreements: list[_Agreement] = []

    def add(self, options: int) -> int:
        """A new variable with so many options."""
        self._own.append([])
        self._sizes.append(options)
        self._total.append([0.0] * options)
        self._learnt.append(0)
        self._ties.append([])
        return len(self._sizes) - 1

    def hear(self, variable: int, source: str, scores: Sequence[float]) -> None:
        """Adds evidence: a number for each option of a variable."""
        highest = max(scores)
        self._own[variable].append(Voice(source, [score - highest for score in scores]))
        self._total[variable] = [total + score - highest for total, score in zip(self._total[variable], scores, strict=True)]

    def tie(self, first: int, second: int, matches: Mapping[int, int], weight: float, source: str) -> None:
        """Adds an agreement: by options of the first variable, the matching options of the second."""
        if not matches:
            return
        tied = _Agreement((first, second), (matches, {other: option for option, other in matches.items()}), weight, source)
        tied.messages = [[0.0] * self._sizes[first], [0.0] * self._sizes[second]]
        self._agreements.append(tied)
        self._ties[first].append((tied, 0))
        self._ties[second].append((tied, 1))

    def settle(self) -> None:
        """Propagates forth and back, in the order in which the variables were added, until nobody learns anything new.

        What goes round in a loop may never come to rest, so that messages are damped after some sweeps.
        """
        self._agreements.sort(key=lambda tied: (max(tied.variables), min(tied.variables)))
        for sweep in range(THRESHOLDS.propagation_sweeps):
            ends = (1, 0) if sweep % 2 == 0 else (0, 1)
            kept = 0.0 if sweep < THRESHOLDS.propagation_undamped else THRESHOLDS.propagation_damping
            changes = [self._pass_on(tied, end, kept) for tied in self._agreements[:: 1 if ends[0] else -1] for end in ends]
            if not any(changes):
                return

    def settled(self, variable: int) -> Settled:
        """What was decided of a variable, and who said what of it."""
        best, rival = sorted(range(self._sizes[variable]), key=lambda option: -self._total[variable][option])[:2]
        said: dict[str, list[float]] = {}
        ties = (Voice(tied.source, tied.messages[end]) for tied, end in self._ties[variable])
        for voice in (*self._own[variable], *ties):
            worth = said.setdefault(voice.source, [0.0, 0.0])
            worth[0] += voice.scores[best]
            worth[1] += voice.scores[rival]
        voices = sorted(((source, chosen, other) for source, (chosen, other) in said.items()), key=lambda one: one[2] - one[1])
        margin = self._total[variable][best] - self._total[variable][rival]
        return Settled(best, rival, 1.0 / (1.0 + math.exp(-margin)), tuple(voices))

    def _pass_on(self, tied: _Agreement, end: int, kept: float) -> bool:
        """Renews the message of an agreement to one of its ends, where the other has learnt something; whether that told anything new."""
        giver, taker, before = tied.variables[1 - end], tied.variables[end], tied.messages[end]
        if tied.heard[1 - end] == self._learnt[giver]:
            return False
        known = [total - told for total, told in zip(self._total[giver], tied.messages[1 - end], strict=True)]
        highest = max(known)
        message = [highest] * len(before)
        for option, other in tied.matches[1 - end].items():
            message[other] = max(highest, known[option] + tied.weight)
        highest = max(message)
        changes = [(1.0 - kept) * (score - highest - old) for score, old in zip(message, before, strict=True)]
        if not kept:
            tied.heard[1 - end] = self._learnt[giver]
        if max(map(abs, changes)) < THRESHOLDS.propagation_settled:
            return False
        tied.messages[end] = [old + change for old, change in zip(before, changes, strict=True)]
        self._total[taker] = [total + change for total, change in zip(self._total[taker], changes, strict=True)]
        self._learnt[taker] += 1
        return True
