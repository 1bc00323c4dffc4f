"""What departs from the reference in the second port, chatterbox-mlx, each with the one change that mends it, made at run time.

As `chatterbox_mends`, whose words and means these are: `MENDS` names them, `chatterbox-mlx_mends.toml` holds them, and `mended` makes them
for as long as a block of code runs.
"""

from __future__ import annotations

import importlib
import tomllib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import chatterbox_mends as first

S3GEN = "chatterbox.models.s3gen_mlx"
TABLE = Path(__file__).with_name("chatterbox-mlx_mends.toml")


def filters_of_htk(models: first.Models, undo: ExitStack) -> None:
    """The mel has librosa's filters."""
    librosa = importlib.import_module("librosa")

    def filters(sr: int, n_fft: int, n_mels: int, fmin: float, fmax: float) -> Any:
        return librosa.filters.mel(sr=sr, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax)

    undo.enter_context(first.shared.attribute(importlib.import_module(f"{S3GEN}.utils.mel_mlx"), "_mel_filterbank", filters))


ENTRIES = {
    name: {**first.ENTRIES.get(entry.get("like", ""), {}), **entry}
    for name, entry in tomllib.loads(TABLE.read_text(encoding="utf-8")).items()
}
MENDS = first.mends_of_table(ENTRIES, {"filters_of_htk": filters_of_htk})
mended = first.mending(MENDS)
