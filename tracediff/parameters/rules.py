"""Rules: a report written as a Python file whose ``sanitize(weights)`` turns the reference's weights into those that the port should hold.

The file is meant to be read and kept: merged weight norms and sums, joined and cut projections, a short list of renamings, the transposed
layouts, and what has no place. Only what the pair needs is written. The port's mistakes are not copied: what was exchanged, transposed
or never loaded is put right, by the conventions of its family.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations

from tracediff.errors import WeightsError
from tracediff.parameters.edits import Edits, edits
from tracediff.parameters.layout_rules import Origin, long_axes, long_lengths
from tracediff.parameters.renames import grouped, template
from tracediff.parameters.thresholds import THRESHOLDS

Shape = tuple[int, ...]
Axes = tuple[int, ...]


@dataclass(slots=True)
class Plan:
    """What the file will do, in the order in which it does it."""

    norms: list[tuple[str, str, str]] = field(default_factory=list)
    sums: dict[str, str] = field(default_factory=dict)
    joins: dict[tuple[int, int, int], list[tuple[str, ...]]] = field(default_factory=lambda: defaultdict(list))
    stacks: dict[int, list[tuple[str, ...]]] = field(default_factory=lambda: defaultdict(list))
    names: dict[str, str] = field(default_factory=dict)
    cuts: dict[tuple[int, int, tuple[int, ...]], list[tuple[str, ...]]] = field(default_factory=lambda: defaultdict(list))
    copies: dict[str, str] = field(default_factory=dict)
    arranged: dict[str, tuple[Shape, Origin]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)


def rules_text(origins: Mapping[str, Origin], shapes: Mapping[str, Shape], title: str) -> str:
    """The Python text of the rules, ``title`` the first line of its docstring.

    ``origins``: what each of the port's tensors should be made from. ``shapes``: those of all of the reference's tensors, in its order.
    Raises WeightsError where no tensor of the port has an origin.
    """
    if not origins:
        raise WeightsError("No tensor of the port is known to come from the reference, so there are no rules to write.")
    return "\n".join(_text(_plan(origins, shapes), title))


# -- what to do --------------------------------------------------------------------------------------------------------


def _plan(origins: Mapping[str, Origin], shapes: Mapping[str, Shape]) -> Plan:
    plan = Plan()
    suffixes = _norm_suffixes(origins.values())
    for port, origin in origins.items():
        if origin.layout.part is None:
            _plan_whole(plan, port, origin, suffixes)
    _plan_cuts(plan, origins)
    for port, origin in origins.items():
        shape = shapes[origin.names[-1]]
        plan.arranged[port] = (_before(shape, origin, shapes), origin)
    used = {name for origin in origins.values() for name in origin.names}
    plan.dropped = [name for name in shapes if name not in used]
    plan.before = list(shapes)
    return plan


def _plan_whole(plan: Plan, port: str, origin: Origin, suffixes: Mapping[str, tuple[str, str, str]]) -> None:
    names, join = origin.names, origin.layout.join
    name = names[0]
    if origin.merge is not None and origin.merge.kind == "sum":
        plan.sums[names[0]] = names[1]
    elif origin.merge is not None:
        gain, direction, merged = suffixes[names[0]]
        plan.norms.append((gain, direction, merged))
        name = names[0].removesuffix(gain) + merged
    elif join is not None and join.how == "stack":
        plan.stacks[join.axis].append(names)
    elif join is not None:
        plan.joins[join.axis, join.groups, len(names)].append(names)
    if name in plan.names:
        plan.copies[port] = plan.names[name]
    else:
        plan.names[name] = port


def _norm_suffixes(origins: Iterable[Origin]) -> dict[str, tuple[str, str, str]]:
    """For each gain the endings of gain, direction and merged tensor: (".weight_g", ".weight_v", ".weight")."""
    found = {}
    for origin in origins:
        if origin.merge is None or origin.merge.kind == "sum":
            continue
        gain, direction = (name.split(".") for name in origin.names)
        length = 3 if "parametrizations" in gain[-3:-2] else 1
        found[origin.names[0]] = ("." + ".".join(gain[-length:]), "." + ".".join(direction[-length:]), ".weight")
    return found


def _plan_cuts(plan: Plan, origins: Mapping[str, Origin]) -> None:
    """Plans tensors of the port that are cut from one of the reference's: the whole is given the first one's name, and then divided."""
    wholes: dict[str, list[tuple[int, int, str, int, int]]] = defaultdict(list)
    for port, origin in origins.items():
        part = origin.layout.part
        if part is not None:
            wholes[origin.names[0]].append((part.start, part.stop, port, part.axis, part.groups))
    for name, parts in wholes.items():
        parts.sort()
        _, _, first, axis, groups = parts[0]
        plan.names[name] = first
        plan.cuts[axis, groups, tuple(stop - start for start, stop, *_ in parts)].append(tuple(part[2] for part in parts))


def _before(shape: Shape, origin: Origin, shapes: Mapping[str, Shape]) -> Shape:
    """The shape of a tensor before its axes are arranged: after merging, joining and cutting."""
    join, part = origin.layout.join, origin.layout.part
    if join is not None and join.how == "stack":
        return (*shape[: join.axis], len(origin.names), *shape[join.axis :])
    if join is not None:
        length = sum(shapes[name][join.axis] for name in origin.names)
        return (*shape[: join.axis], length, *shape[join.axis + 1 :])
    if part is not None:
        return (*shape[: part.axis], (part.stop - part.start) * part.groups, *shape[part.axis + 1 :])
    return shape


# -- arranging axes ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Arrangement:
    """The rows of TRANSPOSES (pattern, number of axes, their order or None), and the tensors that need explicit shapes."""

    rows: tuple[tuple[str, int, Axes | None], ...]
    explicit: Mapping[str, tuple[Shape, Axes | None, Shape]]


def _arrangement(arranged: Mapping[str, tuple[Shape, Origin]]) -> _Arrangement:
    explicit: dict[str, tuple[Shape, Axes | None, Shape]] = {}
    by_rank: dict[int, dict[str, list[Axes]]] = defaultdict(dict)
    for name, (shape, origin) in arranged.items():
        choices = _orders(shape, origin)
        if choices:
            by_rank[len(shape)][name] = choices
        else:
            layout = origin.layout
            explicit[name] = (layout.split or shape, layout.permutation, layout.shape)
    rows = [row for rank, names in sorted(by_rank.items()) for row in _rows(rank, names)]
    return _Arrangement(tuple(rows), explicit)


def _orders(shape: Shape, origin: Origin) -> list[Axes]:
    """The orders of all axes, those of length 1 included, that do what a layout does; empty where no order does."""
    layout = origin.layout
    if len(layout.shape) != len(shape) or sorted(layout.shape) != sorted(shape):
        return []
    seen = layout.split if layout.split is not None else shape
    long_shape = long_axes(shape)
    if long_lengths(seen) != long_lengths(shape):
        return []
    wanted = layout.permutation if layout.permutation is not None else tuple(range(len(seen)))
    long = long_axes(seen)
    order = [long_shape[long.index(axis)] for axis in wanted if axis in long]
    every = permutations(range(len(shape))) if len(shape) <= THRESHOLDS.most_axes_permuted else [tuple(range(len(shape)))]
    fitting = (axes for axes in every if tuple(shape[axis] for axis in axes) == layout.shape)
    return [axes for axes in fitting if [axis for axis in axes if shape[axis] != 1] == order]


def _rows(rank: int, names: Mapping[str, Sequence[Axes]]) -> Iterator[tuple[str, int, Axes | None]]:
    """Rows for the tensors of one rank: first those that depart from the most frequent order, then that order for all others."""
    plain = tuple(range(rank))
    counts = Counter(axes for choices in names.values() for axes in choices)
    if not rank or counts[plain] == len(names):
        return
    chosen = {name: max(choices, key=lambda axes: (counts[axes], axes == plain)) for name, choices in names.items()}
    groups: dict[Axes, list[str]] = defaultdict(list)
    for name, axes in chosen.items():
        groups[axes].append(name)
    main = max(groups, key=lambda axes: len(groups[axes]))
    for axes, members in groups.items():
        if axes != main:
            others = [name for name in names if chosen[name] != axes]
            yield from ((pattern, rank, None if axes == plain else axes) for pattern in _telling_patterns(members, others))
    if main != plain:
        yield "", rank, main


def _telling_patterns(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Patterns that match all of some names and none of the others: endings where they tell, else beginnings, else whole names."""
    patterns = []
    for _, members in grouped(list(names)):
        patterns += _patterns_of_one(members, others)
    return list(dict.fromkeys(patterns))


