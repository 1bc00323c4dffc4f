"""What departs from the reference in the shipped port, each with the one change that mends it, made at run time.

`MENDS` names them; `chatterbox_mends.toml` holds them. A mend says where the two packages differ (file and line of both, with the code
that stands there), at which sites the difference shows, and whether it is a mistake or a choice. `mended` makes the change in the installed
port for as long as a block of code runs, so that a capture inside shows those sites at their noise floor.
"""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import chatterbox_shared as shared

from tracediff.runs.planting import Change, Edit, Place, changed, changes_of, place_of

Models = Mapping[str, Any]
PORT = "mlx_audio.tts.models.chatterbox"
TABLE = Path(__file__).with_name("chatterbox_mends.toml")


@dataclass(frozen=True)
class Mend:
    """One difference: where it is on both sides, its stages and sites, what it is, and the changes that take it away.

    ``sites``: stage and reference's site, or site and end. ``culprits``: module paths, reference first.
    """

    text: str
    kind: Literal["mistake", "choice"]
    reference: Place
    port: Place
    culprits: tuple[str, str]
    sites: tuple[tuple[str, str], ...]
    changes: tuple[Change, ...]


def mends_of_table(entries: Mapping[str, Any], code: Mapping[str, Change]) -> dict[str, Mend]:
    """The mends of a table; ``code``: the functions that its entries name."""
    return {
        name: Mend(
            " ".join(entry["text"].split()),
            entry["kind"],
            place_of(*entry["reference"]),
            place_of(entry["function"], entry["old"]),
            shared.culprits(entry),
            tuple((stage, site) for stage, site in entry["sites"]),
            (*changes_of(entry, needs_module=False), *(code[entry["code"]] for _ in range("code" in entry))),
        )
        for name, entry in entries.items()
    }


def mending(mends: Mapping[str, Mend]) -> Callable[..., AbstractContextManager[None]]:
    """A function of models and names: for a while the port is without these differences (all of them, where none is named)."""

    def mended(models: Models, *names: str) -> AbstractContextManager[None]:
        return changed(models, *(change for name in names or mends for change in mends[name].changes))

    return mended


def mends_of(stage: str) -> list[str]:
    """The mends that a stage needs to be clean: those that show in it or in a stage inside it; all of them for the whole."""
    if stage == shared.WHOLE:
        return list(MENDS)
    return [name for name, mend in MENDS.items() if any(f"{place}.".startswith(f"{stage}.") for place, _ in mend.sites)]


# --- what takes more than a table ---


def prompt_resampled_alike(models: Models, undo: ExitStack) -> None:
    """The prompt goes to 16 kHz through torchaudio's resampler, for its tokens and for its x-vector."""
    resampled = "mx.array(__import__('torchaudio').functional.resample({}, 24000, 16000).numpy())"
    wave = "__import__('torch').from_numpy(__import__('numpy').array({}))"
    for function, name, given, arguments in (
        ("s3gen.s3gen:S3Token2Mel.embed_ref", "ref_wav_16", "ref_wav.squeeze(0)", "ref_wav.squeeze(0), ref_sr, S3_SR"),
        ("chatterbox:Model.prepare_conditionals", "ref_wav_16k_from_24k", "ref_wav_24k", "ref_wav_24k, S3GEN_SR, S3_SR"),
    ):
        place = place_of(f"{PORT}.{function}", f"{name} = resample_audio({arguments})")
        Edit(place, f"{name} = {resampled.format(wave.format(given))}")(models, undo)


def filters_in_hertz(models: Models, undo: ExitStack) -> None:
    """The filter bank of the x-vector has Kaldi's filters."""
    undo.enter_context(shared.attribute(importlib.import_module(f"{PORT}.s3gen.xvector"), "mel_filters", _kaldi_filters))


def _kaldi_filters(*, sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float, **_: Any) -> Any:
    """Kaldi's filters (n_mels, n_fft // 2 + 1) by torchaudio: triangles on the mel scale, nothing at the highest frequency."""
    import mlx.core as mx
    import numpy as np
    from torchaudio.compliance.kaldi import get_mel_banks

    banks, _centres = get_mel_banks(n_mels, n_fft, float(sample_rate), f_min, f_max, 100.0, -500.0, 1.0)
    return mx.array(np.pad(banks.numpy(), ((0, 0), (0, 1))))


ENTRIES: dict[str, Any] = tomllib.loads(TABLE.read_text(encoding="utf-8"))
MENDS = mends_of_table(ENTRIES, {"prompt_resampled_alike": prompt_resampled_alike, "filters_in_hertz": filters_in_hertz})
mended = mending(MENDS)
