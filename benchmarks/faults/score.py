"""What a report is worth when the fault is known: pure accounting, without running anything."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

OUTCOMES = ("exact", "near", "wrong", "missed")


@dataclass(frozen=True)
class Planted:
    """A fault's truth: the port's module, what corresponds to it in the reference, and the kinds that name its cause."""

    port: str
    references: tuple[str, ...]
    kinds: tuple[str, ...]
    others: tuple[Planted, ...] = ()

    def is_named_by(self, culprit: tuple[str, str]) -> bool:
        """Whether (reference, port) is the culprit, on either side."""
        return culprit[1] == self.port or culprit[0] in self.references

    def is_near(self, culprit: tuple[str, str], called: Collection[str]) -> bool:
        """Whether the culprit is the planted one's caller, or is called by it; ``called`` are the port's modules that run."""
        return caller(culprit[1], called) == self.port or caller(self.port, called) == culprit[1]


def caller(path: str, called: Collection[str]) -> str | None:
    """The nearest module above a path that runs; None above the root."""
    while path:
        path = path.rpartition(".")[0]
        if path in called or not path:
            return path
    return None


@dataclass
class Case:
    """One fault (or several at once) in one pair, and what was found.

    ``outcome`` is of the first divergence, for one fault; ``named`` counts planted faults among all divergences, ``extra`` the
    flagged sites that are none of them, ``again`` those that name a planted fault once more. ``cause`` is "first" where the best stated
    cause is right, "any", "wrong" or "none".
    """

    pair: str
    dtype: str
    mode: str
    seed: int
    faults: tuple[str, ...]
    kinds: tuple[str, ...]
    outcome: str = ""
    named: int = 0
    extra: int = 0
    again: int = 0
    cause: str = ""
    stated: tuple[str, ...] = ()
    culprits: tuple[str, ...] = ()
    planted: tuple[str, ...] = ()
    effect: float = 0.0
    error: str = ""
    read: int = 0
    read_scan: int = 0
    compared: int = 0
    is_scans: bool | None = None
    held_out: bool = False
    seconds: float = 0.0


def judge(case: Case, report: Any, planted: Sequence[Planted], called: Collection[str]) -> Case:
    """Fills in what a report says of the planted faults; with none planted every divergence is a false alarm."""
    culprits = [(one.culprit.reference, one.culprit.port) for one in report.divergences]
    every = [one for fault in planted for one in (fault, *fault.others)]
    case.culprits = tuple(
        f"{one.culprit.reference or 'root'} | {one.culprit.port or 'root'} @ {one.site.reference} {one.site.end} {one.introduced:.1e}"
        for one in report.divergences
    )
    case.planted = tuple(f"{fault.port or 'root'} ({', '.join(fault.references)})" for fault in planted)
    case.named = sum(any(fault.is_named_by(culprit) for culprit in culprits) for fault in planted)
    case.extra = sum(not any(fault.is_named_by(culprit) for fault in every) for culprit in culprits)
    case.again = max(0, len(culprits) - case.extra - len(planted))
    if planted:
        case.outcome = outcome(culprits, every, called)
        first = next((one for one in report.divergences if planted[0].is_named_by((one.culprit.reference, one.culprit.port))), None)
        case.stated = () if first is None else tuple(cause.kind for cause in first.causes)
        case.cause = cause_of(case.stated, planted[0].kinds)
    return case


def outcome(culprits: Sequence[tuple[str, str]], planted: Iterable[Planted], called: Collection[str]) -> str:
    """Of the first divergence: exact, within one module, wrong, or missed where there is none."""
    known = list(planted)
    if not culprits:
        return "missed"
    if any(fault.is_named_by(culprits[0]) for fault in known):
        return "exact"
    return "near" if any(fault.is_near(culprits[0], called) for fault in known) else "wrong"


def cause_of(stated: Sequence[str], kinds: Collection[str]) -> str:
    if not stated:
        return "none"
    return "first" if stated[0] in kinds else "any" if set(stated) & set(kinds) else "wrong"


# -- summing up ----------------------------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """Many cases of one dtype and mode."""

    cases: list[Case] = field(default_factory=list)

    @property
    def singles(self) -> list[Case]:
        return [case for case in self.cases if len(case.kinds) == 1 and not case.error]

    @property
    def doubles(self) -> list[Case]:
        return [case for case in self.cases if len(case.kinds) == 2 and not case.error]

    @property
    def clean(self) -> list[Case]:
        return [case for case in self.cases if not case.kinds and not case.error]

    @property
    def errors(self) -> list[Case]:
        return [case for case in self.cases if case.error]

    def numbers(self) -> dict[str, Any]:
        """What one line of the table tells; percentages of nothing are None."""
        singles, doubles, faulty = self.singles, self.doubles, [*self.singles, *self.doubles]
        bisected = [case for case in self.cases if case.is_scans is not None]
        found: dict[str, Any] = {"faults": len(singles)}
        found |= {name: share(sum(case.outcome == name for case in singles), len(singles)) for name in OUTCOMES}
        found |= {
            "extra": round(sum(case.extra for case in faulty) / len(faulty), 3) if faulty else None,
            "again": round(sum(case.again for case in faulty) / len(faulty), 3) if faulty else None,
            "couples": len(doubles),
            "both": share(sum(case.named == 2 for case in doubles), len(doubles)),
            "clean": len(self.clean),
            "alarms": sum(case.extra for case in self.clean),
            "cause first": share(sum(case.cause == "first" for case in singles), len(singles)),
            "cause any": share(sum(case.cause in ("first", "any") for case in singles), len(singles)),
            "cause none": share(sum(case.cause == "none" for case in singles), len(singles)),
            "bisect = scan": share(sum(bool(case.is_scans) for case in bisected), len(bisected)),
            "read of compared": share(sum(case.read for case in bisected), sum(case.compared for case in bisected)),
            "read of scan": share(sum(case.read for case in bisected), sum(case.read_scan for case in bisected)),
            "errors": len(self.errors),
        }
        return found


def share(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 1) if whole else None


def tallied(cases: Iterable[Case]) -> Mapping[tuple[str, str, str], Tally]:
    """The cases by (dtype, mode, "built on" or "held out")."""
    found: dict[tuple[str, str, str], Tally] = {}
    for case in cases:
        found.setdefault((case.dtype, case.mode, "held out" if case.held_out else "built on"), Tally()).cases.append(case)
    return found


def as_json(cases: Iterable[Case], dropped: Mapping[str, int]) -> dict[str, Any]:
    listed = list(cases)
    table = [{"dtype": key[0], "mode": key[1], "pairs": key[2], **tally.numbers()} for key, tally in tallied(listed).items()]
    return {"schema": "tracediff.faults/1", "table": table, "no_effect": dict(dropped), "cases": [asdict(case) for case in listed]}
