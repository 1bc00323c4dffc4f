"""The reference voice and the text of the Chatterbox recipes: what both sides share, without a framework.

The voice is made from the seed (harmonics of a gliding fundamental under moving formants, syllables, breath, quiet ends), or read from
the WAV file that the environment variable CHATTERBOX_VOICE names. The tokenizer is a small byte-pair encoding that was trained on the
sentences below: `train_tokenizer` makes `chatterbox_tokenizer.json` again.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chatterbox_shared as shared
import numpy as np

import tracediff as td

Work = Callable[[Mapping[str, Any], Any], Any]
Conditionals = Callable[[Mapping[str, Any], Any, str], Any]

IN_FLOAT32 = ("tokenizer", "speaker_encoder")
"""Parts of S3Gen that stay in float32 whatever the dtype, as the reference feeds them float32."""

RATE = 44_100
RATE_S3GEN, RATE_S3 = 24_000, 16_000
VOICE = "CHATTERBOX_VOICE"
TOKENIZER = Path(__file__).with_name("chatterbox_tokenizer.json")


@dataclass(frozen=True)
class Front:
    """The sizes of the voice front end: seconds of voice, limits of the conditioning (seconds), and constructor arguments.

    ``tokenizer``: fields of the S3 tokenizer's configuration; its heads are 64 wide whatever its width. ``speaker``: arguments of
    CAMPPlus. ``hidden``: width of the voice encoder's LSTM. Empty or None keeps a class's own size.
    """

    seconds: float
    encoder_limit: float
    decoder_limit: float
    tokenizer: dict[str, int]
    speaker: dict[str, int]
    hidden: int | None

    @property
    def prompt_tokens(self) -> int:
        """How many speech tokens T3 is given at most: 25 a second."""
        return round(25 * self.encoder_limit)


# The prompt has an odd number of mel frames, so that it must be cut to whole tokens; the last pooled segment of CAMPPlus is partial.
SMALL = Front(
    seconds=3.3,
    encoder_limit=2.0,
    decoder_limit=2.9,
    tokenizer={"n_audio_state": 192, "n_audio_head": 3, "n_audio_layer": 2},
    speaker={"growth_rate": 8, "bn_size": 2, "init_channels": 40},
    hidden=48,
)
FULL = Front(seconds=11.0, encoder_limit=6.0, decoder_limit=10.0, tokenizer={}, speaker={}, hidden=None)


def front_of(context: Any) -> Front:
    """The sizes of the front end that ``--weights`` asks for."""
    return SMALL if shared.size_of(context) is shared.SMALL else FULL


# --- the voice ---


def speak(generator: np.random.Generator, seconds: float, rate: int) -> np.ndarray:
    """A voice-like wave (samples,), float32 within -1 and 1, each sample a multiple of 2 ** -15, quiet for 0.2 seconds at both ends."""
    time = np.arange(round(seconds * rate)) / rate
    pitch = generator.uniform(105, 135) * (1 + 0.1 * np.sin(2 * np.pi * (generator.uniform(0.4, 0.8) * time + generator.uniform())))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    formants = [_glide(generator, time, low, high) for low, high in ((350, 800), (1000, 2000), (2300, 3000))]
    voiced = sum(_loudness(k * pitch, formants) * np.sin(k * phase) for k in range(1, 40))
    breath = np.diff(generator.standard_normal(len(time) + 1))
    wave = _syllables(generator, time) * (0.2 * voiced + 0.01 * breath) + 2e-4 * generator.standard_normal(len(time))
    return (np.round(np.clip(wave, -0.99, 0.99) * 2**15) / 2**15).astype(np.float32)


def _glide(generator: np.random.Generator, time: np.ndarray, low: float, high: float) -> np.ndarray:
    """A frequency (Hz) that wanders between two."""
    turns = generator.uniform(0.8, 1.6) * time + generator.uniform()
    return low + (high - low) * (0.5 + 0.5 * np.sin(2 * np.pi * turns))


def _loudness(frequency: np.ndarray, formants: list[np.ndarray]) -> np.ndarray:
    """How loud a harmonic is: resonances 120 Hz wide, each formant weaker than the one before, nothing above 10 kHz."""
    resonances = sum(1 / (number + 1) / (1 + ((frequency - formant) / 120) ** 2) for number, formant in enumerate(formants))
    return np.where(frequency < 10_000, resonances + 20 / (frequency + 200), 0.0)


def _syllables(generator: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """The loudness over time: about four syllables a second, a pause in the middle, quiet at both ends."""
    end = time[-1]
    beats = 0.15 + 0.85 * np.sin(np.pi * (3.7 + generator.uniform(-0.3, 0.3)) * time) ** 2
    pause = np.where(abs(time - 0.55 * end) < 0.12, 0.02, 1.0)
    inside = np.clip(np.minimum(time - 0.2, end - 0.2 - time) / 0.03, 0, 1)
    return beats * pause * inside


def source(context: Any, stage: str) -> dict[str, Any]:
    """The voice as recorded (samples,) and its rate (samples a second): the file that CHATTERBOX_VOICE names, or one from the seed."""
    rate = context.array(stage, "rate", lambda g: np.array(_recorded()[1] if VOICE in os.environ else RATE))
    seconds = front_of(context).seconds
    return {
        "source": context.array(stage, "source", lambda g: _recorded()[0] if VOICE in os.environ else speak(g, seconds, RATE)),
        "rate": rate,
    }


def fine_source(context: Any, stage: str) -> dict[str, Any]:
    """A short voice with samples finer than 16 bits (samples,), as a recording of 24 bits has them."""
    return {"fine": context.array(stage, "fine", lambda g: speak(g, 0.75, RATE) * np.float32(0.61))}


def wave(context: Any, stage: str, name: str, rate: int, *, seconds: float | None = None) -> dict[str, np.ndarray]:
    """A voice (1, samples) at a rate, as an input of its own for one of the steps."""
    length = front_of(context).decoder_limit if seconds is None else seconds
    return {name: context.array(stage, name, lambda g: speak(g, length, rate)[None])}


def _recorded() -> tuple[np.ndarray, int]:
    """The first channel (samples,) and the rate of the file that CHATTERBOX_VOICE names."""
    from scipy.io import wavfile

    rate, values = wavfile.read(os.environ[VOICE])
    values = values if values.ndim == 1 else values[:, 0]
    scale = 1.0 if values.dtype.kind == "f" else 1 / (np.iinfo(values.dtype).max + 1)
    return (values * scale).astype(np.float32), int(rate)


@contextlib.contextmanager
def file_of(samples: Any, rate: Any, *, bits: int = 16) -> Iterator[str]:
    """For a while a WAV file with these samples: integers of 16 bits, or floats of 32."""
    from scipy.io import wavfile

    values = np.asarray(samples, np.float32)
    stored = np.clip(np.round(values * 2**15), -(2**15), 2**15 - 1).astype(np.int16) if bits == 16 else values
    with tempfile.TemporaryDirectory(prefix="tracediff-") as folder:
        path = Path(folder) / "voice.wav"
        wavfile.write(path, int(rate), stored)
        yield os.fspath(path)


# --- the text ---

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "lower case at the start, and no full stop at the end",
    "“Hello,” she said … it’s ‘only’ a test",
    "Wait... what — really?  Two   spaces; one colon: done!",
    "Ünïcödé naïve café – déjà vu, 你好，",
    "",
)
"""Straight and typographic quotes, ellipses, dashes, spaces, letters beyond ASCII, foreign marks at the end, nothing at all."""

CORPUS = (
    "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs!",
    "She sells sea shells by the sea shore; the shells she sells are surely sea shells.",
    "How much wood would a woodchuck chuck, if a woodchuck could chuck wood?",
    "It's only a test: nobody said that \"hello\" was the hardest word to say, and it isn't.",
    "You need to add some text for me to talk. Two spaces, one colon, and no full stop at the end",
    "We hold that the first voice heard in the morning is the one remembered in the evening.",
    "A reader should find each of those steps in one file, with the word for it as its name.",
    "In the beginning there was the wave - and the wave was sampled, and the samples were quantised.",
    "Where do they first part, and why? Ask again when the last of them has spoken, really.",
    "Lower case, UPPER CASE, Title Case, numbers 0 1 2 3 4 5 6 7 8 9, and (brackets) too.",
)

SPECIAL = ("[STOP]", "[UNK]", "[SPACE]", "[PAD]", "[SEP]", "[CLS]", "[MASK]", "[START]")


def train_tokenizer() -> str:
    """The tokenizer as the text of a tokenizer.json: byte-pair encoding over the corpus, up to 320 tokens, spaces as ``[SPACE]``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return str(tokenizer.to_str(pretty=True)) + "\n"


