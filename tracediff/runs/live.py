"""Bisection without stored traces: both sides are run again for each round, and only what one frame sees is held.

Each side is first run twice. The first run records statistics and digests, no values: from them the sites are paired, and they are
what every later run is checked against. The second run proves that the side repeats itself. Then the search goes from the outermost
calls inwards: a round runs both sides once more, holds the inputs and outputs of the calls that one frame makes, and steps into the
first call whose inputs agree and whose output does not. So there are about as many rounds as the tree of calls is deep.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np

from tracediff import dtype as dtypes
from tracediff.alignment import Alignment, align
from tracediff.alignment.partial_layouts import UNREAD
from tracediff.dtype import Array
from tracediff.errors import CaptureError, TracediffError
from tracediff.locate import Located, locate
from tracediff.observe import adapter_of, observe
from tracediff.observe.jobs import Job
from tracediff.observe.observer import Boundary, Observer, Run
from tracediff.observe.options import CaptureOptions
from tracediff.observe.provenance import digest_of
from tracediff.observe.recorder import Recorder
from tracediff.observe.repeat import Digests, repeats_meta
from tracediff.observe.types import Adapter
from tracediff.trace import Record, Trace, open_trace
from tracediff.trace.amend import amend
from tracediff.trace.reader import Records
from tracediff.trace.writer import TraceWriter

MOST_HELD = 256 * 1024 * 1024
"""So many bytes of both sides may be held at once; a single frame that needs more is held whole."""

Play = Callable[[Sequence[Observer]], Any]
"""Runs one side once, every boundary shown to the observers."""

Say = Callable[[str], None]
Mapped = str | os.PathLike[str] | Mapping[str, Any] | None


class Side(Protocol):
    """One side that can be run as often as it takes, from the same start each time."""

    name: str

    def index(self, to: Path) -> None:
        """Records statistics and digests of a run to a new trace, and in its meta whether a second run gave the same."""

    def keep(self, wanted: Sequence[Record], folder: Path) -> Iterable[Array]:
        """The bits of some of the records' values, flat bytes, each content once, of one more run; ``folder`` is for passing files."""


# -- one run ---------------------------------------------------------------------------------------------


class Keeper(Observer):
    """Keeps copies of what some places of a run hold, each content once: ``kept``, flat bytes."""

    def __init__(self, wanted: Iterable[tuple[str, int, str]]) -> None:
        self.kept: dict[bytes, Array] = {}
        self._wanted = frozenset(wanted)

    def start(self, run: Run) -> None:
        self._run = run

    def see(self, boundary: Boundary) -> None:
        if boundary.moment == "raise":
            text = str(boundary.note.get("error", ""))
            self._keep(boundary, "output", text)
            return
        for end, tensor in boundary.leaves:
            self._keep(boundary, end, boundary.replaced.get(end, tensor) if boundary.moment == "draw" else tensor)

    def _keep(self, boundary: Boundary, end: str, tensor: Any) -> None:
        if (boundary.site, boundary.ordinal, end) not in self._wanted:
            return
        if isinstance(tensor, str):
            bits = np.frombuffer(tensor.encode("utf-8", "surrogatepass"), np.uint8)
        else:
            bits = dtypes.bits(self._run.adapter.view(tensor))
        code = digest_of(bits)
        if code not in self.kept:
            self.kept[code] = np.array(bits).reshape(-1).view(np.uint8)


def _indexed(play: Play, adapter: Adapter, to: Path, meta: Mapping[str, Any]) -> None:
    """Records a run without its values, and runs once more to see whether it repeats; the generators are then as one run leaves them.

    What the run raises is noted in the trace, which is then incomplete: a port that raises has a first divergence too.
    """
    before = adapter.rng_state()
    raised = ""
    try:
        options = CaptureOptions(save="stats")
        with TraceWriter(to, save=options.save, meta=dict(meta)) as writer:
            play([Recorder(writer, options)])
    except TracediffError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the side's own code raises
        raised = f"{type(error).__name__}: {error}"
    after = adapter.rng_state()
    digests = Digests()
    _played_again(play, adapter, before, [digests])
    adapter.set_rng_state(after)
    with open_trace(to) as trace:
        first = digests.first_difference(trace)
    amend(to, meta={**repeats_meta(first), **({"raised": raised} if raised else {})})


