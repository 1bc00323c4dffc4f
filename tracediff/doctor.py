"""What is installed, what can run here, how exactly it multiplies, and what slows it down, each with its cure."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Literal

from tracediff.errors import install
from tracediff.trace.products import told

State = Literal["ok", "slow", "coarse", "missing"]

CORE = ("numpy", "h5py", "click", "rich", "pandas", "matplotlib", "ml_dtypes", "xxhash", "scipy", "safetensors")
# A square product large enough to tell a reference BLAS (2 to 4 GFLOP/s) from an optimised one (over 30 on one core).
_PROBE = """
import time, mlx.core as mx
a = mx.random.normal((512, 512)); b = mx.random.normal((512, 512)); mx.eval(a, b, a @ b)
start = time.perf_counter(); mx.eval([a @ b + i for i in range(4)]); print(4 * 2 * 512**3 / (time.perf_counter() - start) / 1e9)
"""
SLOW_GFLOPS = 15.0
"""A slower product comes from a reference BLAS: the number lies between what that and an optimised BLAS reach on one core."""
BLAS_CURE = (
    "sudo apt-get install libopenblas0-pthread, then LD_PRELOAD=libopenblas.so.0 tracediff ... "
    "(it also serves torch's products: the two sides then share a BLAS, so there is less noise, and less independence)"
)

_PRODUCTS = "import json, sys; from tracediff.observe.products import examined; print(json.dumps(examined(sys.argv[1])))"
PRODUCTS_CURE = (
    "a run fed by a reference takes its products in full precision, any other with tracediff capture --precise (in MLX only before the "
    "process multiplies anything: else set MLX_ENABLE_TF32=0 before it starts)"
)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: its name, its state, what was seen, and the cure where there is one."""

    name: str
    state: State
    seen: str
    cure: str = ""


def examine() -> tuple[Check, ...]:
    """Every check, in the order in which a person would repair things."""
    return (
        _python(),
        _core(),
        _stack("torch", "captures PyTorch models", install("torch")),
        _stack("mlx", "captures MLX models", install("mlx")),
        *_mlx_speed(),
        *_products("torch"),
        *_products("mlx"),
        _chatterbox(),
        _recipes(),
        _stack("ipykernel", "runs the notebooks", install("notebook")),
    )


def to_dict(checks: tuple[Check, ...]) -> dict[str, Any]:
    """The checks as one JSON object."""
    return {"schema": "tracediff.doctor/1", "checks": [asdict(check) for check in checks]}


def _python() -> Check:
    seen = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return Check("python", "ok" if sys.version_info >= (3, 11) else "missing", seen, "tracediff needs Python 3.11 or newer")


def _core() -> Check:
    absent = [name for name in CORE if _version(name) is None]
    if absent:
        return Check("core", "missing", f"not installed: {', '.join(absent)}", f"pip install {' '.join(absent)}")
    seen = ", ".join(f"{name} {_version(name)}" for name in CORE)
    return Check("core", "ok", f"{seen}: reads, compares and plots traces")


def _stack(name: str, purpose: str, cure: str) -> Check:
    installed = _version(name)
    if installed is None or find_spec(name) is None:
        return Check(name, "missing", f"not installed: nothing here {purpose}", cure)
    return Check(name, "ok", f"{name} {installed}: {purpose}")


def _mlx_speed() -> tuple[Check, ...]:
    """On Linux the MLX wheel bundles a reference BLAS that is some thirty times slower than OpenBLAS."""
    if sys.platform != "linux" or find_spec("mlx") is None:
        return ()
    try:
        printed = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=60, check=True)
        gflops = float(printed.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        return (Check("mlx speed", "missing", f"a matrix product failed: {error}", "pip install 'mlx[cpu]'"),)
    seen = f"{gflops:.0f} GFLOP/s in a 512 x 512 float32 product"
    if gflops < SLOW_GFLOPS:
        return (Check("mlx speed", "slow", f"{seen}: a reference BLAS", BLAS_CURE),)
    return (Check("mlx speed", "ok", seen),)


def _products(name: str) -> tuple[Check, ...]:
    """In which precision a framework multiplies float32 numbers, on each device, and what rules it."""
    if _version(name) is None or find_spec(name) is None:
        return ()
    try:
        printed = subprocess.run([sys.executable, "-c", _PRODUCTS, name], capture_output=True, text=True, timeout=120, check=True)
        found = json.loads(printed.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        return (Check(f"{name} products", "missing", f"a matrix product failed: {error}", install(name)),)
    return tuple(products_check(name, one) for one in found)


def products_check(name: str, found: dict[str, Any]) -> Check:
    """The check of one device: what `tracediff.observe.products.probed` found there."""
    is_full = found["precision"] == "float32"
    return Check(f"{name} products", "ok" if is_full else "coarse", told({"products": found}), "" if is_full else PRODUCTS_CURE)


def _chatterbox() -> Check:
    wanted = {"chatterbox-tts": "chatterbox", "mlx-audio": "mlx_audio", "s3tokenizer": "s3tokenizer"}
    absent = [name for name, module in wanted.items() if _version(name) is None or find_spec(module) is None]
    if absent:
        return Check("chatterbox", "missing", f"not installed: {', '.join(absent)}: no demo here", "uv sync --extra chatterbox")
    seen = ", ".join(f"{name} {_version(name)}" for name in wanted)
    return Check("chatterbox", "ok", f"{seen}: the demo and both recipes can run")


def _recipes() -> Check:
    from tracediff.observe.recipe import known_recipes

    names = known_recipes()
    if not names:
        return Check("recipes", "missing", "no hooks/ folder found", "tracediff init")
    return Check("recipes", "ok", ", ".join(names))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
