"""How the port names what the reference named: learnt from tensors whose values agree, used for those whose values do not.

Names are generalised over their numbers: ``layers.3.attn.to_q`` is the template ``layers.#.attn.to_q`` with the numbers (3,). A rule says
which template of the port a template becomes, and from which of its numbers each number of the port's name comes.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from tracediff.alignment.names import ordered_likeness
from tracediff.parameters.thresholds import THRESHOLDS

Numbers = tuple[int, ...]
Fits = Callable[[str, str], bool]
"""Whether a tensor of the reference could be held by one of the port, by shape."""

_NUMBER = re.compile(r"[0-9]{1,18}")
_HASH = "\ue023"
"""Stands in a template for the # of a name itself."""
_TIE = 1e-9
"""Shares that differ by less are equal."""


@lru_cache(maxsize=1 << 17)
def template(name: str) -> tuple[str, Numbers]:
    """A name with ``#`` for each number, and the numbers.

    >>> template("layers.3.norm1.weight")
    ('layers.#.norm#.weight', (3, 1))
    """
    return _NUMBER.sub("#", name.replace("#", _HASH)), tuple(map(int, _NUMBER.findall(name)))


def filled(text: str, numbers: Sequence[int]) -> str:
    """The name that has this template and these numbers.

    >>> filled("layers.#.norm#.weight", (3, 1))
    'layers.3.norm1.weight'
    """
    parts = text.split("#")
    return ("".join(part + str(number) for part, number in zip(parts, numbers, strict=False)) + parts[-1]).replace(_HASH, "#")


def parent(name: str) -> str:
    """The module of a tensor: its name without the last part."""
    return name.rpartition(".")[0]


def likeness(reference: str, port: str) -> float:
    """How alike two tensors' names are, 0 to 1.

    >>> likeness("h.3.attn.query.weight", "layers.3.self_attention.q_proj.weight") > likeness("h.3.attn.query.weight", "layers.3.k.weight")
    True
    """
    words, numbers = ordered_likeness(reference, port)
    return THRESHOLDS.words_in_likeness * words + (1 - THRESHOLDS.words_in_likeness) * numbers


@dataclass(frozen=True, slots=True)
class Number:
    """Where one number of the port's name comes from: a number of the reference's name by a table, or nowhere (``constant``)."""

    source: int | None
    table: Mapping[int, int] = field(default_factory=dict)
    constant: int = 0

    def __call__(self, numbers: Numbers) -> int | None:
        if self.source is None:
            return self.constant
        value = numbers[self.source]
        return self.table[value] if value in self.table else self._extended(value)

    @property
    def line(self) -> tuple[int, int, int] | None:
        """(a, b, c) such that the table is ``(a * n + b) // c`` throughout; None where the table is no line."""
        points = sorted(self.table.items())
        (x0, y0), (x1, y1) = points[0], points[-1]
        if x0 == x1:
            return (1, y0 - x0, 1)
        step, rest = divmod(x1 - x0, y1 - y0) if y1 > y0 else (0, 1)
        if rest == 0 and all(y - y0 == (x - x0) / step for x, y in points):
            return (1, y0 * step - x0, step)
        slope, rest = divmod(y1 - y0, x1 - x0)
        if rest == 0 and slope > 0 and all(y - y0 == (x - x0) * slope for x, y in points):
            return (slope, y0 - slope * x0, 1)
        return None

    def _extended(self, value: int) -> int | None:
        line = self.line
        if line is None or (line[0] * value + line[1]) % line[2]:
            return None
        return (line[0] * value + line[1]) // line[2]


@dataclass(frozen=True, slots=True)
class Rule:
    """The template that one becomes, and the source of each of its numbers. ``share`` of the ``count`` pairs that were seen agree."""

    text: str
    numbers: tuple[Number, ...]
    share: float
    count: int

    def __call__(self, numbers: Numbers) -> str | None:
        found = [number(numbers) for number in self.numbers]
        return None if None in found else filled(self.text, [number for number in found if number is not None])


