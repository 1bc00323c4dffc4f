"""The reference voice and the text in PyTorch: the front end of chatterbox-tts 0.1.7, step by step and as a whole."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import chatterbox_shared as shared
import chatterbox_voice as voice

import tracediff as td

METHODS = ["s3gen.tokenizer:quantize"]


def run(models: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Runs the wanted steps of the voice, each on its own inputs, then the whole from file to conditionals; then the text."""
    return voice.run(_STEPS, conditionals, _run_text, models, context)


# --- the steps ---


def _run_resample(models: Mapping[str, Any], context: Any) -> Any:
    """The recording decoded from a file of 32 bits; from one of 16 resampled as `prepare_conditionals` and `embed_ref` do it.

    In `embed_ref` everything but the resampling stands aside.
    """
    import librosa
    import torch

    given = {name: td.tap(name, value) for name, value in voice.source(context, "voice.resample").items()}
    fine = td.tap("fine", voice.fine_source(context, "voice.resample")["fine"])
    with voice.file_of(fine, given["rate"], bits=32) as path:
        decoded = td.tap("decoded", librosa.load(path, sr=None)[0])
    with voice.file_of(given["source"], given["rate"]) as path:
        wave = td.tap("wav_24k", librosa.load(path, sr=voice.RATE_S3GEN)[0])
    whole = td.tap("wav_16k", librosa.resample(wave, orig_sr=voice.RATE_S3GEN, target_sr=voice.RATE_S3))
    heard: list[Any] = []
    s3gen = models["s3gen"]
    with (
        shared.attribute(s3gen, "mel_extractor", lambda wav: torch.zeros(1, 80, 2)),
        shared.attribute(s3gen.speaker_encoder, "inference", heard.append),
        shared.attribute(s3gen.tokenizer, "forward", lambda wav: (torch.zeros(1, 1, dtype=torch.long), torch.ones(1, dtype=torch.long))),
    ):
        s3gen.embed_ref(wave, voice.RATE_S3GEN, device="cpu")
    return decoded, wave, whole, td.tap("prompt_16k", heard[0])


def _run_mel(models: Mapping[str, Any], context: Any) -> Any:
    import torch
    from chatterbox.models.s3gen.utils import mel

    given = _tensors(voice.wave(context, "voice.mel", "wav_24k", voice.RATE_S3GEN))
    with voice.tapped(torch, "stft", "prompt_stft"):
        prompt = td.tap("prompt_feat", models["s3gen"].mel_extractor(given["wav_24k"]).transpose(1, 2))
    td.tap("prompt_filters", mel.mel_basis["8000_cpu"])
    return prompt


def _run_tokenizer(models: Mapping[str, Any], context: Any) -> Any:
    import torch

    tokenizer = models["s3gen"].tokenizer
    wave = _tensors(voice.wave(context, "voice.tokenizer", "wav_16k", voice.RATE_S3))["wav_16k"]
    td.tap("log_mel_filters", tokenizer._mel_filters)
    with voice.tapped(torch, "stft", "log_mel_stft"):
        mel = td.tap("log_mel", tokenizer.log_mel_spectrogram(wave)[0])
    tokens, counts = tokenizer.quantize(mel[None], torch.tensor([mel.shape[1]]))
    return td.tap("tokens", tokens), td.tap("token_counts", counts)


def _run_xvector(models: Mapping[str, Any], context: Any) -> Any:
    import torch
    from chatterbox.models.s3gen import xvector

    wave = _tensors(voice.wave(context, "voice.xvector", "wav_16k", voice.RATE_S3))["wav_16k"]
    with (
        voice.tapped(torch.fft, "rfft", "fbank_fft"),
        voice.tapped(xvector.Kaldi, "get_mel_banks", "fbank_filters", as_seen=_with_nyquist),
        voice.tapped(xvector.Kaldi, "fbank", "fbank"),
    ):
        return td.tap("x_vector", models["s3gen"].speaker_encoder.inference(wave))


def _run_trim(models: Mapping[str, Any], context: Any) -> Any:
    """What `embeds_from_wavs` leaves of the voice before its mel; what comes after stands aside."""
    from chatterbox.models.voice_encoder import voice_encoder

    encoder = models["ve"]
    wave = td.tap("wav_16k", voice.wave(context, "voice.trim", "wav_16k", voice.RATE_S3)["wav_16k"])[0]
    heard: list[Any] = []
    with shared.attribute(encoder, "embeds_from_mels", lambda mels, **_: None), voice.heard(voice_encoder, "melspectrogram", heard):
        encoder.embeds_from_wavs([wave], sample_rate=voice.RATE_S3)
    return td.tap("trimmed", heard[0])


