"""What departs from the reference in the shipped port, each with the one change that mends it, made at run time.

`MENDS` names them. A mend says where the two packages differ (file and line of both, with the code that stands there), at which sites
the difference shows, and whether it is a mistake or a choice; `mended` makes the change in the installed port for as long as a block of
code runs, so that a capture inside shows those sites at their noise floor. Most changes put other text into one function's source.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, Literal

import chatterbox_shared as shared

Models = Mapping[str, Any]
PORT = "mlx_audio.tts.models.chatterbox"


@dataclass(frozen=True)
class Place:
    """Some code of an installed package: a dotted module, the qualified name of a function in it, and a text in its source."""

    module: str
    function: str
    code: str

    def __str__(self) -> str:
        """The file, below its package's folder, and the line: ``chatterbox/tts.py:38``."""
        path, source = self._source()
        assert source.count(self.code) >= 1, f"{self.code!r} is not in {self.module}.{self.function}"
        root = Path(*path.parts[path.parts.index(self.module.partition(".")[0]) :])
        return f"{root.as_posix()}:{self._first_line() + source[: source.rindex(self.code)].count(chr(10))}"

    def _source(self) -> tuple[Path, str]:
        path = _file_of(self.module)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        first, last = self._span(lines)
        return path, "".join(lines[first - 1 : last])

    def _first_line(self) -> int:
        path = _file_of(self.module)
        return self._span(path.read_text(encoding="utf-8").splitlines(keepends=True))[0]

    def _span(self, lines: list[str]) -> tuple[int, int]:
        """The first and the last line of the function, read and not imported: the reference may not be importable here."""
        import ast

        body: Any = ast.parse("".join(lines)).body
        for name in self.function.split("."):
            found = next(node for node in body if getattr(node, "name", None) == name)
            body = found.body
        return found.lineno, found.end_lineno


@dataclass(frozen=True)
class Mend:
    """One difference: where it is on both sides, its stages and sites, what it is, and the change that takes it away.

    ``sites``: stage and reference's site, or site and end (``t3:inference/output``), of what the change brings back to its floor, by
    itself or with the others that show in the same stage. ``culprits``: module paths, reference first.
    """

    text: str
    kind: Literal["mistake", "choice"]
    reference: Place
    port: Place
    culprits: tuple[str, str]
    sites: tuple[tuple[str, str], ...]
    change: Callable[[Models], contextlib.AbstractContextManager[None]]


MENDS: dict[str, Mend] = {}


def _mend(text: str, **facts: Any) -> Callable[[Callable[[Models], Iterator[None]]], Any]:
    def register(change: Callable[[Models], Iterator[None]]) -> Callable[[Models], Iterator[None]]:
        MENDS[change.__name__] = Mend(" ".join(text.split()), change=contextlib.contextmanager(change), **facts)
        return change

    return register


@contextlib.contextmanager
def mended(models: Models, *names: str) -> Iterator[None]:
    """For a while the port is without these differences (all of them, where none is named). ``models``: what the recipe loaded."""
    with contextlib.ExitStack() as stack:
        for name in names or MENDS:
            stack.enter_context(MENDS[name].change(models))
        yield


def mends_of(stage: str) -> list[str]:
    """The mends that a stage needs to be clean: those that show in it or in a stage inside it; all of them for the whole."""
    if stage == shared.WHOLE:
        return list(MENDS)
    return [name for name, mend in MENDS.items() if any(f"{place}.".startswith(f"{stage}.") for place, _ in mend.sites)]


# --- how a change is made ---


def _file_of(module: str) -> Path:
    """The file of a module, found without importing it."""
    package, _, rest = module.partition(".")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    path = Path(next(iter(spec.submodule_search_locations)), *rest.split("."))
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"


@contextlib.contextmanager
def edited(place: Place, new: str, *more: tuple[str, str]) -> Iterator[None]:
    """For a while a function runs from a source in which ``new`` stands for the place's code (its last occurrence).

    The function's code object is exchanged, so that every name under which the function is known runs the edited one.
    """
    named = _named(place)
    function: FunctionType = inspect.unwrap(named)
    before = SOURCES.get(function) or textwrap.dedent(inspect.getsource(function))
    source = before[before.index("def ") :]
    for old, text in ((place.code, new), *more):
        assert old in source, f"{old!r} is not in {place.module}.{place.function}"
        head, _, tail = source.rpartition(old)
        source = head + text + tail
    space: dict[str, Any] = {}
    exec(compile(source, inspect.getfile(function), "exec"), function.__globals__, space)
    original = function.__code__
    forget = getattr(named, "cache_clear", lambda: None)
    SOURCES[function], function.__code__ = source, space[function.__name__].__code__
    forget()
    try:
        yield
    finally:
        SOURCES[function], function.__code__ = before, original
        forget()


