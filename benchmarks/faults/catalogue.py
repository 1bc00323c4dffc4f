"""All faults that can be planted into a pair's port, and a fair choice among them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from mlx import nn

from benchmarks.faults import modules
from benchmarks.faults.plant import Fault, replacement, running
from benchmarks.faults.rewrites import rewrites_of
from tracediff.site import is_below, pattern_of

LEAST_SIBLINGS = 3
"""A slip is planted everywhere where a role has so many modules."""


@dataclass(frozen=True)
class Edit:
    """A fault of one pair alone: in a method of the port's module at ``path`` the source ``old`` becomes ``new``."""

    kind: str
    path: str
    method: str
    old: str
    new: str
    also: tuple[str, ...] = ()

    @property
    def fault(self) -> Fault:
        return Fault(f"{self.old} -> {self.new}", self.kind, self.path, replacement(self.path, self.method, self.old, self.new), self.also)


def all_faults(pair: Any, *, with_built_in: bool = False) -> list[Fault]:
    """Every fault that applies somewhere in what a run of a pair's port enters; on demand in the code of MLX's own modules, too."""
    entered = running(pair.port, pair.run_port)
    known = {path: module for path, module in pair.port.named_modules() if path in entered}
    found = [edit.fault for edit in getattr(pair, "edits", ())]
    for path, module in known.items():
        for way in modules.FAULTS:
            found.extend(way.at(path, module))
        if with_built_in or not is_built_in(module):
            for method in entered[path]:
                found.extend(rewrites_of(type(module), path, method))
    return [*found, *modules.swaps(known)]


def is_built_in(module: nn.Module) -> bool:
    """Whether a module's code is MLX's own: nobody gets that wrong while porting."""
    return type(module).__module__.startswith("mlx.nn")


def chosen(faults: Iterable[Fault], seed: int, most: int, kinds: Iterable[str] = ()) -> list[Fault]:
    """At most so many of each way to go wrong, drawn by the seed; all of a pair's own edits count as different ways."""
    chance = random.Random(seed)
    wanted = set(kinds)
    by_name: dict[tuple[str, str], list[Fault]] = defaultdict(list)
    for fault in faults:
        if not wanted or fault.kind in wanted or fault.kind.partition(".")[0] in wanted:
            by_name[fault.kind, _way(fault)].append(fault)
    return [fault for group in by_name.values() for fault in chance.sample(group, min(most, len(group)))]


def couples(faults: Iterable[Fault], seed: int, most: int) -> list[tuple[Fault, Fault]]:
    """Two faults at a time, in modules of which none lies in the other."""
    chance = random.Random(seed + 1)
    known = [fault for fault in faults if fault.kind not in ("raised", "input") and fault.port]
    found: list[tuple[Fault, Fault]] = []
    for _ in range(50 * most):
        if len(found) == most or len(known) < 2:
            break
        first, second = chance.sample(known, 2)
        if not first.others and not second.others and not _nested(first.port, second.port):
            found.append((first, second))
    return found


def everywhere(faults: Iterable[Fault], seed: int, most: int) -> list[Fault]:
    """At most so many slips as a class makes them: one fault at all modules of a role, of which there are three or more."""
    by_role: dict[tuple[str, str, str], dict[str, Fault]] = defaultdict(dict)
    for fault in faults:
        if fault.kind not in ("raised", "input") and not fault.others:
            by_role[pattern_of(fault.port), _way(fault), fault.kind].setdefault(fault.port, fault)
    roles = [list(alike.values()) for alike in by_role.values() if len(alike) >= LEAST_SIBLINGS]
    return [_together(role) for role in random.Random(seed + 2).sample(roles, min(most, len(roles)))]


def _together(faults: Sequence[Fault]) -> Fault:
    """Faults at several modules as one, whose other modules are wrong too."""
    first = faults[0]

    def change(models: Any, undo: ExitStack) -> None:
        for fault in faults:
            fault.change(models, undo)

    others = tuple(fault.port for fault in faults[1:])
    return Fault(f"{_way(first)}, {len(faults)} times,", first.kind, first.port, change, also=first.also, others=others)


def _way(fault: Fault) -> str:
    """The way in which something is wrong, without where."""
    return fault.name.partition(":")[0].partition(" with ")[0]


def _nested(path: str, other: str) -> bool:
    """Whether one of two modules lies in the other, or is the other."""
    return is_below(path, other) or is_below(other, path)
