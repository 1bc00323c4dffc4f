"""Models that are spread over processes, adapted by peft or compiled are captured, or it is said what was not seen of them."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import exit_statuses

import tracediff as td
from tracediff.errors import CaptureError

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
distributed = pytest.importorskip("torch.distributed")
if not distributed.is_available():
    pytest.skip("PyTorch was built without torch.distributed", allow_module_level=True)

X = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)


def network() -> Any:
    torch.manual_seed(0)
    inner = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.LayerNorm(16))
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), inner, torch.nn.Linear(16, 4)).eval()


def replicated() -> Any:
    return torch.nn.parallel.DistributedDataParallel(network())


def wrapped() -> Any:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(network(), device_id=torch.device("cpu"))


def sharded() -> Any:
    from torch.distributed.fsdp import fully_shard

    model = network()
    fully_shard(model[2], mesh=mesh())
    fully_shard(model, mesh=mesh())
    return model


def split_by_columns() -> Any:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    return parallelize_module(network(), mesh(), {"0": ColwiseParallel(), "2.0": RowwiseParallel(), "3": ColwiseParallel()})


def mesh() -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (distributed.get_world_size(),))


MODELS: tuple[Callable[[], Any], ...] = (replicated, wrapped, sharded, split_by_columns)


def captured(make: Callable[[], Any], to: Path, **options: Any) -> tuple[bool, dict[str, Any], set[str]]:
    """Whether the outputs recorded are those of a bare run, what the trace says of the run, and the names of its parameters."""
    with torch.no_grad():
        bare = make().eval()(torch.tensor(X))
        model = make().eval()
        with td.capture(model, (torch.tensor(X),), to=to, **options) as trace:
            last = [record for record in trace.records if record.end == "output"][-1].read()
            found = dict(trace.meta), set(trace.params)
        return bool(np.array_equal(last, bare.numpy()) and torch.equal(model(torch.tensor(X)), bare)), *found


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    join(0, 1, tmp_path / "store")
    yield
    distributed.destroy_process_group()


def join(rank: int, size: int, store: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("options", [{}, {"floor": False, "repeat": False}], ids=["floor", "plain"])
def test_a_model_spread_over_one_process_is_captured_as_it_runs_bare(
    make: Callable[[], Any], options: dict[str, Any], group: None, tmp_path: Path
) -> None:
    is_equal, meta, params = captured(make, tmp_path / "a.h5", **options)
    assert is_equal
    assert params
    assert (meta["repeats"] is True) == (not options and make is not sharded)


def test_what_fsdp_shards_is_run_once_and_the_trace_says_so(group: None, tmp_path: Path) -> None:
    _, meta, params = captured(sharded, tmp_path / "a.h5")
    assert "repeat and noise floor: FSDP shards the parameters, and its own state cannot be put back" in meta["not_seen"]
    assert "2.0.weight" in params
    with pytest.raises(CaptureError, match="cannot be fed, which takes several runs: FSDP shards"):
        td.capture(sharded(), (torch.tensor(X),), to=tmp_path / "b.h5", feed=tmp_path / "a.h5")
    with pytest.raises(CaptureError, match="No floor can be measured of this model, which takes several runs"):
        td.calibrate(sharded(), (torch.tensor(X),), tmp_path / "a.h5", dtypes=["float64"])


def test_a_distributed_tensor_is_handed_back_as_a_distributed_one(group: None, tmp_path: Path) -> None:
    from torch.distributed.tensor import Replicate, distribute_module, distribute_tensor

    x = distribute_tensor(torch.tensor(X), mesh(), [Replicate()])
    model = distribute_module(network(), mesh())
    with td.capture(model, (x,), to=tmp_path / "a.h5") as trace:
        assert trace.meta["repeats"] is True
        assert np.isfinite(trace.floor["noise"]).any()
        assert not [text for text in trace.meta["not_seen"] if text.startswith("noise floor")]


def rank_of_two(rank: int, folder: str, told: Any) -> None:
    """One of two processes: what each model's capture says there."""
    warnings.simplefilter("ignore")
    join(rank, 2, Path(folder) / "store")
    try:
        told.put((rank, {make.__name__: captured(make, Path(folder) / f"{make.__name__}{rank}.h5") for make in MODELS}))
    except BaseException as error:
        told.put((rank, error))
        raise
    distributed.destroy_process_group()


