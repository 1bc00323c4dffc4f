"""Blind spots: what a run could not have shown is said in one line a kind, and a run that varies everything has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracediff as td
from tracediff.observe.blind_spots import blind_spots
from tracediff.show import tables, text

torch = pytest.importorskip("torch")
nn = torch.nn


class Attention(nn.Module):  # type: ignore[misc, name-defined]
    """Attention of ``heads`` heads of size ``size``, with a mask; ``cache`` are earlier positions."""

    def __init__(self, heads: int = 2, size: int = 5) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.to_q = nn.Linear(heads * size, heads * size)
        self.norm = nn.LayerNorm(heads * size)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Any, mask: Any = None, cache: Any = None) -> Any:
        q = self.to_q(self.norm(x)).unflatten(-1, (self.heads, self.size)).transpose(1, 2)
        k = q if cache is None else torch.cat([cache, q], dim=2)
        return self.drop(nn.functional.scaled_dot_product_attention(q, k, k, attn_mask=mask))


def told(tmp_path: Path, run: Any, model: Any = None) -> dict[str, str]:
    """The lines by their kinds."""
    with td.capture(model, run, to=tmp_path / "x.h5", floor=False, repeat=False, force=True, impl="torch") as trace:
        lines = blind_spots(trace)
        assert trace.meta["blind_spots"] == lines
    assert len({line.partition(":")[0] for line in lines}) == len(lines)
    return {kind: rest.strip() for kind, _, rest in (line.partition(":") for line in lines)}


def randomised(model: Any) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def x(*shape: int) -> Any:
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


def triangle(length: int, width: int) -> Any:
    return torch.ones(length, width, dtype=torch.bool).tril()


def test_a_run_that_varies_everything_has_no_blind_spots(tmp_path: Path) -> None:
    model = randomised(Attention()).train()
    run = lambda: model(x(3, 4, 10), mask=triangle(4, 7), cache=x(3, 2, 3, 5))  # noqa: E731
    assert told(tmp_path, run, model) == {}


@pytest.mark.parametrize(
    "mask",
    [torch.ones(1, 1, 4, 4, dtype=torch.bool), torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.5)],
    ids=["bool", "added", "constant"],
)
def test_a_mask_of_one_value_is_a_blind_spot(tmp_path: Path, mask: Any) -> None:
    model = randomised(Attention())
    line = told(tmp_path, lambda: model(x(3, 4, 10), mask=mask), model)["masks"]
    assert line == "all 2 masks are of one value throughout, such as '(root) input[mask]'; a fault in masking would not show there"


def test_a_mask_that_masks_is_none_even_if_it_does_so_once(tmp_path: Path) -> None:
    model = randomised(Attention())

    def run() -> None:
        model(x(3, 4, 10), mask=torch.ones(4, 4, dtype=torch.bool))
        model(x(3, 4, 10), mask=triangle(4, 4))

    assert "masks" not in told(tmp_path, run, model)


def test_zero_biases_and_unit_scales_are_blind_spots(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    nn.init.zeros_(model[0].bias)
    nn.init.zeros_(model[3].weight)
    lines = told(tmp_path, lambda: model(x(5, 4)), model)
    assert lines["biases"] == "3 of 4 biases are zero throughout, such as '0.bias'; a missing one would not show"
    assert lines["scales"] == "all 2 scales are one throughout, such as '1.weight'; a missing one would not show"
    assert lines["weights"].startswith("1 of 2 weights is zero throughout, '3.weight'")
    assert lines["statistics"].startswith("all 2 running statistics are still 0 or 1, such as '2.running_mean'")


def test_equal_sizes_are_blind_spots(tmp_path: Path) -> None:
    model = nn.Sequential(randomised(nn.Linear(6, 6)))
    line = told(tmp_path, lambda: model(x(2, 6, 6)), model)["sizes"]
    assert line.startswith("all 4 tensors are the same along two axes, such as '(root) input[0]'")
    assert line.endswith("axes exchanged there would keep the shape (2, 6, 6)")
    assert "sizes" not in told(tmp_path, lambda: model(x(2, 5, 6)), model)


@pytest.mark.parametrize(("heads", "size", "length"), [(5, 5, 4), (4, 5, 4), (2, 4, 4)])
def test_heads_that_could_be_exchanged_with_another_axis_are_blind_spots(tmp_path: Path, heads: int, size: int, length: int) -> None:
    model = randomised(Attention(heads, size))
    assert "!attention input[q]" in told(tmp_path, lambda: model(x(3, length, heads * size)), model)["sizes"]


def test_a_batch_of_one_is_a_blind_spot(tmp_path: Path) -> None:
    model = randomised(Attention())
    assert "batch" in told(tmp_path, lambda: model(x(1, 4, 10)), model)
    assert "batch" not in told(tmp_path, lambda: model(x(2, 4, 10)), model)


def test_an_unused_cache_and_single_positions_are_blind_spots(tmp_path: Path) -> None:
    model = randomised(Attention())
    assert "1 module such as '(root)' can take a cache" in told(tmp_path, lambda: model(x(2, 4, 10)), model)["cache"]
    assert "cache" not in told(tmp_path, lambda: model(x(2, 4, 10), cache=x(2, 2, 3, 5)), model)
    assert told(tmp_path, lambda: model(x(2, 1, 10)), model)["length"].startswith("the attention is over a single position")


def test_dropout_in_evaluation_is_a_blind_spot(tmp_path: Path) -> None:
    model = randomised(Attention())
    assert told(tmp_path, lambda: model(x(2, 4, 10)), model.eval())["dropout"].startswith("the dropout is idle")
    assert "dropout" not in told(tmp_path, lambda: model(x(2, 4, 10)), model.train())


def test_inputs_of_one_value_are_blind_spots(tmp_path: Path) -> None:
    model = randomised(nn.Linear(4, 3))
    line = told(tmp_path, lambda: model(td.tap("given", torch.zeros(2, 4))), model)["inputs"]
    assert line.startswith("all 2 inputs are of one value throughout, such as '#given value'")
    assert "inputs" not in told(tmp_path, lambda: model(torch.zeros(0, 4)), model)


def test_blind_spots_are_shown_and_reported(tmp_path: Path) -> None:
    model = nn.Sequential(nn.LayerNorm(4))
    for name in ("a", "b"):
        td.capture(model, x(2, 4), to=tmp_path / f"{name}.h5", floor=False, repeat=False)
    report = td.diff(tmp_path / "a.h5", tmp_path / "b.h5")
    scales = [line for line in report.coverage.not_seen if "scales" in line]
    assert scales == ["reference: scales: the scale is one throughout, '0.weight'; a missing one would not show"]
    with td.open_trace(tmp_path / "a.h5") as trace:
        shown = [_printed(tables.captured(trace))]
    from tracediff.trace.listing import listing

    with td.open_trace(tmp_path / "a.h5") as trace:
        shown.append(_printed(tables.listing(listing(trace))))
        assert not listing(trace, "0").notes
    assert all("blind spot: scales: the scale is one throughout" in " ".join(told.split()) for told in shown)


def test_a_recorded_block_and_texts_have_blind_spots_too(tmp_path: Path) -> None:
    model = randomised(nn.Linear(4, 3))
    with td.record(model, tmp_path / "x.h5"):
        td.tap("text", "hello")
        model(torch.ones(2, 4))
    with td.open_trace(tmp_path / "x.h5") as trace:
        assert [line.partition(":")[0] for line in trace.meta["blind_spots"]] == ["inputs"]


def test_an_empty_trace_has_none(tmp_path: Path) -> None:
    assert told(tmp_path, lambda: None) == {}


def _printed(renderable: Any) -> str:
    console = text.console()
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()