def _patterns_of_one(names: Sequence[str], others: Sequence[str]) -> list[str]:
    texts = {template(name)[0] for name in names}
    for length in range(1, 1 + max(text.count(".") + 1 for text in texts)):
        tails = {".".join(text.split(".")[-length:]) for text in texts}
        patterns = [(r"\." if tail not in texts else "^") + _as_pattern(tail) + "$" for tail in sorted(tails)]
        if not any(re.search(pattern, other) for pattern in patterns for other in others):
            return patterns
    return [f"^{re.escape(name)}$" for name in names]


def _as_pattern(text: str) -> str:
    return r"\d+".join(re.escape(part).replace(r"\_", "_").replace(r"\-", "-") for part in text.split("#"))


# -- the text ----------------------------------------------------------------------------------------------------------


def _text(plan: Plan, title: str) -> Iterator[str]:
    renames = edits(plan.names)
    arrangement = _arrangement(plan.arranged)
    before, after = ([step for kind in kinds for step in kind(plan)] for kinds in (BEFORE_RENAMING, AFTER_RENAMING))
    yield f'"""{title}'
    yield ""
    yield "Written by `tracediff weights --write-rules`; the arrays may be NumPy's or MLX's."
    yield '"""'
    yield ""
    yield "import re"
    if any(_JOINED in step.helpers for step in before):
        yield "import sys"
    yield ""
    yield from _tables(plan, renames, arrangement)
    yield ""
    yield "def sanitize(weights):"
    yield '    """The weights by the port\'s names and in its layouts."""'
    yield "    weights = dict(weights)"
    for step in before:
        yield from (f"    {line}" for line in step.lines)
    yield from _renaming(plan)
    for step in after:
        yield from (f"    {line}" for line in step.lines)
    for copy, original in plan.copies.items():
        yield f'    renamed["{copy}"] = renamed["{original}"]'
    yield "    return {name: _arranged(name, value) for name, value in renamed.items()}"
    yield ""
    yield ""
    yield from _helpers(renames, arrangement)
    for helper in dict.fromkeys(text for step in [*before, *after] for text in step.helpers):
        yield ""
        yield ""
        yield from helper.splitlines()
    yield ""


