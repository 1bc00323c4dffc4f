"""One side of a comparison as something that can be run again: in this process, or in another Python; no values are stored.

A first run records statistics and digests. Each later run starts from the same state of the generators, and what it keeps is checked
against the first run's digests.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np

from tracediff import dtype as dtypes
from tracediff.dtype import Array
from tracediff.errors import CaptureError, TracediffError
from tracediff.interrupts import held
from tracediff.observe import adapter_of, observe
from tracediff.observe.jobs import Job
from tracediff.observe.observer import Boundary, Observer, Run
from tracediff.observe.options import CaptureOptions
from tracediff.observe.provenance import digest_of
from tracediff.observe.recorder import Recorder
from tracediff.observe.repeat import Digests, repeats_meta
from tracediff.observe.world import State, World
from tracediff.trace import Record, Trace, open_trace
from tracediff.trace.amend import amend
from tracediff.trace.reader import Records
from tracediff.trace.writer import TraceWriter

Play = Callable[[Sequence[Observer]], Any]
"""Runs one side once, every boundary shown to the observers."""

Say = Callable[[str], None]
PathLike = str | os.PathLike[str]


class Side(Protocol):
    """One side that can be run as often as needed, from the same start each time."""

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


def _indexed(play: Play, world: World, to: Path, meta: Mapping[str, Any]) -> None:
    """Records a run without its values, and runs once more to see whether it repeats; all is then as one run leaves it.

    What the run raises is noted in the trace, which is then incomplete: a port that raises has a first divergence too.
    """
    before = world.state()
    raised = ""
    try:
        options = CaptureOptions(save="stats")
        with held(), TraceWriter(to, save=options.save, meta=dict(meta)) as writer:
            play([Recorder(writer, options)])
    except TracediffError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the side's own code raises
        raised = f"{type(error).__name__}: {error}"
    digests = Digests()
    with held(), world.as_it_is():
        _played_again(play, world, before, [digests])
    with open_trace(to) as trace:
        first = digests.first_difference(trace)
    amend(to, identity=writer.identity, meta={**repeats_meta(first), **({"raised": raised} if raised else {})})


def _played_again(play: Play, world: World, begin: State, observers: Sequence[Observer]) -> None:
    """One more run from the state in which the first began; what the side's own code raises ends it, as it did the first."""
    world.back_to(begin)
    try:
        play(observers)
    except TracediffError:
        raise
    except Exception:  # noqa: BLE001 - the first run raised it too, or its records would differ
        return


# -- the two kinds of side -------------------------------------------------------------------------------


class LocalSide:
    """A side that runs in this process; ``play`` runs it once."""

    def __init__(self, name: str, play: Play, world: World, meta: Mapping[str, Any] | None = None) -> None:
        self.name, self._play, self._world, self._meta = name, play, world, meta or {}
        self._begin: State

    def index(self, to: Path) -> None:
        self._begin = self._world.state()
        _indexed(self._play, self._world, to, self._meta)

    def keep(self, wanted: Sequence[Record], folder: Path) -> Iterable[Array]:
        keeper = Keeper((record.site, record.ordinal, record.end) for record in wanted)
        with held(), self._world.as_it_is():
            _played_again(self._play, self._world, self._begin, [keeper])
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
) -> LocalSide:
    """A side given by its models and its run, as `tracediff.observe.observe` takes them; ``observers`` give it its draws."""
    adapter = adapter_of(models, run)
    seen: dict[str, Any] = {"methods": tuple(methods), "functions": tuple(functions), "impl": adapter.name}
    return LocalSide(name, lambda further: observe(models, run, [*observers, *further], **seen), World(models, run, adapter), meta)


def of_recipe(
    name: str,
    impl: str,
    recipe: PathLike | None,
    *,
    python: PathLike | None = None,
    stages: Sequence[str] = (),
    weights: str = "seeded",
    seed: int = 0,
    dtype: str | None = None,
    say: Say = lambda _: None,
) -> Side:
    """A side as its recipe runs it, loaded once; with ``python`` it runs in that environment, where every run loads it again."""
    from tracediff.observe import recipe as recipes
    from tracediff.observe.adapters.registry import named

    asked: dict[str, Any] = {"stages": tuple(stages), "weights": weights, "seed": seed, "dtype": dtype}
    if python is not None:
        return RemoteSide(name, {"impl": impl, "recipe": recipe, "python": python, **asked, "stages": list(stages)})
    loaded = recipes.load_recipe(recipe, impl)
    recipes.check_stages(loaded, stages)
    context = recipes.Context(**asked)
    say(f"loading {loaded.description}")
    models = recipes.load_quietly(loaded, context)
    meta = {"recipe": loaded.name, "seed": seed, "weights": weights, "wanted": list(stages)}
    world = World(dict(models), None, named(impl))
    return LocalSide(name, lambda further: recipes.observe_recipe(loaded, context, further, models=models), world, meta)


