"""Ports as files: which tensors a port dumps, under which names, in which layout, dtype and container; and which module is at fault."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from benchmarks.file_ports.models import Model

Array = np.ndarray[Any, Any]
Key = tuple[str, str]
"""A module's path in the reference, and an end of it."""

# -- names ------------------------------------------------------------------------------------------------------------------------------

_SHORT = {
    "layers": "blk", "layer": "blk", "blocks": "blk", "self": "", "attention": "attn", "norm": "ln", "mlp": "ffn", "fc": "w", "proj": "",
    "embed": "emb", "tokens": "tok", "positions": "pos", "final": "out", "frontend": "feat", "down": "enc", "up": "dec", "mid": "bott",
    "shortcut": "skip", "pooler": "pool", "project": "inp", "output": "out", "classifier": "cls", "lm": "", "bn": "norm",
}  # fmt: skip
_LONG = {
    "layers": "Layer", "layer": "Layer", "blocks": "Block", "attn": "Attention", "mlp": "FeedForward", "ffn": "FeedForward",
    "q": "Query", "k": "Key", "v": "Value", "wq": "Query", "wk": "Key", "wv": "Value", "wo": "Output", "proj": "Projection",
    "fc": "Dense", "conv": "Convolution", "bn": "BatchNorm", "emb": "Embedding", "tok": "Token", "embed": "Embedding", "res": "Residual",
}  # fmt: skip
_OTHER = {
    "layers": "l", "layer": "l", "blocks": "l", "self": "", "attention": "att", "attn": "att", "norm": "nrm", "mlp": "ff", "ffn": "ff",
    "feed": "ff", "forward": "", "proj": "p", "embed": "e", "embeddings": "e", "patch": "pt", "dilated": "dil", "output": "logit",
    "head": "logit",
}  # fmt: skip

Namer = Callable[[str, int], str]
"""A name from a path (its end, where it is no output, behind a dot) and a running number."""


def _parts(path: str, vocabulary: dict[str, str]) -> list[str]:
    words = [word for part in path.split(".") for word in re.findall(r"[A-Za-z]+|\d+", part)]
    return [found for word in words if (found := vocabulary.get(word, word))] or ["model"]


def short(path: str, _: int) -> str:
    return ".".join(_parts(path, _SHORT))


def camel(path: str, _: int) -> str:
    first, *rest = _parts(path, {})
    return first + "".join(part.capitalize() for part in rest)


def ggml(path: str, _: int) -> str:
    return re.sub(r"_(\d+)_", r".\1.", "_".join(_parts(path, _SHORT)))


def one_based(path: str, _: int) -> str:
    return "_".join(str(int(part) + 1) if part.isdecimal() else part for part in _parts(path, {}))


def slashes(path: str, _: int) -> str:
    return "/".join(re.sub(r"(\D)/(\d+)", r"\1_\2", "/".join(part[:1].upper() + part[1:] for part in _parts(path, _LONG))).split("/"))


def rust(path: str, _: int) -> str:
    return "::".join(path.split(".")) or "model"


def upper(path: str, _: int) -> str:
    return "_".join(_parts(path, _OTHER)).upper()


def anonymous(_: str, number: int) -> str:
    return f"t{number:04d}"


def pascal(path: str, _: int) -> str:
    return "".join(part.capitalize() for part in _parts(path, _LONG)) + "Out"


def brackets(path: str, _: int) -> str:
    return re.sub(r"\.(\d+)", r"[\1]", f"net.{path}" if path else "net")


def vowelless(path: str, _: int) -> str:
    return "_".join(part if len(part) < 4 else part[0] + re.sub("[aeiou]", "", part[1:]) for part in _parts(path, {}))


STYLES: dict[str, dict[str, Namer]] = {
    "tuned": {"short": short, "camel": camel, "ggml": ggml, "one_based": one_based},
    "held": {"slashes": slashes, "rust": rust, "upper": upper, "anonymous": anonymous},
    "last": {"pascal": pascal, "brackets": brackets, "vowelless": vowelless},
}

# -- faults -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """What is wrong with a port: a module by its path, and how. ``of_caller``: the code that hands the module its input is at fault."""

    path: str
    kind: str

    @property
    def of_caller(self) -> bool:
        return self.kind == "handed"


