"""Weights: the named tensors of a trace, a live model or a weights file, each read only when it is asked for.

`open_weights` takes a trace, a torch or MLX model, a mapping of arrays, a ``.safetensors``, ``.npz``, ``.pt``, ``.pth`` or ``.bin``
file, or a folder of them (sharded ones by their index). No framework is imported, except torch to read its own files, and no pickle
is executed.
"""

from __future__ import annotations

import math
import os
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tracediff import dtype as dtypes
from tracediff.dtype import Array, DType
from tracediff.errors import MissingDependencyError, WeightsError
from tracediff.json_text import parse_json
from tracediff.observe.adapters.registry import named
from tracediff.tensors.files import ArrayFileError, open_npz, open_safetensors
from tracediff.trace import fingerprint
from tracediff.trace.fingerprint import Sketch, Stats

if TYPE_CHECKING:
    from tracediff.trace import Trace

Shape = tuple[int, ...]
Source = Any
"""Whatever `open_weights` takes."""

ARRAY_SUFFIXES = (".safetensors", ".npz")
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
TRACE_SUFFIXES = (".h5", ".hdf5")
_PREFERRED = (*ARRAY_SUFFIXES, *TORCH_SUFFIXES, *TRACE_SUFFIXES)
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "weights", "params", "parameters")
_TRAINING_STATE = ("optim", "ema", "sched", "lr_", "amp", "scaler")


