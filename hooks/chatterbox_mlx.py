"""Chatterbox TTS in MLX, the port: mlx-audio 0.6.2."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import chatterbox_shared as shared

import tracediff as td

IMPL = "mlx"
REQUIRES = ["mlx-audio==0.6.2", "mlx[cpu]==0.32.4 ; sys_platform == 'linux'", "mlx>=0.32 ; sys_platform == 'darwin'"]
STAGES = shared.STAGES
INSTALL = "uv sync --extra chatterbox (in a checkout of tracediff), or by pip as docs/install.md shows"
METHODS = [
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
]
FUNCTIONS: list[str] = []


def load(context: Any) -> Mapping[str, Any]:
    """The models that the wanted stages need, in evaluation mode: the reference's weights through the port's own conversion."""
    import mlx.core as mx

    wanted = shared.wanted_roots(context)
    mx.random.seed(context.seed)  # what no checkpoint holds is initialised by MLX's generator: make it repeat
    if shared.is_seeded(context):
        weights = {f"{root}.{key}": mx.array(value) for root in wanted for key, value in shared.reference_weights(context, root)}
        model = _converted(build(shared.size_of(context)), weights)
    else:
        model = _load_files(_folder(context.weights), wanted)
    model.eval()
    models = {root: getattr(model, root) for root in wanted}
    if "s3gen" in models:
        _share_noise(models["s3gen"], context)
    for part in models.values():
        _cast(part, context.dtype)
        mx.eval(part.parameters())
    return models


def run(models: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Runs every wanted stage on its own inputs, so that each has its own verdict; returns what each gave."""
    given = {}
    for stage, work in _WORK.items():
        if context.wants(stage):
            with td.stage(stage):
                given[stage] = work(models, context)
    return given


# --- the stages ---


def _run_cond(models: Mapping[str, Any], context: Any) -> Any:
    given = _arrays(shared.t3_inputs(context, "t3.cond"), context.dtype)
    return td.tap("cond", models["t3"].prepare_conditioning(_t3_cond(given)))


def _run_transformer(models: Mapping[str, Any], context: Any) -> Any:
    """What `T3.inference` does before it samples: conditioning, text and two start tokens, with an unconditional second row."""
    from mlx_audio.lm.models.cache import make_prompt_cache

    t3 = models["t3"]
    given = _arrays(shared.t3_inputs(context, "t3.transformer"), context.dtype)
    embeds = t3._prepare_inference_context(t3_cond=_t3_cond(given), text_tokens=given["text_tokens"], cfg_weight=0.5)
    hidden = t3.tfmr.model(inputs=None, input_embeddings=embeds, cache=make_prompt_cache(t3.tfmr))
    return td.tap("logits", t3.speech_head(hidden))


def _run_embedding(models: Mapping[str, Any], context: Any) -> Any:
    """`flow.inference` up to the encoder and from there to the decoder: both stand aside and what they are given is tapped."""
    import mlx.core as mx

    flow = models["s3gen"].flow
    given = _arrays(shared.embedding_inputs(context), context.dtype)

    def encode(xs: Any, xs_lens: Any, **_: Any) -> tuple[Any, Any]:
        td.tap("encoder_xs", xs)
        td.tap("encoder_xs_lens", xs_lens)
        return given["encoded"], mx.ones((1, 1, given["encoded"].shape[1]), dtype=mx.bool_)

    def decode(mu: Any, mask: Any, spks: Any, cond: Any, **_: Any) -> tuple[Any, None]:
        for name, value in {"mu": mu, "mask": mask, "spks": spks, "cond": cond}.items():
            td.tap(name, value)
        return mu, None

    with _instead(flow.encoder, encode), _instead(flow.decoder, decode):
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


def _run_encoder(models: Mapping[str, Any], context: Any) -> Any:
    given = _arrays(shared.encoder_inputs(context), context.dtype)
    return models["s3gen"].flow.encoder(given["xs"], given["xs_lens"])


