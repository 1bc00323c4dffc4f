"""All faults that can be planted into a pair's port, and a fair choice among them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mlx import nn

from benchmarks.faults import modules
from benchmarks.faults.plant import Fault, replacement, running
from benchmarks.faults.rewrites import rewrites_of
from tracediff.site import is_below


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
            by_name[fault.kind, fault.name.partition(":")[0].partition(" with ")[0]].append(fault)
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


def _nested(path: str, other: str) -> bool:
    """Whether one of two modules lies in the other, or is the other."""
    return is_below(path, other) or is_below(other, path)