def _tables(plan: Plan, renames: Edits, arrangement: _Arrangement) -> Iterator[str]:
    yield "# Names: applied one after the other."
    yield "RENAMES = ("
    yield from (f'    (r"{edit.pattern}", {edit.code}),' for edit in renames.edits)
    yield ")"
    if renames.exact:
        yield "NAMES = {"
        yield from (f'    "{name}": "{goal}",' for name, goal in renames.exact.items())
        yield "}"
    yield ""
    yield "# Layouts by the new name and the number of axes; the first that matches counts, None leaves the tensor as it is."
    yield "TRANSPOSES = ("
    yield from (f'    (r"{pattern}", {rank}, {axes}),' for pattern, rank, axes in arrangement.rows)
    yield ")"
    if arrangement.explicit:
        yield "# Seen in the first shape, permuted, and seen in the last."
        yield "RESHAPES = {"
        yield from (f'    "{name}": ({before}, {axes}, {after}),' for name, (before, axes, after) in arrangement.explicit.items())
        yield "}"
    if plan.dropped:
        yield ""
        yield "# What has no place in the port."
        yield "DROPPED = ("
        yield from (f'    r"{pattern}",' for pattern in _dropped_patterns(plan))
        yield ")"
    yield ""


def _dropped_patterns(plan: Plan) -> list[str]:
    return _telling_patterns(plan.dropped, list(plan.names))


