"""Whether a bisection names what a scan names, and how little it reads: on two free traces, and live where nothing is stored.

    python -m benchmarks.bisection                          # every pair of tests/pairs.py, 12 faults each
    python -m benchmarks.bisection gpt unet --faults 40
    python -m benchmarks.bisection --live                   # the live bisection too: rounds, and bytes held at once

Each fault of `benchmarks.faults` is planted in the port by itself and both sides run freely. A fault counts where the scan finds a
divergence. *Same* is the share in which the bisection names the scan's first site and end, *culprit* that in which it blames the same
module; *read* is how many of the tensors that the scan reads were read, on average and at most.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.faults.catalogue import all_faults
from benchmarks.faults.plant import Fault, planted
from tracediff.alignment import align
from tracediff.errors import TracediffError
from tracediff.locate import Located, locate
from tracediff.observe import record
from tracediff.runs.live import of_model
from tracediff.runs.live_search import searched
from tracediff.trace import Trace, open_trace


@dataclass
class Tally:
    """What was seen over some faults."""

    faults: int = 0
    same: int = 0
    culprit: int = 0
    live: int = 0
    live_culprit: int = 0
    shares: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        for name in ("faults", "same", "culprit", "live", "live_culprit"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("shares", "rounds", "held", "wrong"):
            getattr(self, name).extend(getattr(other, name))

    @property
    def numbers(self) -> dict[str, Any]:
        """What is kept of the tally: counts of faults, and means of shares."""
        counts = {name: getattr(self, name) for name in ("faults", "same", "culprit", "live", "live_culprit")}
        lists = (("read", self.shares), ("rounds", self.rounds), ("held", self.held))
        return {**counts, **{name: round(sum(values) / len(values), 4) for name, values in lists if values}}

    @property
    def text(self) -> str:
        count = max(1, self.faults)
        shares = self.shares or [0.0]
        text = f"{self.faults:7d}{self.same / count:8.1%}{self.culprit / count:9.1%}{sum(shares) / len(shares):8.1%}{max(shares):8.1%}"
        if self.rounds:
            held, rounds = sum(self.held) / len(self.held), sum(self.rounds) / len(self.rounds)
            text += f"{self.live / count:8.1%}{self.live_culprit / count:9.1%}{rounds:8.1f}{max(self.rounds):5d}{held:8.1%}"
        return text


def sampled(faults: list[Fault], count: int, chance: random.Random) -> list[Fault]:
    """Faults of as many names as can be: each name in turn gives one."""
    by_name: dict[str, list[Fault]] = {}
    for fault in faults:
        by_name.setdefault(fault.name.partition(":")[0], []).append(fault)
    groups = list(by_name.values())
    chance.shuffle(groups)
    for group in groups:
        chance.shuffle(group)
    ordered = [group[turn] for turn in range(max(map(len, groups))) for group in groups if turn < len(group)]
    return ordered[:count] if count else ordered


def first(located: Located, reference: Trace) -> tuple[tuple[str, str] | None, tuple[str, str] | None]:
    """The site and end of the first divergence, and the culprit."""
    if located.first is None:
        return None, None
    found = reference.records[located.comparisons[located.first.place].pair.reference[0]]
    return (found.site, found.end), located.first.culprit


def tried(pair: Any, fault: Fault, reference: Trace, folder: Path, live: bool) -> Tally:
    """One fault planted."""
    with planted(pair.port, fault):
        with suppress(Exception), record(pair.port, folder / "port.h5", force=True):  # a fault may well make the port raise
            pair.run_port()
        return _measured(pair, fault, reference, folder, live)


def _measured(pair: Any, fault: Fault, reference: Trace, folder: Path, live: bool) -> Tally:
    tally = Tally()
    with open_trace(folder / "port.h5") as port:
        if not len(port.records):
            return tally
        alignment = align(reference, port)
        scan = locate(alignment, reference, port, scan=True)
        truth, culprit = first(scan, reference)
        if truth is None:
            return tally
        tally.faults = 1
        found = locate(alignment, reference, port)
        seen, blamed = first(found, reference)
        tally.same, tally.culprit = int(seen == truth), int(blamed == culprit)
        tally.shares.append(found.read / max(1, scan.read))
        if seen != truth:
            tally.wrong.append(f"{pair.name}: {fault.text}: {seen}, not {truth}")
    if live:
        _live(pair, fault, reference, (truth, culprit), tally)
    return tally


def _live(pair: Any, fault: Fault, reference: Trace, truth: tuple[Any, Any], tally: Tally) -> None:
    sides = of_model("reference", pair.reference, pair.run_reference), of_model("port", pair.port, pair.run_port)
    try:
        with searched(*sides) as found:
            seen, blamed = first(found.located, found.reference)
            tally.rounds.append(found.rounds.count)
            tally.held.append(found.rounds.most_held / max(1, 2 * int(reference.index["nbytes"].sum())))
    except TracediffError as error:
        tally.wrong.append(f"{pair.name}: {fault.text}: live: {error}")
        return
    tally.live, tally.live_culprit = int(seen == truth[0]), int(blamed == truth[1])
    if seen != truth[0]:
        tally.wrong.append(f"{pair.name}: {fault.text}: live: {seen}, not {truth[0]}")


def measure(build: Callable[..., Any], count: int, seed: int, live: bool, only: str = "") -> Tally:
    """All sampled faults of one pair."""
    import torch

    pair = build(seed=seed)
    chance = random.Random(seed)
    tally = Tally()
    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        folder = Path(place)
        with record(pair.reference, folder / "reference.h5"):
            pair.run_reference()
        with open_trace(folder / "reference.h5") as reference:
            known = all_faults(pair, with_built_in=True)
            for fault in sampled([fault for fault in known if only in fault.text], count, chance):
                tally.add(tried(pair, fault, reference, folder, live))
    return tally


def main() -> None:
    import pairs

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="*", help="all by default")
    parser.add_argument("--faults", type=int, default=12, help="faults for each pair; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--live", action="store_true", help="the live bisection too")
    parser.add_argument("--only", default="", help="only faults whose text holds this")
    parser.add_argument("--wrong", action="store_true", help="print where the answer is another")
    results.add_option(parser)
    arguments = parser.parse_args()
    head = f"{'':24s}{'faults':>7s}{'same':>8s}{'culprit':>9s}{'read':>8s}{'most':>8s}"
    print(head + (f"{'live':>8s}{'culprit':>9s}{'rounds':>8s}{'most':>5s}{'held':>8s}" if arguments.live else ""), flush=True)
    total = Tally()
    rows: list[results.Row] = []
    for name in arguments.pairs or pairs.PAIRS:
        tally = measure(pairs.PAIRS[name], arguments.faults, arguments.seed, arguments.live, arguments.only)
        total.add(tally)
        rows.append({"pair": name, **tally.numbers})
        print(f"{name:24s}{tally.text}", flush=True)
        for line in tally.wrong if arguments.wrong else ():
            print(f"    {line}")
    print(f"{'all':24s}{total.text}")
    results.record("bisection", rows, arguments)


if __name__ == "__main__":
    main()
