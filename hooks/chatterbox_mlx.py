"""Chatterbox TTS in MLX, the port: mlx-audio 0.6.2."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import chatterbox_mlx_shared as common
import chatterbox_mlx_voice as front
import chatterbox_shared as shared
import chatterbox_voice as voice

import tracediff as td

IMPL = "mlx"
REQUIRES = ["mlx-audio==0.6.2", "mlx[cpu]==0.32.4 ; sys_platform == 'linux'", "mlx>=0.32 ; sys_platform == 'darwin'"]
STAGES = shared.STAGES
SOURCES = shared.SOURCES
TOKENIZERS = {"t3.text_emb": "chatterbox_tokenizer.json"}
INSTALL = "uv sync --extra chatterbox (in a checkout of tracediff), or by pip as docs/install.md shows"
METHODS = [
    "t3:inference",
    "t3:prepare_conditioning",
    "t3:prepare_input_embeds",
    "t3.speech_pos_emb:get_fixed_embedding",
    "s3gen.flow:inference",
    "s3gen.flow.encoder:forward_layers",
    "s3gen.flow.encoder:forward_up_layers",
    "s3gen.flow.decoder:solve_euler",
    "s3gen.mel2wav:inference",
    "s3gen.mel2wav:decode",
    "s3gen.mel2wav:_stft",
    "s3gen.mel2wav:_istft",
    *front.METHODS,
]
FUNCTIONS: list[str] = []


def load(context: Any) -> Mapping[str, Any]:
    """The models that the wanted stages need, in evaluation mode: the reference's weights through the port's own conversion."""
    import mlx.core as mx

    wanted = shared.wanted_roots(context)
    mx.random.seed(context.seed)  # what no checkpoint holds is initialised by MLX's generator: make it repeat
    if shared.is_seeded(context):
        parts = [*(root for root in wanted if root != "ve"), *(shared.FRONT if "ve" in wanted else ())]
        weights = {f"{part}.{key}": mx.array(value) for part in parts for key, value in shared.reference_weights(context, part)}
        ears = voice.front_of(context) if "ve" in wanted else None
        model = _converted(build(shared.size_of(context), ears, has_voice="s3gen" in wanted), weights)
    else:
        model = _load_files(_folder(context.weights), wanted)
    model.eval()
    models = {root: getattr(model, root) for root in ("t3", "s3gen", "ve") if root in wanted}
    if "ve" in wanted:
        models |= {"s3gen": model.s3gen, "s3_tokenizer": model._s3_tokenizer}
    if "text" in wanted:
        models["text"] = front.build_text(context)
    if "s3gen" in wanted and context.wants("flow.ode"):
        _share_noise(models["s3gen"], context)
    for root, part in models.items():
        common.cast(part, context.dtype if root in ("t3", "s3gen") else None)
        mx.eval(part.parameters())
    return models


def run(models: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Runs every wanted stage on its own inputs, so that each has its own verdict; returns what each gave."""
    given = front.run(models, context)
    for stage, work in _WORK.items():
        if context.wants(stage):
            with td.stage(stage):
                given[stage] = work(models, context)
    return given


# --- the stages ---


def _run_cond(models: Mapping[str, Any], context: Any) -> Any:
    given = common.arrays(shared.t3_inputs(context, "t3.cond"), context.dtype)
    return td.tap("cond", models["t3"].prepare_conditioning(_t3_cond(given)))


def _run_transformer(models: Mapping[str, Any], context: Any) -> Any:
    """What `T3.inference` does before it samples: conditioning, text and two start tokens, with an unconditional second row."""
    from mlx_audio.lm.models.cache import make_prompt_cache

    t3 = models["t3"]
    given = common.arrays(shared.t3_inputs(context, "t3.transformer"), context.dtype)
    embeds = t3._prepare_inference_context(t3_cond=_t3_cond(given), text_tokens=given["text_tokens"], cfg_weight=0.5)
    hidden = t3.tfmr.model(inputs=None, input_embeddings=embeds, cache=make_prompt_cache(t3.tfmr))
    return td.tap("logits", t3.speech_head(hidden))