@dataclass(frozen=True, slots=True)
class Branch:
    """A template whose goal depends on one of its numbers (``block.0`` is a convolution, ``block.2`` a norm)."""

    position: int
    rules: Mapping[int, Rule | Branch]

    def rule(self, numbers: Numbers) -> Rule | None:
        found = self.rules.get(numbers[self.position])
        return found.rule(numbers) if isinstance(found, Branch) else found


Pair = tuple[Numbers, str, Numbers]
Every = tuple[Mapping[str, set[Numbers]], Mapping[str, set[Numbers]]]
"""All numbers of either side's names, by template."""


class Renames:
    """What the reference's names become in the port, learnt from pairs of names; ``fits`` refuses pairs of other shapes.

    ``reference`` and ``port`` are all names of each side. Where both sides number the same things alike, numbers stay as they are.

    >>> renames = Renames([(f"block.{2 * i}.weight", f"convs_{i}.weight") for i in range(4)])
    >>> renames("block.4.weight"), renames("block.4.bias"), renames("block.10.weight")
    ('convs_2.weight', 'convs_2.bias', 'convs_5.weight')
    """

    def __init__(
        self,
        pairs: Iterable[tuple[str, str]],
        *,
        fits: Fits = lambda a, b: True,
        reference: Iterable[str] = (),
        port: Iterable[str] = (),
    ) -> None:
        self.pairs = list(dict.fromkeys(pairs))
        every = _numbered(reference), _numbered(port)
        self._rules = _learn(self.pairs, fits, every)
        whole = {template(a)[0] for a, _ in self.pairs}
        shortened = dict.fromkeys(short for pair in self.pairs for short in _shortened(*pair))
        self._prefixes = _learn([pair for pair in shortened if template(pair[0])[0] not in whole], lambda a, b: True, ({}, {}))
        self._literal = dict(list(shortened))
        self._endings = _endings(self.pairs, self._literal)

    def whole(self, name: str) -> str | None:
        """The port's name for a tensor of a template that was seen as a whole; None for any other."""
        return _predict(self._rules, name)

    def rule(self, name: str) -> Rule | None:
        """The rule of a name's template, where one was learnt."""
        text, numbers = template(name)
        found = self._rules.get(text)
        return found.rule(numbers) if isinstance(found, Branch) else found

    def candidates(self, name: str) -> Iterator[str]:
        """The port's possible names for a tensor: from its whole template, from ever shorter beginnings, and last its own name."""
        whole = self.whole(name)
        if whole is not None:
            yield whole
        parts = name.split(".")
        for cut in range(len(parts) - 1, -1, -1):
            head, rest = ".".join(parts[:cut]), parts[cut:]
            goal = self._literal.get(head, _predict(self._prefixes, head))
            if goal is not None:
                yield ".".join([*filter(None, [goal]), *rest])
                for ending in self._endings.get(".".join(rest), ()):
                    yield ".".join([*filter(None, [goal]), ending])
        yield name

    def __call__(self, name: str) -> str:
        """The port's name for a tensor of the reference, its own where nothing is known."""
        return next(self.candidates(name))