def _run_block(models: Mapping[str, Any], context: Any) -> Any:
    given = _arrays(shared.block_inputs(context), context.dtype)
    return models["s3gen"].flow.decoder.estimator.mid_blocks_0.transformer_0(**given)


def _run_time(models: Mapping[str, Any], context: Any) -> Any:
    given = _arrays(shared.time_inputs(context), context.dtype)
    estimator = models["s3gen"].flow.decoder.estimator
    return estimator.time_mlp(estimator.time_embeddings(given["t"]))


def _run_ode(models: Mapping[str, Any], context: Any) -> Any:
    given = _arrays(shared.ode_inputs(context), context.dtype)
    decoder = models["s3gen"].flow.decoder
    with _steps(decoder.estimator):
        return decoder(n_timesteps=shared.size_of(context).steps, **given)


def _run_vocoder(models: Mapping[str, Any], context: Any) -> Any:
    import mlx.core as mx

    given = _arrays(shared.vocoder_inputs(context))
    return models["s3gen"].mel2wav.inference(speech_feat=given["speech_feat"], cache_source=mx.zeros((1, 1, 0)))


def _run_decode(models: Mapping[str, Any], context: Any) -> Any:
    """The vocoder behind its source, whose rounding grows with time, so that it has a verdict of its own."""
    return models["s3gen"].mel2wav.decode(**_arrays(shared.decode_inputs(context)))


_WORK: dict[str, Callable[[Mapping[str, Any], Any], Any]] = {
    "t3.cond": _run_cond,
    "t3.transformer": _run_transformer,
    "s3gen.embedding": _run_embedding,
    "s3gen.encoder": _run_encoder,
    "flow.block": _run_block,
    "flow.time": _run_time,
    "flow.ode": _run_ode,
    "vocoder": _run_vocoder,
    "vocoder.decode": _run_decode,
}


def _arrays(inputs: Mapping[str, Any], dtype: str | None = None) -> dict[str, Any]:
    """NumPy inputs as arrays, the real ones in the model's dtype, each tapped by its name."""
    import mlx.core as mx

    arrays = {name: mx.array(value) for name, value in inputs.items()}
    if dtype is not None:
        arrays = {name: value.astype(getattr(mx, dtype)) if value.dtype == mx.float32 else value for name, value in arrays.items()}
    return {name: td.tap(name, value) for name, value in arrays.items()}


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
    import mlx.core as mx

    decoder = s3gen.flow.decoder
    noise = context.draw("flow.ode", "random.normal", (1, shared.MELS, shared.size_of(context).frames))
    decoder.rand_noise = mx.concatenate([mx.array(noise), decoder.rand_noise[:, :, noise.shape[2] :]], axis=2)


@contextlib.contextmanager
def _steps(estimator: Any) -> Iterator[None]:
    """Each evaluation of the velocity is a scope ``ode=k``."""
    original, taken = type(estimator), 0

    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal taken
        stepping = type(estimator)
        estimator.__class__ = original  # who observes it knows it by its own class
        try:
            with td.scope("ode", taken):
                return estimator(*args, **kwargs)
        finally:
            estimator.__class__ = stepping
            taken += 1

    with _instead(estimator, step):
        yield


@contextlib.contextmanager
def _instead(module: Any, function: Callable[..., Any]) -> Iterator[None]:
    """For a while a module's call is ``function``."""
    original = type(module)
    module.__class__ = type(original.__name__, (original,), {"__call__": lambda self, *args, **kwargs: function(*args, **kwargs)})
    try:
        yield
    finally:
        module.__class__ = original


# --- the models ---