SOURCES: dict[FunctionType, str] = {}
"""The sources of the functions that were edited, as they are now: one function may be edited twice."""


def _named(place: Place) -> Any:
    value: Any = importlib.import_module(place.module)
    for name in place.function.split("."):
        value = inspect.getattr_static(value, name)
    return value


# --- stage 0: the reference voice ---

DECODE = Place("mlx_audio.audio_io", "_read_as", "samples = np.array(decoded.samples, dtype=np.int16)")


@_mend(
    """A file is decoded to 16 bits, whatever it holds; the reference decodes to floats. Nothing is lost of a file of 16 bits.""",
    kind="choice",
    reference=Place("chatterbox.tts", "ChatterboxTTS.prepare_conditionals", "librosa.load(wav_fpath, sr=S3GEN_SR)"),
    port=DECODE,
    culprits=("", ""),
    sites=(("voice.resample", "#decoded"),),
)
def decoded_to_16_bits(models: Models) -> Iterator[None]:
    floats = 'samples = __import__("soundfile").read(miniaudio_input, dtype="float32")[0]; samples_are_normalized = True'
    with edited(DECODE, floats):
        yield


RESAMPLE = Place("mlx_audio.resample", "resample_audio_array", "up, down, fir = _polyphase_filter(orig_sample_rate, sample_rate)")
RESAMPLE_CHUNKS = Place("mlx_audio.resample", "resample_audio_chunks", RESAMPLE.code)


@_mend(
    """Another resampler: a polyphase filter with a Kaiser window (SciPy), where librosa takes soxr's "HQ".""",
    kind="choice",
    reference=Place("chatterbox.tts", "ChatterboxTTS.prepare_conditionals", "librosa.resample(s3gen_ref_wav"),
    port=RESAMPLE,
    culprits=("", ""),
    sites=(("voice.resample", "#wav_24k"), ("voice.resample", "#wav_16k")),
)
def other_resampler(models: Models) -> Iterator[None]:
    take = "return __import__('soxr').resample({}, orig_sample_rate, sample_rate, quality='HQ')"
    with (
        edited(RESAMPLE, take.format("audio")),
        edited(RESAMPLE_CHUNKS, take.format("np.concatenate([first, *chunk_iter])")),
    ):
        yield


PROMPT = Place(f"{PORT}.s3gen.s3gen", "S3Token2Mel.embed_ref", "ref_wav_16 = resample_audio(ref_wav.squeeze(0), ref_sr, S3_SR)")

PROMPT_TOKENS = Place(
    f"{PORT}.chatterbox", "Model.prepare_conditionals", "ref_wav_16k_from_24k = resample_audio(ref_wav_24k, S3GEN_SR, S3_SR)"
)


@_mend(
    """The prompt goes to 16 kHz through the same polyphase filter; the reference uses another resampler here than elsewhere,
    torchaudio's short sinc with a Hann window, whose transition band is wide. The prompt's tokens and its x-vector depend on it.""",
    kind="choice",
    reference=Place("chatterbox.models.s3gen.s3gen", "S3Token2Mel.embed_ref", "get_resampler(ref_sr, S3_SR, device)(ref_wav)"),
    port=PROMPT,
    culprits=("", ""),
    sites=(("voice.resample", "#prompt_16k"),),
)
def prompt_resampled_alike(models: Models) -> Iterator[None]:
    wave = "__import__('torch').from_numpy(__import__('numpy').array({}))"
    resampled = f"mx.array(__import__('torchaudio').functional.resample({wave}, 24000, 16000).numpy())"
    with (
        edited(PROMPT, "ref_wav_16 = " + resampled.format("ref_wav.squeeze(0)")),
        edited(PROMPT_TOKENS, "ref_wav_16k_from_24k = " + resampled.format("ref_wav_24k")),
    ):
        yield


WINDOW = Place("mlx_audio.dsp", "stft", "w = window_fn(win_length)")