def faults_of(model: nn.Module) -> list[Fault]:
    """All faults that can be planted in a model."""
    found = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
            found += [Fault(path, "gain"), Fault(path, "rolled"), Fault(path, "noise")]
            if module.bias is not None and not path.endswith("k_proj"):  # softmax takes a bias of the keys out
                found.append(Fault(path, "no bias"))
            if module.weight.ndim == 2 and module.weight.shape[0] == module.weight.shape[1]:
                found.append(Fault(path, "transposed"))
        elif type(module).__name__.endswith(("Norm", "Norm1d", "Norm2d")):
            found += [Fault(path, "eps"), Fault(path, "gain"), Fault(path, "handed")]
        elif isinstance(module, nn.Embedding | nn.LSTM | nn.GELU):
            found += [Fault(path, "noise"), Fault(path, "rolled")]
    return found


def plant(model: nn.Module, fault: Fault) -> None:
    """Puts a fault into a model."""
    module = model.get_submodule(fault.path)
    with torch.no_grad():
        if fault.kind == "gain":
            module.weight.mul_(1.2)
        elif fault.kind == "no bias":
            module.bias.zero_()
        elif fault.kind == "transposed":
            module.weight.copy_(module.weight.T.clone())
        elif fault.kind == "eps":
            module.eps = 0.3
        elif fault.kind == "handed":
            module.register_forward_pre_hook(lambda _, given: (given[0] * 0.9 + 0.1 * given[0].flip(-1), *given[1:]))
        else:
            module.register_forward_hook(lambda _, given, made: _spoilt(made, fault.kind))


def _spoilt(made: Any, kind: str) -> Any:
    if isinstance(made, tuple):
        return (_spoilt(made[0], kind), *made[1:])
    if kind == "rolled":
        return made.roll(1, -1)
    return made + 0.02 * made.std() * torch.randn(made.shape, generator=torch.Generator().manual_seed(3), dtype=made.dtype)


# -- what a port computes and dumps -----------------------------------------------------------------------------------------------------


def run_port(model: nn.Module, given: Tensor, fault: Fault | None, dtype: torch.dtype = torch.float64) -> list[tuple[Key, Array]]:
    """Every input and output of every module of a port that computes in a dtype, in order; float64 is stored in float32."""
    port = copy.deepcopy(model).to(dtype)
    if fault is not None:
        plant(port, fault)
    seen: list[tuple[Key, Array]] = []

    def note(path: str, end: str, value: Any) -> None:
        if isinstance(value, Tensor):
            values = value.detach().numpy()
            seen.append(((path, end), values.astype(np.float32) if values.dtype == np.float64 else values))

    for path, module in port.named_modules():
        module.register_forward_pre_hook(lambda _, given, path=path: note(path, "input[0]", given[0]))
        module.register_forward_hook(lambda _, given, made, path=path: note(path, "output", made[0] if isinstance(made, tuple) else made))
    with torch.no_grad():
        port(given.to(dtype) if given.is_floating_point() else given)
    return seen


def leaves(model: nn.Module) -> set[str]:
    return {path for path, module in model.named_modules() if not list(module.children())}


PLANS = ("all", "leaves", "blocks", "taps", "inputs", "sparse")


def planned(model: nn.Module, seen: list[tuple[Key, Array]], plan: str, chance: random.Random) -> list[tuple[Key, Array]]:
    """What a port dumps of all that it computed; what the whole model returns always."""
    ends = leaves(model)
    norms = {path for path, module in model.named_modules() if "norm" in type(module).__name__.lower()}

    def wanted(path: str, end: str) -> bool:
        is_leaf = path in ends
        if end != "output":
            return (plan == "taps" and path in norms) or (plan == "inputs" and is_leaf)
        if not path:
            return True
        return {
            "all": True,
            "leaves": is_leaf,
            "taps": is_leaf,
            "inputs": is_leaf,
            "blocks": path.count(".") <= 1,
            "sparse": is_leaf and chance.random() < 0.5,
        }[plan]

    return [(key, array) for key, array in seen if wanted(*key)]


LAYOUTS = ("same", "no batch", "channels last", "reversed")


def laid_out(array: Array, layout: str, is_conv: bool) -> Array:
    if layout == "no batch" and array.ndim > 1 and array.shape[0] == 1:
        return array[0]
    if layout == "channels last" and is_conv and array.ndim in (3, 4):
        return np.moveaxis(array, 1, -1)
    if layout == "reversed":
        return array.transpose()
    return array


STORED = ("float32", "float16", "float16 grid", "bfloat16", "float16 run")


def stored(array: Array, how: str) -> Array:
    if array.dtype.kind != "f" or how in ("float32", "float16 run"):
        return array
    if how == "bfloat16":
        return array.astype(ml_dtypes.bfloat16)
    half = array.astype(np.float16)
    return half if how == "float16" else half.astype(np.float32)


