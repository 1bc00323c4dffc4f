"""The reference voice and the text in MLX: the front end of mlx-audio 0.6.2's Chatterbox, step by step and as a whole."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import chatterbox_shared as shared
import chatterbox_voice as voice

import tracediff as td

METHODS = ["s3_tokenizer:quantize"]


def run(models: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Runs the wanted steps of the voice, each on its own inputs, then the whole from file to conditionals; then the text."""
    return voice.run(_STEPS, conditionals, _run_text, models, context)


# --- the steps ---


def _run_resample(models: Mapping[str, Any], context: Any) -> Any:
    """The recording decoded from a file of 32 bits; from one of 16 resampled as `prepare_conditionals` and `embed_ref` do it.

    In `embed_ref` everything but the resampling stands aside.
    """
    import mlx.core as mx
    from mlx_audio.tts.models.chatterbox import chatterbox
    from mlx_audio.tts.models.chatterbox.s3gen import s3gen

    given = {name: td.tap(name, value) for name, value in voice.source(context, "voice.resample").items()}
    fine = td.tap("fine", voice.fine_source(context, "voice.resample")["fine"])
    with voice.file_of(fine, given["rate"], bits=32) as path:
        decoded = td.tap("decoded", chatterbox.load_audio(path, sample_rate=int(given["rate"])))
    with voice.file_of(given["source"], given["rate"]) as path:
        wave = td.tap("wav_24k", chatterbox.load_audio(path, sample_rate=voice.RATE_S3GEN))
    whole = td.tap("wav_16k", chatterbox.resample_audio(wave, voice.RATE_S3GEN, voice.RATE_S3))
    heard: list[Any] = []
    with (
        shared.attribute(s3gen, "mel_spectrogram", lambda wav, **_: mx.zeros((1, 80, 2))),
        shared.attribute(models["s3gen"].speaker_encoder, "inference", heard.append),
    ):
        models["s3gen"].embed_ref(mx.array(wave)[None], voice.RATE_S3GEN, mx.zeros((1, 1), mx.int32), mx.array([1]))
    return decoded, wave, whole, td.tap("prompt_16k", heard[0])


def _run_mel(models: Mapping[str, Any], context: Any) -> Any:
    from mlx_audio.tts.models.chatterbox.s3gen import mel, s3gen

    given = _arrays(voice.wave(context, "voice.mel", "wav_24k", voice.RATE_S3GEN))
    with voice.tapped(mel, "stft", "prompt_stft"), voice.tapped(mel, "mel_filters", "prompt_filters"):
        return td.tap("prompt_feat", s3gen.mel_spectrogram(given["wav_24k"]).swapaxes(1, 2))


def _run_tokenizer(models: Mapping[str, Any], context: Any) -> Any:
    import mlx.core as mx
    from mlx_audio.tts.models.chatterbox.s3tokenizer import log_mel_spectrogram, utils

    wave = _arrays(voice.wave(context, "voice.tokenizer", "wav_16k", voice.RATE_S3))["wav_16k"]
    with voice.tapped(utils, "mel_filters", "log_mel_filters"), voice.tapped(utils, "stft", "log_mel_stft"):
        mel = td.tap("log_mel", log_mel_spectrogram(wave[0]))
    tokens, counts = models["s3_tokenizer"].quantize(mel[None], mx.array([mel.shape[1]]))
    return td.tap("tokens", tokens), td.tap("token_counts", counts)


def _run_xvector(models: Mapping[str, Any], context: Any) -> Any:
    import mlx.core as mx
    from mlx_audio.tts.models.chatterbox.s3gen import xvector

    wave = _arrays(voice.wave(context, "voice.xvector", "wav_16k", voice.RATE_S3))["wav_16k"]
    with (
        voice.tapped(mx.fft, "rfft", "fbank_fft"),
        voice.tapped(xvector, "mel_filters", "fbank_filters"),
        voice.tapped(xvector, "kaldi_fbank", "fbank"),
    ):
        return td.tap("x_vector", models["s3gen"].speaker_encoder.inference(wave))


def _run_trim(models: Mapping[str, Any], context: Any) -> Any:
    """What `embeds_from_wavs` leaves of the voice before its mel; what comes after stands aside."""
    import mlx.core as mx
    from mlx_audio.tts.models.chatterbox.voice_encoder import voice_encoder

    encoder = models["ve"]
    wave = td.tap("wav_16k", voice.wave(context, "voice.trim", "wav_16k", voice.RATE_S3)["wav_16k"])[0]
    heard: list[Any] = []
    with shared.attribute(encoder, "embeds_from_mels", lambda mels, **_: None), voice.heard(voice_encoder, "melspectrogram", heard):
        encoder.embeds_from_wavs([mx.array(wave)], sample_rate=voice.RATE_S3)
    return td.tap("trimmed", heard[0])


