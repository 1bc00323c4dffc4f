"""Calls split or stacked, equally or not: batches taken apart, prompts in chunks, a token loop with a cache against one full run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import tracediff as td  # noqa: E402
from tracediff.alignment import align  # noqa: E402
from tracediff.alignment.axes import apply, apply_reference, relative_error  # noqa: E402
from tracediff.alignment.split_calls import joined_layouts, piece_layouts  # noqa: E402
from tracediff.alignment.split_work import regrouped  # noqa: E402
from tracediff.locate import locate  # noqa: E402

WIDTH, HEADS, LENGTH, WORDS = 16, 2, 11, 20


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Any, cache: list[Any] | None = None) -> Any:
        q, k, v = (part(x).view(*x.shape[:2], HEADS, -1).transpose(1, 2) for part in (self.q, self.k, self.v))
        before = 0 if not cache else cache[0].shape[2]
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
            cache[:] = [k, v]
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(before)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o(mixed.transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn, self.norm2 = nn.LayerNorm(WIDTH), Attention(), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, x: Any, cache: list[Any] | None = None) -> Any:
        x = x + self.attn(self.norm(x), cache)
        return x + self.down(F.silu(self.up(self.norm2(x))))


class Decoder(nn.Module):
    """A small causal decoder; with ``last`` it gives the logits of the last position alone, as many ports do."""

    def __init__(self, last: bool = False) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(WORDS, WIDTH), nn.ModuleList([Block(), Block()])
        self.norm, self.head, self.last = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS), last

    def forward(self, ids: Any, caches: list[list[Any]] | None = None) -> Any:
        x = self.embed(ids)
        for place, block in enumerate(self.blocks):
            x = block(x, caches[place] if caches else None)
        x = self.norm(x)
        return self.head(x[:, -1:] if self.last else x)


class Renamed(nn.Module):
    """The same model below other names."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.net = inner

    def forward(self, *given: Any) -> Any:
        return self.net(*given)


def made(last: bool = False) -> Any:
    torch.manual_seed(1)
    model = Decoder(last)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.3)
    return model.eval()


IDS = torch.tensor(np.random.default_rng(0).integers(0, WORDS, (1, LENGTH)))


def whole(model: Any) -> Any:
    return lambda: model(IDS)


def stepwise(model: Any, *lengths: int) -> Any:
    """Chunks of those lengths, then one token a call, with a cache."""

    def run() -> Any:
        caches: list[list[Any]] = [[], []]
        done, result = 0, None
        for length in (*lengths, *[1] * (LENGTH - sum(lengths))):
            result = model(IDS[:, done : done + length], caches)
            done += length
        return result

    return run


def captured(folder: Path, reference: Any, port: Any, **options: Any) -> tuple[Any, Any]:
    with torch.no_grad():
        traces = [
            td.capture(*side, to=folder / f"{name}.h5", repeat=False, floor=False, force=True, **more)
            for name, side, more in (("ref", reference, {}), ("port", port, options))
        ]
    return traces[0], traces[1]


def errors(folder: Path, reference: Any, port: Any) -> tuple[dict[tuple[str, str], float], int]:
    """The worst relative error of each end of each of the reference's sites, and how many of its records have no partner."""
    ours, theirs = captured(folder, reference, port)
    alignment = align(ours, theirs)
    found: dict[tuple[str, str], float] = {}
    for pair in alignment.records:
        left, right = [ours.records[row] for row in pair.reference], [theirs.records[row] for row in pair.port]
        if pair.layout is not None and left[0].dtype.startswith("float"):
            error = relative_error(
                apply_reference([one.read() for one in left], pair.layout), apply([one.read() for one in right], pair.layout)
            )
            key = (left[0].site, left[0].end)
            found[key] = max(error, found.get(key, 0.0))
    return found, len(alignment.unpaired_reference)


LAYERS = [f"blocks.{n}.{part}" for n in (0, 1) for part in ("norm", "attn", "attn.q", "attn.k", "attn.v", "attn.o", "norm2", "up", "down")]
CHUNKS = {"token by token": (), "a prompt, then tokens": (7,), "unequal chunks": (4, 3, 2), "all but one": (10,)}


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("is_ported", [True, False], ids=["the port loops", "the reference loops"])
@pytest.mark.parametrize("last", [False, True], ids=["all logits", "last logits"])
def test_a_loop_with_a_cache_is_one_full_run_in_pieces(tmp_path, chunks, is_ported, last):
    one, other = made(), made(last)
    sides = [(one, whole(one)), (other, stepwise(other, *chunks))]
    found, _ = errors(tmp_path, *(sides if is_ported else sides[::-1]))
    assert max(found.values()) < 1e-4
    assert {(site, "output") for site in (*LAYERS, "embed", "norm", "head")} <= set(found)
    attention = {end for site, end in found if site.endswith("attn!attention")}
    assert {"input[q]", "input[k]", "input[v]", "output"} <= attention


