"""Traces of ranks become one: parts are joined, sums added, replicas compared, and what only some ranks saw is kept in order."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import exit_statuses

import tracediff as td
from tracediff.cli import main
from tracediff.errors import TracediffError, TraceExistsError
from tracediff.ranks import differences, read_table
from tracediff.trace import TraceWriter

X = np.random.default_rng(0).standard_normal((3, 8)).astype("f4")


def rank_file(path: Path, rank: int, ranks: int, records: Sequence[tuple[Any, ...]], **meta: Any) -> Path:
    """A rank's trace: each record is (site, end, values) or (site, end, values, how it is placed)."""
    mesh = {"rank": rank, "ranks": ranks, "axes": {"tp": [ranks, rank]}, "parameters": {}, "parts": 1}
    with TraceWriter(path, meta={"impl": "torch", "mesh": mesh, **meta}) as writer:
        for site, end, values, *placed in records:
            note = json.dumps({"placed": placed[0]}) if placed else ""
            writer.add(site=site, call=f"{site}[0]", ordinal=0, end=end, values=np.asarray(values), note=note)
    return path


def two(folder: Path, make: Callable[[int], Sequence[tuple[Any, ...]]], **meta: Any) -> list[Path]:
    return [rank_file(folder / f"rank{rank}.h5", rank, 2, make(rank), **meta) for rank in range(2)]


def values(trace: td.Trace, site: str, end: str = "output") -> Any:
    return trace.find(site, end=end)[0].read()


# -- what parts make


def test_parts_are_joined_sums_are_added_and_replicas_are_kept_once(tmp_path: Path) -> None:
    def rank(number: int) -> Sequence[tuple[Any, ...]]:
        return [
            ("x", "output", X),
            ("columns", "output", np.split(X, 2, axis=1)[number], {"tp": "shard(-1)"}),
            ("rows", "output", np.array_split(X, 2, axis=0)[number], {"tp": "shard(0)"}),
            ("terms", "output", (X * np.float32(0.25 + 0.5 * number)), {"tp": "partial"}),
        ]

    with td.merge(two(tmp_path, rank)[::-1], to=tmp_path / "whole.h5") as whole:
        for site in ("x", "columns", "rows", "terms"):
            assert np.array_equal(values(whole, site), X), site
        assert len(whole.records) == 4
        assert whole.meta["merged"] == {"ranks": 2, "mesh": {"tp": 2, "replica": 1}, "differ": []}
        assert "mesh" not in whole.meta


def test_what_a_rank_is_handed_lies_as_what_made_it(tmp_path: Path) -> None:
    def rank(number: int) -> Sequence[tuple[Any, ...]]:
        part = np.split(X, 2, axis=1)[number]
        return [("up", "output", part, {"tp": "shard(1)"}), ("relu", "input[0]", part)]

    with td.merge(two(tmp_path, rank), to=tmp_path / "whole.h5") as whole:
        assert np.array_equal(values(whole, "relu", "input[0]"), X)
        assert differences(whole) == []
        assert whole.find("relu", end="input[0]")[0].producer == 0


def test_a_table_says_how_what_is_no_distributed_tensor_lies(tmp_path: Path) -> None:
    def rank(number: int) -> Sequence[tuple[Any, ...]]:
        first, second = divmod(number, 2)
        return [("a", "output", np.split(np.split(X[:2], 2, axis=0)[first], 2, axis=1)[second]), ("a", "input[0]", X)]

    files = [rank_file(tmp_path / f"{number}.h5", number, 4, rank(number)) for number in range(4)]
    table = tmp_path / "ranks.toml"
    table.write_text('[mesh]\ndp = 2\ntp = 2\n[records]\na = "dp: shard(0), tp: shard(1)"\n')
    with td.merge(files, to=tmp_path / "whole.h5", table=table) as whole:
        assert np.array_equal(values(whole, "a"), X[:2])
        assert np.array_equal(values(whole, "a", "input[0]"), X)
        assert whole.meta["merged"]["mesh"] == {"dp": 2, "tp": 2}