class Weight:
    """One named tensor: its shape and dtype, and on demand its values, digest, statistics and sketch.

    ``kind`` is "parameter", "buffer" or "" where the source does not say; ``aliases`` are other names of the same storage; ``codes`` the
    bits of each value, and how many share a scale, where the module holds it quantised.
    Whatever is computed from the values is kept; the values are not.
    """

    def __init__(
        self,
        name: str,
        shape: Shape,
        dtype: DType,
        reader: Callable[[], Array] | None,
        *,
        kind: str = "",
        aliases: tuple[str, ...] = (),
        known: tuple[Stats, bytes, Sketch] | None = None,
        codes: tuple[int, int] | None = None,
    ) -> None:
        self.name, self.shape, self.dtype, self.kind, self.aliases = name, tuple(shape), dtype, kind, aliases
        self.count = math.prod(self.shape)
        self.codes = codes
        self._reader = reader
        self._stats: Stats | None = known[0] if known else None
        self._digest: bytes | None = known[1] if known else None
        self._sketch: Sketch | None = known[2] if known else None
        self._cast: dict[str, bytes] = {}

    def __repr__(self) -> str:
        return f"Weight({self.name!r}, {self.shape}, {self.dtype.name})"

    @property
    def roundoff(self) -> float:
        """Its dtype's unit roundoff."""
        return self.dtype.roundoff

    @property
    def is_readable(self) -> bool:
        """Whether its values can be read, not only what was computed from them."""
        return self._reader is not None

    def read(self) -> Array:
        """The values, in their own dtype (bfloat16 and float8 by ml_dtypes)."""
        if self._reader is None:
            raise WeightsError(f"The values of {self.name!r} were not stored; capture with --save-params to keep them.")
        return dtypes.view(np.asarray(self._reader()), self.dtype).reshape(self.shape)

    @property
    def digest(self) -> bytes:
        if self._digest is None:
            self._digest = fingerprint.digest(dtypes.bits(self.read()))
        return self._digest

    @property
    def stats(self) -> Stats:
        if self._stats is None:
            self._stats = fingerprint.statistics(self.read(), self.dtype)
        return self._stats

    @property
    def sketch(self) -> Sketch:
        if self._sketch is None:
            self._sketch = fingerprint.sketch(self.read(), self.dtype)
        return self._sketch

    def digest_as(self, dtype: DType) -> bytes:
        """The digest that the values have after rounding to another floating dtype."""
        if dtype.name not in self._cast:
            with np.errstate(over="ignore", invalid="ignore"):
                self._cast[dtype.name] = fingerprint.digest(dtypes.bits(self.read().astype(dtype.view)))
        return self._cast[dtype.name]

    @property
    def is_constant(self) -> bool:
        """Whether all values are the same, so that they cannot tell this tensor from another of its size."""
        if self.count < 2:
            return True
        if self._stats is None and not self._ends_alike():
            return False
        return self.stats.min == self.stats.max

    def _ends_alike(self) -> bool:
        """Whether a few values are the same. Most tensors have others, and need no pass over all values."""
        flat = self.read().reshape(-1)[:: max(1, self.count // 8)]
        return bool((flat == flat[0]).all())


class Weights(Mapping[str, Weight]):
    """Named tensors in the order of their source. ``source`` names it for people; ``skipped`` lists what no dtype of ours holds."""

    def __init__(self, source: str, kind: str, entries: dict[str, Weight], skipped: tuple[str, ...] = ()) -> None:
        self.source, self.kind, self.skipped = source, kind, skipped
        self._entries = entries

    def __getitem__(self, name: str) -> Weight:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Weights({self.source!r}, {len(self)} tensors)"

    @property
    def is_readable(self) -> bool:
        """Whether the values of every tensor can be read."""
        return all(weight.is_readable for weight in self.values())

    @property
    def count(self) -> int:
        """Values in all tensors."""
        return sum(weight.count for weight in self.values())


def open_weights(source: Source) -> Weights:
    """The weights of a trace, a live model, a mapping of arrays or models, a weights file or a folder of them.

    Raises WeightsError where it is none of these, is damaged, or holds no tensor.

    >>> open_weights({"bias": np.zeros(3, "float32")})["bias"].shape
    (3,)
    """
    if isinstance(source, Weights):
        return source
    weights = _opened(source)
    if not len(weights):
        raise WeightsError(f"{weights.source!r} holds no tensor, so there is nothing to compare.")
    return weights


def _opened(source: Source) -> Weights:
    if isinstance(source, str | Path):
        return _from_path(Path(source))
    if hasattr(source, "params") and hasattr(source, "records"):
        return _from_trace(source)
    if _is_model(source):
        return _from_arrays(_parameters_of(source), f"{type(source).__name__} (live)", "live", codes=_codes_of(source))
    if isinstance(source, Mapping):
        return _from_mapping(source)
    raise WeightsError(
        f"{type(source).__name__} {str(source)[:60]!r} is not weights; give a trace, a torch or MLX model, a mapping of arrays, "
        "a .safetensors, .npz or .pt file, or a folder of them."
    )


# -- what is in memory -------------------------------------------------------------------------------------------------


def _is_model(source: object) -> bool:
    return _is_of(source, "torch.nn", "Module") or _is_of(source, "mlx.nn", "Module")


def _is_of(value: object, module: str, name: str) -> bool:
    """Whether a value is an instance of a framework's class, asked without importing the framework."""
    found = sys.modules.get(module)
    kind = getattr(found, name, None) if found is not None else None
    return kind is not None and isinstance(value, kind)


def _parameters_of(model: Any) -> dict[str, Any]:
    if _is_of(model, "torch.nn", "Module"):
        return dict(model.state_dict(keep_vars=True))
    held = ((path, keys, array) for path, module in model.named_modules() for keys, array, _ in named("mlx").parameters(module))
    return {_dotted(path, *keys): array for path, keys, array in held if not str(keys[0]).startswith("_")}


def _codes_of(model: Any) -> dict[str, tuple[int, int]]:
    """The bits and group size of each quantised module of a live model, by the name of its weight."""
    modules = model.named_modules() if _is_of(model, "mlx.nn", "Module") else ()
    return {_dotted(path, "weight"): codes for path, module in modules if (codes := codes_of(vars(module))) is not None}


def _dotted(*keys: Any) -> str:
    return ".".join(str(key) for key in keys if key != "")


def _from_mapping(source: Mapping[Any, Any]) -> Weights:
    if any(_is_model(value) for value in source.values()):
        parts = ({f"{key}.{name}": array for name, array in _parameters_of(model).items()} for key, model in source.items())
        codes = {f"{key}.{name}": found for key, model in source.items() for name, found in _codes_of(model).items()}
        return _from_arrays(dict(chain.from_iterable(part.items() for part in parts)), "models (live)", "live", codes=codes)
    return _from_arrays(_unwrapped(source), "mapping of arrays", "mapping")


def _unwrapped(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """The tensors of a nested mapping by dotted names, without the wrapping of a training checkpoint."""
    if not any(_is_tensor(value) for value in tree.values()):
        inner = [key for key, value in tree.items() if isinstance(value, Mapping) and any(True for _ in _flattened(value))]
        kept = [key for key in inner if not str(key).lower().startswith(_TRAINING_STATE)]
        if len(kept) == 1 and kept[0] in _WRAPPERS:
            return _unwrapped(tree[kept[0]])
    return dict(_flattened(tree))


def _flattened(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Tensors of nested mappings and lists under dotted names; other leaves are passed over."""
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, value in items:
        name = f"{prefix}.{key}" if prefix else str(key)
        if _is_tensor(value):
            yield name, value
        elif isinstance(value, Mapping | list | tuple):
            yield from _flattened(value, name)


def _is_tensor(value: object) -> bool:
    return isinstance(value, np.ndarray | np.generic) or _is_of(value, "torch", "Tensor") or _is_of(value, "mlx.core", "array")


def _from_arrays(arrays: Mapping[str, Any], source: str, kind: str, *, codes: Mapping[str, tuple[int, int]] | None = None) -> Weights:
    entries: dict[str, Weight] = {}
    skipped = []
    owners: dict[Any, list[str]] = {}
    for name, array in arrays.items():
        dtype = _dtype_of(array)
        if dtype is None:
            skipped.append(name)
            continue
        owners.setdefault(_storage(array), []).append(name)
        read, held = partial(_to_numpy, array), (codes or {}).get(name)
        entries[name] = Weight(name, tuple(array.shape), dtype, read, kind=_kind_of(array), codes=held)
    for names in owners.values():
        for name in names:
            entries[name].aliases = tuple(other for other in names if other != name)
    return Weights(source, kind, entries, tuple(skipped))


def _dtype_of(array: Any) -> DType | None:
    name = str(array.dtype).rpartition(".")[2]
    return dtypes.BY_NAME.get({"bool_": "bool"}.get(name, name))


def _storage(array: Any) -> Any:
    if _is_of(array, "torch", "Tensor") and array.numel() and array.device.type != "meta":
        return (array.data_ptr(), tuple(array.shape), tuple(array.stride()))
    return id(array)


def _kind_of(array: Any) -> str:
    return ("parameter" if _is_of(array, "torch.nn", "Parameter") else "buffer") if _is_of(array, "torch", "Tensor") else ""


def _to_numpy(array: Any) -> Array:
    """The stored bits of a framework's tensor as a NumPy array, copied only where they must be."""
    if isinstance(array, np.ndarray | np.generic):
        return np.asarray(array)
    dtype = _dtype_of(array)
    assert dtype is not None
    if _is_of(array, "torch", "Tensor"):
        array = array.detach().cpu().contiguous()
        if dtype.stored != dtype.view:
            array = array.view(getattr(sys.modules["torch"], dtype.stored.name))
        return np.asarray(array.resolve_conj().numpy() if dtype.is_complex else array.numpy())
    if dtype.stored != dtype.view:
        array = array.view(getattr(sys.modules["mlx.core"], dtype.stored.name))
    return np.asarray(array)


def _from_trace(trace: Trace) -> Weights:
    entries = {}
    codes = {module["path"]: codes_of(module.get("attrs") or {}) for module in trace.meta.get("modules") or ()}
    for name, param in trace.params.items():
        known = (param.stats, param.digest, param.sketch)
        dtype = dtypes.named(param.dtype)
        reader = param.read if param.stored else _sketched(param, dtype)
        quantised = codes.get(param.path) if name.endswith("weight") else None
        entries[name] = Weight(
            name, param.shape, dtype, reader, kind=param.kind, aliases=tuple(param.aliases), known=known, codes=quantised
        )
    return Weights(str(trace.path), "trace", entries)


def codes_of(attributes: Mapping[str, Any]) -> tuple[int, int] | None:
    """The bits of a quantised module's values and the size of their groups; None for any other module."""
    bits, group = attributes.get("bits"), attributes.get("group_size")
    return (bits, group) if isinstance(bits, int) and isinstance(group, int) else None


def _sketched(param: Any, dtype: DType) -> Callable[[], Array] | None:
    """Reads a tensor with at most one axis longer than 1 from its sketch, which holds all of its values; None for any other."""
    stats, long = param.stats, [size for size in param.shape if size != 1]
    if len(long) > 1 or stats.nan or stats.inf or dtype.is_complex or (long and (long[0] == 0 or long[0] > fingerprint.LONGEST_AXIS)):
        return None

    def read() -> Array:
        values = next((vector for vector in param.sketch.axes if vector.size != 1), np.array([stats.mean]))
        return values.astype(dtype.view).reshape(param.shape)

    return read


# -- files -------------------------------------------------------------------------------------------------------------


def _from_path(path: Path) -> Weights:
    if path.is_dir():
        return _from_folder(path)
    if not path.exists():
        raise WeightsError(f"No file or folder {str(path)!r}.{_nearest(path)}")
    if not path.is_file():
        raise WeightsError(f"{str(path)!r} is a pipe or a device, not a weights file.")
    suffix = _kind_of_file(path)
    if suffix in ARRAY_SUFFIXES:
        return _from_array_file(path, suffix)
    if suffix in TORCH_SUFFIXES:
        return _from_torch(path)
    if suffix in TRACE_SUFFIXES:
        from tracediff.trace import open_trace

        return _from_trace(open_trace(path))
    raise WeightsError(f"{str(path)!r} is not a weights file; known are {', '.join(_PREFERRED)}, and folders of them.")


def _nearest(path: Path) -> str:
    beside = sorted(other.name for other in path.parent.glob("*") if other.suffix in _PREFERRED) if path.parent.is_dir() else []
    return f" Beside it: {', '.join(beside[:5])}." if beside else ""


def _kind_of_file(path: Path) -> str:
    """The suffix that says how to read a file: its own where that is known, else the one that its first bytes call for."""
    if path.suffix in _PREFERRED:
        return path.suffix
    with path.open("rb") as file:
        head = file.read(9)
    if head.startswith(b"\x89HDF"):
        return ".h5"
    if head.startswith(b"PK") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return ".npz" if any(name.endswith(".npy") for name in archive.namelist()) else ".pt"
    return ".safetensors" if head[8:9] == b"{" else path.suffix


def _from_folder(folder: Path) -> Weights:
    files = _files_of(folder)
    if not files:
        raise WeightsError(f"The folder {str(folder)!r} holds no weights file ({', '.join(_PREFERRED)}).")
    opened = {file: _from_path(file) for file in files}
    names = [name for weights in opened.values() for name in weights]
    clashing = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    entries = {}
    for file, weights in opened.items():
        prefix = f"{file.stem}." if clashing.intersection(weights) else ""
        for name, weight in weights.items():
            weight.name = prefix + name
            entries[weight.name] = weight
    return Weights(str(folder), "folder", entries, tuple(chain.from_iterable(weights.skipped for weights in opened.values())))


def _files_of(folder: Path) -> list[Path]:
    """The weights files of a folder: those that an index lists, else all of the first known kind that it has."""
    for index in sorted(folder.glob("*.index.json"), key=lambda path: (".safetensors." not in path.name, path.name)):
        return _indexed(index)
    for suffix in _PREFERRED:
        found = sorted(folder.glob(f"*{suffix}"))
        if found:
            return found
    return []


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(map(str, parse_json(index.read_bytes())["weight_map"].values())))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(f"The index {str(index)!r} lists no weights (a 'weight_map' of names and files is expected): {error}.") from None
    files = [index.parent / Path(name).name for name in names]
    missing = [file.name for file in files if not os.path.isfile(file) or file.parent != index.parent]
    if missing:
        lacking = f"{len(missing)} of {len(files)} files that {index.name!r} lists"
        raise WeightsError(f"{lacking} are not in {str(index.parent)!r}: {missing[:3]}.")
    return files


def _from_array_file(path: Path, suffix: str) -> Weights:
    """The tensors of a .safetensors file, in the order of their values, or of an .npz file, in the order of its members."""
    try:
        arrays = (open_safetensors if suffix == ".safetensors" else open_npz)(path).arrays
    except ArrayFileError as error:
        form, cure = ("safetensors", " Copy or download it again.") if suffix == ".safetensors" else (".npz", "")
        raise WeightsError(f"{str(path)!r} is not a readable {form} file: {error.reason}.{cure}") from None
    entries, skipped = {}, []
    for array in sorted(arrays, key=lambda array: array.offset):
        if array.dtype is None:
            skipped.append(array.name)
        else:
            entries[array.name] = Weight(array.name, array.shape, array.dtype, array.read)
    return Weights(str(path), suffix.removeprefix("."), entries, tuple(skipped))


def _from_torch(path: Path) -> Weights:
    try:
        torch = import_module("torch")
    except ImportError:
        raise MissingDependencyError(
            f"Reading {str(path)!r} needs torch: pip install torch. Or convert it to .safetensors where torch is installed."
        ) from None
    try:
        loaded = _torch_load(torch, path)
    except Exception as error:  # noqa: BLE001 - torch raises anything from UnpicklingError to EOFError on a damaged file
        reason = str(error).split("\n")[0]
        raise WeightsError(
            f"{str(path)!r} cannot be read as tensors alone: {reason} Save model.state_dict() from the program that wrote it."
        ) from None
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{str(path)!r} holds a {type(loaded).__name__}, not named tensors; save model.state_dict().")
    return _from_arrays(_unwrapped(loaded), str(path), "torch")


def _torch_load(torch: Any, path: Path) -> Any:
    """The content of a torch file, its tensors mapped from disk where the format allows; no pickled code is run."""
    if zipfile.is_zipfile(path):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return torch.load(path, map_location="cpu", weights_only=True)
