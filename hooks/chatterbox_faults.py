"""Faults for the real port, each as a porter makes it: wrong code or wrong weights, planted in loaded models before a run.

`FAULTS` names them, in the order of the stages; `chatterbox_faults.toml` holds them. Each says where it truly is, so that a demonstration,
the tests and `benchmarks/chatterbox_faults.py` can tell whether it was found. `planted` plants some for as long as a block of code runs.
"""

from __future__ import annotations

import tomllib
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chatterbox_mends
import chatterbox_shared

from tracediff.runs import planting

TABLE = Path(__file__).with_name("chatterbox_faults.toml")
mended = chatterbox_mends.mended


@dataclass(frozen=True, kw_only=True)
class Fault(planting.Fault):
    """One fault: what is announced, the stage that shows it, and the module to blame in the reference, too ("" is the root).

    ``site``: the reference's site at which it is seen, where a path alone says little, as of what the root itself computes. ``spread``:
    the port's module within which others are wrong too, where the fault is in several.
    """

    announcement: str
    stage: str
    reference: str
    site: str = ""
    spread: str | None = None


def planted(models: chatterbox_mends.Models, *names: str) -> AbstractContextManager[None]:
    """The models with the faults of these names; afterwards they and the package are what they were. KeyError for an unknown name."""
    return planting.planted(models, *(FAULTS[name] for name in names))


def unloaded_block(models: chatterbox_mends.Models, undo: ExitStack) -> None:
    """The first conformer block has what a constructor draws."""
    import mlx.core as mx
    from mlx.utils import tree_map_with_path

    def initial(path: str, values: Any) -> Any:
        if path.endswith("bias"):
            return mx.zeros_like(values)
        if values.ndim == 1:
            return mx.ones_like(values)
        return mx.random.uniform(-1.0, 1.0, values.shape, key=mx.random.key(len(path))) * values.shape[-1] ** -0.5

    block = planting.module_at(models, "s3gen.flow.encoder.encoders_0")
    block.update(tree_map_with_path(initial, block.parameters()))


CODE = {"unloaded_block": unloaded_block}


def _change(entry: dict[str, Any], port: str) -> planting.Change:
    """The changes of an entry as one."""
    changes = [CODE[entry["code"]]] if "code" in entry else planting.changes_of({"at": port, **entry})

    def change(models: chatterbox_mends.Models, undo: ExitStack) -> None:
        for one in changes:
            one(models, undo)

    return change


def _fault(name: str, stage: str, entry: dict[str, Any]) -> Fault:
    reference, port = chatterbox_shared.culprits(entry)
    kind, *also = entry["kinds"]
    facts = {key: entry[key] for key in ("announcement", "site", "spread") if key in entry}
    return Fault(name, kind, port, _change(entry, port), tuple(also), stage=stage, reference=reference, **facts)


FAULTS = {
    name: _fault(name, stage, entry)
    for stage, entries in tomllib.loads(TABLE.read_text(encoding="utf-8")).items()
    for name, entry in entries.items()
}