def test_the_stages_of_a_pipeline_and_the_experts_of_ranks_stand_in_one_order(tmp_path: Path) -> None:
    def stage(number: int) -> Sequence[tuple[Any, ...]]:
        ones = np.ones((3, 8), "f4")
        inner = [("moe", "input[0]", ones), (f"moe.experts.{number}", "output", (10 + number) * ones), ("moe", "output", 2 * ones)]
        return [*inner, (f"layers.{number}", "input[0]", (3 + number) * ones), (f"layers.{number}", "output", (4 + number) * ones)]

    with td.merge(two(tmp_path, stage), to=tmp_path / "whole.h5") as whole:
        order = [(record.site, record.end) for record in whole.records]
        assert order[:4] == [("moe", "input[0]"), ("moe.experts.0", "output"), ("moe.experts.1", "output"), ("moe", "output")]
        assert order[4:] == [(f"layers.{number}", end) for number in range(2) for end in ("input[0]", "output")]
        sent = whole.find("layers.1", end="input[0]")[0]
        assert whole.records[sent.producer].site == "layers.0"


def test_of_a_chain_the_first_stage_was_given_and_the_last_returned(tmp_path: Path) -> None:
    files = two(tmp_path, lambda number: [("", "input[0]", X + number), ("", "output", X + 1 + number)])
    table = {"mesh": {"pp": 2}, "records": {"/*": "pp: chain", "": "chain"}}
    with td.merge(files, to=tmp_path / "whole.h5", table=table) as whole:
        assert np.array_equal(values(whole, "", "input[0]"), X)
        assert np.array_equal(values(whole, ""), X + 2)
        assert differences(whole) == []


def test_parameters_are_joined_where_stored_and_said_where_not(tmp_path: Path) -> None:
    weight = np.arange(12, dtype="f4").reshape(4, 3)
    for stored in (True, False):
        files = []
        for rank in range(2):
            files.append(tmp_path / f"{rank}.h5")
            mesh = {"rank": rank, "ranks": 2, "axes": {"tp": [2, rank]}, "parameters": {"up.weight": {"tp": "shard(0)"}}, "parts": 1}
            with TraceWriter(files[-1], force=True, meta={"impl": "torch", "mesh": mesh}) as writer:
                writer.add_param("up.weight", np.split(weight, 2)[rank], path="up", kind="parameter", store=stored)
                writer.add_param("norm.weight", weight[0], path="norm", kind="parameter", aliases=("n",))
                writer.add(site="a", call="a[0]", ordinal=0, end="output", values=X)
        with td.merge(files, to=tmp_path / "whole.h5", force=True) as whole:
            norm, single = whole.params["norm.weight"], td.open_trace(files[0]).params["norm.weight"]
            assert (norm.digest, norm.stats, norm.aliases, norm.stored) == (single.digest, single.stats, ["n"], False)
            assert all(np.array_equal(a, b) for a, b in zip(norm.sketch.axes, single.sketch.axes, strict=True))
            if stored:
                assert np.array_equal(whole.params["up.weight"].read(), weight)
            else:
                assert "parameter 'up.weight': its parts were not stored; capture the ranks with --save-params" in whole.meta["not_seen"]


# -- replicas


def test_a_rank_that_differs_from_its_replicas_is_found_and_no_verdict_is_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def rank(number: int, wrong: float = 0.1) -> Sequence[tuple[Any, ...]]:
        return [("a", "output", X), ("b", "output", X * np.float32(1 + wrong * number)), ("c", "output", X * 2)]

    files = two(tmp_path, rank)
    with pytest.raises(SystemExit) as caught:
        main(["merge", *map(str, files), "-o", str(tmp_path / "port.h5")])
    assert caught.value.code == 1
    assert "Rank 1 differs from its replicas at b[0] output: relative L2 1.0e-01" in capsys.readouterr().out
    with TraceWriter(tmp_path / "ref.h5", meta={"impl": "numpy"}) as writer:
        for site, _, made in rank(0):
            writer.add(site=site, call=f"{site}[0]", ordinal=0, end="output", values=made)
    report = td.diff(tmp_path / "ref.h5", tmp_path / "port.h5")
    assert report.verdict is None
    assert report.withheld is not None
    assert report.withheld.text == "rank 1 of the port differs from its replicas, first at b output (1 places)"
    assert any("Rank 1 of the port differs" in note for note in report.certificate["notes"])


def test_replicas_that_differ_by_rounding_agree(tmp_path: Path) -> None:
    files = two(tmp_path, lambda number: [("a", "output", X * np.float32(1 + 1e-6 * number))])
    with td.merge(files, to=tmp_path / "whole.h5") as whole:
        assert differences(whole) == []
    with pytest.raises(SystemExit) as caught:
        main(["merge", *map(str, files), "-o", str(tmp_path / "again.h5"), "--json"])
    assert caught.value.code == 0