def _played_again(play: Play, adapter: Adapter, state: Any, observers: Sequence[Observer]) -> None:
    """One more run from the same state of the generators; what the side's own code raises ends it, as it did the first."""
    adapter.set_rng_state(state)
    try:
        play(observers)
    except TracediffError:
        raise
    except Exception:  # noqa: BLE001 - the first run raised it too, or its records would differ
        return


# -- the two kinds of side -------------------------------------------------------------------------------


class Here:
    """A side that runs in this process; ``play`` runs it once."""

    def __init__(self, name: str, play: Play, adapter: Adapter, meta: Mapping[str, Any] | None = None) -> None:
        self.name, self._play, self._adapter, self._meta = name, play, adapter, meta or {}
        self._state = adapter.rng_state()

    def index(self, to: Path) -> None:
        self._state = self._adapter.rng_state()
        _indexed(self._play, self._adapter, to, self._meta)

    def keep(self, wanted: Sequence[Record], folder: Path) -> Iterable[Array]:
        keeper = Keeper((record.site, record.ordinal, record.end) for record in wanted)
        now = self._adapter.rng_state()
        _played_again(self._play, self._adapter, self._state, [keeper])
        self._adapter.set_rng_state(now)
        return keeper.kept.values()


def of_model(
    name: str,
    models: Any,
    run: Any,
    *,
    observers: Sequence[Observer] = (),
    methods: Iterable[str] = (),
    functions: Iterable[str] = (),
    meta: Mapping[str, Any] | None = None,
) -> Here:
    """A side given by its models and its run, as `tracediff.observe.observe` takes them; ``observers`` hand it its draws."""
    adapter = adapter_of(models, run)
    seen: dict[str, Any] = {"methods": tuple(methods), "functions": tuple(functions), "impl": adapter.name}
    return Here(name, lambda further: observe(models, run, [*observers, *further], **seen), adapter, meta)


def of_recipe(
    name: str,
    impl: str,
    recipe: str | os.PathLike[str] | None,
    *,
    python: str | os.PathLike[str] | None = None,
    stages: Sequence[str] = (),
    weights: str = "seeded",
    seed: int = 0,
    dtype: str | None = None,
    say: Say = lambda _: None,
) -> Side:
    """A side as its recipe runs it, loaded once; with ``python`` it runs in that environment, where it is loaded for every round."""
    from tracediff.observe import recipe as recipes
    from tracediff.observe.adapters.registry import named

    asked: dict[str, Any] = {"stages": tuple(stages), "weights": weights, "seed": seed, "dtype": dtype}
    if python is not None:
        return Elsewhere(name, {"impl": impl, "recipe": recipe, "python": python, **asked, "stages": list(stages)})
    loaded = recipes.load_recipe(recipe, impl)
    recipes.check_stages(loaded, stages)
    context = recipes.Context(**asked)
    say(f"loading {loaded.description}")
    models = recipes.load_quietly(loaded, context)
    meta = {"recipe": loaded.name, "seed": seed, "weights": weights, "wanted": list(stages)}
    return Here(name, lambda further: recipes.observe_recipe(loaded, context, further, models=models), named(impl), meta)


class Elsewhere:
    """A side whose recipe runs in another Python: it is loaded anew for every run, and what is kept crosses over in a file."""

    def __init__(self, name: str, asked: Mapping[str, Any]) -> None:
        self.name, self._asked = name, dict(asked)

    def index(self, to: Path) -> None:
        self._run(to, job=index_run)

    def keep(self, wanted: Sequence[Record], folder: Path) -> Iterable[Array]:
        to = folder / f"{self.name}.npz"
        self._run(to, job=keep_run, wanted=[[record.site, record.ordinal, record.end] for record in wanted])
        with np.load(to, allow_pickle=False) as arrays:
            kept = [arrays[key] for key in arrays.files]
        to.unlink()
        return kept

    def _run(self, to: Path, *, job: Job, **own: Any) -> None:
        from tracediff.observe.recipe import run_recipe

        run_recipe(output=to, job=job, **self._asked, **own)


def index_run(
    models: Any, run: Any, to: str, *, options: CaptureOptions, observers: Sequence[Observer], meta: Mapping[str, Any], **_: Any
) -> None:
    """`Side.index` as a job in another Python (`tracediff.observe.jobs`)."""
    _indexed(_play_of(models, run, options, observers), adapter_of(models, impl=options.impl), Path(to), meta)