def _run_generation(stage: str) -> Callable[[Mapping[str, Any], Any], Any]:
    """Token after token as `T3.inference` does it, up to the stop token or the number wanted: the tokens (1, n)."""

    def generate(models: Mapping[str, Any], context: Any) -> Any:
        import mlx.core as mx

        given = common.arrays(shared.t3_inputs(context, stage), context.dtype)
        mx.random.seed(context.seed)
        with _tokens(models["t3"]):
            return models["t3"].inference(
                t3_cond=_t3_cond(given),
                text_tokens=given["text_tokens"],
                max_new_tokens=shared.size_of(context).new_tokens,
                **shared.GENERATION[stage],
            )

    return generate


def _run_embedding(models: Mapping[str, Any], context: Any) -> Any:
    """`flow.inference` up to the encoder and from there to the decoder: both stand aside and what they are given is tapped."""
    import mlx.core as mx

    flow = models["s3gen"].flow
    given = common.arrays(shared.embedding_inputs(context), context.dtype)

    encode, decode = shared.flow_parts(given["encoded"], mx.ones((1, 1, given["encoded"].shape[1]), dtype=mx.bool_))
    with common.instead(flow.encoder, encode), common.instead(flow.decoder, decode):
        return flow.inference(
            token=given["token"],
            token_len=mx.array([given["token"].shape[1]]),
            prompt_token=given["prompt_token"],
            prompt_token_len=mx.array([given["prompt_token"].shape[1]]),
            prompt_feat=given["prompt_feat"],
            prompt_feat_len=mx.array([given["prompt_feat"].shape[1]]),
            embedding=given["embedding"],
            finalize=True,
        )


def _run_block(models: Mapping[str, Any], context: Any) -> Any:
    given = common.arrays(shared.block_inputs(context), context.dtype)
    return models["s3gen"].flow.decoder.estimator.mid_blocks_0.transformer_0(**given)


def _run_time(models: Mapping[str, Any], context: Any) -> Any:
    given = common.arrays(shared.time_inputs(context), context.dtype)
    estimator = models["s3gen"].flow.decoder.estimator
    return estimator.time_mlp(estimator.time_embeddings(given["t"]))


def _run_ode(models: Mapping[str, Any], context: Any) -> Any:
    given = common.arrays(shared.ode_inputs(context), context.dtype)
    decoder = models["s3gen"].flow.decoder
    with common.steps(decoder.estimator):
        return decoder(n_timesteps=shared.size_of(context).steps, **given)


def _run_decode(models: Mapping[str, Any], context: Any) -> Any:
    """The vocoder behind its source, whose rounding grows with time, so that it has a verdict of its own."""
    return models["s3gen"].mel2wav.decode(**common.arrays(shared.decode_inputs(context)))


def _run_end_to_end(models: Mapping[str, Any], context: Any) -> Any:
    """From a text and a file with a voice to the wave (samples,), as a user has it: `Model.generate` with its defaults.

    Only the number of tokens and of steps and how long the voice is heard are those of the sizes. The wave is tapped as S3Gen gives it,
    too.
    """
    import mlx.core as mx

    size, t3, s3gen = shared.size_of(context), models["t3"], models["s3gen"]
    text = td.tap("text", shared.sentence(context))
    given = {name: td.tap(name, value) for name, value in voice.source(context, shared.WHOLE).items()}
    tts = front.speaker(models, context)
    tts.DEC_COND_LEN = round(size.heard * voice.RATE_S3GEN)
    tts.t3, tts.tokenizer = t3, models["text"].tokenizer
    mx.random.seed(context.seed)
    with (
        voice.file_of(given["source"], given["rate"]) as path,
        shared.limited(s3gen.flow, "inference", n_timesteps=size.steps),
        common.around(s3gen, lambda call, *args, **kwargs: td.tap("wav", call(*args, **kwargs)[0])[None]),
        _drawn_noise(s3gen.flow.decoder, context),
        _tokens(t3),
        common.steps(s3gen.flow.decoder.estimator),
    ):
        (result,) = tts.generate(text, ref_audio=path, max_new_tokens=size.new_tokens, verbose=False)
        return td.tap("audio", result.audio)