def test_ids_and_shapes_of_replicas_must_be_equal(tmp_path: Path) -> None:
    files = two(tmp_path, lambda number: [("ids", "output", np.arange(4) + number), ("cut", "output", X[: 3 - number])])
    with td.merge(files, to=tmp_path / "whole.h5") as whole:
        assert [line.partition(":")[0] for line in differences(whole)] == [
            "Rank 1 differs from its replicas at ids[0] output",
            "Rank 1 differs from its replicas at cut[0] output",
        ]


# -- what is refused


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ({"mash": {}}, "no 'mash'"),
        ({"mesh": {"tp": 0}}, "'tp' of the mesh has the length 0"),
        ({"mesh": {"tp": 3}}, r"has 3 ranks, and 2 traces were given"),
        ({"records": {"a": "shard(0)"}}, "does not say how a tensor is placed; write AXIS: WAY"),
        ({"records": {"a": "tp: split"}}, "the way being 'replicate'"),
        ({"mesh": {"tp": 2}, "records": {"a": "dp: partial"}}, "Axes are tp"),
        ({"records": {"a": "tp: shard(7)"}}, r"The parts of .* do not join along axis 7"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused_with_what_to_write(table: dict[str, Any], why: str, tmp_path: Path) -> None:
    files = two(tmp_path, lambda number: [("a", "output", X + number)])
    with pytest.raises(TracediffError, match=why):
        td.merge(files, to=tmp_path / "whole.h5", table=table)


def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("mesh = [")
    for path in (tmp_path / "x.toml", tmp_path / "absent.toml"):
        with pytest.raises(TracediffError, match="is no table of ranks"):
            read_table(path)


def test_ranks_that_are_missing_or_of_other_runs_are_refused(tmp_path: Path) -> None:
    first, second = two(tmp_path, lambda number: [("a", "output", X)])
    other = rank_file(tmp_path / "other.h5", 1, 2, [("a", "output", X)], mode_run="forced")
    bare = tmp_path / "bare.h5"
    with TraceWriter(bare, meta={"impl": "torch"}, save="stats") as writer:
        writer.add(site="a", call="a[0]", ordinal=0, end="output", values=X)
    for files, why in (
        ([first], "Give the traces of all ranks"),
        ([first, first], r"These are the ranks 0, 0 of 2; give each once"),
        ([first, other], "is no rank of the run of .*: mode_run is 'forced'"),
        ([bare, bare], "does not hold the values of"),
    ):
        with pytest.raises(TracediffError, match=why):
            td.merge(files, to=tmp_path / "whole.h5")
    (tmp_path / "whole.h5").unlink(missing_ok=True)
    td.merge([first, second], to=tmp_path / "whole.h5").close()
    with pytest.raises(TraceExistsError):
        td.merge([first, second], to=tmp_path / "whole.h5")


def test_one_rank_is_not_compared_with_the_whole(tmp_path: Path) -> None:
    first, second = two(tmp_path, lambda number: [("a", "output", np.split(X, 2, axis=1)[number], {"tp": "shard(1)"})])
    td.merge([first, second], to=tmp_path / "whole.h5").close()
    with pytest.raises(TracediffError, match=r"is rank 0 of 2, and holds parts of tensors. .*tracediff merge RANK0 RANK1"):
        td.bisect(tmp_path / "whole.h5", first)


# -- torch.distributed


def network(seed: int = 0) -> Any:
    import torch

    torch.manual_seed(seed)
    up, down = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)
    return torch.nn.Sequential(torch.nn.LayerNorm(8), up, torch.nn.GELU(), down, torch.nn.LayerNorm(8)).eval()


def tensor_parallel(rank: int, ranks: int) -> tuple[Any, Any]:
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("tp",))
    plan = {"1": ColwiseParallel(use_local_output=False), "3": RowwiseParallel()}
    return parallelize_module(network(), mesh, plan), lambda model: model(torch.tensor(X))


def wrong_replica(rank: int, ranks: int) -> tuple[Any, Any]:
    import torch

    model, run = tensor_parallel(rank, ranks)
    with torch.no_grad():
        model[4].weight += 0.1 * rank
    return model, run


