"""The results as text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.faults.score import Case, Tally, tallied

COLUMNS = {
    "faults": "faults",
    "exact": "exact %",
    "near": "within one",
    "wrong": "wrong",
    "missed": "missed",
    "extra": "extra a run",
    "again": "again a run",
    "couples": "couples",
    "both": "both %",
    "clean": "clean",
    "alarms": "alarms",
    "cause first": "cause 1st",
    "cause any": "any",
    "cause none": "none",
    "bisect = scan": "bis=scan",
    "read of compared": "read %",
    "errors": "failed",
}


def table(cases: Sequence[Case], dropped: Mapping[str, int]) -> Iterator[str]:
    """One line for each dtype, mode and part; then by pair, by kind, and the faults that were dropped."""
    yield f"{'':28s}" + "".join(f"{title:>12s}" for title in COLUMNS.values())
    for (dtype, mode, part), tally in tallied(cases).items():
        yield line(f"{dtype} {mode}, {part}", tally)
    for title, key in (
        ("by pair", lambda case: case.pair),
        ("by kind of fault", lambda case: case.kinds[0] if len(case.kinds) == 1 else ""),
    ):
        yield ""
        yield title
        groups: dict[str, Tally] = defaultdict(Tally)
        for case in cases:
            if key(case):
                groups[key(case)].cases.append(case)
        for name, tally in sorted(groups.items()):
            yield line(f"  {name}", tally)
    yield ""
    yield f"planted, but of no effect at their own module's output, and left out: {sum(dropped.values())}"


def line(title: str, tally: Tally) -> str:
    numbers = tally.numbers()
    return f"{title:28s}" + "".join(f"{'-' if numbers[name] is None else numbers[name]:>12}" for name in COLUMNS)


def failures(cases: Sequence[Case]) -> Iterator[str]:
    """Every case that is not exact, flags something else, or failed; of pairs held out only how many."""
    held = 0
    for case in cases:
        is_bad = (
            case.error or case.extra or case.is_scans is False or (case.kinds and (case.outcome != "exact" or case.named < len(case.kinds)))
        )
        if not is_bad:
            continue
        if case.held_out:
            held += 1
            continue
        yield f"{case.pair} seed {case.seed} {case.dtype} {case.mode}: {' + '.join(case.faults) or 'clean'}: {case.error or case.outcome}"
        yield f"    planted {', '.join(case.planted)}; effect {case.effect:.1f} x allowed; found {'; '.join(case.culprits) or 'nothing'}"
    if held:
        yield f"and {held} of pairs held out"