def _run_encoder(models: Mapping[str, Any], context: Any) -> Any:
    """Mel, partial utterances and embedding of a voice from which nothing is cut off."""
    import mlx.core as mx
    from mlx_audio.tts.models.chatterbox.voice_encoder import melspec, voice_encoder

    wave = td.tap("speech", voice.wave(context, "voice.encoder", "speech", voice.RATE_S3)["speech"])[0]
    with (
        voice.tapped(melspec, "stft", "encoder_stft"),
        voice.tapped(melspec, "mel_filters", "encoder_filters"),
        voice.tapped(voice_encoder, "melspectrogram", "encoder_mel"),
    ):
        return td.tap("speaker_emb", models["ve"].embeds_from_wavs([mx.array(wave)], sample_rate=voice.RATE_S3, trim_top_db=None))


def conditionals(models: Mapping[str, Any], context: Any, path: str) -> dict[str, Any]:
    """The conditionals that `Model.prepare_conditionals` makes of a voice, each tapped by its name."""
    made = speaker(models, context).prepare_conditionals(path, voice.RATE_S3GEN, exaggeration=0.5)
    return voice.tapped_conditionals(made.t3, made.gen)


def speaker(models: Mapping[str, Any], context: Any) -> Any:
    """A `Model` of the given parts; its limits are those of the sizes. The waves of which it prepares conditionals are tapped."""
    from mlx_audio.tts.models.chatterbox import chatterbox

    class Model(chatterbox.Model):  # type: ignore[misc]
        def prepare_conditionals(self, *args: Any, **kwargs: Any) -> Any:
            with _waves():
                return super().prepare_conditionals(*args, **kwargs)

    front = voice.front_of(context)
    t3 = types.SimpleNamespace(hp=types.SimpleNamespace(speech_cond_prompt_len=front.prompt_tokens))
    with shared.attribute(chatterbox, "S3TokenizerV2", lambda *_: models["s3_tokenizer"]):
        made = Model(t3, models["s3gen"], models["ve"])
    made.ENC_COND_LEN = round(front.encoder_limit * voice.RATE_S3)
    made.DEC_COND_LEN = round(front.decoder_limit * voice.RATE_S3GEN)
    return made


@contextlib.contextmanager
def _waves() -> Iterator[None]:
    """For a while the waves are tapped: ``wav_24k`` as loaded, ``wav_16k`` resampled from it, ``prompt_16k`` from what is left of it."""
    from mlx_audio.tts.models.chatterbox import chatterbox

    load, resample = chatterbox.load_audio, chatterbox.resample_audio
    loaded: list[Any] = []

    def loading(*args: Any, **kwargs: Any) -> Any:
        loaded.append(td.tap("wav_24k", load(*args, **kwargs)))
        return loaded[-1]

    def resampling(wave: Any, *rates: Any) -> Any:
        return td.tap("wav_16k" if any(wave is whole for whole in loaded) else "prompt_16k", resample(wave, *rates))

    with shared.attribute(chatterbox, "load_audio", loading), shared.attribute(chatterbox, "resample_audio", resampling):
        yield


def _run_text(models: Mapping[str, Any], context: Any) -> Any:
    from mlx_audio.tts.models.chatterbox import chatterbox

    return voice.run_text(chatterbox.punc_norm, models["text"].tokenizer.text_to_tokens, context)


_STEPS: dict[str, Callable[[Mapping[str, Any], Any], Any]] = {
    "voice.resample": _run_resample,
    "voice.mel": _run_mel,
    "voice.tokenizer": _run_tokenizer,
    "voice.xvector": _run_xvector,
    "voice.trim": _run_trim,
    "voice.encoder": _run_encoder,
}


def _arrays(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """NumPy inputs as arrays, each tapped by its name."""
    import mlx.core as mx

    return {name: td.tap(name, mx.array(value)) for name, value in inputs.items()}


# --- the models ---


def classes(front: voice.Front | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """With what arguments the front end's classes are built, those of `chatterbox` and of `s3gen`; None leaves a part out."""
    if front is None:
        return {"VoiceEncoder": None, "S3TokenizerV2": None}, {"CAMPPlus": None}
    from mlx_audio.tts.models.chatterbox.s3tokenizer import ModelConfig
    from mlx_audio.tts.models.chatterbox.voice_encoder import VoiceEncConfig

    hp = VoiceEncConfig() if front.hidden is None else VoiceEncConfig(ve_hidden_size=front.hidden)
    return {"VoiceEncoder": {"hp": hp}, "S3TokenizerV2": {"config": ModelConfig(**front.tokenizer)}}, {"CAMPPlus": front.speaker}


def load_tokenizer(tokenizer: Any, weights: Mapping[str, Any]) -> None:
    """Gives the S3 tokenizer the reference's weights, as the port's `post_load_hook` does with a file."""
    tokenizer.load_weights(list(tokenizer.sanitize(weights).items()), strict=False)


def build_text(context: Any) -> Any:
    """A module that holds the port's tokenizer."""
    import mlx.nn as nn
    from mlx_audio.tts.models.chatterbox.tokenizer import EnTokenizer

    text = nn.Module()
    text.tokenizer = EnTokenizer(voice.tokenizer_file(context))
    return text