def sequence_parallel(rank: int, ranks: int) -> tuple[Any, Any]:
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

    mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("sp",))
    plan = {
        "0": SequenceParallel(sequence_dim=0),
        "1": ColwiseParallel(input_layouts=Shard(0), use_local_output=False),
        "3": RowwiseParallel(output_layouts=Shard(0), use_local_output=False),
        "4": SequenceParallel(sequence_dim=0),
    }

    def run(model: Any) -> Any:
        x = DTensor.from_local(torch.tensor(np.concatenate([X, X[:1]])), mesh, [Replicate()]).redistribute(placements=[Shard(0)])
        return model(x)

    return parallelize_module(network(), mesh, plan), run


def pipeline(rank: int, ranks: int) -> tuple[Any, Any]:
    """Two stages that send and receive; each holds the layers of its stage under the names of the whole."""
    import torch
    import torch.distributed as dist

    whole, half = network(), 2 if ranks == 2 else 1
    names = [str(number) for number in range(5)]
    own = names[rank * half : (rank + 1) * half] if rank < ranks - 1 else names[rank * half :]

    class Stage(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in own:
                self.add_module(name, whole[int(name)])

        def forward(self, x: Any) -> Any:
            for name in own:
                x = getattr(self, name)(x)
            return x

    def run(model: Any) -> Any:
        x = torch.tensor(X)
        if rank:
            x = torch.empty(3, 8 if rank * half in (1, 4) else 16)
            dist.recv(x, rank - 1)
        x = model(x)
        if rank < ranks - 1:
            dist.send(x.contiguous(), rank + 1)
        return x

    return Stage().eval(), run


def experts(rank: int, ranks: int) -> tuple[Any, Any]:
    """Each rank holds its own experts; what they make is summed over all ranks."""
    import torch
    import torch.distributed as dist

    class Experts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            every = [torch.nn.Linear(8, 8) for _ in range(4)]
            self.gate = torch.nn.Linear(8, 4)
            self.experts = torch.nn.ModuleDict({str(k): one for k, one in enumerate(every) if ranks == 1 or k % ranks == rank})

        def forward(self, x: Any) -> Any:
            chosen = self.gate(x).softmax(-1)
            made = sum(chosen[:, int(k), None] * one(x) for k, one in self.experts.items())
            if ranks > 1:
                dist.all_reduce(made)
            return made

    return Experts().eval(), lambda model: model(torch.tensor(X))


MAKERS = {make.__name__: make for make in (tensor_parallel, wrong_replica, sequence_parallel, pipeline, experts)}


def run_rank(rank: int, ranks: int, name: str, folder: str) -> None:
    import torch
    import torch.distributed as dist

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    with torch.no_grad():
        model, run = MAKERS[name](rank, ranks)
        td.capture(model, lambda: run(model), to=f"{folder}/rank{rank}.h5").close()
    dist.barrier()
    dist.destroy_process_group()


def captured(name: str, ranks: int, folder: Path) -> list[Path]:
    context = get_context("spawn")
    processes = [context.Process(target=run_rank, args=(rank, ranks, name, str(folder)), daemon=True) for rank in range(ranks)]
    assert exit_statuses(processes) == [0] * ranks
    return [folder / f"rank{rank}.h5" for rank in range(ranks)]


def whole_run(folder: Path, model: Any, x: Any = X) -> Path:
    import torch

    with torch.no_grad():
        td.capture(model, (torch.tensor(x),), to=folder / "ref.h5").close()
    return folder / "ref.h5"


@pytest.fixture
def gloo() -> None:
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("this PyTorch has no gloo")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_a_tensor_parallel_run_is_that_of_one_process(ranks: int, gloo: None, tmp_path: Path) -> None:
    files = captured("tensor_parallel", ranks, tmp_path)
    with td.merge(files, to=tmp_path / "port.h5") as port, td.open_trace(whole_run(tmp_path, network())) as reference:
        assert differences(port) == []
        assert {record.site for record in reference.records} == {record.site for record in port.records}
        for record in reference.records:
            [other] = [one for one in port.find(record.site, end=record.end) if one.ordinal == record.ordinal]
            expected = record.read() - (np.float32(0) if (record.site, record.end) != ("3", "output") else 0)
            assert other.shape == record.shape
            assert np.allclose(other.read(), expected, atol=1e-5), (record.site, record.end)
        assert np.array_equal(port.params["1.weight"].read(), network()[1].weight.detach().numpy())
        report = td.diff(reference, port)
        assert report.verdict == "same"
        assert report.coverage.compared == report.coverage.reference_records


@pytest.mark.slow
def test_a_replica_that_differs_is_named_with_its_rank_and_site(gloo: None, tmp_path: Path) -> None:
    with td.merge(captured("wrong_replica", 2, tmp_path), to=tmp_path / "port.h5") as port:
        found = differences(port)
    assert found[0].startswith("Rank 1 differs from its replicas at 4.weight")
    assert any("4[0] output" in line.replace("[0]/.", "") or line.count("4[0]") for line in found[1:])


@pytest.mark.slow
def test_a_sequence_parallel_run_is_that_of_one_process(gloo: None, tmp_path: Path) -> None:
    reference = whole_run(tmp_path, network(), np.concatenate([X, X[:1]]))
    with td.merge(captured("sequence_parallel", 2, tmp_path), to=tmp_path / "port.h5") as port:
        assert differences(port) == []
        assert td.diff(reference, port).verdict == "same"


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_a_pipeline_is_that_of_one_process(ranks: int, gloo: None, tmp_path: Path) -> None:
    files = captured("pipeline", ranks, tmp_path)
    table = {"mesh": {"pp": ranks}, "records": {"/*": "pp: chain"}}
    with td.merge(files, to=tmp_path / "port.h5", table=table) as port:
        assert differences(port) == []
        assert list(port.sites)[-5:] == [str(number) for number in range(5)] or set(port.sites) >= set("01234")
        report = td.diff(whole_run(tmp_path, network()), port)
        assert report.verdict == "same"
        assert report.coverage.compared == report.coverage.reference_records


@pytest.mark.slow
def test_experts_on_two_ranks_are_those_of_one_process(gloo: None, tmp_path: Path) -> None:
    files = captured("experts", 2, tmp_path)
    with td.merge(files, to=tmp_path / "port.h5") as port:
        assert differences(port) == []
        assert {f"experts.{number}" for number in range(4)} <= set(port.sites)
        report = td.diff(whole_run(tmp_path, experts(0, 1)[0]), port)
        assert report.verdict == "same"


# -- mlx.distributed

MLX = """
import sys
import mlx.core as mx, mlx.nn as nn, numpy as np
import tracediff as td
group = mx.distributed.init(strict=True, backend="ring")
rank, folder = group.rank(), sys.argv[1]
mx.random.seed(0)
up, down = nn.Linear(8, 16), nn.Linear(16, 8)

class Model(nn.Module):
    def __init__(self, up, down):
        super().__init__()
        self.up, self.down = up, down

    def __call__(self, x):
        return self.down(nn.relu(self.up(x)))

x = np.random.default_rng(0).standard_normal((3, 8)).astype("f4")
if rank == 0:
    td.capture(Model(up, down), (x,), to=f"{folder}/ref.h5", repeat=False).close()
model = Model(nn.AllToShardedLinear.from_linear(up, group=group), nn.ShardedToAllLinear.from_linear(down, group=group))
td.capture(model, (x,), to=f"{folder}/rank{rank}.h5", repeat=False, save_params=True).close()
mx.eval(mx.distributed.all_sum(mx.ones(1), group=group))
"""
MLX_TABLE = {
    "mesh": {"tp": 2},
    "records": {"up": "shard(-1)", "down/input*": "shard(-1)"},
    "parameters": {"up.*": "shard(0)", "down.weight": "shard(1)"},
}


@pytest.mark.slow
def test_an_mlx_run_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core")
    if not mx.distributed.is_available("ring"):
        pytest.skip("this MLX has no ring backend")
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    (tmp_path / "hosts.json").write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
    (tmp_path / "run.py").write_text(MLX)
    environment = {**os.environ, "MLX_HOSTFILE": str(tmp_path / "hosts.json")}
    started = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "run.py"), str(tmp_path)],
            env={**environment, "MLX_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=400)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    with td.merge([tmp_path / f"rank{rank}.h5" for rank in range(2)], to=tmp_path / "port.h5", table=MLX_TABLE) as port:
        assert differences(port) == []
        report = td.diff(tmp_path / "ref.h5", port)
        assert report.verdict == "same"
        assert port.params["up.weight"].shape == (16, 8)
