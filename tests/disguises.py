"""Pairs of models made hard to pair: renamed, shuffled, with a fault, with other weights; and how well they are paired then."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tracediff.alignment import align
from tracediff.alignment.names import role
from tracediff.alignment.structure import Side
from tracediff.observe import Boundary, Observer, record
from tracediff.site import Site, module_of
from tracediff.trace import Param, Trace, open_trace
from tracediff.trace.calls import CallTree

CONDITIONS = ("natural", "anonymous", "shuffled", "early fault", "unloaded", "all different")


# -- disguises ---------------------------------------------------------------------------------------------------------------------------


@dataclass
class Renamed:
    """A parameter under another name."""

    param: Param
    name: str
    path: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.param, name)


@dataclass
class Disguised:
    """A trace whose modules have other names, and (with ``shuffle``) whose independent siblings are called in another order."""

    trace: Trace
    seed: int
    shuffle: bool = False
    original: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.path = self.trace.path
        self.returned = None
        self.known: dict[str, str] = {"": ""}
        self.strings = list(self.trace.strings)
        self.index = self._index()
        self.meta = {**self.trace.meta, "modules": self._modules()}
        self.params = self._params()
        self.order = np.arange(len(self.index))
        if self.shuffle:
            self.order = shuffled_rows(self.trace, self.random)
            self.index = reordered(self.index, self.order)
        self.records = Reordered(self.trace, self.order)
        self.calls = CallTree(self.index, self.strings)

    def rename(self, path: str) -> str:
        if path not in self.known:
            above, _, _ = path.rpartition(".")
            head = self.rename(above)
            name = "".join(self.random.choices("abcdefghijklmnopqrstuvwxyz", k=7))
            self.known[path] = f"{head}.{name}" if head else name
        return self.known[path]

    def site(self, text: str) -> str:
        site = Site.parse(text)
        name = str(Site(self.rename(site.path), site.kind, site.name))
        self.original[name] = text
        return name

    def _index(self) -> np.ndarray:
        index = self.trace.index.copy()
        codes, inverse = np.unique(index["site"], return_inverse=True)
        names = [self.site(self.strings[code]) for code in codes]
        index["site"] = (len(self.strings) + np.arange(len(codes), dtype=np.uint32))[inverse]
        self.strings.extend(names)
        return index

    def _modules(self) -> list[dict[str, Any]]:
        modules = []
        for module in self.trace.meta["modules"]:
            kind = module["type"] if role(module["type"]) else "Module"
            children = [self.rename(child) for child in module.get("children", [])]
            self.random.shuffle(children)
            path = self.rename(module["path"])
            self.original[path] = module["path"]
            modules.append({**module, "path": path, "type": kind, "children": children, "aliases": [], "file": ""})
        self.random.shuffle(modules)
        return modules

    def _params(self) -> dict[str, Renamed]:
        params = []
        for name, param in self.trace.params.items():
            path = self.rename(param.path)
            params.append(Renamed(param, f"{path}.{name.rpartition('.')[2]}", path))
        self.random.shuffle(params)
        return {param.name: param for param in params}


@dataclass
class Reordered:
    """Records in another order."""

    trace: Trace
    order: np.ndarray

    def __getitem__(self, row: int) -> Any:
        return self.trace.records[int(self.order[row])]


def shuffled_rows(trace: Trace, chance: random.Random) -> np.ndarray:
    """An order of the rows in which neighbouring calls of one caller have changed places, unless one feeds the other."""
    side = Side(trace)
    calls = side.calls
    below: dict[int, list[int]] = {}
    for call, parent in enumerate(calls.parent.tolist()):
        below.setdefault(parent, []).append(call)
    digests = [tuple(pair) for pair in trace.index["digest"].tolist()]

    def tree(call: int) -> list[int]:
        return [call, *(inner for child in below.get(call, []) for inner in tree(child))]

    def feeds(one: int, other: int) -> bool:
        made = {digests[row] for call in tree(one) for row in calls.rows_of(call) if side.end_kind[row] != 0}
        taken = {digests[row] for call in tree(other) for row in calls.rows_of(call) if side.end_kind[row] == 0}
        return bool(made & taken)

    for siblings in below.values():
        for place in range(len(siblings) - 1):
            one, other = siblings[place], siblings[place + 1]
            if calls.site[one] != calls.site[other] and chance.random() < 0.4 and not feeds(one, other):
                siblings[place], siblings[place + 1] = other, one

    def rows(call: int) -> list[int]:
        own = calls.rows_of(call).tolist()
        enter, leave = [row for row in own if side.end_kind[row] == 0], [row for row in own if side.end_kind[row] != 0]
        return [*enter, *(row for child in below.get(call, []) for row in rows(child)), *leave]

    return np.array([row for call in below.get(-1, []) for row in rows(call)])


def reordered(index: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The index with its rows in another order, references to rows and ordinals put right."""
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    moved = index[order].copy()
    for column in ("parent", "producer"):
        moved[column] = np.where(moved[column] >= 0, place[np.maximum(moved[column], 0)], -1)
    moved["order"] = np.arange(len(moved))
    return moved


