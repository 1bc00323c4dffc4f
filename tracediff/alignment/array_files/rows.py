"""Which record of the reference a port's array is compared with, where several hold its content: what made it, or what was handed it.

A layer, the block that ends in it, and the next block that takes it in hold one tensor. The array is compared with the smallest call that
computed it from what was compared too, so that this call can be blamed. Names that clearly say which is meant come first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set

from tracediff.alignment.array_files.assignment import Evidence, Siblings
from tracediff.alignment.array_files.thresholds import THRESHOLDS
from tracediff.alignment.array_files.wording import numbers_alike
from tracediff.trace.calls import TOP


class Rows:
    """The rows of the reference that the port's rows are compared with.

    ``partner``: the reference's content of each content of the port.
    """

    def __init__(self, evidence: Evidence, partner: Mapping[int, int]) -> None:
        self.evidence, self.partner = evidence, partner
        self.calls = evidence.sides[0].side.trace.calls
        self.port_calls = evidence.sides[1].side.trace.calls
        self._known = set(partner.values()) | self._given()

    def _given(self) -> set[int]:
        """The contents that the reference's run was given, and the port's too where nothing else is known."""
        contents = self.evidence.sides[0]
        rows = (row for call in self.calls.children[TOP] for row in self.calls.inputs(call))
        return {contents.of_row[row] for row in rows if row in contents.of_row}

    def chosen(self) -> dict[int, int]:
        """The reference's row of each paired row of the port: outputs first, then what was handed to the calls that made them."""
        found: dict[int, int] = {}
        for b, a in self.partner.items():
            taken: set[int] = set()
            for row in self.evidence.sides[1].all[b].rows:
                if self.port_calls.kinds[row] != "input":
                    found[row] = self.row_of(a, row, taken)
                    taken.add(found[row])
        for b, a in self.partner.items():
            for row in self.evidence.sides[1].all[b].rows:
                if self.port_calls.kinds[row] == "input":
                    found[row] = self._handed(a, row, found)
        return found

    def row_of(self, a: int, own: int, taken: Set[int] = frozenset()) -> int:
        """The row of a content that a port's output, tap or draw is compared with."""
        rows = self.evidence.sides[0].all[a].rows
        made = [row for row in rows if self.calls.kinds[row] != "input"]
        free = [row for row in made or rows if row not in taken] or made or list(rows)
        return max(free, key=lambda row: (*self._fitness(row, a, own, rows), -row))

    def _fitness(self, row: int, a: int, own: int, rows: Sequence[int]) -> tuple[int, ...]:
        """What speaks for a row of a content, the weightiest first."""
        return (
            self._by_name(row, own),
            self._in_numbers(row, own),
            self._is_returned(row, rows),
            self._is_told(row, a, own),
            self._plain(row, a),
        )

    def _by_name(self, row: int, own: int) -> bool:
        """Whether the name alone says that this row is meant: the whole name of a site, which no rule outweighs."""
        sides = self.evidence.sides
        return sides[0].side.text("site", row) == sides[1].side.text("site", own)

    def _is_returned(self, row: int, rows: Sequence[int]) -> bool:
        """Whether a row holds, to the bit, what the reference's run returned, where some row of its content does."""
        side = self.evidence.sides[0].side
        digests = {side.index["digest"][one].tobytes() for one in side.trace.returned or () if one in rows}
        return side.index["digest"][row].tobytes() in digests

    def _in_numbers(self, row: int, own: int) -> bool:
        """Whether nothing in the numbers of two names speaks against them: what all layers compute alike is one content."""
        return numbers_alike(self.evidence.wordings[0][row], self.evidence.wordings[1][own]) >= 0

    def _is_told(self, row: int, a: int, own: int) -> int:
        """How much of what the row's call took in was compared: 2 all of it, and it is what the port's call took in; 1 all; 0 not all."""
        contents = self.evidence.sides[0]
        handed = [contents.of_row[one] for one in self.calls.inputs(int(self.calls.of_row[row])) if one in contents.of_row]
        if not handed or a in handed or not all(one in self._known for one in handed) or self._holds_others(row, {a, *handed}):
            return 0
        theirs = self._inputs(own)
        return 2 if theirs and theirs <= set(handed) else 1

    def _holds_others(self, row: int, own: Set[int]) -> bool:
        """Whether something that was compared was made inside the call of a row, so that the call is not the smallest that tells."""
        contents = self.evidence.sides[0]
        begin = int(self.calls.first[self.calls.of_row[row]])
        return any((a := contents.of_row.get(one)) in self._known and a not in own for one in range(begin, row))

    def _inputs(self, own: int) -> set[int]:
        """The reference's contents of what the port's call took in, as far as its file says."""
        contents = self.evidence.sides[1]
        rows = self.port_calls.inputs(int(self.port_calls.of_row[own]))
        return {self.partner[contents.of_row[row]] for row in rows if contents.of_row.get(row) in self.partner}

    def _plain(self, row: int, a: int) -> bool:
        """Whether a row's call computed the content, and did not hand it on."""
        contents = self.evidence.sides[0]
        return all(contents.of_row.get(one) != a for one in self.calls.inputs(int(self.calls.of_row[row])))

    def _handed(self, a: int, own: int, found: Mapping[int, int]) -> int:
        """The row of a content that a port's input is compared with: of the call that the port's call is, else by name."""
        rows = self.evidence.sides[0].all[a].rows
        made = [found[row] for row in self.port_calls.outputs(int(self.port_calls.of_row[own])) if row in found]
        calls = {int(self.calls.of_row[row]) for row in made}
        taken = [row for row in rows if self.calls.kinds[row] == "input"]
        inside = [row for row in taken if int(self.calls.of_row[row]) in calls]
        wordings = self.evidence.wordings
        return max(inside or taken or rows, key=lambda row: (self.evidence.named(wordings[0][row], wordings[1][own]), -row))


def told_otherwise(evidence: Evidence, siblings: Siblings, partner: Mapping[int, int], free: Iterable[int]) -> dict[int, int]:
    """The port's rows whose siblings say that they are another content than the one whose values they hold: (row, content).

    So where a residual is missing: the sum holds what the last part of it returned. ``free``: the contents of the reference without
    partner.
    """
    found: dict[int, int] = {}
    left = list(free)
    for b, a in partner.items():
        for row in evidence.sides[1].all[b].rows:
            theirs = evidence.wordings[1][row]
            if not siblings.has_say(theirs) or _best(evidence, siblings, a, row) > 0:
                continue
            said = [(_best(evidence, siblings, other, row), other) for other in left if evidence.agreement.fits[other, b]]
            best = max(said, default=(0.0, -1))
            if best[0] > THRESHOLDS.told:
                found[row] = best[1]
    return found


def _best(evidence: Evidence, siblings: Siblings, a: int, row: int) -> float:
    """What siblings say of a content of the reference and a row of the port."""
    return max(siblings.say(one, evidence.wordings[1][row]) for one in evidence.texts(0, a))
