"""What is frozen of one run: the verdict, where it diverges and why, what is paired with what. No error sizes, no confidences."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tracediff as td

Answer = dict[str, Any]


def answer(reference: Path, port: Path | str, *, lists_pairs: bool) -> Answer:
    """The answer for two traces, or what is said of a port that has none.

    ``pairs`` is a digest of all pairs of sites with their layouts, and the lines themselves where ``lists_pairs``. A failure of tracediff
    is an answer too: its type and text under ``error``.
    """
    if isinstance(port, str):
        return {"error": port}
    try:
        report = td.bisect(reference, port)
        frame = td.align(reference, port).to_frame()
    except Exception as error:  # noqa: BLE001 - what fails is frozen as well
        return {"error": f"{type(error).__name__}: {error}".replace(str(reference.parent), "FOLDER")}
    lines = [f"{row.reference} | {row.port} | {row.layout}" for row in frame.itertuples()]
    return {
        "verdict": report.verdict,
        "divergences": [_divergence(one) for one in report.divergences],
        "weights": sorted(line for kind in ("different", "missing", "unexpected") for line in _weights(report, kind)),
        "pairs": lines if lists_pairs else hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16],
    }


def _divergence(one: Any) -> dict[str, Any]:
    site, culprit = one.site, one.culprit
    return {
        "site": f"{site.reference} | {site.port} @ {site.call} {site.end}",
        "culprit": f"{culprit.reference} | {culprit.port}",
        "layout": one.layout,
        "causes": [f"{cause.kind}{' (confirmed)' if cause.confirmed else ''}" for cause in one.causes],
    }


def _weights(report: Any, kind: str) -> Iterator[str]:
    return (f"{kind}: {one}" for one in getattr(report.weights, kind)) if report.weights is not None else iter(())


def differences(frozen: Mapping[str, Answer], now: Mapping[str, Answer]) -> dict[str, list[str]]:
    """For each case whose answer is no longer the frozen one: what was, and what is. Cases that only one side has are left out."""
    return {name: list(_parts(frozen[name], now[name])) for name in now if name in frozen and frozen[name] != now[name]}


def _parts(was: Answer, now: Answer) -> Iterator[str]:
    for key in {**was, **now}:
        before, after = was.get(key), now.get(key)
        if before == after:
            continue
        if isinstance(before, list) and isinstance(after, list):
            yield from (f"{key}: - {one}" for one in before if one not in after)
            yield from (f"{key}: + {one}" for one in after if one not in before)
            if sorted(map(str, before)) == sorted(map(str, after)):
                yield f"{key}: in another order"
        else:
            yield f"{key}: {before!r} -> {after!r}"