def keep_run(
    models: Any,
    run: Any,
    to: str,
    *,
    options: CaptureOptions,
    observers: Sequence[Observer],
    wanted: Sequence[tuple[str, int, str]],
    **_: Any,
) -> None:
    """`Side.keep` as a job in another Python: leaves the bits in a NumPy archive at ``to``."""
    keeper = Keeper((site, ordinal, end) for site, ordinal, end in wanted)
    adapter = adapter_of(models, impl=options.impl)
    _played_again(_play_of(models, run, options, observers), adapter, adapter.rng_state(), [keeper])
    np.savez(to, *keeper.kept.values())


def _play_of(models: Any, run: Any, options: CaptureOptions, observers: Sequence[Observer]) -> Play:
    return lambda further: observe(models, run, [*observers, *further], **options.observing())


# -- a trace whose values are had by running again -------------------------------------------------------


class Rerun(Trace):
    """A trace of statistics and digests, whose values are there while they are held: `hold` runs the side again for them.

    ``on_demand`` is called with a row that is read but not held; until it is set, such a row counts as not stored.
    """

    def __init__(self, path: Path, side: Side, folder: Path) -> None:
        super().__init__(path)
        self.path = Path(f"{side.name} (live)")
        self.side = side
        self.held: dict[bytes, Array] = {}
        self.on_demand: Callable[[Rerun, int], None] | None = None
        self._folder = folder

    @property
    def records(self) -> Records:
        return _Reruns(self)

    def hold(self, rows: Sequence[int]) -> int:
        """Holds the values of these rows instead of the earlier ones; returns how many bytes they are.

        Raises CaptureError where the run no longer gives what it gave at first.
        """
        wanted = [self.records[row] for row in rows]
        self.held = {}
        self.held = {digest_of(bits): bits for bits in self.side.keep(wanted, self._folder)} if wanted else {}
        lost = next((record for record in wanted if record.nbytes and record.digest not in self.held), None)
        if lost is not None:
            raise CaptureError(_unsteady(self.side.name, lost.site, lost.call, lost.end))
        return sum(bits.nbytes for bits in self.held.values())


class _Reruns(Records):
    """The records of a `Rerun`."""

    _trace: Rerun

    @overload
    def __getitem__(self, row: int) -> Record: ...
    @overload
    def __getitem__(self, row: slice) -> list[Record]: ...
    def __getitem__(self, row: int | slice) -> Record | list[Record]:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        return _Record(self._trace, super().__getitem__(row).row)


class _Record(Record):
    """A record whose values are held by its `Rerun`, or had by running again."""

    __slots__ = ()
    _trace: Rerun

    @property
    def stored(self) -> bool:
        return not self.nbytes or self._trace.on_demand is not None or self.digest in self._trace.held

    def _bytes(self, start: int, nbytes: int) -> Array:
        if not self.nbytes:
            return np.empty(0, np.uint8)
        if self.digest not in self._trace.held and self._trace.on_demand is not None:
            self._trace.on_demand(self._trace, self.row)
        return self._trace.held[self.digest][start : start + nbytes].copy()


# -- the search ------------------------------------------------------------------------------------------


class Rounds:
    """Fetches values for the search: each round runs both sides once more (`tracediff.locate.Again`).

    ``count`` rounds were made, and ``more`` runs of one side for values that were read afterwards; ``most_held`` bytes were held at most,
    ``fetched`` bytes in all.
    """

    def __init__(self, reference: Rerun, port: Rerun, most: int, say: Say) -> None:
        self.most = most
        self.count = self.more = self.most_held = self.fetched = 0
        self._sides = reference, port
        self._say = say

    def fetch(self, reference: Sequence[int], port: Sequence[int]) -> None:
        self.count += 1
        self._say(f"round {self.count}: {len(reference):,} tensors of the reference, {len(port):,} of the port")
        held = sum(side.hold(rows) for side, rows in zip(self._sides, (reference, port), strict=True))
        self.most_held = max(self.most_held, held)
        self.fetched += held

    def on_demand(self, trace: Rerun, row: int) -> None:
        """One more run of one side for a value that is read after the search, and for as many around it as this side may hold."""
        self.more += 1
        nearest = np.argsort(np.abs(np.arange(len(trace.index)) - row), kind="stable")
        fits = np.cumsum(trace.index["nbytes"][nearest].astype(np.int64)) <= self.most // 2
        held = trace.hold(sorted({row, *nearest[fits].tolist()}))
        self.most_held = max(self.most_held, held)
        self.fetched += held


