"""The layouts of all pairs of records, decided together where shapes leave a choice.

What a tensor is laid out as must fit what it came from and where it goes. So each slot (a boundary of two paired sites, in calls of the
same shapes) is a variable whose options are the layouts that its shapes allow; `layout_evidence` says what speaks for each by itself, and
`layout_ties` what must agree. `propagation` finds the layouts that fit best all together. See docs/pairing.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tracediff.alignment import layout_evidence, layout_ties
from tracediff.alignment.layout_evidence import LayoutEvidence
from tracediff.alignment.layout_slots import Order, Slot, slots_of
from tracediff.alignment.layout_ties import LayoutTies
from tracediff.alignment.layouts import OPEN, LayoutChooser
from tracediff.alignment.partial_layouts import UNREAD
from tracediff.alignment.propagation import JointDecision, Settled
from tracediff.alignment.record_table import Rows
from tracediff.alignment.result import Account, RecordPair
from tracediff.alignment.thresholds import THRESHOLDS

WORDS = {
    "plainness": "plain",
    "own_choice": "plain",
    "values": "values",
    "own_channels": "channels on channels",
    "handed_channels": "channels on channels where layers take it in",
    "consumed_alike": "what takes it in",
    "handed_on": "as what it comes from",
    "kept": "as the other end of its call",
    "passed_through": "as what the code before it had",
    "other_calls": "as in its other calls",
    "siblings": "as its siblings",
}
"""What each source is called in the evidence."""


def settled(chooser: LayoutChooser, found: Sequence[RecordPair]) -> list[RecordPair]:
    """The pairs of records with the layouts that fit best all together, and what speaks for each."""
    result = list(found)
    if any(pair.evidence == OPEN for pair in found):
        layouts = JointLayouts(chooser.rows, slots_of(chooser, found))
        for number, slot in enumerate(layouts.slots):
            if slot.is_open:
                decided = layouts.decided(number)
                layout, evidence = slot.options[decided.best], layouts.words(slot, decided)
                ends = chooser.rows.sides[0].text("end", slot.a), chooser.rows.sides[1].text("end", slot.b)
                account = Account(ends, str(slot.options[decided.rival]), decided.probability, decided.voices)
                for place in slot.pairs:
                    result[place] = replace(found[place], layout=layout, evidence=evidence, account=account)
    return result


class JointLayouts:
    """The joint decision over all slots; a slot is known by its place in ``slots``."""

    def __init__(self, rows: Rows, slots: Sequence[Slot]) -> None:
        self.slots, self.evidence = slots, LayoutEvidence(rows)
        self.decision = JointDecision()
        for slot in slots:
            self.decision.add(len(slot.options))
        ties = LayoutTies(rows, slots)
        for source in layout_ties.SOURCES:
            for tie in source(ties):
                self.decision.tie(tie.first, tie.second, tie.matches, tie.weight, WORDS[source.__name__])
                slots[tie.second].is_root &= not tie.matches
        for boundaries in layout_ties.siblings(ties):
            self._tie_siblings(boundaries)
        for number, slot in enumerate(slots):
            for say in layout_evidence.SOURCES if slot.is_open else ():
                scores = say(self.evidence, slot)
                if scores is not None:
                    self.decision.hear(number, WORDS[say.__name__], scores)
        self.decision.settle()

    def decided(self, number: int) -> Settled:
        """What was decided of an open slot."""
        return self.decision.settled(number)

    def words(self, slot: Slot, decided: Settled) -> str:
        """What speaks for the layout of a slot rather than for the next best, the strongest first."""
        if self.evidence.is_unread(slot):
            return f"shapes; {UNREAD}"
        told = [source for source, chosen, rival in decided.voices if chosen - rival > THRESHOLDS.layout_told]
        errors = self.evidence.errors(slot)
        if WORDS["values"] in told and errors:
            told[told.index(WORDS["values"])] = f"values agree to {errors[decided.best]:.0e}"
        return ", ".join(told) or "shapes"

    def _tie_siblings(self, boundaries: Sequence[Sequence[int]]) -> None:
        """Ties the slots of each boundary to what they have in common, and that to what the boundaries of all siblings have in common."""
        orders: dict[Order, int] = {}
        for number in (number for numbers in boundaries for number in numbers):
            for order in self.slots[number].orders:
                orders.setdefault(order, len(orders))
        same = {option: option for option in range(len(orders))}
        common = self.decision.add(len(orders))
        for numbers in boundaries:
            own = self.decision.add(len(orders))
            for number in numbers:
                matches = {option: orders[order] for order, option in self.slots[number].orders.items()}
                is_alone = len(numbers) == 1
                self.decision.tie(number, own, matches, THRESHOLDS.layout_other_calls, WORDS["siblings" if is_alone else "other_calls"])
            self.decision.tie(own, common, same, THRESHOLDS.layout_siblings, WORDS["siblings"])