def _run_encoder(models: Mapping[str, Any], context: Any) -> Any:
    """Mel, partial utterances and embedding of a voice from which nothing is cut off."""
    from chatterbox.models.voice_encoder import melspec, voice_encoder

    wave = td.tap("speech", voice.wave(context, "voice.encoder", "speech", voice.RATE_S3)["speech"])[0]
    with (
        voice.tapped(melspec, "_stft", "encoder_stft"),
        voice.tapped(melspec, "mel_basis", "encoder_filters"),
        voice.tapped(voice_encoder, "melspectrogram", "encoder_mel"),
    ):
        return td.tap("speaker_emb", models["ve"].embeds_from_wavs([wave], sample_rate=voice.RATE_S3, trim_top_db=None))


def conditionals(models: Mapping[str, Any], context: Any, path: str) -> dict[str, Any]:
    """The conditionals that `ChatterboxTTS.prepare_conditionals` makes of a voice, each tapped by its name."""
    tts = speaker(models, context)
    tts.prepare_conditionals(path, exaggeration=0.5)
    return voice.tapped_conditionals(tts.conds.t3, tts.conds.gen)


def speaker(models: Mapping[str, Any], context: Any) -> Any:
    """A `ChatterboxTTS` of the given models, without watermark and tokenizer; its limits are those of the sizes.

    The waves of which it prepares conditionals are tapped, since all that is made of them is made by code that is no module's.
    """
    tts = imported("chatterbox.tts")
    front = voice.front_of(context)
    made = object.__new__(tts.ChatterboxTTS)
    made.s3gen, made.ve, made.device = models["s3gen"], models["ve"], "cpu"
    made.t3 = types.SimpleNamespace(hp=types.SimpleNamespace(speech_cond_prompt_len=front.prompt_tokens))
    made.ENC_COND_LEN = round(front.encoder_limit * voice.RATE_S3)
    made.DEC_COND_LEN = round(front.decoder_limit * voice.RATE_S3GEN)
    made.prepare_conditionals = _with_waves(made.prepare_conditionals)
    return made


def _with_waves(prepare: Callable[..., None]) -> Callable[..., None]:
    """`prepare_conditionals` with the waves tapped: ``wav_24k`` as loaded, ``wav_16k`` resampled from it."""
    import librosa

    load = librosa.load

    def loading(*args: Any, **kwargs: Any) -> Any:
        wave, rate = load(*args, **kwargs)
        return td.tap("wav_24k", wave), rate

    def prepared(*args: Any, **kwargs: Any) -> None:
        with shared.attribute(librosa, "load", loading), voice.tapped(librosa, "resample", "wav_16k"):
            prepare(*args, **kwargs)

    return prepared


def _run_text(models: Mapping[str, Any], context: Any) -> Any:
    return voice.run_text(imported("chatterbox.tts").punc_norm, models["text"].tokenizer.text_to_tokens, context)


_STEPS: dict[str, Callable[[Mapping[str, Any], Any], Any]] = {
    "voice.resample": _run_resample,
    "voice.mel": _run_mel,
    "voice.tokenizer": _run_tokenizer,
    "voice.xvector": _run_xvector,
    "voice.trim": _run_trim,
    "voice.encoder": _run_encoder,
}


def _tensors(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """NumPy inputs as tensors, each tapped by its name."""
    import torch

    return {name: td.tap(name, torch.from_numpy(array)) for name, array in arrays.items()}


def _with_nyquist(banks: Any) -> Any:
    """Kaldi's filters with a column of zeros for the highest frequency, as `fbank` appends it."""
    import torch

    return torch.nn.functional.pad(banks[0], (0, 1))


# --- the models ---


@contextlib.contextmanager
def tokenizer_sizes(front: voice.Front) -> Iterator[None]:
    """For a while S3 tokenisers are built at the given sizes: their constructor hands no configuration on, so its default is changed."""
    from s3tokenizer.model_v2 import S3TokenizerV2

    config = S3TokenizerV2.__init__.__defaults__[0]
    before = {name: getattr(config, name) for name in front.tokenizer}
    vars(config).update(front.tokenizer)
    try:
        yield
    finally:
        vars(config).update(before)


def build_voice_encoder(front: voice.Front) -> Any:
    """The voice encoder at the given sizes, through its own constructor."""
    from chatterbox.models.voice_encoder import VoiceEncConfig, VoiceEncoder

    hp = VoiceEncConfig()
    if front.hidden is not None:
        hp.ve_hidden_size = front.hidden
    return VoiceEncoder(hp)


def build_text(context: Any) -> Any:
    """A module that holds the reference's tokenizer."""
    import torch

    imported("chatterbox.tts")
    from chatterbox.models.tokenizers import tokenizer

    text = torch.nn.Module()
    text.tokenizer = tokenizer.EnTokenizer(str(voice.tokenizer_file(context)))
    return text


def imported(name: str) -> Any:
    """A module of chatterbox, without its package's own import, which loads every text front end."""
    if name in sys.modules or "chatterbox" in sys.modules:
        return importlib.import_module(name)
    spec = importlib.util.find_spec("chatterbox")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("No module named 'chatterbox'", name="chatterbox")
    bare = types.ModuleType("chatterbox")
    bare.__path__ = list(spec.submodule_search_locations)
    sys.modules["chatterbox"] = bare
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules["chatterbox"]
