"""Toy runs for the tests of judging: NumPy models that record themselves as capture would, and the alignment of two such traces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tracediff.alignment import Alignment, Layout, RecordPair, SitePair
from tracediff.dtype import Array
from tracediff.site import frame_text, module_of
from tracediff.trace import Trace, TraceWriter, open_trace

Fault = Callable[[Array], Array]


class Run:
    """Records calls of sites into a trace; ``faults`` change what a site returns, ``glue`` what it is handed, by site."""

    def __init__(
        self, path: Path, *, faults: Mapping[str, Fault] | None = None, glue: Mapping[str, Fault] | None = None, **meta: Any
    ) -> None:
        self.path = path
        self.faults, self.glue = faults or {}, glue or {}
        self.save, self.flags = "full", 0
        self.writer = TraceWriter(path, meta={"impl": "numpy", "dtype": "float32", "modules": [], "mode_run": "free", **meta})
        self.calls: list[tuple[str, str, dict[str, int]]] = [("", "", {})]
        self.ordinals: dict[str, int] = {}
        self.made: dict[int, tuple[Array, int]] = {}
        self.stage = ""

    @contextmanager
    def __call__(self, site: str, **inputs: Array) -> Iterator[Any]:
        """A call of ``site``: yields a function that takes what it returns and gives it back, faulty where a fault is planted."""
        _, call, counts = self.calls[-1]
        number = counts.get(site, 0)
        counts[site] = number + 1
        text = frame_text(site, number, module_of(self.calls[-1][0]))
        self.calls.append((site, f"{call}/{text}" if call else text, {}))
        self.ordinals[site] = self.ordinals.get(site, -1) + 1
        for name, value in inputs.items():
            self._add(f"input[{name}]", value)
        returned: list[Array] = []
        yield lambda value: returned.append(np.asarray(self.faults.get(site, _same)(value), value.dtype)) or returned[0]
        self._add("output", returned[0], is_made=True)
        self.calls.pop()

    def hand(self, site: str, value: Array) -> Array:
        """What the caller's code hands to ``site``, faulty where a fault is planted there."""
        return np.asarray(self.glue[site](value), value.dtype) if site in self.glue else value

    def layer(self, site: str, value: Array, weight: Array) -> Array:
        """A leaf: ``value @ weight`` and a nonlinearity."""
        value = self.hand(site, value)
        with self(site, x=value) as leave:
            made: Array = leave(np.tanh(value @ weight).astype(value.dtype))
        return made

    def draw(self, name: str, value: Array) -> Array:
        site = f"{module_of(self.calls[-1][0])}!{name}"
        value = np.asarray(self.faults[site](value), value.dtype) if site in self.faults else value
        self._moment(site, "draw", value)
        return value

    def tap(self, name: str, value: Array) -> Array:
        self._moment(f"{module_of(self.calls[-1][0])}#{name}", "value", value)
        return value

    def give(self, end: str, value: Array) -> None:
        """One more record of the call that is under way."""
        self._add(end, value, is_made=True)

    def _moment(self, site: str, end: str, value: Array) -> None:
        _, call, counts = self.calls[-1]
        number = counts.get(site, 0)
        counts[site] = number + 1
        text = frame_text(site, number, module_of(self.calls[-1][0]))
        self.calls.append((site, f"{call}/{text}" if call else text, {}))
        self.ordinals[site] = self.ordinals.get(site, -1) + 1
        self._add(end, value, is_made=True)
        self.calls.pop()

    def _add(self, end: str, value: Array, *, is_made: bool = False) -> None:
        site, call, _ = self.calls[-1]
        producer = self.made.get(id(value), (value, -1))[1]
        row = self.writer.add(
            site=site,
            call=call,
            ordinal=self.ordinals[site],
            end=end,
            values=np.array(value),
            stage=self.stage,
            producer=producer,
            producer_how=1 if producer >= 0 else 0,
            flags=self.flags,
            store=self.save == "full",
        )
        if is_made:
            self.made[id(value)] = (value, row)
        else:  # as the recorder does: of what no call made, the first call that took it in
            self.made.setdefault(id(value), (value, row))

    def close(self) -> Trace:
        self.writer.close()
        return open_trace(self.path)


def aligned(reference: Trace, port: Trace, *, rename: Callable[[str], str] = lambda site: site, without: tuple[str, ...] = ()) -> Alignment:
    """The alignment by equal sites, calls and ends; ``rename`` gives the port's site, ``without`` are the sites left unpaired."""

    def key(record: Any, name: Callable[[str], str]) -> tuple[str, int, str]:
        return name(record.site), record.ordinal, record.end

    theirs = {key(record, str): record for record in port.records}
    records, seen, pairs = [], set(), {}
    for record in reference.records:
        partner = theirs.get(key(record, rename))
        if partner is None or record.site in without:
            pairs.setdefault(record.site, SitePair(record.site, None, "module", "", 0.0))
            continue
        pairs[record.site] = SitePair(record.site, partner.site, "module", "named alike", 1.0)
        layout = Layout(record.shape) if record.shape == partner.shape else None
        records.append(RecordPair((record.row,), (partner.row,), layout, "named alike", 1.0, 0))
        seen.add(partner.row)
    left = tuple(record.row for record in reference.records if record.row not in {pair.reference[0] for pair in records})
    return Alignment(tuple(pairs.values()), tuple(records), left, tuple(record.row for record in port.records if record.row not in seen))


def _same(value: Array) -> Array:
    return value


def weights(count: int, width: int = 16, seed: int = 0) -> list[Array]:
    generator = np.random.default_rng(seed)
    return [(generator.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32) for _ in range(count)]


def inputs(width: int = 16, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((6, width)).astype(np.float32)


def noisy(scale: float = 3e-7) -> Fault:
    """What another order of summation does: relative noise that a clean pair may have."""
    generator = np.random.default_rng(7)
    return lambda value: value * (1 + scale * generator.standard_normal(value.shape))


def scaled(gain: float) -> Fault:
    """A planted fault that scales what a site returns."""
    return lambda value: value * np.float32(gain)


def bumped(value: Array) -> Array:
    """A planted fault of five per cent."""
    return value * 1.02 + 0.05 * np.roll(value, 1, -1)
