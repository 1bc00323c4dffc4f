"""What is known of pairs, of divergences, and of what an answer rests on: plain frozen data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from tracediff.alignment import RecordPair
from tracediff.metrics import Judgement, Metrics

Mode = Literal["free", "forced"]
Method = Literal["bisect", "scan", "live"]
How = Literal["", "read", "digest", "statistics", "samples", "forced", "shape", "raised", "served"]
Effect = Literal["", "moved", "no effect", "unclear", "unchecked", "noise", "equivalent", "borderline", "quantised"]
EXCUSED: tuple[Effect, ...] = ("moved", "no effect", "unclear", "noise", "equivalent", "borderline", "quantised")
"""Why a pair that diverged is no divergence."""
Blame = Literal["module", "caller", "weights", "input", "random", "run"]
Arrives = Literal["compared", "in part", "not recorded"]


class Again(Protocol):
    """Fetches what was not stored by running both sides again.

    ``most`` is how many bytes may be fetched at once where no single call asks for more. `fetch` makes the values of those rows of
    reference and port readable; those of earlier fetches need not stay so.
    """

    most: int

    def fetch(self, reference: Sequence[int], port: Sequence[int]) -> None: ...


@dataclass(frozen=True, slots=True)
class Comparison:
    """One pair of records and what is known of it.

    ``how``: "read" (values compared), "digest" (equal bits, not read), "statistics" (values not stored, or not needed: ``at_least``, a
    lower bound of the relative L2, can prove a difference but no agreement), "samples" (the reference kept a few values; these were
    compared with the port's at their places, and the statistics: a few values that changed places among many show in neither), "forced"
    (compared while the port ran), "shape" (no layout reconciles the two), "raised" (a call of one side raised instead), "served" (the port
    computed nothing: the tensor was served from a trace, so nothing was compared), "" (not compared). ``metrics`` is None unless values or
    digests were compared. ``judgement`` gives the limit also where nothing was compared; ``diverged`` is then None. ``effect`` says why a
    pair that diverged is no divergence: "moved", "no effect", "unclear" (an argument of a call of which another input diverged too),
    "unchecked" (nobody asked), "noise" (nothing but noise-sensitive ids sent the two runs different ways), "equivalent" (nothing follows
    from it), "borderline" (little more than what is allowed, and like noise), "quantised" (what the codes of a layer's weights explain).
    """

    pair: RecordPair
    how: How = ""
    metrics: Metrics | None = None
    judgement: Judgement | None = None
    at_least: float = 0.0
    floor: float | None = None
    diverged: bool | None = None
    effect: Effect = ""


@dataclass(frozen=True, slots=True)
class Length:
    """Two tensors whose shapes differ in the length of one axis, or of several axes alike.

    ``axes`` are the reference's. ``agree``: so many indices along the first of them agree, counted from the start, or from the end where
    ``at_end``; None where the values were not compared.
    """

    axes: tuple[int, ...]
    reference: int
    port: int
    agree: int | None = None
    at_end: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """An introduced divergence: ``place`` indexes `Located.comparisons`.

    ``blame``: "module" (its output diverged), "caller" (its own code, between the calls it makes), "weights" (they are used without a
    call of their module), "input" (nothing came before), "random" (a draw), "run" (the code outside of all calls). ``culprit``: module
    paths of reference and port. ``maker``: the reference's module that makes the tensor, where the port makes it in the culprit's code.
    ``inherited``: the worst relative L2 of what arrived, None where unknown. ``times``: how many times what is
    allowed the error is, None where no error was measured or no limit on the relative L2 is set. ``last_same``: the last pair before it
    that agrees. ``arrives``: how much of what the blamed code had in hand was compared; where it was "not recorded", ``record`` names what
    would tell more. ``suspects``: unpaired sites and missing calls there, as (side, text). ``places`` counts all places of the fault,
    ``calls`` the calls of the site among them, ``shared_by`` the same-role siblings among them; of ``siblings`` in all, whose sites fit
    ``pattern``. ``length``: the length in which the shapes differ, if they do.
    """

    place: int
    blame: Blame
    culprit: tuple[str, str]
    introduced: float
    inherited: float | None
    last_same: int | None
    times: float | None = None
    maker: str | None = None
    suspects: tuple[tuple[str, str], ...] = ()
    arrives: Arrives = "compared"
    record: tuple[str, ...] = ()
    places: int = 1
    calls: int = 1
    shared_by: int = 1
    siblings: int = 1
    pattern: str = ""
    length: Length | None = None


@dataclass(frozen=True, slots=True)
class Certificate:
    """What the answer rests on.

    ``predecessors``: how many pairs the first divergence can come from, all found to agree. ``probes``: how many pairs before it were
    looked at besides, none of which diverged; ``unread_before``: how many before it nobody read whole, ``unseen_before``: of how many
    of these nobody looked at a sample either. ``sampled``: how many pairs are taken to agree because of their statistics and a sample of
    their values, which is no proof: a few values that changed places among many show in neither. ``missed``: had one in a hundred of
    the pairs before the answer diverged without a trace in its statistics, the chance that no probe would have met one.

    ``by_digest``, ``by_statistics``: pairs decided without reading. ``sensitive``: ids that differ where noise changes the reference's
    too. ``seed``: of the probes. ``rtol``, ``atol``: the tolerance that was given, if any.
    """

    method: Method
    rtol: float | None = None
    atol: float | None = None
    predecessors: int = 0
    probes: int = 0
    unread_before: int = 0
    unseen_before: int = 0
    sampled: int = 0
    missed: float = 0.0
    by_digest: int = 0
    by_statistics: int = 0
    moved: tuple[int, ...] = ()
    without_effect: tuple[int, ...] = ()
    sensitive: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Located:
    """Every pair with what is known of it, in the reference's execution order, and the introduced divergences, first one first.

    ``borderline``: divergences that are little more than noise in size and like noise in kind; they are none of the ``findings``.
    ``equivalent``: the places of differences from which nothing follows, each with the reference's site that absorbed the difference.
    ``read`` counts pairs whose values were read whole, ``bytes_read`` all bytes read on both sides, those of samples too.
    """

    mode: Mode
    method: Method
    comparisons: tuple[Comparison, ...]
    findings: tuple[Finding, ...]
    certificate: Certificate
    read: int
    bytes_read: int
    equivalent: tuple[tuple[int, str], ...] = ()
    borderline: tuple[Finding, ...] = ()

    @property
    def first(self) -> Finding | None:
        return self.findings[0] if self.findings else None