def tokenizer_file(context: Any) -> Path:
    """The tokenizer.json of the checkpoint, or the project's own small one."""
    own = Path(context.weights) / "tokenizer.json"
    return own if own.is_file() else TOKENIZER


def run(steps: Mapping[str, Work], conditionals: Conditionals, text: Work, models: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Runs the wanted steps of the voice, then the whole of it, inside the stage ``voice``; then the text. Returns what each gave."""
    given: dict[str, Any] = {}
    wanted = {stage: work for stage, work in steps.items() if context.wants(stage)}
    if wanted or context.wants("voice"):
        with td.stage("voice"):
            for stage, work in wanted.items():
                with td.stage(stage):
                    given[stage] = work(models, context)
            if context.wants("voice"):
                given["voice"] = run_voice(conditionals, models, context)
    if context.wants("text"):
        with td.stage("text"):
            given["text"] = text(models, context)
    return given


def texts(context: Any) -> dict[str, str]:
    """The texts, each by the name of its tap."""
    return {f"text_{number}": context.array("text", f"text_{number}", lambda g, text=text: text) for number, text in enumerate(TEXTS)}


def run_voice(conditionals: Conditionals, models: Mapping[str, Any], context: Any) -> Any:
    """A side's `prepare_conditionals`, from a file of 16 bits."""
    given = {name: td.tap(name, value) for name, value in source(context, "voice").items()}
    with file_of(given["source"], given["rate"]) as path:
        return conditionals(models, context, path)


def tapped_conditionals(t3: Any, gen: Mapping[str, Any]) -> dict[str, Any]:
    """What T3 and S3Gen are given of a voice, each tapped by its name."""
    named = {
        "speaker_emb": t3.speaker_emb,
        "cond_prompt_speech_tokens": t3.cond_prompt_speech_tokens,
        **{name: gen[name] for name in ("prompt_token", "prompt_token_len", "prompt_feat", "embedding")},
    }
    return {name: td.tap(name, value) for name, value in named.items()}


def run_text(normalise: Callable[[str], str], tokens_of: Callable[[str], Any], context: Any) -> list[Any]:
    """Each text normalised, and its tokens; all of it is tapped."""
    given = []
    for name, text in texts(context).items():
        normalised = td.tap(name.replace("text", "normalised"), normalise(td.tap(name, text)))
        given.append(td.tap(name.replace("text", "ids"), tokens_of(normalised)))
    return given


@contextlib.contextmanager
def tapped(owner: Any, name: str, tap: str, *, as_seen: Callable[[Any], Any] | None = None) -> Iterator[None]:
    """For a while what a function returns is tapped; ``as_seen`` makes of it what the other side has, for the tap alone."""
    original = getattr(owner, name)

    def function(*args: Any, **kwargs: Any) -> Any:
        value = original(*args, **kwargs)
        if as_seen is None:
            return td.tap(tap, value)
        td.tap(tap, as_seen(value))
        return value

    with shared.attribute(owner, name, function):
        yield


@contextlib.contextmanager
def heard(owner: Any, name: str, kept: list[Any]) -> Iterator[None]:
    """For a while the first argument of a function's calls is kept."""
    original = getattr(owner, name)

    def function(first: Any, *args: Any, **kwargs: Any) -> Any:
        kept.append(first)
        return original(first, *args, **kwargs)

    with shared.attribute(owner, name, function):
        yield
