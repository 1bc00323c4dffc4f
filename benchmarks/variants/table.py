"""What a run of variants comes to: a line for each transformation, then every alarm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.variants.measure import DTYPES, UNCHANGED, Case


def rows(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """For each transformation, of clean variants and of faulty ones: how many were judged, by dtype, and how many went wrong.

    ``of the pair``: alarming variants that alarm only where the pair as it is does, in that dtype and mode.
    """
    found = []
    known = {(case.pair, case.dtype, case.mode) for case in cases if case.is_alarm and case.transformation == UNCHANGED}
    for name in dict.fromkeys(case.transformation for case in cases):
        own = [case for case in cases if case.transformation == name]
        clean, faulty = [case for case in own if not case.fault and case.verdict != "does not run"], [case for case in own if case.fault]
        alarming = {case.key for case in clean if case.is_alarm}
        new = {case.key for case in clean if case.is_alarm and (case.pair, case.dtype, case.mode) not in known}
        found.append(
            {
                "transformation": name,
                "pairs": len({case.pair for case in clean}),
                "variants": len({case.key for case in clean}),
                "runs": len(clean),
                "alarms": sum(case.is_alarm for case in clean),
                **{f"alarms {dtype}": sum(case.is_alarm for case in clean if case.dtype == dtype) for dtype in DTYPES},
                "alarming variants": len(alarming),
                "of the pair": len(alarming - new),
                "faults": len(faulty),
                "lost": sum(case.is_lost for case in faulty),
            }
        )
    return found


def table(cases: Sequence[Case]) -> Iterator[str]:
    """The table as text."""
    every = rows(cases)
    heads = {
        "pairs": 6,
        "variants": 9,
        "alarming": 9,
        "pair's": 8,
        "runs": 6,
        "alarms": 7,
        "fp32": 6,
        "fp16": 6,
        "bf16": 6,
        "faults": 8,
        "lost": 6,
    }
    yield f"{'transformation':34s}" + "".join(f"{name:>{width}s}" for name, width in heads.items())
    for row in [*every, _total(every, cases)]:
        dtypes = "".join(f"{row[f'alarms {dtype}']:6d}" for dtype in DTYPES)
        counts = f"{row['pairs']:6d}{row['variants']:9d}{row['alarming variants']:9d}{row['of the pair']:8d}"
        counts += f"{row['runs']:6d}{row['alarms']:7d}"
        yield f"{row['transformation']:34s}{counts}{dtypes}{row['faults']:8d}{row['lost']:6d}"
    yield f"{rate(cases):.1f} % of the {sum(row['variants'] for row in every if row['transformation'] != UNCHANGED)} variants alarm"


def rate(cases: Sequence[Case]) -> float:
    """How many per cent of the clean variants alarm, in one mode at least."""
    every = [row for row in rows(cases) if row["transformation"] != UNCHANGED]
    return 100 * sum(row["alarming variants"] for row in every) / max(1, sum(row["variants"] for row in every))


def _total(every: Sequence[dict[str, Any]], cases: Sequence[Case]) -> dict[str, Any]:
    changed = [row for row in every if row["transformation"] != UNCHANGED]
    total = {key: sum(row[key] for row in changed) for key in every[0] if key != "transformation"} if every else {}
    return {**total, "transformation": "all variants", "pairs": len({case.pair for case in cases})}


def alarms(cases: Sequence[Case]) -> Iterator[str]:
    """Every clean variant that was not called the same, and every fault whose place did not follow."""
    for case in cases:
        if case.is_alarm or case.is_lost:
            yield f"{case.transformation} | {case.pair} {case.dtype} {case.mode} seed {case.seed} | {case.where}"
            if case.fault:
                yield f"    planted {case.fault}: {case.outcome}"
            yield f"    {case.verdict}: {case.first}"
            yield from (f"        {one}" for one in case.findings)