def _renaming(plan: Plan) -> Iterator[str]:
    if plan.dropped:
        yield '    kept = {name: value for name, value in weights.items() if not re.search("|".join(DROPPED), name)}'
        yield "    renamed = {_renamed(name): value for name, value in kept.items()}"
    else:
        yield "    renamed = {_renamed(name): value for name, value in weights.items()}"


def _helpers(renames: Edits, arrangement: _Arrangement) -> Iterator[str]:
    yield "def _renamed(name):"
    if renames.exact:
        yield "    if name in NAMES:"
        yield "        return NAMES[name]"
    yield "    for pattern, replacement in RENAMES:"
    yield "        name = re.sub(pattern, replacement, name)"
    yield "    return name"
    yield ""
    yield ""
    yield "def _arranged(name, value):"
    if arrangement.explicit:
        yield "    if name in RESHAPES:"
        yield "        before, axes, after = RESHAPES[name]"
        yield "        value = value.reshape(before)"
        yield "        return (value if axes is None else value.transpose(*axes)).reshape(after)"
    yield "    for pattern, rank, axes in TRANSPOSES:"
    yield "        if value.ndim == rank and re.search(pattern, name):"
    yield "            return value if axes is None else value.transpose(*axes)"
    yield "    return value"


@dataclass(frozen=True, slots=True)
class _Step:
    """Lines of ``sanitize``, and the functions that they call."""

    lines: tuple[str, ...]
    helpers: tuple[str, ...] = ()


_MERGED = '''def _merged(gain, direction):
    """A weight norm merged: the direction's norm is taken over the axes along which the gain does not vary."""
    axes = tuple(axis for axis, size in enumerate(gain.shape) if size == 1)
    return gain * direction / ((direction * direction).sum(axis=axes, keepdims=True) ** 0.5)'''

_JOINED = '''def _joined(parts, axis, groups=1):
    """Arrays end to end along an axis; with groups, run by run."""
    numpy = sys.modules[type(parts[0]).__module__.partition(".")[0]]
    numpy = getattr(numpy, "core", numpy) if not hasattr(numpy, "concatenate") else numpy
    if groups == 1:
        return numpy.concatenate(parts, axis=axis)
    shape = parts[0].shape
    runs = [part.reshape(*shape[:axis], groups, -1, *shape[axis + 1 :]) for part in parts]
    return numpy.concatenate(runs, axis=axis + 1).reshape(*shape[:axis], -1, *shape[axis + 1 :])'''

_STACKED = '''def _stacked(weights, pattern, axis):
    """Numbered arrays stacked on a new axis, in the order of their numbers, under the first one's name."""
    groups = {}
    for name in weights:
        found = re.fullmatch(pattern, name)
        if found:
            groups.setdefault(found.groups()[::2], []).append((int(found[2]), name))
    for members in groups.values():
        names = [name for _, name in sorted(members)]
        parts = [weights.pop(name) for name in names]
        shape = parts[0].shape
        parts = [part.reshape(*shape[:axis], 1, *shape[axis:]) for part in parts]
        weights[names[0]] = _joined(parts, axis)'''

_CUT = '''def _cut(value, axis, lengths, groups=1):
    """The pieces of an array of these lengths along an axis; with groups, of each of its equal runs."""
    shape = value.shape
    runs = value.reshape(*shape[:axis], groups, -1, *shape[axis + 1 :])
    start = 0
    for length in lengths:
        piece = runs[(slice(None),) * (axis + 1) + (slice(start, start + length),)]
        yield piece.reshape(*shape[:axis], -1, *shape[axis + 1 :])
        start += length'''


def _norm_steps(plan: Plan) -> Iterator[_Step]:
    for gain, direction, merged in dict.fromkeys(plan.norms):
        yield _Step(
            (
                f'for name in [name for name in weights if name.endswith("{gain}")]:',
                f'    base = name.removesuffix("{gain}")',
                f'    weights[base + "{merged}"] = _merged(weights.pop(name), weights.pop(base + "{direction}"))',
            ),
            (_MERGED,),
        )