# -- faults ------------------------------------------------------------------------------------------------------------------------------


class WrongFrom(Observer):
    """Makes the first leaf's output wrong: stretched, shifted and noisy."""

    def __init__(self, site: str) -> None:
        self.site = site

    def see(self, boundary: Boundary) -> Mapping[str, Any] | None:
        if boundary.site != self.site or boundary.moment != "leave":
            return None
        end, tensor = boundary.leaves[0]
        values = np.array(tensor)
        noise = np.random.default_rng(1).standard_normal(values.shape)
        return {end: (1.3 * values + 0.2 + 0.3 * values.std() * noise).astype(values.dtype)}


def first_leaf(trace: Trace) -> str:
    """The first module to return floating-point numbers: where it is wrong, all that comes after it is wrong."""
    for record_ in trace.records:
        if record_.end.startswith("output") and record_.dtype.startswith("float") and module_of(record_.site) == record_.site:
            return str(record_.site)
    raise SystemExit("no module returns floating-point numbers")


# -- measuring ---------------------------------------------------------------------------------------------------------------------------


@dataclass
class Score:
    """Right pairs, stated pairs, and true pairs."""

    right: int = 0
    stated: int = 0
    true: int = 0
    seconds: float = 0.0
    sites: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Score) -> None:
        for name in ("right", "stated", "true", "seconds", "sites"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.wrong += other.wrong

    @property
    def text(self) -> str:
        return f"{100 * self.right / max(self.stated, 1):5.1f}/{100 * self.right / max(self.true, 1):5.1f}"


def score(pair: Any, reference: Any, port: Any, names: tuple[Callable[[str], str], Callable[[str], str]]) -> Score:
    """Aligns two traces and compares with the pair's truth; ``names`` undo the disguises."""
    started = time.perf_counter()
    alignment = align(reference, port)
    seconds = time.perf_counter() - started
    found: dict[str, set[str]] = {}
    for one in alignment.paired:
        found.setdefault(names[0](one.reference), set()).add(names[1](one.port))
    listed = (
        {names[0](one.reference) for one in alignment.pairs if one.reference is not None},
        {names[1](one.port) for one in alignment.pairs if one.port is not None},
    )
    truth = pair.expected(sorted(listed[0]), sorted(listed[1]))
    theirs = set(truth.values())
    touched = [(a, b) for a, others in found.items() for b in others if a in truth or b in theirs]
    right = [(a, b) for a, b in touched if truth.get(a) == b]
    wrong = [f"{a} -> {b}, not {truth.get(a)}" for a, b in touched if truth.get(a) != b]
    wrong += [f"{a} -> nothing, not {b}" for a, b in truth.items() if a not in found]
    return Score(len(right), len(touched), len(truth), seconds, len(alignment.pairs), wrong)


def capture(pair: Any, folder: Path, observers: tuple[Observer, ...] = ()) -> tuple[Trace, Trace]:
    """Both sides' traces; ``observers`` see the port's run."""
    import torch

    with torch.no_grad(), record(pair.reference, folder / "reference.h5", force=True):
        pair.run_reference()
    with record(pair.port, folder / "port.h5", observers=observers, force=True):
        pair.run_port()
    return open_trace(folder / "reference.h5"), open_trace(folder / "port.h5")


def measure(build: Callable[..., Any], condition: str, seed: int, folder: Path) -> Score:
    """One pair under one condition."""
    import pairs

    pair = build(seed=seed)
    if condition == "all different":
        pairs.unloaded(pair, ".", seed + 100)
    reference, port = capture(pair, folder)
    if condition == "unloaded":
        leaves = sorted({name.rpartition(".")[0] for name, _ in pairs.mlx_flat(pair.port.parameters())})
        chosen = random.Random(seed).choice(leaves)
        pairs.unloaded(pair, "^" + chosen.replace(".", r"\.") + r"\.\w+$", seed + 100)
        reference, port = capture(pair, folder)
    if condition == "early fault":
        reference, port = capture(pair, folder, (WrongFrom(first_leaf(port)),))
    if condition == "natural":
        return score(pair, reference, port, (str, str))
    disguised = Disguised(reference, seed), Disguised(port, seed + 1000, shuffle=condition == "shuffled")
    return score(pair, *disguised, tuple(lambda name, one=one: one.original[name] for one in disguised))