_WORK: dict[str, Callable[[Mapping[str, Any], Any], Any]] = {
    "t3.cond": _run_cond,
    "t3.transformer": _run_transformer,
    "t3.generate": _run_generation("t3.generate"),
    "t3.sample": _run_generation("t3.sample"),
    "s3gen.embedding": _run_embedding,
    "s3gen.encoder": common.run_encoder,
    "flow.block": _run_block,
    "flow.time": _run_time,
    "flow.ode": _run_ode,
    "vocoder": common.run_vocoder,
    "vocoder.decode": _run_decode,
    shared.WHOLE: _run_end_to_end,
}


def _t3_cond(given: Mapping[str, Any]) -> Any:
    from mlx_audio.tts.models.chatterbox.t3.cond_enc import T3Cond

    return T3Cond(
        speaker_emb=given["speaker_emb"],
        cond_prompt_speech_tokens=given["prompt_tokens"],
        emotion_adv=given["emotion_adv"],
    )


def _share_noise(s3gen: Any, context: Any) -> None:
    """Puts the noise that the reference draws for the ODE where the port keeps its own.

    The reference draws fresh noise (1, 80, T) in every call; the port keeps one array for all calls, made in its constructor, and
    uses its first T columns. As shipped the two never share noise: this is the one place where the recipe changes what the port holds.
    """
    decoder = s3gen.flow.decoder
    decoder.rand_noise = _noise(decoder, context, "flow.ode", shared.size_of(context).frames)


