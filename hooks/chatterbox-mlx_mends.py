"""What departs from the reference in the second port, chatterbox-mlx, each with the one change that mends it, made at run time.

As `chatterbox_mends`, whose words and means these are: `MENDS` names them, and `mended` makes them for as long as a block of code runs.
The reference's places are in the package of chatterbox-tts, the port's in that of chatterbox-mlx: both packages are called ``chatterbox``,
so that each place can be told only where its own package is installed.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import chatterbox_mends as first
from chatterbox_mends import Mend, Models, Place

S3GEN = "chatterbox.models.s3gen_mlx"
T3 = "chatterbox.models.t3_mlx"
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


# --- stage 0: the reference voice ---

HTK = Place(f"{S3GEN}.utils.mel_mlx", "_mel_filterbank", "mel_points = np.linspace(mel_min, mel_max, n_mels + 2)")


@_mend(
    """The mel's filters are HTK's, cut to whole bins and not normalised; the reference takes librosa's (Slaney). Nothing in the package
    calls this mel: its pipeline leaves the voice to its copy of the reference's code in PyTorch.""",
    kind="mistake",
    reference=Place("chatterbox.models.s3gen.utils.mel", "mel_spectrogram", "librosa_mel_fn("),
    port=HTK,
    culprits=("", ""),
    sites=(("voice.mel", "#prompt_filters"),),
)
def filters_of_htk(models: Models) -> Iterator[None]:
    librosa = importlib.import_module("librosa")

    def filters(sr: int, n_fft: int, n_mels: int, fmin: float, fmax: float) -> Any:
        return librosa.filters.mel(sr=sr, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax)

    with first.shared.attribute(importlib.import_module(HTK.module), "_mel_filterbank", filters):
        yield


MAGNITUDE = Place(f"{S3GEN}.utils.mel_mlx", "mel_spectrogram_mlx", "mag = np.abs(Zxx)")


@_mend(
    """The same mel takes SciPy's short-time transform, which divides by the window's sum, does not pad the wave (three frames are
    missing), and has no 1e-9 under the root.""",
    kind="mistake",
    reference=Place("chatterbox.models.s3gen.utils.mel", "mel_spectrogram", "torch.sqrt(spec.pow(2).sum(-1) + (1e-9))"),
    port=MAGNITUDE,
    culprits=("", ""),
    sites=(("voice.mel", "#prompt_feat"),),
)
def scaled_transform(models: Models) -> Iterator[None]:
    padded = 'np.pad(audio_np[i], (n_fft - hop_size) // 2, mode="reflect"),'
    with first.edited(MAGNITUDE, "mag = np.sqrt((np.abs(Zxx) * window.sum()) ** 2 + 1e-9)", ("audio_np[i],", padded)):
        yield


SPREAD = Place(f"{S3GEN}.xvector_mlx", "statistics_pooling", "std = mx.sqrt(mx.maximum(var, eps * eps))")


@_mend(
    """The standard deviation is that of the whole population, as a difference of means and never below 0.01; the reference's is that of a
    sample (divided by one less). The pipeline takes the x-vector from its copy of the reference's code, not from here.""",
    kind="mistake",
    reference=Place("chatterbox.models.s3gen.xvector", "statistics_pooling", "x.std(dim=dim, unbiased=unbiased)"),
    port=SPREAD,
    culprits=("s3gen.speaker_encoder.xvector.stats", "s3gen.speaker_encoder.stats_pool"),
    sites=(("voice.xvector", "s3gen.speaker_encoder.xvector.stats"),),
)
def biased_deviation(models: Models) -> Iterator[None]:
    with first.edited(SPREAD, "std = mx.sqrt(mx.var(x, axis=dim, ddof=1))"):
        yield


# --- stage 1: the text ---