@dataclass(frozen=True, slots=True)
class Found:
    """What a live bisection found, as `tracediff.locate.locate` does; the traces hold no values but fetch what is read.

    `certificate` says what it took.
    """

    located: Located
    alignment: Alignment
    reference: Rerun
    port: Rerun
    rounds: Rounds

    def certificate(self) -> dict[str, Any]:
        """The rounds, and what was recorded and held in them."""
        return {
            "rounds": self.rounds.count,
            "runs_for_causes": self.rounds.more,
            "proof": "each side was run twice: the digests of all its tensors are the same, and each round's are those of the first run",
            "recorded": "statistics and digests of every tensor; in each round the inputs and outputs of the calls of one frame",
            "bytes_held": self.rounds.most_held,
            "bytes_fetched": self.rounds.fetched,
            "bytes_of_index": sum(int(side.index.nbytes) for side in (self.reference, self.port)),
        }


@contextmanager
def searched(
    reference: Side,
    port: Side,
    *,
    mapping: Mapped = None,
    rtol: float | None = None,
    atol: float | None = None,
    stages: Sequence[str] = (),
    most: int = MOST_HELD,
    say: Say = lambda _: None,
) -> Iterator[Found]:
    """Where two sides first part, found by running each about as often as the calls are nested.

    ``most``: bytes that may be held at once where no single frame needs more. The rest is as in `tracediff.locate.locate`. Raises
    CaptureError where a side does not repeat itself, and what the reference raises as CaptureError too.
    """
    with tempfile.TemporaryDirectory(prefix="tracediff-live-") as place:
        folder = Path(place)
        with _opened(reference, folder, say) as first, _opened(port, folder, say) as second:
            rounds = Rounds(first, second, most, say)
            alignment = _aligned(first, second, mapping, rounds)
            first.on_demand = second.on_demand = rounds.on_demand
            located = locate(alignment, first, second, mode="free", rtol=rtol, atol=atol, stages=stages, again=rounds)
            yield Found(located, alignment, first, second, rounds)


@contextmanager
def _opened(side: Side, folder: Path, say: Say) -> Iterator[Rerun]:
    """The statistics of one side's run, after it was run twice."""
    say(f"running the {side.name} twice: statistics and digests only")
    path = folder / f"{side.name}.h5"
    side.index(path)
    with Rerun(path, side, folder) as trace:
        if trace.meta.get("repeats") is False:
            where = trace.meta["repeats_first"]
            raise CaptureError(_unsteady(side.name, where["site"], where["call"], where["end"]))
        raised = trace.meta.get("raised")
        if raised and (side.name == "reference" or not len(trace.records)):
            raise CaptureError(f"The {side.name}'s run raised {raised}. It has to run to its end by itself before it can be compared.")
        yield trace


def _unsteady(side: str, site: str, call: str, end: str) -> str:
    return (
        f"The {side} does not repeat itself: two runs of it differ first at {site or 'the root'!r} {end} (call {call}). A live bisection "
        "runs each side again for every round, so each run has to give the same bits. Give --seed (seed=...), so that random draws come "
        "from one tape; put the model into evaluation mode; make what the run begins with the same each time (caches, positions). Or "
        "store two traces with capture, and bisect those."
    )


def _aligned(reference: Rerun, port: Rerun, mapping: Mapped, rounds: Rounds) -> Alignment:
    """The alignment; where shapes leave a layout open, values are fetched to tell, as much as may be held at once."""
    alignment = align(reference, port, mapping=mapping)
    rows: tuple[dict[int, None], dict[int, None]] = ({}, {})
    size = 0
    for pair in _open_pairs(alignment, reference):
        size += sum(int(trace.index["nbytes"][row]) for trace, row in ((reference, pair[0]), (port, pair[1])))
        if size > rounds.most:
            break
        rows[0][pair[0]] = rows[1][pair[1]] = None
    if not rows[0]:
        return alignment
    rounds.fetch(sorted(rows[0]), sorted(rows[1]))
    return align(reference, port, mapping=mapping)


def _open_pairs(alignment: Alignment, reference: Trace) -> Iterator[tuple[int, int]]:
    """The first rows of each kind of pair whose layout only values can tell: one for each site, end and shape."""
    seen: set[tuple[int, int, int]] = set()
    for pair in alignment.records:
        if UNREAD in pair.evidence:
            row = pair.reference[0]
            kind = pair.sites, int(reference.index["end"][row]), int(reference.index["shape"][row])
            if kind not in seen:
                seen.add(kind)
                yield row, pair.port[0]
