"""What there is to say of an introduced divergence: whose code made it, what arrived there, and what has no partner there."""

from __future__ import annotations

from typing import Literal

from tracediff.locate.arrivals import arrives, to_record
from tracediff.locate.culprit import Modules, blamed
from tracediff.locate.grades import times_allowed
from tracediff.locate.makers import maker
from tracediff.locate.result import Finding
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.locate.verdicts import Verdicts
from tracediff.site import module_of

SideName = Literal["reference", "port"]


def finding(verdicts: Verdicts, i: int) -> Finding:
    """What there is to say of an introduced divergence."""
    comparison = verdicts.comparisons.measure(i)
    blame, culprit = blamed(verdicts, i)
    metrics, last = comparison.metrics, _last_same(verdicts, i)
    arrived = arrives(verdicts, i, blame)
    return Finding(
        place=i,
        blame=blame,
        culprit=culprit,
        introduced=metrics.rel_l2 if metrics is not None else comparison.at_least,
        inherited=_inherited(verdicts, i),
        last_same=last,
        times=times_allowed(comparison),
        maker=maker(verdicts, i) if blame in ("caller", "module", "run") else None,
        suspects=_suspects(verdicts, culprit),
        arrives=arrived,
        record=to_record(verdicts, last, i) if arrived == "not recorded" else (),
    )


def _last_same(verdicts: Verdicts, i: int) -> int | None:
    """The last pair before a pair that was compared and agrees."""
    for j in range(i - 1, -1, -1):
        known = verdicts.comparison(j)
        if known.diverged is False and known.how:
            return j
    return None


def _inherited(verdicts: Verdicts, i: int) -> float | None:
    """The worst relative L2 of what arrives, None where some of it is unknown; in a forced run 0 if all was replaced, else None."""
    arriving = verdicts.flow.predecessors(i)
    if verdicts.mode == "free" and not verdicts.is_live:
        errors = [verdicts.expected.known_error(j) for j in arriving]
    else:
        metrics = [verdicts.comparisons.judged(j).metrics for j in arriving]
        errors = [None if one is None else one.rel_l2 for one in metrics]
    if verdicts.mode == "forced":
        return 0.0 if all(error == 0 or verdicts.pairs.is_replaced(j) for error, j in zip(errors, arriving, strict=True)) else None
    known = [error for error in errors if error is not None]
    return max(known, default=0.0) if len(known) == len(errors) else None


def _suspects(verdicts: Verdicts, culprit: Modules) -> tuple[tuple[str, str], ...]:
    """Unpaired sites whose nearest paired module is the culprit, and ends of its paired sites that one side lacks: (side, text)."""
    alignment, found = verdicts.pairs.alignment, []
    for pair in alignment.unpaired:
        unpaired: tuple[tuple[SideName, str | None, str], ...]
        unpaired = ("reference", pair.reference, culprit[0]), ("port", pair.port, culprit[1])
        for side, site, path in unpaired:
            if site is not None and module_of(alignment.nearest_paired(site, side) or "") == path:
                found.append((str(side), site))
    for name, trace, rows, paired, path in (
        ("reference", verdicts.pairs.reference, alignment.unpaired_reference, alignment.port_of, culprit[0]),
        ("port", verdicts.pairs.port, alignment.unpaired_port, alignment.reference_of, culprit[1]),
    ):
        records = (trace.records[row] for row in rows)
        ends = {(record.site, record.end) for record in records if record.site in paired and record.module == path}
        found.extend((name, f"{site} {end}") for site, end in sorted(ends))
    return tuple(found[: THRESHOLDS.most_suspects])