QUOTES = Place(
    "chatterbox.tts_mlx",
    "punc_norm",
    '''        (""", "\\""), (""", '"'),
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
    with first.edited(QUOTES, "        " + table):
        yield


# --- stage 4: token generation ---

PENALISED = Place(f"{T3}.t3_mlx", "T3MLX.generate", "generated_token_ids: List[int] = []")


@_mend(
    """The repetition penalty begins with nothing; the reference begins with the start token, so that this one is always penalised.""",
    kind="mistake",
    reference=Place("chatterbox.models.t3.t3", "T3.inference", "generated_ids = bos_token.clone()"),
    port=PENALISED,
    culprits=("t3", "t3"),
    sites=(("t3.generate", "t3#penalised"), ("t3.sample", "t3#penalised")),
)
def start_token_not_penalised(models: Models) -> Iterator[None]:
    with first.edited(PENALISED, "generated_token_ids: List[int] = [self.hp.start_speech_token]"):
        yield


ANALYZER = Place(f"{T3}.t3_mlx", "T3MLX.generate", "if use_alignment_analyzer:")


@_mend(
    """The alignment analyzer, which suppresses and forces the stop token, watches over every model; in the reference only over the
    multilingual one.""",
    kind="choice",
    reference=Place("chatterbox.models.t3.t3", "T3.inference", "if self.hp.is_multilingual:"),
    port=ANALYZER,
    culprits=("t3", "t3"),
    sites=(("t3.generate", "t3#guided"), ("t3.sample", "t3#guided")),
)
def analyzer_of_alignment(models: Models) -> Iterator[None]:
    with first.edited(ANALYZER, "if use_alignment_analyzer and self.hp.is_multilingual:"):
        yield


POSSIBLE = Place(f"{T3}.t3_mlx", "T3MLX.generate", "mx.random.categorical(mx.log(probs + 1e-10))")


@_mend(
    """A token is drawn from the logarithms of the probabilities, to each of which 1e-10 was added, so that none is impossible: neither what
    min_p and top_p took away nor, with min_p = 1, any but the likeliest.""",
    kind="mistake",
    reference=Place("chatterbox.models.t3.t3", "T3.inference", "torch.multinomial(probs, num_samples=1)"),
    port=POSSIBLE,
    culprits=("t3", "t3"),
    sites=(("t3.generate", "t3#probs"),),
)
def every_token_possible(models: Models) -> Iterator[None]:
    with first.edited(POSSIBLE, "mx.random.categorical(logits)"):
        yield


# --- stage 6: the encoder ---

SHIFT = Place(
    f"{S3GEN}.transformer.attention_mlx",
    "RelPositionMultiHeadedAttentionMLX.rel_shift",
    "x = x_padded[:, :, 1 : time1 + 1, :]",
)


@_mend(
    """The relative shift takes the first rows of the padded scores and transposes them; the reference drops the first row, reads the rest
    as (T, 2T - 1) and keeps the first T columns. Every query but the first sees the positions of others.""",
    kind="mistake",
    reference=Place(
        "chatterbox.models.s3gen.transformer.attention", "RelPositionMultiHeadedAttention.rel_shift", "x_padded[:, :, 1:].view_as(x)["
    ),
    port=SHIFT,
    culprits=("s3gen.flow.encoder.encoders.0.self_attn", "s3gen.flow.encoder.encoders_0.self_attn"),
    sites=(
        ("s3gen.encoder", "s3gen.flow.encoder.encoders.0.self_attn!softmax"),
        ("s3gen.encoder", "s3gen.flow.encoder.up_encoders.0.self_attn!softmax"),
    ),
)
def wrong_relative_shift(models: Models) -> Iterator[None]:
    read_on = "x = mx.reshape(x_padded[:, :, 1:], (batch_size, n_head, time1, time_pos))[..., :time1]"
    with first.edited(SHIFT, read_on, ("x = mx.transpose(x, (0, 1, 3, 2))", "pass")):
        yield


# --- stage 7: the flow decoder ---

BIASES = Place(f"{S3GEN}.matcha.transformer_mlx", "AttentionMLX.__init__", "bias: bool = True,")
BLOCK = "s3gen.flow.decoder.estimator.mid_blocks.0.1.0"
DOWN = "s3gen.flow.decoder.estimator.down_blocks.0"


@_mend(
    """The queries, keys and values of every attention in the decoder are built with a bias; the reference's have none, so that no
    checkpoint holds one, `load_weights(strict=False)` passes over it, and each stays as MLX drew it: uniform, and another one in every
    process.""",
    kind="mistake",
    reference=Place("chatterbox.models.s3gen.matcha.transformer", "BasicTransformerBlock.__init__", "self.attn1 = Attention("),
    port=BIASES,
    culprits=(f"{BLOCK}.attn1.to_q", "s3gen.flow.decoder.estimator.mid_blocks_0.layers_1_0.attn1.to_q"),
    sites=tuple(
        (stage, f"{block}.attn1.to_{part}") for stage, block in (("flow.block", BLOCK), ("flow.ode", f"{DOWN}.1.0")) for part in "qkv"
    ),
)
def biases_never_loaded(models: Models) -> Iterator[None]:
    import mlx.core as mx

    with contextlib.ExitStack() as stack:
        for name, module in models["s3gen"].named_modules() if "s3gen" in models else ():
            if name.endswith((".attn1.to_q", ".attn1.to_k", ".attn1.to_v")):
                stack.enter_context(first.shared.attribute(module, "bias", mx.zeros_like(module.bias)))
        yield


MASK = Place(f"{S3GEN}.matcha.transformer_mlx", "AttentionMLX.__call__", "attention_mask = mx.expand_dims(attention_mask, axis=2)")


@_mend(
    """A mask of its own for each query, (B, T, T), raises `Shapes (2,4,22,22) and (2,22,1,22) cannot be broadcast`: the axis of the heads
    is put behind the queries. The pipeline's masks, (B, 1, T), pass: those of chunks, in streaming, would not.""",
    kind="mistake",
    reference=Place(
        "chatterbox.models.s3gen.matcha.transformer",
        "BasicTransformerBlock.forward",
        "attention_mask=encoder_attention_mask if self.only_cross_attention else attention_mask,",
    ),
    port=MASK,
    culprits=(f"{BLOCK}.attn1", "s3gen.flow.decoder.estimator.mid_blocks_0.layers_1_0.attn1"),
    sites=(("flow.block", f"{BLOCK}.attn1"),),
)
def mask_for_all_queries(models: Models) -> Iterator[None]:
    with first.edited(MASK, "attention_mask = mx.expand_dims(attention_mask, axis=1)"):
        yield


ACTIVATION = Place(f"{S3GEN}.matcha.decoder_mlx", "ResnetBlock1DMLX.__call__", "mlp_out = self.mlp_1(self.mlp_0(time_emb))")


@_mend(
    """The time embedding passes SiLU in every residual block; the reference's passes Mish.""",
    kind="mistake",
    reference=Place("chatterbox.models.s3gen.matcha.decoder", "ResnetBlock1D.__init__", "torch.nn.Sequential(nn.Mish(), torch.nn.Linear("),
    port=ACTIVATION,
    culprits=(f"{DOWN}.0", "s3gen.flow.decoder.estimator.down_blocks_0.layers_0"),
    sites=(("flow.ode", f"{DOWN}.0.mlp.1"),),
)
def silu_for_mish(models: Models) -> Iterator[None]:
    with first.edited(ACTIVATION, "mlp_out = self.mlp_1(nn.mish(time_emb))"):
        yield


SOLVER = Place(f"{S3GEN}.flow_matching_mlx", "ConditionalCFMMLX.solve_midpoint", "# Compute midpoint")
SCHEDULE = Place(f"{S3GEN}.flow_matching_mlx", "CausalConditionalCFMMLX.__call__", "t_span = mx.linspace(0, 1, n_timesteps + 1)")


@_mend(
    """Five steps of the midpoint rule instead of ten of Euler's: as many evaluations, at other times and points.""",
    kind="choice",
    reference=Place("chatterbox.models.s3gen.flow_matching", "ConditionalCFM.solve_euler", "dt = r - t"),
    port=SOLVER,
    culprits=("s3gen.flow.decoder", "s3gen.flow.decoder"),
    sites=(("flow.ode", "s3gen.flow.decoder.estimator"), ("flow.ode", "s3gen.flow.decoder:solve_euler")),
)
def midpoint_rule(models: Models) -> Iterator[None]:
    euler = "x = x + dt * k1; t = t + dt; dt = t_span[min(step + 1, len(t_span) - 1)] - t; continue"
    with first.edited(SOLVER, euler), first.edited(SCHEDULE, "t_span = mx.linspace(0, 1, 2 * n_timesteps + 1)"):
        yield


# --- stage 8: the vocoder ---

SLOPE = Place(f"{S3GEN}.hifigan_mlx", "HiFTGeneratorMLX.decode", "x = nn.leaky_relu(x, self.lrelu_slope)")


@_mend(
    """The leaky ReLU before the last convolution has the slope of the others, 0.1; the reference takes torch's default there, 0.01.""",
    kind="mistake",
    reference=Place("chatterbox.models.s3gen.hifigan", "HiFTGenerator.decode", "x = F.leaky_relu(x)"),
    port=SLOPE,
    culprits=("s3gen.mel2wav", "s3gen.mel2wav"),
    sites=(("vocoder.decode", "s3gen.mel2wav.conv_post"), ("vocoder", "s3gen.mel2wav.conv_post")),
)
def slope_of_the_others(models: Models) -> Iterator[None]:
    with first.edited(SLOPE, "x = nn.leaky_relu(x, 0.01)"):
        yield


EDGE = Place(f"{S3GEN}.hifigan_mlx", "HiFTGeneratorMLX.decode", 'x = mx.pad(x, [(0, 0), (1, 0), (0, 0)], mode="edge")')


@_mend(
    """Before the last fusion one frame is put in front: the first one again. The reference reflects, which puts the second one there.""",
    kind="mistake",
    reference=Place("chatterbox.models.s3gen.hifigan", "HiFTGenerator.decode", "x = self.reflection_pad(x)"),
    port=EDGE,
    culprits=("s3gen.mel2wav", "s3gen.mel2wav"),
    sites=(("vocoder.decode", "s3gen.mel2wav.resblocks.6"), ("vocoder", "s3gen.mel2wav.resblocks.6")),
)
def edge_for_reflection(models: Models) -> Iterator[None]:
    with first.edited(EDGE, "x = mx.concatenate([x[:, 1:2], x], axis=1)"):
        yield


PHASE = Place(f"{S3GEN}.hifigan_mlx", "SineGenMLX.__call__", "theta_mat = 2 * np.pi * (mx.cumsum(F_mat, axis=-1) % 1)")


@_mend(
    """The phase of the source is summed in float32, one sample after the other, so that its error grows with the length; torch's CPU
    kernel sums float32 in float64. Other devices sum differently.""",
    kind="choice",
    reference=Place("chatterbox.models.s3gen.hifigan", "SineGen.forward", "torch.cumsum(F_mat, dim=-1) % 1"),
    port=PHASE,
    culprits=("s3gen.mel2wav.m_source.l_sin_gen", "s3gen.mel2wav.m_source.l_sin_gen"),
    sites=(("vocoder", "s3gen.mel2wav.m_source.l_sin_gen"),),
)
def phase_in_float32(models: Models) -> Iterator[None]:
    exact = "mx.cumsum(F_mat.astype(mx.float64, stream=mx.cpu), axis=-1, stream=mx.cpu)"
    turns = f"mx.subtract({exact}, mx.floor({exact}, stream=mx.cpu), stream=mx.cpu).astype(mx.float32, stream=mx.cpu)"
    with first.edited(PHASE, f"theta_mat = 2 * np.pi * {turns}"):
        yield
