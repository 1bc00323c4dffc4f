"""The demonstration: the real Chatterbox pair, captured at small size, with one announced fault in the port, and found again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracediff import api
from tracediff.errors import TracediffError

if TYPE_CHECKING:
    from tracediff.show.drawn import Report

RECIPE = "chatterbox"
NONE = "none"


def faults() -> dict[str, str]:
    """What can be planted: name and announcement, ``none`` for the port as it ships."""
    from tracediff.observe.recipe import load_faults

    return {NONE: "nothing: the port as it ships", **{name: fault.announcement for name, fault in load_faults(RECIPE, "mlx").items()}}


def run(fault: str, *, folder: str | Path = "traces", seed: int = 0, progress: Callable[[str], None] = lambda _: None) -> Report:
    """Captures both sides of the fault's stage (for ``none``, of every stage), the port fed by the reference, and bisects.

    The traces ``demo_torch.h5`` and ``demo_mlx.h5`` in ``folder`` are written anew. Raises TracediffError for a fault that is not known.
    """
    from tracediff.observe.recipe import load_faults, run_recipe
    from tracediff.runs.captured import captured

    known = load_faults(RECIPE, "mlx")
    if fault != NONE and fault not in known:
        raise TracediffError(f"No fault {fault!r}. Choose one of: {', '.join([NONE, *known])}. What they are: tracediff demo --list")
    planted = None if fault == NONE else known[fault]
    stages = () if planted is None else (planted.stage,)
    reference, port = Path(folder) / "demo_torch.h5", Path(folder) / "demo_mlx.h5"
    options: dict[str, Any] = {"stages": stages, "seed": seed, "force": True, "progress": progress, "job": captured}
    progress("the reference: chatterbox-tts in PyTorch")
    run_recipe("torch", RECIPE, output=reference, **options)
    progress(f"the port: mlx-audio in MLX; planted: {faults()[fault]}")
    with ExitStack() as stack:
        plant = None if planted is None else lambda models: stack.enter_context(planted.planted(models))
        run_recipe("mlx", RECIPE, output=port, change=plant, random=reference, feed=str(reference), **options)
    progress(f"tracediff bisect {reference} {port}")
    return api.bisect(reference, port)