def _sum_steps(plan: Plan) -> Iterator[_Step]:
    for edit in edits(plan.sums).edits:
        firsts = _chooser([name for name in plan.sums if edit(name) != name], [name for name in plan.before if name not in plan.sums])
        yield _Step(
            (
                f'for name in [name for name in weights if re.search(r"{firsts}", name)]:',
                f'    weights[name] = weights[name] + weights.pop(re.sub(r"{edit.pattern}", {edit.code}, name))',
            )
        )


def _join_steps(plan: Plan) -> Iterator[_Step]:
    for (axis, groups, count), members in plan.joins.items():
        for first_pattern, others in _partners(members, count, plan.before):
            rest = ", ".join(f'weights.pop(re.sub(r"{pattern}", {code}, name))' for pattern, code in others)
            runs = f", {groups}" if groups > 1 else ""
            yield _Step(
                (
                    f'for name in [name for name in weights if re.search(r"{first_pattern}", name)]:',
                    f"    weights[name] = _joined([weights[name], {rest}], {axis}{runs})",
                ),
                (_JOINED,),
            )


def _stack_steps(plan: Plan) -> Iterator[_Step]:
    for axis, members in plan.stacks.items():
        for pattern in dict.fromkeys(_numbered_pattern(names) for names in members):
            yield _Step((f'_stacked(weights, r"{pattern}", {axis})',), (_STACKED, _JOINED))


def _partners(members: Sequence[tuple[str, ...]], count: int, every: Sequence[str]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """For tensors that go together: the pattern of the first names, and the substitutions that lead from them to the other names."""
    kinds: dict[tuple[tuple[str, str], ...], list[str]] = defaultdict(list)
    for names in members:
        found = []
        for other in range(1, count):
            edit = edits({one[0]: one[other] for one in members if _same_kind(one, names, other)}).edits[0]
            found.append((edit.pattern, edit.code))
        kinds[tuple(found)].append(names[0])
    for kind, firsts in kinds.items():
        yield _chooser(firsts, [name for name in every if name not in firsts]), list(kind)


def _chooser(names: Sequence[str], others: Sequence[str]) -> str:
    """One pattern that matches some names and none of the others."""
    return "|".join(_telling_patterns(names, others))


def _same_kind(one: Sequence[str], names: Sequence[str], other: int) -> bool:
    return (template(one[0])[0], template(one[other])[0]) == (template(names[0])[0], template(names[other])[0])


def _numbered_pattern(names: Sequence[str]) -> str:
    """The pattern of names that differ in one number, with groups before, of and after it."""
    text = template(names[0])[0]
    columns = list(zip(*(template(name)[1] for name in names), strict=True))
    place = next(place for place, column in enumerate(columns) if len(set(column)) > 1)
    parts = [_as_pattern(part) for part in text.split("#")]
    before, after = r"\d+".join(parts[: place + 1]), r"\d+".join(parts[place + 1 :])
    return rf"({before})(\d+)({after})"


def _cut_steps(plan: Plan) -> Iterator[_Step]:
    for (axis, groups, lengths), members in plan.cuts.items():
        if len(members[0]) < 2:
            continue
        for first_pattern, others in _partners(members, len(members[0]), list(plan.names.values())):
            names = ", ".join(["name", *(f're.sub(r"{pattern}", {code}, name)' for pattern, code in others)])
            runs = f", {groups}" if groups > 1 else ""
            lines = (
                f'for name in [name for name in renamed if re.search(r"{first_pattern}", name)]:',
                f"    names = ({names})",
                f"    renamed.update(zip(names, list(_cut(renamed[name], {axis}, {lengths}{runs}))))",
            )
            yield _Step(lines, (_CUT,))


_StepsOf = Callable[[Plan], Iterator[_Step]]
BEFORE_RENAMING: tuple[_StepsOf, ...] = (_norm_steps, _sum_steps, _join_steps, _stack_steps)
AFTER_RENAMING: tuple[_StepsOf, ...] = (_cut_steps,)
"""The kinds of step in a ``sanitize``, in their order: on the reference's names, and on the port's."""
