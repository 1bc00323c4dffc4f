"""The operations of a PyTorch run: what is written down gives, computed again, what the run showed; and causes are found in it."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracediff as td
from tracediff.causes.in_hand import InHand
from tracediff.causes.program import program_of
from tracediff.errors import TraceFileError
from tracediff.trace.amend import amend
from tracediff.trace.operations import KEY, graph_of

torch = pytest.importorskip("torch")
mx = pytest.importorskip("mlx.core")
mnn = pytest.importorskip("mlx.nn")
F = torch.nn.functional
X = np.random.default_rng(0).standard_normal((2, 6, 8)).astype(np.float32)


def written_in_place(x: Any) -> Any:
    made = torch.zeros(2, 6, 8)
    made[:, 1:4] = x[:, 2:5]
    made[:, :, 0].fill_(2.0)
    view = made.view(2, 48)
    view[:, 10:20] += 1
    made.mul_(0.5)
    return made + view.reshape(2, 6, 8)


def looped(x: Any) -> Any:
    state, made = torch.zeros(2, 8), []
    for place in range(x.shape[1]):
        state = 0.5 * state + x[:, place]
        made.append(state)
    return torch.stack(made, 1)


def attended(x: Any) -> Any:
    q, k, v = (x.view(2, 6, 2, 4).transpose(1, 2) * factor for factor in (1, 2, 3))
    mask = torch.full((6, 6), float("-inf")).triu(1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(2, 6, 8)


def convolved(x: Any) -> Any:
    weight = torch.arange(48.0).reshape(4, 4, 3) / 48
    made = F.conv1d(x, torch.cat([weight, weight]), padding=2, dilation=2, groups=2) if x.shape[1] == 8 else x
    return F.conv_transpose1d(x.transpose(1, 2), torch.cat([weight, weight]), stride=2, padding=1, output_padding=1) + made.mean()


RUNS: dict[str, Callable[[Any], Any]] = {
    "memory that is written to": written_in_place,
    "a loop": looped,
    "attention": attended,
    "convolutions": convolved,
    "norms": lambda x: F.group_norm(F.layer_norm(x, (8,)), 3) + F.normalize(x, dim=1) + x.std(1, keepdim=True),
    "a spectrum": lambda x: torch.stft(x.reshape(2, 48), 16, 4, window=torch.hann_window(16), return_complex=True).abs(),
    "places": lambda x: torch.cat([x.flip(1), x.roll(2, 1), x[:, torch.tensor([0, 2])], x.gather(1, x.argsort(1))], 1),
    "sums that are scattered": lambda x: torch.zeros(3, 8).index_add_(0, torch.tensor([0, 2, 0, 1, 1, 2]), x[0]),
    "choices": lambda x: torch.where(x > 0, x, x.exp()).masked_fill(x > 1, -5.0).clamp(-4, 2).topk(3, -1).values,
    "other lengths": lambda x: F.interpolate(x, scale_factor=2, mode="linear") + F.pad(x, (4, 4), mode="reflect"),
    "complex numbers": lambda x: torch.view_as_real(torch.polar(x.abs(), x) * torch.view_as_complex(x.reshape(2, 6, 4, 2)).repeat(1, 1, 2)),
    "quantiles of a gate": lambda x: F.glu(F.softplus(x) * F.mish(x) + F.elu(x) - F.leaky_relu(x, 0.2), -1).cumsum(1).logsumexp(1),
}


class Model(torch.nn.Module):
    def __init__(self, run: Callable[[Any], Any]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Any) -> Any:
        return self.run(x)


def captured(run: Callable[[Any], Any], path: Path, **more: Any) -> td.Trace:
    model = Model(run).eval()
    with torch.no_grad():
        return td.open_trace(td.capture(model, lambda: model(torch.tensor(X)), to=path, **more).path)


@pytest.mark.parametrize("name", RUNS)
def test_what_is_written_down_gives_what_the_run_showed(name: str, tmp_path: Path) -> None:
    with captured(RUNS[name], tmp_path / "ref.h5") as trace:
        graph = graph_of(trace)
        assert graph is not None
        given = InHand("x", "input[0]", "", is_input=True, values=trace.find("", end="input[0]")[0].read().astype(np.float64))
        start = graph.at["", 0, "input[0]"]
        made = program_of(graph, graph.at["", 0, "output"], lambda node, must: given if node == start else None)
        assert made is not None
        output = trace.find("", end="output")[0].read()
        np.testing.assert_allclose(made.replay.values[made.target], output, rtol=2e-4, atol=2e-5)
        assert any(line.startswith("test_runs_operations.py:") for line in graph.lines)


def test_a_run_without_a_floor_is_not_written_down(tmp_path: Path) -> None:
    with captured(looped, tmp_path / "ref.h5", floor=False) as trace:
        assert graph_of(trace) is None


def test_writing_down_changes_nothing_that_is_recorded(tmp_path: Path) -> None:
    with captured(written_in_place, tmp_path / "a.h5") as one, captured(written_in_place, tmp_path / "b.h5", floor=False) as other:
        assert [record.digest for record in one.records] == [record.digest for record in other.records]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda found: "no base64 of anything",
        lambda found: {**found, "nodes": [["add", [{"n": 5}, 1], {}, 0], *found["nodes"][1:]]},
        lambda found: {**found, "names": [[10**6, []]]},
        lambda found: {"nodes": found["nodes"]},
    ],
)
def test_operations_that_cannot_be_read_are_refused_and_cost_no_report(spoil: Callable[[Any], Any], tmp_path: Path) -> None:
    with captured(looped, tmp_path / "ref.h5") as trace:
        found = json.loads(zlib.decompress(base64.b64decode(trace.meta[KEY])))
    spoiled = spoil(found)
    text = spoiled if isinstance(spoiled, str) else base64.b64encode(zlib.compress(json.dumps(spoiled).encode())).decode()
    amend(tmp_path / "ref.h5", meta={KEY: text})
    with td.open_trace(tmp_path / "ref.h5") as trace, pytest.raises(TraceFileError, match="operations"):
        graph_of(trace)
    captured(lambda x: looped(x) + 1, tmp_path / "port.h5", floor=False).close()
    assert td.bisect(tmp_path / "ref.h5", tmp_path / "port.h5").verdict == "different"


# -- against a port ------------------------------------------------------------------------------------------------------------------------


class Gate(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(8, 16), torch.nn.Linear(8, 8)
        self.norm = torch.nn.GroupNorm(2, 8)

    def forward(self, x: Any, mask: Any) -> Any:
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        gate, value = self.up(x).chunk(2, -1)
        x = self.down(F.gelu(gate) * value)
        weights = x.masked_fill(~mask[..., None], float("-inf")).softmax(1)
        return torch.cat([(weights * x).sum(1), (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)], -1)


class PortGate(mnn.Module):  # type: ignore[misc, name-defined]
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.up, self.down, self.fault = mnn.Linear(8, 16), mnn.Linear(8, 8), fault
        self.norm = mnn.GroupNorm(2, 8, pytorch_compatible=fault != "groups")

    def __call__(self, x: Any, mask: Any) -> Any:
        gate, value = mx.split(self.up(self.norm(x)), 2, axis=-1)
        if self.fault == "halves":
            gate, value = value, gate
        x = self.down((mnn.gelu_approx if self.fault == "tanh" else mnn.gelu)(gate) * value)
        scores = x if self.fault == "mask" else mx.where(mask[..., None], x, -mx.inf)
        count = x.shape[1] if self.fault == "count" else mask.sum(1, keepdims=True)
        return mx.concatenate([(mx.softmax(scores, 1) * x).sum(1), (x * mask[..., None]).sum(1) / count], -1)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("halves", "order.roles"), ("mask", "mask.missing"), ("tanh", "activation"), ("groups", "norm.missing"), ("count", "scale")],
)
@pytest.mark.parametrize("mode", ["feed", "random"])
def test_what_porters_get_wrong_is_named_and_confirmed(fault: str, kind: str, mode: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference, port = Gate().eval(), PortGate(fault)
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter)
    port.load_weights([(name, mx.array(value.numpy())) for name, value in reference.state_dict().items()])
    mask = np.arange(6)[None] < np.array([[6], [3]])
    with torch.no_grad():
        td.capture(reference, lambda: reference(torch.tensor(X), torch.tensor(mask)), to=tmp_path / "ref.h5").close()
    more: dict[str, Any] = {mode: tmp_path / "ref.h5"}
    td.capture(port, lambda: port(mx.array(X), mx.array(mask)), to=tmp_path / "port.h5", **more).close()
    first = td.bisect(tmp_path / "ref.h5", tmp_path / "port.h5").first
    assert first is not None
    assert (first.causes[0].kind, first.causes[0].confirmed) == (kind, True)


def test_the_run_that_tells_whether_a_run_repeats_writes_down_its_operations(tmp_path: Path) -> None:
    class Made:  # what no run puts back
        runs = 0

    layer = torch.nn.Linear(8, 8).eval()

    def run() -> Any:
        Made.runs += 1
        return layer(torch.from_numpy(X))

    with torch.no_grad(), td.capture(layer, run, to=tmp_path / "ref.h5") as trace:
        assert trace.meta["repeats"] is True
        assert graph_of(trace) is not None
    assert Made.runs == 5  # recorded, accumulated noise, noise, float64, and last that one


def test_code_that_knows_that_it_is_looked_at_still_repeats(tmp_path: Path) -> None:
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    from tracediff.observe.adapters.torch_operations import Operations

    class Shy(torch.nn.Linear):
        def forward(self, x: Any) -> Any:
            is_seen = any(isinstance(mode, Operations) for mode in _get_current_dispatch_mode_stack())
            return super().forward(x) + 0.5 * is_seen

    with torch.no_grad(), td.capture(Shy(8, 8).eval(), X, to=tmp_path / "ref.h5") as trace:
        assert trace.meta["repeats"] is True
        assert trace.floor is not None
