"""Edits: the few regular expressions that turn one side's names into the other's.

From pairs of names `edits` derives what a person would write, ``attn1.to_q`` to ``attn.query_proj``: the shortest parts that differ,
numbers generalised, applied one after the other. Each edit is checked against every pair: it may not spoil a name that is right, nor
lead one that is not yet right further away. What no edit explains is left as a name for a name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tracediff.parameters.renames import Number, Pair, number_source, template
from tracediff.parameters.thresholds import THRESHOLDS


@dataclass(frozen=True, slots=True)
class Edit:
    """One substitution: a regular expression, and the pieces that replace it: text, and numbers made from groups of the match."""

    pattern: str
    pieces: tuple[str | tuple[int, Number], ...]

    def __call__(self, name: str) -> str:
        return re.sub(self.pattern, self._made, name)

    def _made(self, found: re.Match[str]) -> str:
        made = []
        for piece in self.pieces:
            if isinstance(piece, str):
                made.append(piece)
                continue
            value = piece[1]((int(found[piece[0]]),))
            if value is None:
                return found[0]
            made.append(str(value))
        return "".join(made)

    @property
    def code(self) -> str:
        """The replacement that `re.sub` takes, as Python text."""
        if all(isinstance(piece, str) or piece[1].line == (1, 0, 1) for piece in self.pieces):
            text = "".join(piece if isinstance(piece, str) else f"\\g<{piece[0]}>" for piece in self.pieces)
            text = re.sub(r"\\g<(\d+)>(?!\d)", r"\\\1", text)
            return f'r"{text}"' if "\\" in text else f'"{text}"'
        inner = "".join(piece if isinstance(piece, str) else "{" + _expression(*piece) + "}" for piece in self.pieces)
        return f'lambda m: f"{inner}"'


def _expression(group: int, number: Number) -> str:
    """A number of the match as a Python expression."""
    line = number.line
    if line is None:
        return f"{dict(number.table)}[int(m[{group}])]"
    slope, shift, divisor = line
    text = f"int(m[{group}])" if slope == 1 else f"{slope} * int(m[{group}])"
    text = f"{text} {'+' if shift > 0 else '-'} {abs(shift)}" if shift else text
    if divisor == 1:
        return text if slope != 1 or shift else f"m[{group}]"
    return f"({text}) // {divisor}" if shift else f"{text} // {divisor}"


@dataclass(slots=True)
class Edits:
    """Edits in the order in which they apply, and the names that none explains."""

    edits: list[Edit] = field(default_factory=list)
    exact: dict[str, str] = field(default_factory=dict)

    def __call__(self, name: str) -> str:
        if name in self.exact:
            return self.exact[name]
        for edit in self.edits:
            name = edit(name)
        return name


def edits(pairs: Mapping[str, str]) -> Edits:
    """The edits that turn each key of ``pairs`` into its value.

    >>> [(edit.pattern, edit.code) for edit in edits({f"h.{i}.q.weight": f"layers.{i}.query.weight" for i in range(3)}).edits]
    [('^h\\\\.(\\\\d+)\\\\.q\\\\.', 'r"layers.\\\\1.query."')]
    """
    result = Edits()
    current = {name: name for name in pairs}
    for _ in range(THRESHOLDS.most_edits):
        wrong = {name: goal for name, goal in pairs.items() if current.get(name, goal) != goal}
        if not wrong:
            break
        edit = next(_proposed(wrong, current, pairs), None)
        if edit is None:
            stuck = _nearest_group(wrong, current)
            result.exact |= {name: pairs[name] for name in stuck}
            current = {name: now for name, now in current.items() if name not in result.exact}
            continue
        result.edits.append(edit)
        current = {name: edit(now) for name, now in current.items()}
    result.exact |= {name: pairs[name] for name, now in current.items() if now != pairs[name]}
    return result


Group = tuple[list[str], list[Pair]]


def _groups(wrong: Mapping[str, str], current: Mapping[str, str]) -> list[tuple[int, str, str, Group]]:
    """Names by the templates that they have and should have, the templates with most parts in common first."""
    groups: dict[tuple[str, str], Group] = defaultdict(lambda: ([], []))
    for name, goal in wrong.items():
        (text, numbers), (aim, wanted) = template(current[name]), template(goal)
        names, members = groups[text, aim]
        names.append(name)
        members.append((numbers, aim, wanted))
    found = [(_apart(text, aim, group[1]), text, aim, group) for (text, aim), group in groups.items()]
    return sorted(found, key=lambda item: (item[0], -len(item[3][0])))


def _nearest_group(wrong: Mapping[str, str], current: Mapping[str, str]) -> list[str]:
    return _groups(wrong, current)[0][3][0]


def _apart(text: str, aim: str, members: Sequence[Pair]) -> int:
    head, tail = _common(text.split("."), aim.split("."), members)
    return len(text.split(".")) + len(aim.split(".")) - 2 * (head + tail)


def _sources(aim: str, members: Sequence[Pair]) -> tuple[Number, ...]:
    return tuple(number_source(position, members) for position in range(aim.count("#")))


def _common(left: Sequence[str], right: Sequence[str], members: Sequence[Pair]) -> tuple[int, int]:
    """How many parts two templates share at their beginning and at their end, numbers included."""
    numbers_left, count = (sum(part.count("#") for part in parts) for parts in (left, right))

    def keeps(part: str, first_left: int, first_right: int) -> bool:
        return all(a[first_left + k] == b[first_right + k] for k in range(part.count("#")) for a, _, b in members)

    head = seen = 0
    while head < min(len(left), len(right)) and left[head] == right[head] and keeps(left[head], seen, seen):
        seen += left[head].count("#")
        head += 1
    tail = after = 0
    while tail < min(len(left), len(right)) - head and left[-1 - tail] == right[-1 - tail]:
        part = left[-1 - tail]
        after += part.count("#")
        if not keeps(part, numbers_left - after, count - after):
            break
        tail += 1
    return head, tail


def _proposed(wrong: Mapping[str, str], current: Mapping[str, str], pairs: Mapping[str, str]) -> Iterator[Edit]:
    """Edits that do no harm, for each group of names: the smallest change in the smallest context first."""
    for _, text, aim, (_, members) in _groups(wrong, current)[: THRESHOLDS.groups_edited]:
        left, right = text.split("."), aim.split(".")
        sources = _sources(aim, members)
        head, tail = _common(left, right, members)
        for before, after in _contexts(head, tail):
            edit = _edit(left, right, head - before, tail - after, members, sources)
            if edit is not None and _does_only_good(edit, current, pairs):
                yield edit


def _contexts(head: int, tail: int) -> Iterator[tuple[int, int]]:
    """How many parts before and after a change its pattern includes: none first, all of them last."""
    sizes = [(before, after) for before in range(head + 1) for after in range(tail + 1)]
    yield from sorted(sizes, key=lambda size: (size[0] + size[1], size[0]))[: THRESHOLDS.contexts_tried]
    yield head, tail


def _edit(
    left: Sequence[str], right: Sequence[str], head: int, tail: int, members: Sequence[Pair], sources: Sequence[Number]
) -> Edit | None:
    """The edit that replaces the parts between ``head`` and ``tail``; None where there is nothing to match."""
    old, new = left[head : len(left) - tail], right[head : len(right) - tail]
    if not old:
        return None
    first = sum(part.count("#") for part in left[:head])
    first_new = sum(part.count("#") for part in right[:head])
    used = {source.source for source in sources if source.source is not None}
    groups: dict[int, int] = {}
    pattern = []
    for piece in re.split("(#)", ".".join(old)):
        if piece != "#":
            pattern.append(re.escape(piece).replace(r"\_", "_").replace(r"\-", "-"))
            continue
        position = first + len([part for part in pattern if part.startswith("\0")])
        pattern.append("\0" + _number_pattern(position, members, used, groups))
    made = [part.lstrip("\0") for part in pattern]
    start = "^" if head == 0 else r"\."
    end = "$" if tail == 0 else r"\."
    pieces = _pieces(new, first_new, sources, groups, dot_before=head > 0, dot_after=tail > 0)
    return Edit(start + "".join(made) + end, pieces) if pieces is not None else None


def _number_pattern(position: int, members: Sequence[Pair], used: set[int], groups: dict[int, int]) -> str:
    values = {numbers[position] for numbers, _, _ in members}
    if position in used:
        groups[position] = len(groups) + 1
        return r"(\d+)"
    return str(values.pop()) if len(values) == 1 else r"\d+"


def _pieces(
    new: Sequence[str], first: int, sources: Sequence[Number], groups: Mapping[int, int], *, dot_before: bool, dot_after: bool
) -> tuple[str | tuple[int, Number], ...] | None:
    """The pieces that replace the match; None where they need a number that the match does not hold."""
    text = ".".join(new)
    text = ("." if dot_before else "") + text + ("." if dot_after and (text or not dot_before) else "")
    pieces: list[str | tuple[int, Number]] = []
    place = first
    for piece in re.split("(#)", text):
        if piece != "#":
            pieces.append(piece)
            continue
        number = sources[place]
        place += 1
        if number.source is None:
            pieces.append(str(number.constant))
        elif number.source in groups:
            pieces.append((groups[number.source], Number(0, number.table)))
        else:
            return None
    return tuple(piece for piece in pieces if piece != "")


def _does_only_good(edit: Edit, current: Mapping[str, str], pairs: Mapping[str, str]) -> bool:
    """Whether an edit brings some name nearer to its goal, and neither spoils a right name nor leads one further away."""
    better = False
    for name, now in current.items():
        after = edit(now)
        if after == now:
            continue
        goal = pairs[name]
        if now == goal or _distance(after, goal) > _distance(now, goal):
            return False
        better = better or after == goal or _distance(after, goal) < _distance(now, goal)
    return better


def _distance(name: str, goal: str) -> int:
    """How many parts of two names are left without the parts that they share at their beginnings and ends."""
    left, right = name.split("."), goal.split(".")
    head = 0
    while head < min(len(left), len(right)) and left[head] == right[head]:
        head += 1
    tail = 0
    while tail < min(len(left), len(right)) - head and left[-1 - tail] == right[-1 - tail]:
        tail += 1
    return len(left) + len(right) - 2 * (head + tail)
