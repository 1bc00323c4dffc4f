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
    """What ties two variables: by options of each, the options of the other that match; and the messages to either."""

    variables: tuple[int, int]
    matches: tuple[Mapping[int, int], Mapping[int, int]]
    weight: float
    source: str
    messages: list[Message] = field(default_factory=lambda: [[], []])


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
        self._ties: list[list[tuple[_Agreement, int]]] = []
        self._agreements: list[_Agreement] = []

    def add(self, options: int) -> int:
        """A new variable with so many options."""
        self._own.append([])
        self._sizes.append(options)
        self._total.append([0.0] * options)
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
        """Propagates forth and back, in the order in which the agreements were made, until no message changes."""
        for sweep in range(THRESHOLDS.propagation_sweeps):
            ordered = self._agreements if sweep % 2 == 0 else reversed(self._agreements)
            change = 0.0
            for tied in ordered:
                for end in (1, 0) if sweep % 2 == 0 else (0, 1):
                    change = max(change, self._pass_on(tied, end))
            if change < THRESHOLDS.propagation_settled:
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

    def _pass_on(self, tied: _Agreement, end: int) -> float:
        """Renews the message of an agreement to one of its ends; by how much it changed."""
        giver, taker, before = tied.variables[1 - end], tied.variables[end], tied.messages[end]
        known = [total - told for total, told in zip(self._total[giver], tied.messages[1 - end], strict=True)]
        highest = max(known)
        message = [highest] * self._sizes[taker]
        for option, other in tied.matches[1 - end].items():
            message[other] = max(highest, known[option] + tied.weight)
        highest, kept = max(message), THRESHOLDS.propagation_damping
        tied.messages[end] = [kept * old + (1.0 - kept) * (score - highest) for score, old in zip(message, before, strict=True)]
        changes = [new - old for new, old in zip(tied.messages[end], before, strict=True)]
        self._total[taker] = [total + change for total, change in zip(self._total[taker], changes, strict=True)]
        return max(map(abs, changes))
