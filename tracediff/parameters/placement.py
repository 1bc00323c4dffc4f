"""Tensors that hold the right values in the wrong place or layout: exchanged with a sibling, loaded twice, transposed against their family.

What is right is what the family does: the same renaming and the same layout in the other layers. One that departs from it is a finding;
one that all share is the port's convention, unless names or shapes that leave no choice speak against it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from tracediff.alignment.axes import Layout
from tracediff.alignment.names import likeness as word_likeness
from tracediff.alignment.names import tokens
from tracediff.parameters.findings import WeightFinding
from tracediff.parameters.layout_rules import Origin, fitting_layouts, long_axes, long_lengths, merges, origin_of
from tracediff.parameters.matching import ValuePair
from tracediff.parameters.pairing import Pairing
from tracediff.parameters.renames import likeness, parent, template
from tracediff.parameters.resemblance import identical
from tracediff.parameters.thresholds import THRESHOLDS


@dataclass(slots=True)
class Placement:
    """The findings on places and layouts, and ``right``: the origin that each misplaced tensor of the port should have."""

    findings: list[WeightFinding] = field(default_factory=list)
    right: dict[str, Origin] = field(default_factory=dict)


def placement(pairing: Pairing) -> Placement:
    """What is wrong with the places and layouts of a pairing."""
    result = Placement()
    conventions = Conventions(pairing)
    crossed = _crossed(pairing)
    _find_misplaced(pairing, _expected(pairing, crossed), crossed, conventions, result)
    misplaced = set(result.right)
    for name, held in pairing.held.items():
        if name not in misplaced:
            _find_layout(pairing, held, conventions, result)
    return result


# -- places ------------------------------------------------------------------------------------------------------------


def _copies(pairing: Pairing) -> dict[str, str]:
    """The port's tensors that are whole copies of a tensor of the reference, or of a merged one: port name -> reference name."""
    return {name: held.origin.key for name, held in pairing.held.items() if held.origin.is_copy}


def _expected(pairing: Pairing, crossed: Mapping[str, str]) -> dict[str, str]:
    """Where each tensor of the reference belongs by the renaming, reference name -> port name, where no other tensor claims the place."""
    goals: dict[str, str] = {}
    for name in pairing.reference:
        known = next((goal for goal in pairing.renames.candidates(name) if pairing.fits(name, goal)), None)
        goal = crossed.get(name, known)
        if goal is not None:
            goals[name] = goal
    counts = Counter(goals.values())
    return {name: goal for name, goal in goals.items() if counts[goal] == 1}


def _crossed(pairing: Pairing) -> dict[str, str]:
    """Exchanges, reference name -> right port name, that a whole model makes alike. No majority shows them, but names do."""
    goals: dict[str, Counter[str]] = defaultdict(Counter)
    members: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for goal, name in _copies(pairing).items():
        text = template(name)[0]
        goals[text][template(goal)[0]] += 1
        members[text].append((name, goal))
    sure = {text: found.most_common(1)[0][0] for text, found in goals.items() if len(found) == 1}
    exchanged: dict[str, str] = {}
    for one, other in _alike_but_one_part(sure):
        if _is_crossing(one, other, sure[one], sure[other]):
            exchanged |= _exchange(pairing, members[one], members[other])
    return exchanged | _against_module(pairing)


def _against_module(pairing: Pairing) -> dict[str, str]:
    """Exchanges of single tensors between two modules whose other tensors are in place."""
    copies = {name: goal for goal, name in _copies(pairing).items() if goal not in pairing.doubles}
    goals: dict[str, Counter[str]] = defaultdict(Counter)
    for name, goal in copies.items():
        goals[parent(name)][parent(goal)] += 1

    def by_siblings(name: str) -> str | None:
        """The place of a tensor beside the other tensors of its module."""
        others = goals[parent(name)] - Counter([parent(copies[name])])
        found = others.most_common(1)
        return f"{found[0][0]}.{copies[name].rpartition('.')[2]}" if found else None

    places = {goal: name for name, goal in copies.items()}
    exchanged = {}
    for name, goal in copies.items():
        place = by_siblings(name)
        other = places.get(place or "")
        if place is None or place == goal or other is None or by_siblings(other) != goal:
            continue
        if likeness(name, place) + likeness(other, goal) > likeness(name, goal) + likeness(other, place):
            exchanged[name] = place
    return exchanged