def _endings(pairs: Iterable[tuple[str, str]], modules: Mapping[str, str]) -> dict[str, list[str]]:
    """What the end of a name may become below a module that has a counterpart ("attn1.to_k.weight": "attn.key_proj.weight")."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for a, b in pairs:
        parts = a.split(".")
        counts[parts[-1]][b.rpartition(".")[2]] += 1
        for length in range(1, min(THRESHOLDS.longest_ending, len(parts) + 1)):
            goal = modules.get(".".join(parts[:-length]))
            if goal is not None and (not goal or b.startswith(goal + ".")):
                counts[".".join(parts[-length:])][b[len(goal) :].lstrip(".")] += 1
    return {own: [goal for goal, _ in found.most_common(THRESHOLDS.endings_kept) if goal != own] for own, found in counts.items()}


def _shortened(a: str, b: str) -> Iterator[tuple[str, str]]:
    """The pairs of modules that a pair of tensors implies: their own, and those above for as long as the parts between are the same."""
    left, right = a.split("."), b.split(".")
    left, right = left[:-1], right[:-1]
    yield ".".join(left), ".".join(right)
    while left and right and left[-1] == right[-1]:
        left, right = left[:-1], right[:-1]
        yield ".".join(left), ".".join(right)


def _predict(rules: Mapping[str, Rule | Branch], name: str) -> str | None:
    text, numbers = template(name)
    found = rules.get(text)
    rule = found.rule(numbers) if isinstance(found, Branch) else found
    return rule(numbers) if rule is not None else None


def _numbered(names: Iterable[str]) -> dict[str, set[Numbers]]:
    found: dict[str, set[Numbers]] = defaultdict(set)
    for name in names:
        text, numbers = template(name)
        found[text].add(numbers)
    return found


def _learn(pairs: Sequence[tuple[str, str]], fits: Fits, every: Every) -> dict[str, Rule | Branch]:
    groups: dict[str, list[Pair]] = defaultdict(list)
    for a, b in pairs:
        text, numbers = template(a)
        groups[text].append((numbers, *template(b)))
    return {text: _rule_or_branch(text, members, fits, every) for text, members in groups.items()}


def _rule_or_branch(text: str, members: Sequence[Pair], fits: Fits, every: Every) -> Rule | Branch:
    goals = Counter(goal for _, goal, _ in members)
    goal, count = goals.most_common(1)[0]
    if count < len(members):
        position = _dividing(members, count / len(members))
        if position is not None:
            parts: dict[int, list[Pair]] = defaultdict(list)
            for member in members:
                parts[member[0][position]].append(member)
            return Branch(position, {value: _rule_or_branch(text, part, fits, every) for value, part in parts.items()})
    return _rule(text, goal, [member for member in members if member[1] == goal], count / len(members), fits, every)


def _dividing(members: Sequence[Pair], share: float) -> int | None:
    """The position of the number that decides which template a name becomes; None where the most frequent template is as good a guess."""
    best, best_purity = None, share
    for position in range(len(members[0][0])):
        parts: dict[int, Counter[str]] = defaultdict(Counter)
        for numbers, goal, _ in members:
            parts[numbers[position]][goal] += 1
        lonely = any(sum(part.values()) < 2 for part in parts.values())
        if len(parts) < 2 or (lonely and share > THRESHOLDS.clear_goal):
            continue
        purity = sum(max(part.values()) for part in parts.values()) / len(members)
        if purity > best_purity + _TIE:
            best, best_purity = position, purity
    return best


def _rule(text: str, goal: str, members: Sequence[Pair], share: float, fits: Fits, every: Every) -> Rule:
    known = every[0].get(text, set()), every[1].get(goal, set())
    numbers = tuple(_number(position, members, known, (text, goal)) for position in range(goal.count("#")))
    rule = Rule(goal, numbers, share, len(members))
    fitting = (rule(numbers_a) for numbers_a, _, _ in members)
    if all(name is not None and fits(filled(text, member[0]), name) for name, member in zip(fitting, members, strict=True)):
        return rule
    return Rule(goal, tuple(_as_seen(number, position, members) for position, number in enumerate(numbers)), share, len(members))


def _number(
    position: int, members: Sequence[Pair], known: tuple[set[Numbers], set[Numbers]] = (set(), set()), texts: tuple[str, str] = ("", "")
) -> Number:
    """The source of one of the port's numbers: the reference's number that decides it best. The order of both is taken to be the same."""
    goals = sorted({member[2][position] for member in members})
    if len(goals) == 1:
        return _lone_number(position, goals[0], members, texts)
    best, best_share = None, 0.0
    for source in range(len(members[0][0])):
        values = sorted({member[0][source] for member in members})
        if len(values) == len(goals):
            share = _decides(source, position, members)
            if share > best_share + _TIE:
                best, best_share = source, share
    if best is not None:
        values = sorted({member[0][best] for member in members})
        every_a, every_b = {numbers[best] for numbers in known[0]}, {numbers[position] for numbers in known[1]}
        if every_a and every_a == every_b:
            return Number(best, {value: value for value in sorted(every_a)})
        ordered = dict(zip(values, goals, strict=True))
        agree = sum(ordered[member[0][best]] == member[2][position] for member in members)
        return Number(best, ordered) if agree > THRESHOLDS.order_kept * len(members) else _as_seen(Number(best), position, members)
    counts = Counter(member[2][position] for member in members)
    return Number(None, constant=counts.most_common(1)[0][0])


def _lone_number(position: int, goal: int, members: Sequence[Pair], texts: tuple[str, str]) -> Number:
    """The source of a number that had one value only: the reference's number of that value behind the same word, else none."""
    words_a, words_b = (text.split("#") for text in texts)
    for source in range(len(members[0][0])):
        alike = bool(texts[0]) and _last_word(words_a[source]) == _last_word(words_b[position])
        if alike and {member[0][source] for member in members} == {goal}:
            return Number(source, {goal: goal})
    return Number(None, constant=goal)