@contextlib.contextmanager
def _drawn_noise(decoder: Any, context: Any) -> Iterator[None]:
    """As `_share_noise`, for the whole, where the number of frames is known only when the decoder is called."""

    def solve(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        kept = decoder.rand_noise
        decoder.rand_noise = _noise(decoder, context, shared.WHOLE, kwargs["mu"].shape[2])
        try:
            return call(*args, **kwargs)
        finally:
            decoder.rand_noise = kept

    with common.around(decoder, solve):
        yield


def _noise(decoder: Any, context: Any, stage: str, frames: int) -> Any:
    """The decoder's noise (1, 80, 15000) with the next draw of a stage as its first frames."""
    import mlx.core as mx

    noise = context.draw(stage, "random.normal", (1, shared.MELS, frames))
    return mx.concatenate([mx.array(noise), decoder.rand_noise[:, :, frames:]], axis=2)


@contextlib.contextmanager
def _tokens(t3: Any, **arguments: Any) -> Iterator[None]:
    """While `T3.inference` runs, what leads to its token number n is a scope ``token=n``, and what that is drawn from is tapped.

    It gets the ``arguments``, whatever its caller gives.

    The taps of each token: ``guided``, the logits (1, V) with guidance; ``penalised``, those after the repetition penalty; ``probs``,
    the probabilities (1, V) of the draw.
    """
    import mlx.core as mx
    from mlx_audio.lm import sample_utils
    from mlx_audio.tts.models.chatterbox.t3 import t3 as module

    make, draw = module.make_logits_processors, sample_utils.categorical_sampling

    def penalties(*args: Any, **kwargs: Any) -> list[Any]:
        return [_tapped(penalty) for penalty in make(*args, **kwargs)]

    def drawn(logits: Any, temp: float) -> Any:
        scaled = logits * (1 / temp)
        td.tap("probs", mx.exp(scaled - mx.logsumexp(scaled, axis=-1, keepdims=True)))
        return draw(logits, temp)

    with contextlib.ExitStack() as patches:
        patches.enter_context(shared.tokens(t3, functools.partial(common.around, t3.tfmr.model), **arguments))
        patches.enter_context(shared.attribute(module, "make_logits_processors", penalties))
        patches.enter_context(shared.attribute(sample_utils, "categorical_sampling", drawn))
        yield


def _tapped(penalty: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda tokens, logits: td.tap("penalised", penalty(tokens, td.tap("guided", logits)))


# --- the models ---


def build(sizes: shared.Sizes, ears: voice.Front | None = None, *, has_voice: bool = True) -> Any:
    """mlx-audio's Chatterbox at the given sizes, through its own constructor.

    Without ``ears``, the sizes of the voice front end, that one is left out; without ``has_voice`` S3Gen's flow and vocoder are.
    """
    from mlx_audio.tts.models.chatterbox import chatterbox, config
    from mlx_audio.tts.models.chatterbox.s3gen import s3gen
    from mlx_audio.tts.models.chatterbox.t3 import cond_enc

    hp = config.T3Config.english_only()
    perceiver: dict[str, Any] = {}
    if sizes.t3 is not None:
        hp.llama_config_name = "tracediff"
        config.LLAMA_CONFIGS["tracediff"] = {**config.LLAMA_CONFIGS["Llama_520M"], **sizes.t3}
        perceiver = {"pre_attention_query_size": sizes.t3["hidden_size"], "embedding_dim": sizes.t3["hidden_size"]}
    speaking: dict[str, Mapping[str, Any] | None] = {
        "UpsampleConformerEncoder": sizes.encoder,
        "ConditionalDecoder": sizes.estimator,
        "CausalMaskedDiffWithXvec": {"input_size": sizes.encoder_width},
        "HiFTGenerator": sizes.vocoder,
        "ConvRNNF0Predictor": sizes.f0,
    }
    if not has_voice:
        speaking = dict.fromkeys([*speaking, "CausalConditionalCFM"])
    outer, inner = front.classes(ears)
    with common.classes(cond_enc, Perceiver=perceiver), common.classes(chatterbox, **outer), common.classes(s3gen, **speaking, **inner):
        return chatterbox.Model(config.ModelConfig(t3_config=hp))


def _converted(model: Any, weights: Mapping[str, Any]) -> Any:
    """The model with the reference's weights, through its own conversion: what `mlx_audio.tts.utils.load_model` does with a file."""
    prefix = "s3gen.tokenizer."
    tokenizer = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    own = {key: value for key, value in weights.items() if not key.startswith(prefix)}
    if tokenizer:
        front.load_tokenizer(model._s3_tokenizer, tokenizer)
    model.load_weights(list(model.sanitize(own).items()))
    return model


def _load_files(folder: Path, wanted: Sequence[str]) -> Any:
    """The model from a converted folder by mlx-audio's loader, or from the reference's own files through the port's conversion.

    For a converted folder the loader fetches the S3 tokenizer from the hub, unless no stage of the voice is wanted.
    """
    import mlx.core as mx
    from mlx_audio.tts.models.chatterbox import chatterbox
    from mlx_audio.tts.utils import load_model

    if not (folder / "t3_cfg.safetensors").is_file():
        if "ve" in wanted:
            return load_model(folder)
        hook = chatterbox.Model.__dict__["post_load_hook"]
        del chatterbox.Model.post_load_hook
        try:
            return load_model(folder, lazy=True)
        finally:
            chatterbox.Model.post_load_hook = hook
    weights: dict[str, Any] = {}
    for root, file in {"t3": "t3_cfg.safetensors", "s3gen": "s3gen.safetensors", "ve": "ve.safetensors"}.items():
        if root in wanted or (root == "s3gen" and "ve" in wanted):
            weights |= {f"{root}.{key}": value for key, value in mx.load(str(folder / file)).items()}
    if "ve" not in wanted:
        weights = {key: value for key, value in weights.items() if not key.startswith("s3gen.tokenizer.")}
    return _converted(chatterbox.Model(chatterbox.ModelConfig()), weights)


def _folder(weights: str) -> Path:
    """The folder of a checkpoint, fetched from the hub where it is no folder here."""
    if Path(weights).is_dir():
        return Path(weights)
    from huggingface_hub import snapshot_download

    names = ["config.json", "model.safetensors", "t3_cfg.safetensors", "s3gen.safetensors", "ve.safetensors", "tokenizer.json"]
    return Path(snapshot_download(weights, allow_patterns=names))