def _alike_but_one_part(goals: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Every two templates that differ in one part, and whose goals differ in one part too."""
    families: dict[tuple[int, str], list[str]] = defaultdict(list)
    for text in goals:
        parts = text.split(".")
        for place in range(max(0, len(parts) - THRESHOLDS.crossed_parts), len(parts)):
            families[place, ".".join([*parts[:place], "*", *parts[place + 1 :]])].append(text)
    for members in families.values():
        for one, other in combinations(members[: THRESHOLDS.crossed_templates], 2):
            if _differing(goals[one], goals[other]) is not None:
                yield one, other


def _differing(one: str, other: str) -> tuple[str, str] | None:
    """The one part in which two dotted names differ; None where it is not one."""
    left, right = one.split("."), other.split(".")
    parts = [(a, b) for a, b in zip(left, right, strict=False) if a != b]
    return parts[0] if len(left) == len(right) and len(parts) == 1 else None


def _is_crossing(one: str, other: str, goal_one: str, goal_other: str) -> bool:
    source, goal = _differing(one, other), _differing(goal_one, goal_other)
    if source is None or goal is None:
        return False
    words = {part: tokens(part) for part in (*source, *goal)}
    straight = word_likeness(words[source[0]], words[goal[0]]) + word_likeness(words[source[1]], words[goal[1]])
    across = word_likeness(words[source[0]], words[goal[1]]) + word_likeness(words[source[1]], words[goal[0]])
    return across > straight + THRESHOLDS.crossing


def _exchange(pairing: Pairing, one: Sequence[tuple[str, str]], other: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The places of tensors of one template exchanged with those of their siblings of the other, where both fit."""
    by_numbers = {template(name)[1]: (name, goal) for name, goal in other}
    found: dict[str, str] = {}
    for name, goal in one:
        sibling = by_numbers.get(template(name)[1])
        if sibling is not None and pairing.fits(name, sibling[1]) and pairing.fits(sibling[0], goal):
            found |= {name: sibling[1], sibling[0]: goal}
    return found


def _find_misplaced(
    pairing: Pairing, expected: Mapping[str, str], crossed: Mapping[str, str], conventions: Conventions, result: Placement
) -> None:
    copies = _copies(pairing)
    belongs = {goal: name for name, goal in expected.items()}
    uniform = _uniform(crossed, copies)
    for goal, name in copies.items():
        meant, place = belongs.get(goal), expected.get(name)
        if meant is None or place is None or meant == name or pairing.reference[meant].digest == pairing.reference[name].digest:
            continue
        label, evidence, confidence = _misplaced(name, meant, goal, place, copies)
        if template(name)[0] in uniform and name != goal:
            evidence, confidence = (
                f"{evidence}; all of its kind are, so only the names speak against it",
                THRESHOLDS.uniform_exchange * confidence,
            )
        result.findings.append(WeightFinding("weights.swapped", meant, goal, evidence, {}, confidence, True, label=label))
        result.right[goal] = conventions.right(meant, goal)


def _uniform(crossed: Mapping[str, str], copies: Mapping[str, str]) -> set[str]:
    """The templates of which all tensors are exchanged."""
    kinds = Counter(template(name)[0] for name in copies.values())
    moved = Counter(template(name)[0] for name in crossed)
    return {text for text, count in moved.items() if count == kinds[text] and count > 1}


def _misplaced(name: str, meant: str, goal: str, place: str, copies: Mapping[str, str]) -> tuple[str, str, float]:
    """Label, evidence and confidence. The port's ``goal`` should hold ``meant``; it holds ``name``, which belongs in ``place``."""
    if copies.get(place) == meant:
        evidence = f"holds the values of {name!r}, and {place!r} those of {meant!r}: exchanged"
        return f"exchanged with {_kin(place, goal)}", evidence, THRESHOLDS.sure_exchanged
    if copies.get(place) == name:
        nowhere = "instead of" if meant in copies.values() else "and nothing holds"
        evidence = f"holds the values of {name!r} as {place!r} does, {nowhere} those of {meant!r}"
        return f"a copy of {_kin(place, goal)}", evidence, THRESHOLDS.sure_copied
    evidence = f"holds the values of {name!r} instead of those of {meant!r}"
    return f"the values of {_kin(name, meant)}", evidence, THRESHOLDS.sure_other_tensor


def _kin(name: str, beside: str) -> str:
    """What tells a name from another: the parts in which the two differ, a bare number with the part before it."""
    left, right = name.split("."), beside.split(".")
    if len(left) != len(right):
        return name
    places = {place for place, (a, b) in enumerate(zip(left, right, strict=True)) if a != b}
    places |= {place - 1 for place in places if place and left[place].isdigit()}
    return ".".join(left[place] for place in sorted(places)) or name


# -- layouts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Vote:
    """One tensor's layout: ``forced`` where the shapes left no other."""

    port: str
    layout: str
    forced: bool


class Conventions:
    """The layouts that families of a port's tensors use: those of one template, of one ending, or of one last part."""

    def __init__(self, pairing: Pairing) -> None:
        self._pairing = pairing
        self._origins: dict[str, Origin] = {}
        left = [pairing.reference[name] for name in pairing.missing]
        self._unmerged = {made.parts[-1].name: origin_of(made, Layout(made.shape)) for made in merges(left) if made.merge.kind != "sum"}
        self._votes: dict[_Family, list[_Vote]] = defaultdict(list)
        for name, held in pairing.held.items():
            if held.origin.is_copy and not held.reshaped:
                self._add(name, held)
                self._origins.setdefault(held.origin.key, held.origin)

    def _add(self, name: str, held: ValuePair) -> None:
        shape = self._pairing.reference[held.origin.key].shape
        vote = _Vote(name, move_text(shape, held.origin.layout), len(self._options(held)) == 1)
        for key in _families(name, shape):
            self._votes[key].append(vote)

    def _options(self, held: ValuePair) -> tuple[Layout, ...]:
        source, target = self._pairing.reference[held.origin.key], self._pairing.port[held.port]
        return fitting_layouts(source.shape, target.shape)

    def convention(self, name: str, shape: tuple[int, ...], but: str = "", *, wide: bool = False) -> tuple[str, int, bool] | None:
        """(layout, how many tensors have it, whether they are the nearest family) of a tensor's family, the tensor ``but`` left out.

        With ``wide``, the wider families alone. Of a wider family only tensors vote whose shapes leave them no other layout.
        """
        nearest, *wider = (self._votes.get(key, []) for key in _families(name, shape))
        near = _majority([vote for vote in nearest if vote.port != but], THRESHOLDS.family_majority)
        if near is not None and near[1] > 1 and not wide:
            return (*near, True)
        for votes in wider:
            found = _majority([vote for vote in votes if vote.forced and vote.port != but], THRESHOLDS.wide_majority)
            if found is not None and found[1] >= THRESHOLDS.wide_votes:
                return (*found, False)
        return (*near, True) if near is not None and not wide else None

    def against(self, own: str, port: str, shape: tuple[int, ...]) -> tuple[str, str, float] | None:
        """(layout, evidence, confidence) of the layout that a tensor should have; None where its own is right for its family."""
        found = self.convention(port, shape, port)
        if found is None:
            return None
        convention, count, near = found
        if near and convention == own and not self.is_forced(port, shape):
            convention, count, near = self.convention(port, shape, port, wide=True) or found
        if convention == own:
            return None
        if own == "same" and len(long_axes(shape)) == 2 and not (near and count > 1):
            return None  # an embedding is a lone table that stays as it is among transposed matrices
        kin = f"its {count} siblings are" if near else f"{count} tensors whose shapes leave no choice are"
        rule = "not permuted" if convention == "same" else f"permuted {convention}"
        mine = "it equals the reference as it is" if own == "same" else f"it equals the reference permuted {own}"
        sure = THRESHOLDS.sure_layout_of_siblings if near and count > 1 else THRESHOLDS.sure_layout
        return convention, f"{mine}, where {kin} {rule}", sure

    def is_forced(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether the nearest family has members whose shapes leave them no other layout."""
        return any(vote.forced for vote in self._votes.get(_families(name, shape)[0], ()))

    def right(self, name: str, goal: str, convention: str | None = None) -> Origin:
        """The origin that a tensor of the port should have: in layout ``convention``, else its family's, else the plainest."""
        shape = self._pairing.reference[name].shape
        options = fitting_layouts(shape, self._pairing.port[goal].shape)
        found = self.convention(goal, shape, goal)
        wanted = convention or (found[0] if found is not None else None)
        chosen = next((option for option in options if move_text(shape, option) == wanted), None)
        layout = chosen or (options[0] if options else Layout(self._pairing.port[goal].shape))
        known = self._origins.get(name) or self._unmerged.get(name) or Origin((name,), layout)
        return replace(known, layout=layout)


def _majority(votes: Sequence[_Vote], share: float) -> tuple[str, int] | None:
    """The layout that more than a share of the votes have, and how many; None where there is none."""
    counts = Counter(vote.layout for vote in votes).most_common(1)
    return counts[0] if counts and counts[0][1] > share * len(votes) else None


_Family = tuple[str, int, int, str]


def _families(name: str, shape: tuple[int, ...]) -> list[_Family]:
    """The families of a tensor, the nearest first. All have as many axes, and as many axes longer than 1, as the tensor.

    A kernel over two dimensions with one input channel has as many long axes as one over a single dimension, which goes another way.
    """
    text = template(name)[0]
    parts = text.split(".")
    rank = len(long_axes(shape)), len(shape)
    return [("alike", *rank, text), ("ending", *rank, ".".join(parts[-2:])), ("rank", *rank, parts[-1])]


def move_text(shape: tuple[int, ...], layout: Layout) -> str:
    """What a layout does to the axes longer than 1, in words that are the same for tensors of other lengths."""
    text = str(layout)
    if layout.permutation is None or layout.split not in (None, shape) or 1 in shape:
        return "same" if layout.is_same else _long_move(shape, layout) or text
    return text


def _long_move(shape: tuple[int, ...], layout: Layout) -> str | None:
    """The permutation of the long axes alone, where the layout permutes no others."""
    if layout.permutation is None:
        return None
    seen = layout.split if layout.split is not None else shape
    if long_lengths(seen) != long_lengths(shape):
        return None
    long = long_axes(seen)
    order = tuple(long.index(axis) for axis in layout.permutation if axis in long)
    return "same" if order == tuple(range(len(order))) else str(order)


def _find_layout(pairing: Pairing, held: ValuePair, conventions: Conventions, result: Placement) -> None:
    origin = held.origin
    if not origin.is_copy or (held.by == "sketch" and origin.merge is not None):  # a sketch tells no order of a merged tensor's axes
        return
    name = origin.key
    source, target = pairing.reference[name], pairing.port[held.port]
    if held.reshaped:
        evidence = f"the bytes of {source.shape} read as {target.shape}: reshaped where a transpose was meant"
        label, sure = "reshaped, not transposed", THRESHOLDS.sure_reshaped
        result.findings.append(WeightFinding("weights.layout", name, held.port, evidence, {}, sure, True, label=label))
        result.right[held.port] = conventions.right(name, held.port)
        return
    if len(long_axes(source.shape)) < 2 or len(fitting_layouts(source.shape, target.shape)) < 2 or source.is_constant:
        return
    own = move_text(source.shape, origin.layout)
    reason = conventions.against(own, held.port, source.shape)
    if reason is None:
        return
    convention, evidence, confidence = reason
    right = conventions.right(name, held.port, convention)
    if _gives(pairing, right, held.port):
        return  # the tensor is the same in either layout
    finding = WeightFinding("weights.layout", name, held.port, evidence, {}, confidence, True, label=_layout_label(own))
    result.findings.append(finding)
    result.right[held.port] = right


def _gives(pairing: Pairing, origin: Origin, port: str) -> bool:
    """Whether an origin gives the values that the port holds; False where they cannot be read."""
    target, sources = pairing.port[port], [pairing.reference[name] for name in origin.names]
    if not target.is_readable or not all(source.is_readable for source in sources):
        return False
    return identical(origin.values(lambda name: pairing.reference[name].read()), target.read())


def _layout_label(own: str) -> str:
    return "not transposed" if own == "same" else f"transposed {own}"