class RemoteSide:
    """A side whose recipe runs in another Python: every run loads it again, and passes what it keeps in a file."""

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

        run_recipe(output=to, job=job, repeat=False, **self._asked, **own)


def index_run(
    models: Any, run: Any, to: str, *, options: CaptureOptions, observers: Sequence[Observer], meta: Mapping[str, Any], **_: Any
) -> None:
    """`Side.index` as a job in another Python (`tracediff.observe.jobs`)."""
    _indexed(_play_of(models, run, options, observers), World(models, run, adapter_of(models, impl=options.impl)), Path(to), meta)


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
    world = World(models, run, adapter_of(models, impl=options.impl))
    _played_again(_play_of(models, run, options, observers), world, world.state(), [keeper])
    np.savez(to, *keeper.kept.values())


def _play_of(models: Any, run: Any, options: CaptureOptions, observers: Sequence[Observer]) -> Play:
    return lambda further: observe(models, run, [*observers, *further], **options.observing())


# -- a trace whose values are fetched by running again -------------------------------------------------------


class RerunTrace(Trace):
    """A trace of statistics and digests; values can be read while they are held, and `hold` runs the side again for them.

    ``on_demand`` is called with a row that is read but not held; until it is set, such a row counts as not stored.
    """

    def __init__(self, path: Path, side: Side, folder: Path) -> None:
        super().__init__(path)
        self.path = Path(f"{side.name} (live)")
        self.side = side
        self.held: dict[bytes, Array] = {}
        self.on_demand: Callable[[RerunTrace, int], None] | None = None
        self._folder = folder

    @property
    def records(self) -> Records:
        return _RerunRecords(self)

    def hold(self, rows: Sequence[int]) -> int:
        """Holds the values of these rows instead of the earlier ones; returns how many bytes they are.

        Raises CaptureError where the run no longer gives what it gave at first.
        """
        wanted = [self.records[row] for row in rows]
        self.held = {}
        self.held = {digest_of(bits): bits for bits in self.side.keep(wanted, self._folder)} if wanted else {}
        lost = next((record for record in wanted if record.nbytes and record.digest not in self.held), None)
        if lost is not None:
            raise CaptureError(does_not_repeat(self.side.name, lost.site, lost.call, lost.end))
        return sum(bits.nbytes for bits in self.held.values())


class _RerunRecords(Records):
    """The records of a `RerunTrace`."""

    _trace: RerunTrace

    @overload
    def __getitem__(self, row: int) -> Record: ...
    @overload
    def __getitem__(self, row: slice) -> list[Record]: ...
    def __getitem__(self, row: int | slice) -> Record | list[Record]:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        return _RerunRecord(self._trace, super().__getitem__(row).row)


class _RerunRecord(Record):
    """A record whose values its `RerunTrace` holds, or fetches by running again."""

    __slots__ = ()
    _trace: RerunTrace

    @property
    def stored(self) -> bool:
        return not self.nbytes or self._trace.on_demand is not None or self.digest in self._trace.held

    def _bytes(self, start: int, nbytes: int) -> Array:
        if not self.nbytes:
            return np.empty(0, np.uint8)
        if self.digest not in self._trace.held and self._trace.on_demand is not None:
            self._trace.on_demand(self._trace, self.row)
        return self._trace.held[self.digest][start : start + nbytes].copy()


def does_not_repeat(side: str, site: str, call: str, end: str) -> str:
    """What to say of a side two of whose runs differ first at this boundary, and what to do."""
    return (
        f"The {side} does not repeat itself: two runs of it differ first at {site or 'the root'!r} {end} (call {call}). A live bisection "
        "runs each side again for every round, so each run has to give the same bits. Give --seed (seed=...), so that random draws come "
        "from one tape; put the model into evaluation mode; make what the run begins with the same each time (caches, positions). Or "
        "store two traces with capture, and bisect those."
    )