@_mend(
    """The window of every Fourier transform is a symmetric Hann window; the reference's (torch and librosa) is the periodic one. The
    function knows `periodic`, and the package's own S3 front end (`codec/models/s3/utils.py`) makes the periodic window by hand.""",
    kind="mistake",
    reference=Place("chatterbox.models.s3gen.utils.mel", "mel_spectrogram", "torch.hann_window(win_size)"),
    port=WINDOW,
    culprits=("", ""),
    sites=(("voice.mel", "#prompt_stft"), ("voice.tokenizer", "#log_mel_stft"), ("voice.encoder", "#encoder_stft")),
)
def symmetric_window(models: Models) -> Iterator[None]:
    with edited(WINDOW, "w = window_fn(win_length, periodic=True)"):
        yield


FILTERS = Place("mlx_audio.dsp", "mel_filters", "if precise:")


@_mend(
    """Mel filters are computed in float32 and off by some 1e-6; librosa's are computed in float64 and then rounded. (The
    function knows `precise`, which nobody here asks for, and which halves the error.)""",
    kind="choice",
    reference=Place("chatterbox.models.s3gen.utils.mel", "mel_spectrogram", "librosa_mel_fn("),
    port=FILTERS,
    culprits=("", ""),
    sites=(("voice.mel", "#prompt_filters"), ("voice.tokenizer", "#log_mel_filters"), ("voice.encoder", "#encoder_filters")),
)
def filters_in_float32(models: Models) -> Iterator[None]:
    own = "mx.array(__import__('librosa').filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=n_mels, fmin=f_min, fmax=f_max))"
    with edited(FILTERS, f"if norm == 'slaney':\n        return {own}\n    if precise:"):
        yield


MAGNITUDE = Place(f"{PORT}.s3gen.mel", "mel_spectrogram", "magnitudes = mx.abs(spec)")


@_mend(
    """The prompt's magnitudes are `|x|`; the reference's are `sqrt(|x|**2 + 1e-9)`, which counts where it is quiet.""",
    kind="mistake",
    reference=Place("chatterbox.models.s3gen.utils.mel", "mel_spectrogram", "torch.sqrt(spec.pow(2).sum(-1) + (1e-9))"),
    port=MAGNITUDE,
    culprits=("", ""),
    sites=(("voice.mel", "#prompt_feat"),),
)
def magnitude_without_floor(models: Models) -> Iterator[None]:
    with edited(MAGNITUDE, "magnitudes = mx.sqrt(mx.real(spec) ** 2 + mx.imag(spec) ** 2 + 1e-9)"):
        yield


KALDI = Place(f"{PORT}.s3gen.xvector", "kaldi_fbank", "filters = mel_filters(")


@_mend(
    """Kaldi's filters are triangles on the mel scale; the port's are triangles in Hz between the same corners (torchaudio's other
    filter bank).""",
    kind="mistake",
    reference=Place("torchaudio.compliance.kaldi", "get_mel_banks", "torch.max(torch.zeros(1), torch.min(up_slope, down_slope))"),
    port=KALDI,
    culprits=("", ""),
    sites=(("voice.xvector", "#fbank_filters"),),
)
def filters_in_hertz(models: Models) -> Iterator[None]:
    xvector = importlib.import_module(f"{PORT}.s3gen.xvector")
    with shared.attribute(xvector, "mel_filters", _kaldi_filters):
        yield


def _kaldi_filters(*, sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float, **_: Any) -> Any:
    """Kaldi's filters (n_mels, n_fft // 2 + 1) by torchaudio: triangles on the mel scale, nothing at the highest frequency."""
    import mlx.core as mx
    import numpy as np
    from torchaudio.compliance.kaldi import get_mel_banks

    banks, _centres = get_mel_banks(n_mels, n_fft, float(sample_rate), f_min, f_max, 100.0, -500.0, 1.0)
    return mx.array(np.pad(banks.numpy(), ((0, 0), (0, 1))))


POOLING = Place(f"{PORT}.s3gen.xvector", "CAMLayer.seg_pooling", "seg = mx.mean(x_reshaped, axis=-1)")


