"""Fused projections: one matrix on one side that is several on the other, as of queries, keys and values."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from tracediff.alignment.axes import Part
from tracediff.alignment.matches import Match, Matches, ordered
from tracediff.alignment.parameters import SIDES, matrices
from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.alignment.ties import nearest_callers


def fuse_by_parameters(matches: Matches) -> None:
    """Pairs sites whose parameters are blocks of a larger parameter on the other side with the owner of that one."""
    for (a, b), owned in matches.evidence.pairs.parameters.items():
        if owned.part is None or owned.share <= THRESHOLDS.fused_share or not (matches.is_free(0, a) and matches.is_free(1, b)):
            continue
        if _is_projection(matches, owned.whole, owned.part.axis, a, b):
            matches.fuse(Match(a, b, THRESHOLDS.fused_score, owned.text, part=owned.part, whole=owned.whole))


def _is_projection(matches: Matches, whole: str, axis: int, a: int, b: int) -> bool:
    """Whether the fused site of two returns what its parts return: as wide as its one matrix along the ``axis`` that is fused.

    Experts that own two projections do not, nor does an attention that owns its fused projections itself.
    """
    number = SIDES.index(whole)
    side, site = matches.sides[number], (a, b)[number]
    owned = matrices(side, site)
    call = int(side.first_call[site])
    widths = {size for row in side.ends_of(call)[1] for size in side.shapes[row]} if call >= 0 else set()
    return len(owned) < 2 and (call < 0 or not owned or owned[0][axis] in widths)


def fill_gaps(matches: Matches) -> None:
    """Pairs the part of a fused whole that was found nowhere with the one sibling of its size that is left: it was not loaded."""
    known = {pair for pair, worth in matches.evidence.pairs.by_parameters.items() if worth >= THRESHOLDS.parameters_equal}
    groups: dict[tuple[int, int], list[Match]] = defaultdict(list)
    for match in matches.fused:
        side = 1 - SIDES.index(match.whole)
        groups[side, match.site(1 - side)].append(match)
    for (side, whole), found in groups.items():
        features = matches.features[side]
        parts = [match.site(side) for match in found]
        gap = _gap([match.part for match in found if match.part is not None], matches.features[1 - side].width[whole])
        keys = {int(features.key[part]) for part in parts}
        caller = int(matches.sides[side].parent[parts[0]])
        siblings = [
            site
            for site in matches.unpaired(side, [*matches.sides[side].children[caller], *features.uncalled.get(caller, ())])
            if site not in {pair[side] for pair in known} and int(features.key[site]) in keys
        ]
        if gap is not None and len(siblings) == 1 and features.width[siblings[0]] == gap.stop - gap.start:
            pair = ordered(side, siblings[0], whole)
            reason = "what is left of a fused whole"
            matches.fuse(Match(*pair, THRESHOLDS.fused_by_shape_score, reason, part=gap, whole=found[0].whole))


def _gap(parts: Sequence[Part], length: int) -> Part | None:
    """The one contiguous stretch of an axis of that length that the parts leave free; None where there is none, or several.

    >>> _gap([Part(0, 0, 4), Part(0, 8, 12)], 12)
    Part(axis=0, start=4, stop=8, groups=1)
    """
    if not parts or any(part.groups > 1 or part.axis != parts[0].axis for part in parts):
        return None
    edges = [0, *(edge for part in sorted(parts, key=lambda part: part.start) for edge in (part.start, part.stop)), length]
    free = [(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if stop > start]
    return Part(parts[0].axis, *free[0]) if len(free) == 1 else None


def fuse_siblings(matches: Matches, pairs: Sequence[Match]) -> bool:
    """Pairs neighbours whose outputs add up to a sibling's on the other side, where no parameter is equal any more; whether there are any.

    ``pairs``: the pairs of callers that are believed, on top of those that are known.
    """
    before = len(matches.fused)
    known = {(match.reference, match.port) for match in (*pairs, *matches.all())} | {(-1, -1)}
    inside: tuple[dict[int, list[int]], dict[int, list[int]]] = (defaultdict(list), defaultdict(list))
    for side, near in enumerate(nearest_callers(matches.evidence, known)):
        order = sorted(range(len(near)), key=lambda site: int(matches.sides[side].first_call[site]) % (1 << 62))
        for site in order:
            inside[side][int(near[site])].append(site)
    for a, b in sorted(known):
        rows, columns = (matches.unpaired(side, inside[side][site]) for side, site in enumerate((a, b)))
        if rows and columns:
            _fuse(matches, rows, columns)
    return len(matches.fused) > before


def _fuse(matches: Matches, rows: Sequence[int], columns: Sequence[int]) -> None:
    if sorted(matches.features[0].key[list(rows)]) == sorted(matches.features[1].key[list(columns)]):
        return
    for side in (0, 1):
        parts, wholes = (rows, columns) if side == 0 else (columns, rows)
        for whole in wholes:
            free = [part for part in parts if part not in matches.partner[side]]
            start = 0
            for part in _Neighbours(matches, side, free, wholes).that_make(whole):
                stop = start + matches.features[side].width[part]
                pair = ordered(side, part, whole)
                match = Match(*pair, THRESHOLDS.fused_by_shape_score, "fused by shape", part=Part(0, start, stop), whole=SIDES[1 - side])
                matches.fuse(match)
                start = stop


class _Neighbours:
    """Unpaired siblings of ``side`` that may be the parts of a fused sibling among ``wholes`` of the other side."""

    def __init__(self, matches: Matches, side: int, parts: Sequence[int], wholes: Sequence[int]) -> None:
        self.parts, self.wholes = parts, wholes
        self.partner = matches.partner[1 - side]
        self.features, self.others = matches.features[side], matches.features[1 - side]

    def that_make(self, whole: int) -> Sequence[int]:
        """Two or more neighbours that together make ``whole``; none where there are no such."""
        if len(self.others.key_of[whole]) != 2 or whole in self.partner or self.others.role[whole] == 0:
            return []
        if any(self.features.key[part] == self.others.key[whole] for part in self.parts):
            return []
        for start in range(len(self.parts)):
            for count in range(2, THRESHOLDS.fused_parts + 1):
                group = self.parts[start : start + count]
                if len(group) == count and self._adds_up(group, whole) and not self._has_counterparts(group):
                    return group
        return []

    def _adds_up(self, group: Sequence[int], whole: int) -> bool:
        """Whether the outputs of a group are as wide together as the whole's, and each takes in the same, of the whole's other axis."""
        size, total = self.others.width[whole], sum(self.features.width[part] for part in group)
        if not size or size != total or any(self.features.role[part] != self.others.role[whole] for part in group):
            return False
        rest = set(self.others.key_of[whole]) - {size} or {size}
        have_axis = all(len(self.features.key_of[part]) == 2 and rest & set(self.features.key_of[part]) for part in group)
        return have_axis and len({self.features.inputs_of[part] for part in group}) == 1

    def _has_counterparts(self, group: Sequence[int]) -> bool:
        """Whether the other side has as many unpaired siblings of the same shape, so that nothing need be fused."""
        free = Counter(int(self.others.key[rival]) for rival in self.wholes if rival not in self.partner)
        own = Counter(int(self.features.key[part]) for part in self.parts)
        taken = Counter(int(self.features.key[part]) for part in group)
        return any(own[key] - count < free[key] for key, count in taken.items())