def _last_word(text: str) -> str:
    found = re.findall(r"[A-Za-z]+", text)
    return found[-1] if found else ""


def number_source(position: int, members: Sequence[Pair]) -> Number:
    """The source of one of the port's numbers, with the table that reproduces the pairs."""
    return _as_seen(_number(position, members), position, members)


def _decides(source: int, position: int, members: Sequence[Pair]) -> float:
    """The share of pairs in which the reference's number predicts the port's."""
    seen: dict[int, Counter[int]] = defaultdict(Counter)
    for numbers_a, _, numbers_b in members:
        seen[numbers_a[source]][numbers_b[position]] += 1
    return sum(max(counts.values()) for counts in seen.values()) / len(members)


def _as_seen(number: Number, position: int, members: Sequence[Pair]) -> Number:
    """The same source with the table that the pairs show, whether or not it keeps the order."""
    if number.source is None:
        return number
    seen: dict[int, Counter[int]] = defaultdict(Counter)
    for numbers_a, _, numbers_b in members:
        seen[numbers_a[number.source]][numbers_b[position]] += 1
    return Number(number.source, {value: counts.most_common(1)[0][0] for value, counts in seen.items()})


# -- patterns for people -----------------------------------------------------------------------------------------------


def pattern(names: Sequence[str]) -> str:
    """One pattern for several names: ``*`` stands for what varies, and for different beginnings.

    >>> pattern(["layers.0.q.bias", "layers.7.q.bias"]), pattern(["down.0.1.q.bias", "mid.3.q.bias"]), pattern(["one"])
    ('layers.*.q.bias', '*.q.bias', 'one')
    """
    if len(set(names)) == 1:
        return names[0]
    texts = {template(name)[0] for name in names}
    if len(texts) == 1:
        numbers = [template(name)[1] for name in names]
        varying = [len(set(column)) > 1 for column in zip(*numbers, strict=True)]
        parts = texts.pop().split("#")
        values = ["*" if varies else str(numbers[0][place]) for place, varies in enumerate(varying)]
        return "".join(part + value for part, value in zip(parts, values, strict=False)) + parts[-1]
    tail = _common_tail([name.split(".") for name in names])
    return ".".join(["*", *tail]) if tail else "*"


def _common_tail(names: Sequence[Sequence[str]]) -> list[str]:
    tail: list[str] = []
    for parts in zip(*(reversed(name) for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        tail.insert(0, parts[0])
    return tail


def grouped(names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(pattern, names) in order of first appearance. One pattern has the names of one template, and of templates of the same ending.

    >>> [(text, len(found)) for text, found in grouped(["a.0.to_out.bias", "a.1.to_out.bias", "b.c.0.to_out.bias", "head.weight"])]
    [('*.to_out.bias', 3), ('head.weight', 1)]
    """
    by_text: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_text[template(name)[0]].append(name)
    by_tail: dict[str, list[str]] = defaultdict(list)
    for text, members in by_text.items():
        by_tail[_tail_key(text, members)].extend(members)
    order = {name: place for place, name in enumerate(names)}
    groups = [(pattern(members), sorted(members, key=order.__getitem__)) for members in by_tail.values()]
    return sorted(groups, key=lambda group: order[group[1][0]])


def _tail_key(text: str, members: Sequence[str]) -> str:
    """The ending of a template's names after the last number that varies; the template itself where the ending has one part only."""
    if not text.count("#"):
        return text
    shown = pattern(members) if len(members) > 1 else _NUMBER.sub("*", members[0], count=0)
    head, star, tail = shown.rpartition("*")
    tail = tail.partition(".")[2]
    return f"*.{tail}" if star and head and tail.count(".") >= 1 else text