@_mend(
    """The mean of the last segment, mostly shorter than the others, is taken over 100 frames of which some are padding; the reference
    (`ceil_mode`) divides by the frames there are. Every CAM layer of the x-vector is affected.""",
    kind="mistake",
    reference=Place("chatterbox.models.s3gen.xvector", "CAMLayer.seg_pooling", "F.avg_pool1d("),
    port=POOLING,
    culprits=("s3gen.speaker_encoder.xvector.block1.tdnnd1.cam_layer", "s3gen.speaker_encoder.blocks.0.layers.0.cam_layer"),
    sites=(("voice.xvector", "s3gen.speaker_encoder.xvector.block1.tdnnd1.cam_layer.linear1"),),
)
def padding_in_the_mean(models: Models) -> Iterator[None]:
    with edited(POOLING, "seg = mx.sum(x_reshaped, axis=-1) / mx.minimum(seg_len, T - seg_len * mx.arange(n_segs))"):
        yield


SPREAD = Place(f"{PORT}.s3gen.xvector", "statistics_pooling", "std = mx.sqrt(mx.var(x, axis=axis, keepdims=keepdim) + 1e-5)")


@_mend(
    """The standard deviation is that of the whole population, plus an epsilon; the reference's is that of a sample (divided by one
    less), without.""",
    kind="mistake",
    reference=Place("chatterbox.models.s3gen.xvector", "statistics_pooling", "x.std(dim=dim, unbiased=unbiased)"),
    port=SPREAD,
    culprits=("s3gen.speaker_encoder.xvector.stats", "s3gen.speaker_encoder.stats"),
    sites=(("voice.xvector", "s3gen.speaker_encoder.xvector.stats"),),
)
def biased_deviation(models: Models) -> Iterator[None]:
    with edited(SPREAD, "std = mx.sqrt(mx.var(x, axis=axis, keepdims=keepdim, ddof=1))"):
        yield


TRIM = Place(f"{PORT}.voice_encoder.voice_encoder", "VoiceEncoder.embeds_from_wavs", "wav_np = np.array(wav)")


@_mend(
    """Silence is cut off by frames that begin where they are counted from, and the end keeps a whole frame; librosa's are centred. What
    is left is longer by up to a frame and begins elsewhere: the whole embedding moves.""",
    kind="mistake",
    reference=Place(
        "chatterbox.models.voice_encoder.voice_encoder", "VoiceEncoder.embeds_from_wavs", "librosa.effects.trim(wav, top_db=trim_top_db)"
    ),
    port=TRIM,
    culprits=("", ""),
    sites=(("voice.trim", "#trimmed"),),
)
def trimmed_by_other_frames(models: Models) -> Iterator[None]:
    trimmed = "wav_np = __import__('librosa').effects.trim(np.array(wav), top_db=trim_top_db)[0]"
    with edited(TRIM, trimmed, ("if n_frames > 0:", "if False:")):
        yield


NORM = Place("mlx_audio.codec.models.s3.model_v2", "ResidualAttentionBlock.__init__", "self.attn_ln = nn.LayerNorm(n_state, eps=1e-6)")


@_mend(
    """The norm before attention in the S3 tokenizer has an epsilon of 1e-6; the reference's is 1e-5. Seen where a frame is quiet.""",
    kind="mistake",
    reference=Place("s3tokenizer.model_v2", "ResidualAttentionBlock.__init__", "self.attn_ln = LayerNorm(n_state, eps=1e-5)"),
    port=NORM,
    culprits=("s3gen.tokenizer.encoder.blocks.0.attn_ln", "s3_tokenizer.encoder.blocks.0.attn_ln"),
    sites=(("voice.tokenizer", "s3gen.tokenizer.encoder.blocks.0.attn_ln"),),
)
def other_norm_eps(models: Models) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for block in models["s3_tokenizer"].encoder.blocks if "s3_tokenizer" in models else ():
            stack.enter_context(shared.attribute(block.attn_ln, "eps", 1e-5))
        yield


MASK = Place("mlx_audio.codec.models.s3.model_v2", "AudioEncoderV2.__call__", "x = block(x, mask, mask_pad, self._freqs_cis)")


@_mend(
    """The attention's mask lacks the axis of the heads: with more than one wave at a time, and so with one of more than 30 seconds,
    which is cut into windows, the port raises `Shapes (2,1,73) and (2,3,73,73) cannot be broadcast`. Conditionals come from one wave
    of at most 10 seconds, so that they do not come by.""",
    kind="mistake",
    reference=Place("s3tokenizer.model_v2", "AudioEncoderV2.forward", "block(x, mask.unsqueeze(1), mask_pad, freqs_cis[:x.size(1)])"),
    port=MASK,
    culprits=("s3gen.tokenizer.encoder", "s3_tokenizer.encoder"),
    sites=(),
)
def mask_without_heads(models: Models) -> Iterator[None]:
    with edited(MASK, "x = block(x, mx.expand_dims(mask, axis=1), mask_pad, self._freqs_cis)"):
        yield


