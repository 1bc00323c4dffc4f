"""Pairs the sites of two traces: anchors from parameters and values, then the tree of calls from the top down, then what is left over.

The score of two sites mixes what their parameters, values, shapes, roles, attributes, neighbours and names say. A fault may silence
any one of these (weights that were not loaded, values after an early error), so none decides alone. Inside matched callers the
children are aligned in the order of their calls, and assigned out of order only where the scores clearly say so.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tracediff.alignment import order
from tracediff.alignment.axes import Part
from tracediff.alignment.scores import MARGIN, Scores
from tracediff.alignment.sibling_vote import as_in_their_class, expected
from tracediff.alignment.structure import Side
from tracediff.alignment.wrappers import Levels

_WORTH_PAIRING = 0.3  # the least score of two siblings that are paired
_CONSISTENT = 0.7  # the least share of what is paired below two callers that must be paired with each other
_HELD_ALIKE = 0.8  # the least share of what two modules hold that must be paired with each other for themselves to be
_WORTH_MOVING = 0.9  # the least score of two sites paired although their callers are not


@dataclass(slots=True)
class Match:
    """Two sites paired, with the score that decided, its runners-up, and the part of a fused site where there is one."""

    reference: int
    port: int
    score: float
    by: str
    rivals: list[int] = field(default_factory=list)
    part: Part | None = None
    whole: str = ""


class Matcher:
    """Pairs the sites of two sides; `run` returns the matches, in the order of the reference."""

    def __init__(
        self,
        reference: Side,
        port: Side,
        *,
        given: Iterable[tuple[int, int]] = (),
        fused: Iterable[Match] = (),
        ignored: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset()),
    ) -> None:
        self.scores = Scores(reference, port)
        self.levels = Levels(self.scores)
        self.sides, self.features = self.scores.sides, self.scores.features
        self.ignored = ignored
        self.partner: tuple[dict[int, Match], dict[int, Match]] = ({}, {})
        self.fused: list[Match] = []
        self._visited: set[tuple[int, int]] = set()
        for a, b in given:
            self._pair(Match(a, b, 9.0, "given"))
        for match in fused:
            self._fuse(match)

    def run(self) -> list[Match]:
        """All matches: one a site, and further ones for fused sites."""
        self._fuse_by_parameters()
        self._fill_gaps()
        self._children(len(self.sides[0]), len(self.sides[1]))
        self._apply_anchors()
        self._left_over()
        self._as_siblings()
        self._as_their_class()
        self._taken_apart()
        self._chains()
        self._inside_wrappers()
        self._containers()
        alone = [match for match in self.partner[0].values() if match.part is None]
        return sorted([*alone, *self.fused], key=lambda match: (match.reference, match.port))

    # -- from the top down -----------------------------------------------------------------------------------

    def _children(self, a: int, b: int) -> tuple[list[int], list[int]]:
        """Pairs what two matched callers call, and what those call in turn; returns the sites left over on each side."""
        if (a, b) in self._visited:
            return [], []
        self._visited.add((a, b))
        rows, columns = self.levels.dissolved(self.levels.called(0, a), self.levels.called(1, b))
        pairs = self._align(rows, columns, _WORTH_PAIRING)
        left: tuple[list[int], list[int]] = ([], [])
        for one, other in pairs:
            for side, sites in enumerate(self._inside(one, other)):
                left[side].extend(sites)
        for side, sites in enumerate((rows, columns)):
            for site in sites:
                if site not in self.partner[side]:
                    left[side].extend([site, *self.sides[side].below(site)])
        return self._move(left)

    def _inside(self, a: int, b: int) -> tuple[list[int], list[int]]:
        """Goes on inside a matched pair of siblings; a leaf is matched with the one leaf inside the other side's wrapper that fits."""
        ours, theirs = self.features
        if not ours.leaf[a] and not theirs.leaf[b]:
            return self._children(a, b)
        for side, (wrapper, leaf) in enumerate(((a, b), (b, a))):
            if not self.features[side].leaf[wrapper] and self.features[1 - side].leaf[leaf]:
                return self._unwrap(side, wrapper, leaf)
        return [], []

    def _unwrap(self, side: int, wrapper: int, leaf: int) -> tuple[list[int], list[int]]:
        """Moves the match of a leaf from a wrapper to what is wrapped."""
        inside = [site for site in self.sides[side].below(wrapper) if site not in self.partner[side] and self.features[side].leaf[site]]
        scores = self.scores.table([leaf], inside) if side == 1 else self.scores.table(inside, [leaf]).T
        left: tuple[list[int], list[int]] = ([], [])
        left[side].extend(self.sides[side].below(wrapper))
        own = self.features[side].key[wrapper]
        if (
            inside
            and not own
            and scores.max() > _WORTH_PAIRING
            and self.features[side].key[inside[int(scores.argmax())]] == self.features[1 - side].key[leaf]
            and self._is_alone(side, inside, int(self.features[1 - side].key[leaf]))
        ):
            best = inside[int(scores.argmax())]
            self._unpair(side, wrapper)
            self._pair(Match(*((best, leaf) if side == 0 else (leaf, best)), float(scores.max()), "wrapped"))
        return [site for site in left[0] if site not in self.partner[0]], [site for site in left[1] if site not in self.partner[1]]

    def _is_alone(self, side: int, inside: Sequence[int], key: int) -> bool:
        """Whether a wrapper holds one module with such parameters; a stack of them, as of recurrent layers, wraps none of them."""
        return not key or sum(int(self.features[side].key[site]) == key for site in inside) == 1

    def _called(self, side: int, site: int) -> list[int]:
        """What a site called, in order, then the modules it holds that own parameters but were never called."""
        return [*self.sides[side].children[site], *self.features[side].uncalled.get(site, ())]

    def _align(self, rows: Sequence[int], columns: Sequence[int], least: float) -> list[tuple[int, int]]:
        """Aligns siblings that are not yet paired and pairs them; returns all pairs among them, earlier ones too."""
        wanted = set(columns)
        known = [(a, match.port) for a in rows if (match := self.partner[0].get(a)) is not None and match.port in wanted]
        free = [a for a in rows if a not in self.partner[0] and a not in self.ignored[0]]
        other = [b for b in columns if b not in self.partner[1] and b not in self.ignored[1]]
        pairs = self._fused_siblings(free, other)
        free = [a for a in free if a not in self.partner[0]]
        other = [b for b in other if b not in self.partner[1]]
        for a, b, score, rivals in self._matched(free, other):
            if score > least and self._is_consistent(a, b) and (least < _WORTH_MOVING or self._could_move(a, b)):
                self._pair(Match(a, b, score, "structure", rivals))
                pairs.append((a, b))
        return [*known, *pairs]

    def _could_move(self, a: int, b: int) -> bool:
        """Whether two sites in different places give out the same shapes, or something else says that they are one."""
        ours, theirs = self.features
        return bool(ours.outputs[a] == theirs.outputs[b] or not (ours.called[a] and theirs.called[b]) or self.scores.told(a, b) > 0)

    def _is_consistent(self, a: int, b: int) -> bool:
        """Whether what is already paired below two callers is mostly paired with what lies below the other."""
        if self.features[0].leaf[a] or self.features[1].leaf[b]:
            return True
        ours = [self.partner[0][site].port for site in self.sides[0].below(a) if site in self.partner[0]]
        theirs = {site for site in self.sides[1].below(b) if site in self.partner[1]}
        shared = sum(site in theirs for site in ours)
        return 2 * shared >= _CONSISTENT * (len(ours) + len(theirs))

    def _matched(self, rows: Sequence[int], columns: Sequence[int]) -> list[tuple[int, int, float, list[int]]]:
        """The matches among siblings with their scores and rivals: anchored ones first, then what scores and order say of the rest."""
        place = {b: spot for spot, b in enumerate(columns)}
        anchors = [(spot, place[b]) for spot, a in enumerate(rows) if (b := self.scores.anchors.get(a, -1)) in place]
        found: list[tuple[int, int, float, list[int]]] = [
            (rows[i], columns[j], self.scores.sure(rows[i], columns[j]), []) for i, j in anchors
        ]
        done = {i for i, _ in anchors}, {j for _, j in anchors}
        left = len(rows) - len(done[0]), len(columns) - len(done[1])
        if not left[0] or not left[1]:
            return found
        whole = [(range(len(rows)), range(len(columns)))]
        pieces = whole if order.is_small(*left) else order.pieces(len(rows), len(columns), anchors)
        for ours, theirs in pieces:
            part = [rows[i] for i in ours if i not in done[0]], [columns[j] for j in theirs if j not in done[1]]
            if part[0] and part[1]:
                found.extend(self._matched_piece(*part))
        return found

    def _matched_piece(self, rows: Sequence[int], columns: Sequence[int]) -> list[tuple[int, int, float, list[int]]]:
        scores = self.scores.table(rows, columns)
        found: list[tuple[int, int, float, list[int]]] = []
        for i, j in order.matched(np.where(scores > _WORTH_PAIRING / 2, scores, 0.0)):
            close = np.flatnonzero(scores[i] > scores[i, j] - 0.05)
            rivals = [columns[k] for k in close[:4] if k != j] if len(close) > 1 else []
            found.append((rows[i], columns[j], float(scores[i, j]), rivals[:3]))
        return found

    # -- fused projections -----------------------------------------------------------------------------------

    def _fuse_by_parameters(self) -> None:
        """Sites whose parameters are blocks of a larger one's on the other side."""
        for (a, b), found in self.scores.parameters.items():
            is_free = self._is_free(0, a) and self._is_free(1, b)
            if found.part is not None and found.share > 0.5 and is_free and self._is_a_projection(found.whole, found.part.axis, a, b):
                self._fuse(Match(a, b, 3.0, found.text, part=found.part, whole=found.whole))

    def _is_a_projection(self, whole: str, axis: int, a: int, b: int) -> bool:
        """Whether the fused one of two sites gives out what its parts give out: as wide as its one matrix is along the ``axis`` fused.

        Experts that own two projections do not, nor does an attention module that owns its fused projections itself.
        """
        number, site = (1, b) if whole == "port" else (0, a)
        side = self.sides[number]
        matrices = [side.params[one].shape for one in side.owned[site] if sum(size > 1 for size in side.params[one].shape) > 1]
        call = int(side.first_call[site])
        widths = {size for row in side.ends_of(call)[1] for size in side.shapes[row]} if call >= 0 else set()
        return len(matrices) < 2 and (call < 0 or not matrices or matrices[0][axis] in widths)

    def _fill_gaps(self) -> None:
        """Gives the part of a fused whole that was found nowhere to the one sibling of its size that is left: it was not loaded."""
        anchored = set(self.scores.anchors), set(self.scores.anchors.values())
        groups: dict[tuple[int, int], list[Match]] = defaultdict(list)
        for match in self.fused:
            side = 0 if match.whole == "port" else 1
            groups[side, match.port if side == 0 else match.reference].append(match)
        for (side, whole), matches in groups.items():
            known = [match.reference if side == 0 else match.port for match in matches]
            gap = _gap([match.part for match in matches if match.part is not None], self._out_size(1 - side, whole))
            sizes = {int(self.features[side].key[part]) for part in known}
            siblings = [
                other
                for other in self.levels.called(side, int(self.sides[side].parent[known[0]]))
                if other not in self.partner[side]
                and other not in anchored[side]
                and int(self.features[side].key[other]) in sizes
                and self._is_free(side, other)
            ]
            if gap is not None and len(siblings) == 1 and self._out_size(side, siblings[0]) == gap.stop - gap.start:
                pair = (siblings[0], whole) if side == 0 else (whole, siblings[0])
                self._fuse(Match(*pair, 1.5, "what is left of a fused whole", part=gap, whole=matches[0].whole))

    def _is_free(self, side: int, site: int) -> bool:
        """Whether a mapping leaves a site to be paired."""
        match = self.partner[side].get(site)
        return site not in self.ignored[side] and (match is None or match.by != "given")

    def _fused_siblings(self, rows: Sequence[int], columns: Sequence[int]) -> list[tuple[int, int]]:
        """Neighbours whose outputs add up to one sibling's on the other side, where no parameter is equal any more."""
        found: list[tuple[int, int]] = []
        if sorted(self.features[0].key[list(rows)]) == sorted(self.features[1].key[list(columns)]):
            return found
        for side in (0, 1):
            parts, wholes = (rows, columns) if side == 0 else (columns, rows)
            for whole in wholes:
                group = self._group(side, [part for part in parts if part not in self.partner[side]], whole, wholes)
                start = 0
                for part in group:
                    size = self._out_size(side, part)
                    match = Match(
                        *((part, whole) if side == 0 else (whole, part)),
                        1.5,
                        "fused by shape",
                        part=Part(0, start, start + size),
                        whole="port" if side == 0 else "reference",
                    )
                    self._fuse(match)
                    found.append((match.reference, match.port))
                    start += size
        return found

    def _group(self, side: int, parts: Sequence[int], whole: int, wholes: Sequence[int]) -> list[int]:
        """Two to four neighbours among ``parts`` that together make ``whole``."""
        mine, other = self.features[side], self.features[1 - side]
        dims = other.key_of[whole]
        if len(dims) != 2 or whole in self.partner[1 - side] or other.role[whole] == 0:
            return []
        if any(mine.key[part] == other.key[whole] for part in parts):
            return []
        for start in range(len(parts)):
            for count in (2, 3, 4):
                group = parts[start : start + count]
                if len(group) == count and self._adds_up(side, group, whole) and not self._has_likes(side, group, parts, wholes):
                    return list(group)
        return []

    def _has_likes(self, side: int, group: Sequence[int], parts: Sequence[int], wholes: Sequence[int]) -> bool:
        """Whether the other side has as many unpaired siblings of the same shape as this one, so that nothing need be fused."""
        free = Counter(int(self.features[1 - side].key[rival]) for rival in wholes if rival not in self.partner[1 - side])
        mine = Counter(int(self.features[side].key[part]) for part in parts)
        taken = Counter(int(self.features[side].key[part]) for part in group)
        return any(mine[key] - count < free[key] for key, count in taken.items())

    def _adds_up(self, side: int, group: Sequence[int], whole: int) -> bool:
        mine, other = self.features[side], self.features[1 - side]
        size, total = self._out_size(1 - side, whole), sum(self._out_size(side, part) for part in group)
        if not size or size != total or any(mine.role[part] != other.role[whole] for part in group):
            return False
        rest = set(other.key_of[whole]) - {size} or {size}
        return (
            all(len(mine.key_of[part]) == 2 and rest & set(mine.key_of[part]) for part in group)
            and len({tuple(mine.inputs_of[part]) for part in group}) == 1
        )

    def _out_size(self, side: int, site: int) -> int:
        return self.features[side].width[site]

    def _fuse(self, match: Match) -> None:
        self.fused.append(match)
        self.partner[0].setdefault(match.reference, match)
        self.partner[1].setdefault(match.port, match)

    # -- what is left over -----------------------------------------------------------------------------------

    def _move(self, left: tuple[list[int], list[int]]) -> tuple[list[int], list[int]]:
        """Pairs what was left over inside two matched callers although it stands at different places there."""
        rows, columns = self._unpaired(0, left[0]), self._unpaired(1, left[1])
        if rows and columns and order.is_small(len(rows), len(columns)):
            telling = [site for site in rows if self._tells(0, site)], [site for site in columns if self._tells(1, site)]
            self._align(*telling, _WORTH_MOVING)
        return self._unpaired(0, rows), self._unpaired(1, columns)

    def _unpaired(self, side: int, sites: Iterable[int]) -> list[int]:
        return sorted(site for site in set(sites) if site not in self.partner[side] and site not in self.ignored[side])

    def _tells(self, side: int, site: int) -> bool:
        """Whether a site has enough by which to be told from others far away: parameters, a function's name, or a level of its own."""
        features = self.features[side]
        return bool(features.key[site] or features.function[site] or not features.leaf[site])

    def _apply_anchors(self) -> None:
        """Pairs anchored sites that the callers kept apart, and undoes pairs that an anchor contradicts."""
        for a, b in self.scores.anchors.items():
            if a in self.ignored[0] or b in self.ignored[1] or self._is_only_fed_alike(a, b):
                continue
            ours, theirs = self.partner[0].get(a), self.partner[1].get(b)
            if ours is not None and ours is theirs:
                continue
            held = [match for match in (ours, theirs) if match is not None]
            if any(
                match.by == "given"
                or match.part is not None
                or self.scores.sure(match.reference, match.port) + MARGIN > self.scores.sure(a, b)
                for match in held
            ):
                continue
            for match in held:
                self._unpair(0, match.reference)
            self._pair(Match(a, b, self.scores.sure(a, b), "anchor"))

    def _is_only_fed_alike(self, a: int, b: int) -> bool:
        """Whether only what comes in speaks for two sites whose paired callers are not each other's: a part left out feeds the next."""
        seen = self.scores.values.get((a, b))
        if (a, b) in self.scores.parameters or seen is None or seen.outputs > 0:
            return False
        above = [
            next((site for site in self.sides[side].callers(own) if site in self.partner[side]), None) for side, own in enumerate((a, b))
        ]
        return None not in above and self.partner[0][above[0]].port != above[1]  # type: ignore[index]

    def _left_over(self) -> None:
        """Once more what is unpaired inside paired callers, now that anchors have spoken."""
        for match in list(self.partner[0].values()):
            a, b = match.reference, match.port
            if not self.features[0].leaf[a] and not self.features[1].leaf[b]:
                rows, columns = self._unpaired(0, self.levels.called(0, a)), self._unpaired(1, self.levels.called(1, b))
                if rows and columns:
                    for one, other in self._align(rows, columns, _WORTH_MOVING):
                        self._inside(one, other)

    def _as_siblings(self) -> None:
        """Pairs what its numbered siblings say belongs together, whatever else it resembles now: a fault deceives one of a row."""
        alone = {match.reference: match.port for match in self.partner[0].values() if match.part is None}
        parts = {match.reference for match in self.fused}, {match.port for match in self.fused}
        ours, theirs = self.sides
        wanted = as_in_their_class((ours.names, ours.type), (theirs.names, theirs.type), alone)
        for a, b in (wanted | expected(ours.names, theirs.names, alone)).items():
            if not self._is_free(0, a) or not self._is_free(1, b) or a in parts[0] or b in parts[1] or not self._are_alike(a, b):
                continue
            if not self._is_consistent(a, b):  # what lies in them pairs otherwise: one of the row has a part less
                continue
            self._unpair(0, a)
            self._unpair(1, b)
            self._pair(Match(a, b, self.scores.of(a, b), "as its siblings are"))

    def _are_alike(self, a: int, b: int) -> bool:
        """Whether two sites may be one: called or not, a leaf or not, of one function, and with parameters of the same shapes."""
        ours, theirs = self.features
        names = ("called", "leaf", "function", "key")
        return all(getattr(ours, name)[a] == getattr(theirs, name)[b] for name in names)

    def _taken_apart(self) -> None:
        """Pairs callers without partner by what is paired below them: levels taken apart that both sides have after all.

        So where one side's trace holds further runs, which call directly what this level calls too.
        """
        below = self._paired_below(0), self._paired_below(1)
        above: dict[int, list[int]] = defaultdict(list)
        for site, inside in below[1].items():
            for one in inside:
                above[one].append(site)
        shared = {
            (a, b): len(inside & below[1][b]) for a, inside in below[0].items() for b in {site for one in inside for site in above[one]}
        }
        alike = {(a, b): 2 * count / (len(below[0][a]) + len(below[1][b])) for (a, b), count in shared.items()}
        scores = {pair: self.scores.of(*pair) for pair, share in alike.items() if share > _HELD_ALIKE and self._could_move(*pair)}
        for a, b in sorted(scores, key=lambda pair: (-alike[pair], -scores[pair])):
            if scores[a, b] > _WORTH_PAIRING and a not in self.partner[0] and b not in self.partner[1]:
                self._pair(Match(a, b, scores[a, b], "what lies below is paired"))
                self._inside(a, b)

    def _paired_below(self, side: int) -> dict[int, set[int]]:
        """Of each caller without partner the pairs below it, by their sites in the port; none is left out."""
        found: dict[int, set[int]] = {}
        for site in self._unpaired(side, range(self.sides[side].called)):
            below = () if self.features[side].leaf[site] else self.sides[side].below(site)
            inside = {match.port for one in below if (match := self.partner[side].get(one)) is not None}
            if inside:
                found[site] = inside
        return found

    def _inside_wrappers(self) -> None:
        """Moves a pair from a caller that merely hands on to the one inside it that does the work, whose code both sides share."""
        for match in list(self.partner[0].values()):
            if match.by == "given" or match.part is not None or not match.reference or not match.port:
                continue
            inner = [self._handed_to(side, site) for side, site in enumerate((match.reference, match.port))]
            if (inner[0] is None) != (inner[1] is None):
                self._unpair(0, match.reference)
                pair = (match.reference, inner[1]) if inner[0] is None else (inner[0], match.port)
                self._pair(Match(*pair, match.score, match.by, match.rivals))  # type: ignore[arg-type]

    def _handed_to(self, side: int, site: int) -> int | None:
        """The innermost caller without partner that is given all that a module is, and returns all it returns; None where there is none."""
        here, found = self.sides[side], None
        while here.kind[site] == "module" and len(here.children[site]) == 1 and not here.owned[site]:
            inner = here.children[site][0]
            calls = int(here.first_call[site]), int(here.first_call[inner])
            same = [[here.index["digest"][row].tolist() for ends in here.ends_of(call) for row in ends] for call in calls]
            if inner in self.partner[side] or self.features[side].leaf[inner] or here.kind[inner] != "module" or same[0] != same[1]:
                break
            site = found = inner
        return found

    def _as_their_class(self) -> None:
        """Pairs a module that calls nothing but one other with what that other is paired with, where the rest of its class does so.

        A block whose residual is missing gives out what the one module inside it does, and takes in what that does.
        """
        kinds = [side.type for side in self.sides]
        votes = Counter((kinds[0][match.reference], kinds[1][match.port]) for match in self.partner[0].values())
        for match in list(self.partner[0].values()):
            pair = match.reference, match.port
            for side, own in enumerate(pair):
                above = int(self.sides[side].parent[own])
                if (
                    above < 0
                    or above in self.partner[side]
                    or self.levels.called(side, above) != [own]
                    or match.by == "given"
                    or match.part
                ):
                    continue
                lifted = (above, pair[1]) if side == 0 else (pair[0], above)
                kind = kinds[0][lifted[0]], kinds[1][lifted[1]]
                is_leaf = any(self.features[one].leaf[site] for one, site in enumerate(lifted))
                if all(kind) and not is_leaf and votes[kind] >= max(2, 2 * votes[kinds[0][pair[0]], kinds[1][pair[1]]]):
                    self._unpair(side, own)
                    self._pair(Match(*lifted, match.score, "as the others of its class are"))

    def _chains(self) -> None:
        """Pairs a block that is a chain of several blocks on the other side with the last of them, which returns what it returns.

        So where one side writes out in one block what is a list of blocks on the other; what the first of them is given the last is not.
        """
        for match in list(self.partner[0].values()):
            a, b = match.reference, match.port
            if match.by == "given" or match.part is not None or self._is_consistent(a, b):
                continue
            for side, whole in ((0, a), (1, b)):
                links = self._links(side, whole)
                if len(links) > 1 and self.partner[side].get(whole) is match:
                    last = max(links, key=lambda site: int(self.sides[1 - side].first_call[site]))
                    self._unpair(side, whole)
                    pair = (whole, last) if side == 0 else (last, whole)
                    self._pair(Match(*pair, match.score, f"the last of {len(links)} that it does the work of"))

    def _links(self, side: int, whole: int) -> list[int]:
        """The outermost callers of the other side whose insides are paired with that of one site only, and which together make it up."""
        other, known = self.sides[1 - side], self.partner[1 - side]
        matches = (self.partner[side].get(site) for site in self.sides[side].below(whole))
        inside = {match.port if side == 0 else match.reference for match in matches if match is not None}
        callers = {caller for site in inside for caller in other.callers(site)} - inside
        held = {caller for caller in callers if all(site in inside for site in other.below(caller) if site in known)}
        outer = [site for site in held if not any(caller in held for caller in other.callers(site))]
        covered = {site for caller in outer for site in other.below(caller)}
        is_free = all(known.get(site) in (None, self.partner[side].get(whole)) for site in outer)
        return outer if is_free and inside and len(inside & covered) >= _CONSISTENT * len(inside) else []

    def _containers(self) -> None:
        """Modules that were never called but hold paired ones (lists of layers): paired by what they hold."""
        shared: dict[tuple[int, int], int] = defaultdict(int)
        totals: tuple[dict[int, int], dict[int, int]] = (defaultdict(int), defaultdict(int))
        for match in self.partner[0].values():
            ours, theirs = (
                [site for site in self.sides[side].holders(own) if site not in self.partner[side]]
                for side, own in enumerate((match.reference, match.port))
            )
            for one in ours:
                totals[0][one] += 1
                for other in theirs:
                    shared[one, other] += 1
            for other in theirs:
                totals[1][other] += 1
        ranked = sorted(((2 * count / (totals[0][a] + totals[1][b]), a, b) for (a, b), count in shared.items()), reverse=True)
        for share, a, b in ranked:
            if share > _HELD_ALIKE and a not in self.partner[0] and b not in self.partner[1] and self._is_container(a, b):
                self._pair(Match(a, b, share, "holds paired sites"))

    def _is_container(self, a: int, b: int) -> bool:
        called = self.sides[0].first_call[a] >= 0, self.sides[1].first_call[b] >= 0
        return called[0] == called[1] and a not in self.ignored[0] and b not in self.ignored[1]

    def _pair(self, match: Match) -> None:
        self.partner[0][match.reference] = match
        self.partner[1][match.port] = match

    def _unpair(self, side: int, site: int) -> None:
        match = self.partner[side].pop(site, None)
        if match is not None:
            self.partner[1 - side].pop(match.port if side == 0 else match.reference, None)


def _gap(parts: Sequence[Part], length: int) -> Part | None:
    """The one contiguous stretch of an axis of that length that the parts leave free; None where there is none, or several."""
    if not parts or any(part.groups > 1 or part.axis != parts[0].axis for part in parts):
        return None
    edges = [0, *(edge for part in sorted(parts, key=lambda part: part.start) for edge in (part.start, part.stop)), length]
    free = [(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if stop > start]
    return Part(parts[0].axis, *free[0]) if len(free) == 1 else None
