"""The pairs of the benchmark. Each file makes one pair (or one family), and `known` lists them all.

*Held out* are pairs that nobody looks at while tracediff is being mended: their failures are counted, never listed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

OWN = (
    *("sampler", "flow", "vocoder", "vision", "codec", "perceiver", "mixer", "graph", "duration"),
    *("chat", "translator", "detector", "classifier", "clip", "conformer", "effnet", "wavenet", "rvq", "vae"),
    *("windows", "scan", "experts", "adaln", "mels", "film", "listener", "rays", "tagger", "forecast"),
)
HELD_OUT = ("mixer", "duration", "clip", "listener", "rays", "tagger", "forecast")
PACKAGED = ("bert", "dinov2", "olmoe", "mixtral")
REAL_HELD_OUT = ("phi",)
LANGUAGE = ("granite", "glm4", "gemma3_text", "apertus")
LANGUAGE_HELD_OUT = ("cohere2", "helium", "nemotron", "ernie4_5", "seed_oss", "smollm3", "hunyuan_v1_dense")


@dataclass(frozen=True)
class Entry:
    """How a pair is made from a seed; ``make`` raises ImportError where its packages are not installed."""

    make: Callable[[int], Any]
    group: str
    held_out: bool = False


def _made(name: str, seed: int) -> Any:
    return importlib.import_module(f"benchmarks.faults.pairs.{name}").make(seed)


def _packaged(name: str, seed: int) -> Any:
    return importlib.import_module("benchmarks.faults.pairs.packaged").PAIRS[name](seed)


def _language(name: str, seed: int) -> Any:
    return importlib.import_module("benchmarks.faults.pairs.language").make(name, seed)


def known() -> dict[str, Entry]:
    """Every pair by name."""
    import pairs

    found = {name: Entry(build, "own") for name, build in pairs.PAIRS.items()}
    for name in OWN:
        found[name] = Entry(partial(_made, name), "own", name in HELD_OUT)
    from benchmarks import real_pairs

    for name, build in real_pairs.PAIRS.items():
        found[name] = Entry(build, "real", name in REAL_HELD_OUT)
    found |= {name: Entry(partial(_packaged, name), "real") for name in PACKAGED}
    found |= {name: Entry(partial(_language, name), "real", name in LANGUAGE_HELD_OUT) for name in (*LANGUAGE, *LANGUAGE_HELD_OUT)}
    return found


def selected(names: Iterable[str], groups: Iterable[str]) -> dict[str, Entry]:
    """The pairs of these names, or of these groups where none is named. Raises SystemExit for a name that is not known."""
    everything, wanted = known(), list(names)
    unknown = [name for name in wanted if name not in everything]
    if unknown:
        raise SystemExit(f"No pair {unknown[0]!r}; there are {', '.join(everything)}.")
    if wanted:
        return {name: everything[name] for name in wanted}
    return {name: entry for name, entry in everything.items() if ("held-out" if entry.held_out else entry.group) in set(groups)}
