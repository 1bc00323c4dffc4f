"""What a check found: of each case its differences, and of each difference whether it is new, still there, fixed or accepted."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from tracediff.errors import TracediffError
from tracediff.json_text import parse_json
from tracediff.outputs import write_output
from tracediff.project.accepted import Accepted
from tracediff.project.config import LAST
from tracediff.report import Divergence, Report, plain_json
from tracediff.verdict import Verdict

SCHEMA = "tracediff.check/1"
FaultState = Literal["new", "still", "grown", "accepted", "fixed"]
CaseState = Literal["same", "different", "not run", "no verdict"]
LOUD: tuple[FaultState, ...] = ("new", "still", "grown")
"""The states of a difference that fail a check."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One difference of a case: where it shows first, whose code made it, and how large it is.

    ``site`` and ``port``: where, in the reference and in the port; ``size``: relative L2 that was introduced (infinite where it is no
    number: another shape, a call that raised); ``places``: at so many places it shows. ``source``: where to look in the code of the
    reference and of the port. ``was``: the size that was accepted, or that of the last check. ``because``: why it is accepted.
    """

    state: FaultState
    site: str
    port: str
    end: str
    call: str
    stage: str
    culprit: tuple[str, str]
    size: float
    allowed: float | None
    places: int
    cause: str
    confirmed: bool
    evidence: str
    source: tuple[str, str]
    was: float | None = None
    because: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.site, self.end


@dataclass(frozen=True, slots=True)
class CaseOutcome:
    """What a check found of one case.

    ``state`` "not run": the port gave nothing to compare; "no verdict": nothing diverged, and nothing is said of the whole. ``why`` says
    more of these two. "same" also where all that differs is accepted. ``traces``: the kept reference and the port's trace. ``notes``: what
    else is to be said of how the case was judged.
    """

    case: str
    state: CaseState
    why: str
    faults: tuple[Fault, ...]
    compared: int
    total: int
    mode: str
    traces: tuple[str, str]
    caveats: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def loud(self) -> list[Fault]:
        """The differences that fail the check; those that are known of a case that was not run are of an earlier one."""
        return [fault for fault in self.faults if fault.state in LOUD and self.state != "not run"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check found of all its cases.

    ``verdict``: "different" where a difference is new, still there, or has grown; else None where a case was not run or gives no verdict;
    else "same".
    """

    project: str
    cases: tuple[CaseOutcome, ...]

    @property
    def verdict(self) -> Verdict:
        states = {case.state for case in self.cases}
        if "different" in states:
            return "different"
        return "same" if states == {"same"} else None

    def to_dict(self) -> dict[str, Any]:
        """The outcome as one JSON object."""
        counts = {
            state: sum(fault.state == state for case in self.cases for fault in case.faults) for state in (*LOUD, "accepted", "fixed")
        }
        plain = {
            "schema": SCHEMA,
            "project": self.project,
            "verdict": self.verdict,
            "counts": counts,
            "cases": list(map(asdict, self.cases)),
        }
        written: dict[str, Any] = plain_json(plain)
        return written


def faults_of(report: Report) -> list[Fault]:
    """The differences of a report, in execution order, all of them new."""
    judged = report.certificate.get("judged") or []
    return [_fault(one, judged[place] if place < len(judged) else {}) for place, one in enumerate(report.divergences)]


def _fault(one: Divergence, judged: Mapping[str, Any]) -> Fault:
    cause = one.causes[0] if one.causes else None
    source = judged.get("source") or {}
    return Fault(
        state="new",
        site=one.site.reference,
        port=one.site.port,
        end=one.site.end,
        call=one.site.call,
        stage=one.site.stage,
        culprit=(one.culprit.reference, one.culprit.port),
        size=one.introduced,
        allowed=judged.get("limit"),
        places=one.count,
        cause=cause.kind if cause else "",
        confirmed=bool(cause and cause.confirmed),
        evidence=cause.evidence if cause else "",
        source=(str(source.get("reference") or ""), str(source.get("port") or "")),
    )