# --- stage 1: the text ---

QUOTES = Place(
    f"{PORT}.chatterbox",
    "punc_norm",
    '''        (
            """, "\\""),
        (""",
            '"',
        ),
        ("'", "'"),
        ("'", "'"),
''',
)


@_mend(
    """Typographic quotes stay as they are: a triple-quoted string swallowed the two entries for double quotes, and both entries for
    single ones map the plain apostrophe to itself. The tokenizer gets marks that it does not know.""",
    kind="mistake",
    reference=Place("chatterbox.tts", "punc_norm", '("“", "\\""),'),
    port=QUOTES,
    culprits=("", ""),
    sites=(("text", "#normalised_2"),),
)
def lost_quotes(models: Models) -> Iterator[None]:
    table = '("\\u201c", \'"\'), ("\\u201d", \'"\'), ("\\u2018", "\'"), ("\\u2019", "\'"),\n'
    with edited(QUOTES, "        " + table):
        yield


ENDERS = Place(f"{PORT}.chatterbox", "punc_norm", '"、", "，", "。", "？", "！"')


@_mend(
    """Chinese and Japanese marks end a sentence too, so that no full stop is added after one. The reference adds it in its English
    model; its multilingual one has such marks as well.""",
    kind="choice",
    reference=Place("chatterbox.tts", "punc_norm", 'sentence_enders = {".", "!", "?", "-", ","}'),
    port=ENDERS,
    culprits=("", ""),
    sites=(("text", "#normalised_4"),),
)
def more_sentence_enders(models: Models) -> Iterator[None]:
    with edited(ENDERS, ""):
        yield


# --- stage 4: token generation ---

ORDER = Place("mlx_audio.lm.sample_utils", "make_sampler", "return categorical_sampling(logprobs, temp)")
PROBABILITIES = (("t3.sample", "t3#probs"), ("end_to_end", "t3#probs"))


@_mend(
    """The temperature comes last: logits are filtered by top_p and then by min_p as they are, and divided by the temperature while a
    token is drawn. The reference divides first and filters by min_p and then by top_p, so that below 1 it keeps fewer tokens.""",
    kind="mistake",
    reference=Place("chatterbox.models.t3.t3", "T3.inference", "logits = logits / temperature"),
    port=ORDER,
    culprits=("t3", "t3"),
    sites=PROBABILITIES,
)
def temperature_last(models: Models) -> Iterator[None]:
    loop = "for method in sampling_methods:"
    scaled = f"logprobs = logprobs / temp\n        {loop.replace('sampling_methods', 'reversed(sampling_methods)')}"
    with edited(ORDER, "return categorical_sampling(logprobs, 1.0)", (loop, scaled)):
        yield


TOP_P = Place("mlx_audio.lm.sample_utils", "make_sampler", "apply_top_p(x, top_p)")


@_mend(
    """The top_p filter adds up exp(x), as of log-probabilities, but T3 hands it logits, whose exponentials add up to thousands: nearly
    every token passes. `generate` is not concerned as long as top_p is its default, 1; `T3.inference` has 0.95.""",
    kind="mistake",
    reference=Place("chatterbox.models.t3.t3", "T3.inference", "logits = top_p_warper(ids_for_proc, logits)"),
    port=TOP_P,
    culprits=("t3", "t3"),
    sites=PROBABILITIES[:1],
)
def top_p_of_logits(models: Models) -> Iterator[None]:
    with edited(TOP_P, "apply_top_p(x - mx.logsumexp(x, axis=-1, keepdims=True), top_p)"):
        yield


START = Place(f"{PORT}.t3.t3", "T3.inference", "return mx.array([generated_ids])")


@_mend(
    """`T3.inference` returns the start token in front of the generated ones; `drop_invalid_tokens` takes it off again. Should the model
    generate a start token itself, the reference keeps what follows it, and the port everything.""",
    kind="choice",
    reference=Place("chatterbox.models.t3.t3", "T3.inference", "predicted_tokens = torch.cat(predicted, dim=1)"),
    port=START,
    culprits=("t3", "t3"),
    sites=(("t3.generate", "t3:inference/output"), ("t3.sample", "t3:inference/output"), ("end_to_end", "t3:inference/output")),
)
def start_token_kept(models: Models) -> Iterator[None]:
    with edited(START, "return mx.array([generated_ids[1:]])"):
        yield