@dataclass(frozen=True)
class Dump:
    """How a port is dumped."""

    style: str
    plan: str
    container: str
    layout: str
    stored: str
    extras: bool


CONTAINERS = ("npz", "numbered", "safetensors", "folder")


def write(
    folder: Path, model: nn.Module, chosen: list[tuple[Key, Array]], dump: Dump, namer: Namer, seed: int
) -> tuple[Path, dict[str, Key]]:
    """Writes a dump; returns its path, and what of the reference each array is, by its name in the trace."""
    chance = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    truth: dict[str, Key] = {}
    convs = {
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm)
    }
    for number, ((path, end), array) in enumerate(chosen):
        is_conv = path in convs or array.ndim == 4
        name = namer(path if end == "output" or dump.plan == "inputs" else f"{path}.x", number)
        if end != "output" and dump.plan == "inputs":
            if any(mark in name for mark in "/:["):
                name += ".in"
            else:
                name += "/input[0]"
        while name in arrays:
            name += "b"
        arrays[name] = np.ascontiguousarray(stored(laid_out(array, dump.layout, is_conv), dump.stored))
        truth[name] = (path, end)
        if dump.extras and number % 5 == 2 and array.dtype.kind == "f":
            kind = number % 3
            extra = (
                array * 0.37
                if kind == 0
                else np.cumsum(array, -1).astype(np.float32)
                if kind == 1
                else chance.standard_normal(array.shape).astype(np.float32)
            )
            arrays[f"{namer(path, number)}_tmp{number}"] = np.ascontiguousarray(stored(laid_out(extra, dump.layout, is_conv), dump.stored))
    if dump.container == "numbered":
        named = {f"{number:04d}-{name}": array for number, (name, array) in enumerate(arrays.items())}
        return _npz(folder / "port.npz", named), truth
    if dump.container == "npz":
        return _npz(folder / "port.npz", arrays), truth
    if dump.container == "safetensors":
        order = sorted(arrays)
        save_file({name: arrays[name] for name in order}, folder / "port.safetensors")
        return folder / "port.safetensors", truth
    for name, array in arrays.items():
        (folder / "port" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / "port" / f"{name}.npy", array)
    return folder / "port", truth


def _npz(path: Path, arrays: dict[str, Array]) -> Path:
    header = {"records": [{"name": name, "dtype": "bfloat16"} for name, array in arrays.items() if array.dtype == ml_dtypes.bfloat16]}
    extra = {"tracediff.json": np.frombuffer(json.dumps(header).encode(), np.uint8)} if header["records"] else {}
    if extra:
        header["records"] = [
            {"name": name, **({"dtype": "bfloat16"} if array.dtype == ml_dtypes.bfloat16 else {})} for name, array in arrays.items()
        ]
        extra = {"tracediff.json": np.frombuffer(json.dumps(header).encode(), np.uint8)}
    np.savez(
        path, **{name: array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array for name, array in arrays.items()}, **extra
    )
    return path


def seeded(model: Model, seed: int) -> tuple[nn.Module, Tensor]:
    """A model with seeded weights that all matter, and its input."""
    chance = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    made = model.make().eval()
    with torch.no_grad():
        for name, param in made.named_parameters():
            if param.ndim >= 2:
                param.copy_(torch.randn(param.shape, generator=chance) * 1.4 / max(1, param[0].numel()) ** 0.5)
            elif "weight" in name:
                param.copy_(1 + 0.2 * torch.randn(param.shape, generator=chance))
            else:
                param.copy_(0.3 * torch.randn(param.shape, generator=chance))
        for name, buffer in made.named_buffers():
            if "running_var" in name:
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=chance))
            elif "running_mean" in name:
                buffer.copy_(0.2 * torch.randn(buffer.shape, generator=chance))
    return made, model.inputs(chance)


def dumps(group: str, count: int, seed: int) -> Iterator[tuple[Dump, Namer]]:
    """Random ways to dump a port."""
    chance = random.Random(seed)
    styles = STYLES[group]
    for _ in range(count):
        style = chance.choice(sorted(styles))
        container = chance.choice(CONTAINERS)
        if style == "anonymous" and container in ("safetensors", "folder"):
            container = "numbered"
        kept = chance.choices(STORED, (5, 2, 1, 1, 1))[0]
        if kept == "bfloat16" and container in ("folder", "numbered"):
            kept = "float16"
        yield Dump(style, chance.choice(PLANS), container, chance.choice(LAYOUTS), kept, chance.random() < 0.3), styles[style]