def test_keys_that_grow_are_told_from_the_whole_step_by_step():
    pieces = piece_layouts([(1, 2, 5, 8)], [(1, 2, 3, 8), (1, 2, 4, 8), (1, 2, 5, 8)], ([5], [3, 1, 1]))
    assert [str(layout) for _, _, layout in pieces] == [f"reference 0:{stop} of axis 2" for stop in (3, 4, 5)]
    assert piece_layouts([(1, 2, 5, 8)], [(1, 2, 3, 9)] * 2, ([5], [3, 2])) == []


def test_a_run_that_ends_a_token_earlier_is_compared_as_far_as_it_goes(tmp_path):
    one, other = made(), made()
    found, _ = errors(tmp_path, (one, whole(one)), (other, lambda: stepwise_until(other, LENGTH - 1)))
    assert max(found.values()) < 1e-4
    assert ("blocks.1.down", "output") in found


def stepwise_until(model: Any, stop: int) -> None:
    caches: list[list[Any]] = [[], []]
    model(IDS[:, :4], caches)
    for place in range(4, stop):
        model(IDS[:, place : place + 1], caches)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["conditional first", "unconditional first"])
@pytest.mark.parametrize("is_ported", [True, False], ids=["the port splits", "the reference splits"])
def test_a_guided_batch_is_two_calls_whichever_comes_first(tmp_path, order, is_ported):
    one, other = made(), made()
    both = torch.cat([IDS, torch.flip(IDS, [1])])

    def batched() -> Any:
        return [one(both + step) for step in range(3)][-1]

    def apart() -> Any:
        return [other(both[half : half + 1] + step) for step in range(3) for half in order][-1]

    both = both % (WORDS - 3)
    sides = [(one, batched), (other, apart)]
    found, unpaired = errors(tmp_path, *(sides if is_ported else sides[::-1]))
    assert max(found.values()) < 1e-4
    assert {(site, "output") for site in (*LAYERS, "", "embed", "norm", "head")} <= set(found)
    assert unpaired == 0 or not is_ported


@pytest.mark.parametrize("is_ported", [True, False], ids=["the port loops", "the reference loops"])
def test_a_fault_is_found_by_force_through_calls_that_are_split(tmp_path, is_ported):
    one, other = made(), made()
    with torch.no_grad():
        other.blocks[1].attn.k.weight.mul_(1.3)
    sides = [(one, whole(one)), (other, stepwise(other, 5))]
    if not is_ported:
        sides = [(one, stepwise(one, 5)), (other, whole(other))]
    reference, port = captured(tmp_path, *sides, feed=tmp_path / "ref.h5")
    located = locate(align(reference, port), reference, port)
    assert {finding.culprit for finding in located.findings} == {("blocks.1.attn.k", "blocks.1.attn.k")}


@pytest.mark.parametrize("is_ported", [True, False], ids=["the port splits", "the reference splits"])
def test_a_correct_port_that_splits_its_calls_is_the_same_by_force(tmp_path, is_ported):
    one, other = made(), made()
    sides = [(one, whole(one)), (other, stepwise(other, 6))]
    if not is_ported:
        sides = [(one, stepwise(one, 6)), (other, whole(other))]
    reference, port = captured(tmp_path, *sides, feed=tmp_path / "ref.h5")
    assert locate(align(reference, port), reference, port).findings == ()
    assert port.meta["forced"] > 40


def test_calls_without_the_split_axis_count_as_one_step():
    (pair,) = regrouped([0], range(5), [[(64, 40)], [(60, 40), (40,), (40,), (40,), (40,)]])
    assert pair.lengths == ((64,), (60, 1, 1, 1, 1))
    assert str(joined_layouts([(1, 64, 40)], [(1, 60, 40), (1, 40), (1, 40), (1, 40), (1, 40)])[0]) == "joined along axis 1"


def test_what_was_joined_is_dealt_out_again():
    (layout,) = joined_layouts([(1, 4, 3)], [(1, 3, 3), (1, 3)])
    x = np.random.default_rng(0).standard_normal((1, 4, 3)).astype(np.float32)
    assert relative_error(x, apply([x[:, :3], x[:, 3]], layout)) == 0
