"""The pairs as they are compared: nothing is read that is certain without, and nothing is read twice."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence

from tracediff.draws import standard
from tracediff.locate.flow import PairFlow
from tracediff.locate.limits import Limits
from tracediff.locate.pairs import Pairs
from tracediff.locate.proofs import Proofs
from tracediff.locate.result import Again, Comparison
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.locate.workers import Asked, Pending, Taken, Task, Workers
from tracediff.metrics import Metrics, compare
from tracediff.site import Site


class Comparisons:
    """Compares pairs on demand and keeps what is known of each. ``read`` and ``bytes_read`` count what that cost.

    ``again`` fetches values that the traces do not hold; without it such values are never read. ``workers`` read what is asked for ahead.
    """

    def __init__(
        self, pairs: Pairs, flow: PairFlow, limits: Limits, proofs: Proofs, again: Again | None, workers: Workers | None = None
    ) -> None:
        self._pairs, self._flow, self._limits, self._proofs, self._again = pairs, flow, limits, proofs, again
        self._workers = workers if again is None else None
        self._ahead: dict[tuple[Hashable, ...], tuple[Pending | None, int]] = {}
        self.read = self.bytes_read = 0
        self._judged: dict[int, Comparison] = {}
        self._unread: dict[int, Comparison | None] = {}
        self._metrics: dict[tuple[Hashable, ...], Metrics] = {}
        self._fetched: frozenset[int] = frozenset()

    def known(self, i: int) -> Comparison | None:
        """The pair as judged before, or as judged without reading; None where only reading can tell."""
        return self._judged.get(i) or self.unread(i)

    def unread(self, i: int) -> Comparison | None:
        """The pair judged without reading, None where that tells nothing; only draws are read for it."""
        if i not in self._unread:
            self._unread[i] = self._proofs.comparison(i)
            if self._unread[i] is None and self._proofs.is_readable_draw(i):
                self._unread[i] = self._drawn(i)
        return self._unread[i]

    def judged(self, i: int) -> Comparison:
        """The pair compared and judged: without reading where that is certain, else by reading its values."""
        if i not in self._judged:
            self._judged[i] = self.unread(i) or self._read(i)
        return self._judged[i]

    def is_judged(self, i: int) -> bool:
        """Whether somebody has asked for the pair's judgement."""
        return i in self._judged

    def is_read(self, i: int) -> bool:
        """Whether the values of this pair, or of a pair of the same contents, were read."""
        return self._pairs.contents(i) in self._metrics

    def measure(self, i: int) -> Comparison:
        """As `judged`, with metrics wherever values are stored."""
        known = self.judged(i)
        if known.how == "statistics" and known.metrics is None and self._pairs.is_stored(i):
            known = self._judged[i] = self._read(i)
        return known

    def read_ahead(self, places: Iterable[int]) -> None:
        """Has workers read what would be read of several pairs; only what is asked for later counts as read."""
        if self._workers is None:
            return
        asked: list[tuple[tuple[Hashable, ...], Asked]] = []
        nbytes = 0
        for i in places:
            contents = self._pairs.contents(i)
            if contents in self._metrics or contents in self._ahead or not self._is_for_workers(i):
                continue
            pair = self._pairs[i]
            self._ahead[contents] = (None, 0)
            asked.append((contents, Asked(pair.reference, pair.port, pair.layout, self._limits.unjudged(i).limit)))
            nbytes += self._pairs.nbytes(i)
            if nbytes >= THRESHOLDS.task_bytes or len(asked) >= THRESHOLDS.task_pairs:
                self._begin(self._workers, asked)
                asked, nbytes = [], 0
        if asked:
            self._begin(self._workers, asked)

    def _is_for_workers(self, i: int) -> bool:
        """Whether a pair is one of stored values that nothing but reading them tells of."""
        if not self._pairs.is_stored(i) or self._pairs.stored_in(i) is not None:
            return False
        known = self._judged.get(i) or self.unread(i)
        return known is None or (known.how == "statistics" and known.metrics is None)

    def _begin(self, workers: Workers, asked: Sequence[tuple[tuple[Hashable, ...], Asked]]) -> None:
        sides = ((str(trace.path.absolute()), trace.identity[0]) for trace in (self._pairs.reference, self._pairs.port))
        reference, port = sides
        task = Task(reference, port, (self._limits.rtol, self._limits.atol), tuple(pair for _, pair in asked))
        pending = Pending(workers, task)
        self._ahead.update((contents, (pending, place)) for place, (contents, _) in enumerate(asked))

    def _taken_ahead(self, contents: tuple[Hashable, ...]) -> Taken | None:
        """What a worker made of a pair; None where none was asked, or it could not."""
        pending, place = self._ahead.pop(contents, (None, 0))
        return None if pending is None else pending.result(place)

    def so_far(self, i: int) -> Comparison:
        """What is known of a pair by now; its limit and lower bound where nothing else is."""
        known = self.known(i)
        if known is not None:
            return known
        least = self._proofs.bounds(i).rel_l2
        return Comparison(self._pairs[i], judgement=self._limits.unjudged(i), at_least=least, floor=self._limits.floor(i))

    def gather(self, places: Sequence[int]) -> None:
        """Fetches what is not stored of several pairs by one run of either side, and compares it while it is there."""
        wanted = [i for i in places if self._needs_values(i)]
        if self._again is not None and wanted:
            self._fetch(self._again, wanted)
            for i in wanted:
                self.measure(i)

    def batches(self, places: Iterable[int]) -> Iterator[list[int]]:
        """The places, in runs that may be fetched at once."""
        batch: list[int] = []
        size = 0
        for i in places:
            nbytes = self._pairs.nbytes(i)
            if batch and self._again is not None and size + nbytes > self._again.most:
                yield batch
                batch, size = [], 0
            batch.append(i)
            size += nbytes
        if batch:
            yield batch

    def _needs_values(self, i: int) -> bool:
        """Whether only values would tell more of a pair."""
        if self._pairs[i].layout is None:
            return False
        is_draw = self._pairs.records(i)[0].end == "draw"
        known = self._judged.get(i) or (self._unread.get(i) if is_draw else self.unread(i))
        return known is None or (known.how == "statistics" and known.metrics is None)

    def _make_readable(self, i: int) -> None:
        """Sees to it that the values of a pair can be read: those of one call's level are fetched together."""
        if self._again is None or i in self._fetched:
            return
        level = [j for j in self._flow.level(self._flow.calls.outer[self._flow.call(i)]) if self._needs_values(j)]
        self._fetch(self._again, {*level, i})
        for j in level:
            if j != i:
                self.measure(j)

    def _fetch(self, again: Again, places: Iterable[int]) -> None:
        self._fetched = frozenset(places)
        reference = {row for i in self._fetched for row in self._pairs[i].reference}
        port = {row for i in self._fetched for row in self._pairs[i].port}
        again.fetch(sorted(reference), sorted(port))

    def _read(self, i: int) -> Comparison:
        self._make_readable(i)
        contents = self._pairs.contents(i)
        if contents not in self._metrics:
            lefts, rights = self._pairs.all_records(i)
            layout = self._pairs[i].layout
            rtol, atol = self._limits.rtol, self._limits.atol
            ahead = self._taken_ahead(contents)
            if ahead is not None:
                self._metrics[contents] = ahead.metrics
            elif self._pairs.stored_in(i) is None:
                self._metrics[contents] = compare(lefts, rights, layout=layout, rtol=rtol, atol=atol)
            else:
                self._metrics[contents] = compare(*self._pairs.restored(i), dtypes=self._limits.dtypes(i), rtol=rtol, atol=atol)
            self.read += 1
            self.bytes_read += sum(record.nbytes for record in (*lefts, *rights))
            found = self._proofs.measured(i, "read", self._metrics[contents])
            if found.diverged and self._again is None and not (ahead is not None and ahead.is_verified):
                for record in (*lefts, *rights):
                    record.verify()
        return self._proofs.measured(i, "read", self._metrics[contents])

    def _drawn(self, i: int) -> Comparison:
        """A pair of random draws, compared in the standard form of their distribution."""
        self._make_readable(i)
        values = (standard(Site.parse(record.site).name, record.read(), record.note) for record in self._pairs.records(i))
        return self._proofs.measured(i, "read", compare(*values, layout=self._pairs[i].layout))
