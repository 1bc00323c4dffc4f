"""What must not be paired, however well it fits otherwise: a dropout with an activation, a cache with hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracediff as td

torch = pytest.importorskip("torch")
nn = torch.nn


class Gated(nn.Module):  # type: ignore[misc, name-defined]
    """A projection with its activation inside."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 16)

    def forward(self, x: Any) -> Any:
        return nn.functional.gelu(self.proj(x))


class Reference(nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleList([Gated(), nn.Dropout(0.1), nn.Linear(16, 8)])

    def forward(self, x: Any) -> Any:
        hidden = [x]
        for part in self.net:
            hidden.append(part(hidden[-1]))
        return {"hidden_states": [hidden[0], hidden[-1]], "last": hidden[-1]}


class Port(nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.proj_in, self.act, self.proj_out = nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)

    def forward(self, x: Any) -> Any:
        y = self.proj_out(self.act(self.proj_in(x)))
        heads = (3.0 * y.exp() + 1.0).reshape(2, 6, 2, 4).transpose(1, 2)
        return {"cache": [heads, heads + 1, heads - 1], "last": y}


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    torch.manual_seed(0)
    reference, port = Reference().eval(), Port().eval()
    port.proj_in.load_state_dict(reference.net[0].proj.state_dict())
    port.proj_out.load_state_dict(reference.net[2].state_dict())
    folder: Path = tmp_path_factory.mktemp("roles")
    inputs = np.random.default_rng(0).standard_normal((2, 6, 8)).astype(np.float32)
    made = [(reference, folder / "reference.h5"), (port, folder / "port.h5")]
    for model, path in made:
        td.capture(model, torch.from_numpy(inputs), to=path, floor=False)
    return td.open_trace(made[0][1]), td.open_trace(made[1][1])


def test_an_activation_is_not_paired_with_a_dropout_that_changes_nothing(traces: tuple[Any, Any]) -> None:
    pairs = {(pair.reference, pair.port) for pair in td.align(*traces).pairs}
    assert {("net.0.proj", "proj_in"), ("net.2", "proj_out")} <= pairs
    assert ("net.1", "act") not in pairs


def test_outputs_of_other_names_are_no_pair_for_their_shapes(traces: tuple[Any, Any]) -> None:
    reference, port = traces
    ends = {
        (str(reference.records[pair.reference[0]].end), str(port.records[pair.port[0]].end)) for pair in td.align(reference, port).records
    }
    assert ("output.last", "output.last") in ends
    assert not any("hidden_states" in ours and "cache" in theirs for ours, theirs in ends)