def told_apart(faults: Sequence[Fault], accepted: Iterable[Accepted], before: CaseOutcome | None) -> list[Fault]:
    """The differences of a case with their states, in order, and behind them those of the last check, or accepted, that are fixed.

    ``accepted``: what is accepted of this case; ``before``: its outcome in the last check, None where there was none.
    """
    kept = {(one.site, one.end): one for one in accepted}
    known = {fault.key: fault for fault in before.faults if fault.state != "fixed"} if before is not None else {}
    found = [_stated(fault, kept.get(fault.key), known.get(fault.key)) for fault in faults]
    here = {fault.key for fault in faults}
    gone = [replace(fault, state="fixed", was=fault.size, because="") for key, fault in known.items() if key not in here]
    absent = [_gone(one) for key, one in kept.items() if key not in here and key not in known]
    return [*found, *gone, *absent]


def _stated(fault: Fault, accepted: Accepted | None, before: Fault | None) -> Fault:
    if accepted is None:
        return replace(fault, state="still" if before else "new", was=before.size if before else None)
    grown = accepted.has_grown(fault.size, fault.places)
    return replace(fault, state="grown" if grown else "accepted", was=accepted.size, because=accepted.because)


def _gone(one: Accepted) -> Fault:
    """An accepted difference of which the run shows nothing any more."""
    return Fault("fixed", one.site, "", one.end, "", "", ("", ""), 0.0, None, one.places, "", False, "", ("", ""), one.size, one.because)


# ------------------------------------------------------------------------------------------------------------- the last check


def write_outcome(path: Path, outcome: Outcome) -> None:
    """Keeps the outcome for the next check, which tells by it what is new."""
    make_folder(path.parent)
    write_output(path, json.dumps(outcome.to_dict(), indent=1, allow_nan=False) + "\n", force=True)


def make_folder(folder: Path) -> None:
    """Makes the folder of what a check leaves behind, which git ignores."""
    folder.mkdir(parents=True, exist_ok=True)
    ignored = folder / ".gitignore"
    if not ignored.exists():
        ignored.write_text("*\n", encoding="utf-8")


def read_outcome(path: str | os.PathLike[str]) -> Outcome:
    """The outcome that `write_outcome` or ``tracediff check --json`` wrote; TracediffError where the file is none."""
    try:
        data = parse_json(Path(path).read_bytes())
        if data["schema"] != SCHEMA:
            raise ValueError(f"its schema is {data['schema']!r}, not {SCHEMA!r}")
        return Outcome(data["project"], tuple(_made(CaseOutcome, {**case, "faults": _faults(case)}) for case in data["cases"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TracediffError(f"{os.fspath(path)!r} is no outcome of a check ({error}). Make one with: tracediff check --json") from error


def checked(port: str | os.PathLike[str]) -> CaseOutcome | None:
    """What the last check found of the case whose port's trace this is; None where no check left the trace."""
    beside = Path(port).absolute().parent / LAST
    try:
        cases = read_outcome(beside).cases if beside.is_file() else ()
    except TracediffError:
        return None
    return next((case for case in cases if Path(case.traces[1]).name == Path(port).name and case.state != "not run"), None)


def _faults(case: Mapping[str, Any]) -> list[Fault]:
    return [_made(Fault, fault) for fault in case["faults"]]


def _made(kind: Any, data: Mapping[str, Any]) -> Any:
    """A frozen dataclass from JSON: lists as tuples, numbers that are not finite from their names."""
    known = {one.name for one in fields(kind)}
    numbers = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}

    def value(key: str, given: Any) -> Any:
        if isinstance(given, list):
            return tuple(given)
        return numbers.get(given, given) if key in ("size", "was", "allowed") and isinstance(given, str) else given

    return kind(**{key: value(key, given) for key, given in data.items() if key in known})