def build(sizes: shared.Sizes) -> Any:
    """mlx-audio's Chatterbox at the given sizes, through its own constructor; the voice front end is left out."""
    from mlx_audio.tts.models.chatterbox import chatterbox, config
    from mlx_audio.tts.models.chatterbox.s3gen import s3gen
    from mlx_audio.tts.models.chatterbox.t3 import cond_enc

    hp = config.T3Config.english_only()
    perceiver: dict[str, Any] = {}
    if sizes.t3 is not None:
        hp.llama_config_name = "tracediff"
        config.LLAMA_CONFIGS["tracediff"] = {**config.LLAMA_CONFIGS["Llama_520M"], **sizes.t3}
        perceiver = {"pre_attention_query_size": sizes.t3["hidden_size"], "embedding_dim": sizes.t3["hidden_size"]}
    with (
        _classes(cond_enc, Perceiver=perceiver),
        _classes(chatterbox, VoiceEncoder=None, S3TokenizerV2=None),
        _classes(
            s3gen,
            UpsampleConformerEncoder=sizes.encoder,
            ConditionalDecoder=sizes.estimator,
            CausalMaskedDiffWithXvec={"input_size": sizes.encoder_width},
            HiFTGenerator=sizes.vocoder,
            ConvRNNF0Predictor=sizes.f0,
            CAMPPlus=None,
        ),
    ):
        return chatterbox.Model(config.ModelConfig(t3_config=hp))


def _converted(model: Any, weights: Mapping[str, Any]) -> Any:
    """The model with the reference's weights, through its own conversion: what `mlx_audio.tts.utils.load_model` does with a file."""
    model.load_weights(list(model.sanitize(weights).items()))
    return model


def _load_files(folder: Path, wanted: Sequence[str]) -> Any:
    """The model from a converted folder by mlx-audio's loader, or from the reference's own files through the port's conversion.

    The loader would also fetch the voice front end's tokenizer from the hub, which no stage here needs.
    """
    import mlx.core as mx
    from mlx_audio.tts.models.chatterbox import chatterbox
    from mlx_audio.tts.utils import load_model

    if not (folder / "t3_cfg.safetensors").is_file():
        hook = chatterbox.Model.__dict__["post_load_hook"]
        del chatterbox.Model.post_load_hook
        try:
            return load_model(folder, lazy=True)
        finally:
            chatterbox.Model.post_load_hook = hook
    weights: dict[str, Any] = {}
    for root, file in {"t3": "t3_cfg.safetensors", "s3gen": "s3gen.safetensors"}.items():
        if root in wanted:
            weights |= {f"{root}.{key}": value for key, value in mx.load(str(folder / file)).items() if not key.startswith("tokenizer.")}
    return _converted(chatterbox.Model(chatterbox.ModelConfig()), weights)


def _folder(weights: str) -> Path:
    """The folder of a checkpoint, fetched from the hub where it is no folder here."""
    if Path(weights).is_dir():
        return Path(weights)
    from huggingface_hub import snapshot_download

    names = ["config.json", "model.safetensors", "t3_cfg.safetensors", "s3gen.safetensors"]
    return Path(snapshot_download(weights, allow_patterns=names))


def _cast(module: Any, dtype: str | None) -> None:
    """Puts a model into another dtype; the vocoder stays in float32, as the reference's must."""
    import mlx.core as mx

    if dtype is not None:
        for name, part in module.children().items():
            if name != "mel2wav" and hasattr(part, "set_dtype"):
                part.set_dtype(getattr(mx, dtype))


@contextlib.contextmanager
def _classes(module: Any, **changed: Mapping[str, Any] | None) -> Iterator[None]:
    """For a while a module's classes are built with other arguments than it gives; None leaves the part out."""
    originals = {name: getattr(module, name) for name in changed}
    for name, ours in changed.items():
        setattr(module, name, _left_out if ours is None else _with(originals[name], ours))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(module, name, original)


def _with(cls: Any, ours: Mapping[str, Any]) -> Callable[..., Any]:
    return lambda *args, **theirs: cls(*args, **{**theirs, **ours})


def _left_out(*_: Any, **__: Any) -> Any:
    import mlx.nn as nn

    return nn.Module()