def test_a_model_spread_over_two_processes_is_captured_in_each_and_run_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    told = context.SimpleQueue()
    ranks = [context.Process(target=rank_of_two, args=(rank, str(tmp_path), told), daemon=True) for rank in range(2)]
    assert exit_statuses(ranks) == [0, 0]
    for _, found in (told.get(), told.get()):
        assert {name: is_equal for name, (is_equal, _, _) in found.items()} == dict.fromkeys(found, True)
        for name, (_, meta, params) in found.items():
            assert meta["repeats"] is None
            assert any(text.startswith("repeat and noise floor: ") for text in meta["not_seen"])
            assert params if name == "replicated" else True
        assert found["sharded"][1]["mesh"]["parameters"]["2.0.weight"] == {"ranks": "shard(0)"}
        assert found["split_by_columns"][1]["mesh"]["parameters"]["2.0.weight"] == {"ranks": "shard(1)"}


class Wrapping(torch.Tensor):
    """A tensor that holds another one, as quantised tensors of libraries do."""

    @staticmethod
    def __new__(cls, inner: Any) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inner = [value.inner if isinstance(value, cls) else value for value in args]
        made = func(*inner, **(kwargs or {}))
        return cls(made) if func is torch.ops.aten.detach.default else made


def test_tensors_of_a_class_that_no_trace_holds_are_said_not_to_be_seen(tmp_path: Path) -> None:
    model = network()
    model[0].weight = torch.nn.Parameter(Wrapping(model[0].weight.detach()), requires_grad=False)
    with torch.no_grad(), td.capture(model, (torch.tensor(X),), to=tmp_path / "a.h5") as trace:
        assert "parameter '0.weight': no trace holds tensors of class Wrapping" in trace.meta["not_seen"]
        assert trace.meta["repeats"] is True
        assert "0" in {record.site for record in trace.records}


@pytest.mark.parametrize("compile", [None, False, True])
def test_a_compiled_part_is_captured_from_outside_or_left_out_where_that_is_asked(compile: bool | None, tmp_path: Path) -> None:
    pytest.importorskip("torch._dynamo")
    model = network()
    bare = model(torch.tensor(X)).detach().numpy()
    model[2] = torch.compile(model[2], backend="eager")
    with td.capture(model, (torch.tensor(X),), to=tmp_path / "a.h5", compile=compile) as trace:
        sites = {record.site for record in trace.records}
        assert "2" in sites
        inside = [site for site in sites if site.startswith("2.")]
        assert bool(inside) == (compile is False)
        assert bool([text for text in trace.meta["not_seen"] if "compiled by torch.compile" in text]) == (compile is not False)
        last = [record for record in trace.records if record.end == "output"][-1].read()
    assert np.array_equal(last, bare)


# -- peft ----------------------------------------------------------------------------------------------------------------------------------

ADAPTERS = {
    "lora": ("LoraConfig", {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}),
    "dora": ("LoraConfig", {"r": 4, "target_modules": ["q_proj"], "use_dora": True, "init_lora_weights": False}),
    "embedding": ("LoraConfig", {"r": 4, "target_modules": ["embed_tokens"], "modules_to_save": ["lm_head"]}),
    "ia3": ("IA3Config", {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "prefix": ("PrefixTuningConfig", {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}),
    "prompt": ("PromptTuningConfig", {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}),
}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_model_with_an_adapter_of_peft_is_captured_and_left_as_it_was(adapter: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_hidden_layers=2))
    kind, settings = ADAPTERS[adapter]
    model = peft.get_peft_model(base, getattr(peft, kind)(**settings)).eval()
    ids = torch.arange(6)[None]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bare = model(ids).logits.detach()
    with td.capture(model, lambda: model(ids), to=tmp_path / "a.h5") as trace:
        assert trace.meta["repeats"] is True
        assert trace.floor is not None
        outputs = [record for record in trace.records if record.end.startswith("output") and record.shape == tuple(bare.shape)]
        assert np.array_equal(outputs[-1].read(), bare.numpy())
        assert any("lora_A" in record.site for record in trace.records) == (adapter in ("lora", "dora"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(ids).logits, bare)