# --- stage 8: the vocoder ---

SLOPE = Place(f"{PORT}.s3gen.hifigan", "HiFTGenerator.decode", "x = nn.leaky_relu(x, negative_slope=self.lrelu_slope)")


@_mend(
    """The leaky ReLU before the last convolution has the slope of the others, 0.1; the reference takes torch's default there, 0.01.""",
    kind="mistake",
    reference=Place("chatterbox.models.s3gen.hifigan", "HiFTGenerator.decode", "x = F.leaky_relu(x)"),
    port=SLOPE,
    culprits=("s3gen.mel2wav", "s3gen.mel2wav"),
    sites=(("vocoder.decode", "s3gen.mel2wav.conv_post"), ("vocoder", "s3gen.mel2wav.conv_post")),
)
def slope_of_the_others(models: Models) -> Iterator[None]:
    with edited(SLOPE, "x = nn.leaky_relu(x, negative_slope=0.01)"):
        yield


PHASE = Place(f"{PORT}.s3gen.hifigan", "SineGen.__call__", "theta_mat = 2 * math.pi * (mx.cumsum(F_mat, axis=-1) % 1)")


@_mend(
    """The phase of the source is summed in float32, one sample after the other, and only then reduced to a turn: the error grows with
    the length (sin(phase), nine harmonics of 60 Hz: 2.4e-3 after 0.12 s, 3.2e-2 after 1 s, 0.86 after 10 s). torch's CPU kernel sums
    float32 in float64 (4e-6, 3e-5, 3e-4). Other devices sum differently.""",
    kind="choice",
    reference=Place("chatterbox.models.s3gen.hifigan", "SineGen.forward", "torch.cumsum(F_mat, dim=-1) % 1"),
    port=PHASE,
    culprits=("s3gen.mel2wav.m_source.l_sin_gen", "s3gen.mel2wav.m_source.l_sin_gen"),
    sites=(("vocoder", "s3gen.mel2wav.m_source.l_sin_gen"),),
)
def phase_in_float32(models: Models) -> Iterator[None]:
    exact = "mx.cumsum(F_mat.astype(mx.float64, stream=mx.cpu), axis=-1, stream=mx.cpu)"
    turns = f"mx.subtract({exact}, mx.floor({exact}, stream=mx.cpu), stream=mx.cpu).astype(mx.float32, stream=mx.cpu)"
    with edited(PHASE, f"theta_mat = 2 * math.pi * {turns}"):
        yield


# --- stage 9: the whole ---

EXAGGERATION = Place(f"{PORT}.chatterbox", "Model.generate", "exaggeration: float = 0.1")


@_mend(
    """`generate` takes an exaggeration of 0.1 where none is given, the reference one of 0.5, as does the port's own
    `prepare_conditionals`.""",
    kind="choice",
    reference=Place("chatterbox.tts", "ChatterboxTTS.generate", "exaggeration=0.5"),
    port=EXAGGERATION,
    culprits=("", ""),
    sites=(("end_to_end", "t3:inference/input[t3_cond].emotion_adv"),),
)
def default_exaggeration(models: Models) -> Iterator[None]:
    generate = _named(EXAGGERATION)
    with shared.attribute(generate, "__defaults__", tuple(0.5 if value == 0.1 else value for value in generate.__defaults__)):
        yield


UNMARKED = Place(f"{PORT}.chatterbox", "Model.generate", "wav = wav.squeeze(0)")


@_mend(
    """The wave is not watermarked. The reference marks it inaudibly as synthetic (`resemble-perth`); the change lets the same package
    do it.""",
    kind="choice",
    reference=Place("chatterbox.tts", "ChatterboxTTS.generate", "self.watermarker.apply_watermark(wav, sample_rate=self.sr)"),
    port=UNMARKED,
    culprits=("", ""),
    sites=(("end_to_end", "#audio"),),
)
def no_watermark(models: Models) -> Iterator[None]:
    import numpy as np
    import perth

    watermarker = perth.PerthImplicitWatermarker()
    module = importlib.import_module(UNMARKED.module)
    module._marked = lambda wave: watermarker.apply_watermark(np.array(wave), sample_rate=module.S3GEN_SR)
    try:
        with edited(UNMARKED, "wav = mx.array(_marked(wav.squeeze(0)))"):
            yield
    finally:
        del module._marked
