"""Chatterbox TTS in MLX, the second port: chatterbox-mlx 1.0.6 (its pure MLX pipeline)."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import chatterbox_mlx_shared as common
import chatterbox_shared as shared
import chatterbox_voice as voice
from chatterbox_torchaudio import import_torchaudio

import tracediff as td

IMPL = "mlx"
REQUIRES = ["chatterbox-mlx==1.0.6", "mlx[cpu]==0.32.4 ; sys_platform == 'linux'", "mlx>=0.32.2 ; sys_platform == 'darwin'", "torch"]
INSTALL = "an environment of its own, as docs/install.md shows, since chatterbox-tts has a package of the same name"
OWN = (
    "voice.mel",
    "voice.xvector",
    "text",
    "t3.cond",
    "t3.transformer",
    "t3.generate",
    "t3.sample",
    "s3gen.embedding",
    "s3gen.encoder",
    "flow.block",
    "flow.time",
    "flow.ode",
    "vocoder",
    "vocoder.decode",
)
"""The stages that this port has code of its own for; the rest of the voice it leaves to the reference's code in PyTorch."""
STAGES = {stage: shared.STAGES[stage] for stage in OWN}
SOURCES = {**shared.SOURCES, "voice.xvector": {"features": "s3gen.speaker_encoder/input[0]"}}
METHODS = [
    "t3:inference",
    "t3:prepare_conditioning",
    "t3:prepare_input_embeds",
    "t3.speech_pos_emb:get_fixed_embedding",
    "s3gen.flow.encoder:forward_layers",
    "s3gen.flow.encoder:forward_up_layers",
    "s3gen.flow.decoder:solve_midpoint",
    "s3gen.mel2wav:inference",
    "s3gen.mel2wav:decode",
    "s3gen.mel2wav:_stft",
    "s3gen.mel2wav:_istft",
]
FUNCTIONS: list[str] = []

ALIGNED = [(2, 3), (3, 1), (1, 2)]
"""For the small T3, which has not got them: the layers and heads that the port's alignment analyzer looks at."""


def load(context: Any) -> Mapping[str, Any]:
    """The models that the wanted stages need, in evaluation mode: the reference's weights through the port's own conversion."""
    _check_package()
    import mlx.core as mx

    wanted = [root for root in shared.ROOTS if any(_belongs(stage, root) and context.wants(stage) for stage in OWN)]
    mx.random.seed(context.seed)  # what no checkpoint holds is initialised by MLX's generator: make it repeat
    models: dict[str, Any] = {}
    if "t3" in wanted:
        models["t3"] = _load_t3(build_t3(shared.size_of(context)), _weights(context, "t3"))
    if "s3gen" in wanted or "ve" in wanted:
        parts = [root for root, needed in (("s3gen", "s3gen"), ("s3gen.speaker_encoder", "ve")) if needed in wanted]
        state = {key: value for part in parts for key, value in _weights(context, part)}
        ears = voice.front_of(context) if "ve" in wanted else None
        models["s3gen"] = _load_s3gen(build_s3gen(shared.size_of(context), ears, has_voice="s3gen" in wanted), state)
    if "text" in wanted:
        models["text"] = build_text(context)
    for root, part in models.items():
        common.cast(part, context.dtype if root != "text" else None)
        mx.eval(part.parameters())
    return models


def run(models: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Runs every wanted stage on its own inputs, so that each has its own verdict; returns what each gave.

    The x-vector needs the reference's filter bank: without a reference, and where it was not asked for by name, it is left out.
    """
    given: dict[str, Any] = {}
    for stage, work in _WORK.items():
        if context.wants(stage) and (stage != "voice.xvector" or context.reference is not None or context.stages):
            with _nested(stage):
                given[stage] = work(models, context)
    return given


@contextlib.contextmanager
def _nested(stage: str) -> Iterator[None]:
    """The stage, inside ``voice`` where it is a step of that."""
    with contextlib.ExitStack() as stack:
        if stage.startswith("voice."):
            stack.enter_context(td.stage("voice"))
        stack.enter_context(td.stage(stage))
        yield


# --- the stages ---


def _run_mel(models: Mapping[str, Any], context: Any) -> Any:
    """The port's own mel, with what the reference's is called with: nothing in the port calls it, nor its defaults."""
    from chatterbox.models.s3gen_mlx.utils import mel_mlx

    wave = common.arrays(voice.wave(context, "voice.mel", "wav_24k", voice.RATE_S3GEN))["wav_24k"]
    sizes = {"n_fft": 1920, "num_mels": 80, "sampling_rate": voice.RATE_S3GEN, "hop_size": 480, "win_size": 1920, "fmin": 0, "fmax": 8000}
    with voice.tapped(mel_mlx, "_mel_filterbank", "prompt_filters"):
        return td.tap("prompt_feat", mel_mlx.mel_spectrogram_mlx(wave, **sizes).swapaxes(1, 2))


def _run_xvector(models: Mapping[str, Any], context: Any) -> Any:
    """From the filter bank (1, T, 80) that the reference made: the port has none of its own."""
    import mlx.core as mx

    features = mx.array(context.given("voice.xvector", "features"))
    return td.tap("x_vector", models["s3gen"].speaker_encoder.inference(features))


def _run_text(models: Mapping[str, Any], context: Any) -> Any:
    import mlx.core as mx
    from chatterbox import tts_mlx

    tokenizer = models["text"].tokenizer
    return voice.run_text(tts_mlx.punc_norm, lambda text: mx.array(tokenizer.text_to_tokens(text).numpy()), context)


def _run_cond(models: Mapping[str, Any], context: Any) -> Any:
    given = common.arrays(shared.t3_inputs(context, "t3.cond"), context.dtype)
    return td.tap("cond", models["t3"].prepare_conditioning(_t3_cond(given)))


def _run_transformer(models: Mapping[str, Any], context: Any) -> Any:
    """What `T3MLX.generate` does before it samples, without the alignment analyzer: so the layers take MLX's own attention."""
    import mlx.core as mx

    t3 = models["t3"]
    given = common.arrays(shared.t3_inputs(context, "t3.transformer"), context.dtype)
    start = mx.array([[t3.hp.start_speech_token]])
    embeds, _ = t3.prepare_input_embeds(t3_cond=_t3_cond(given), text_tokens=given["text_tokens"], speech_tokens=start, cfg_weight=0.5)
    begin = t3.speech_emb(start) + t3.speech_pos_emb.get_fixed_embedding(0)
    embeds = mx.concatenate([embeds, mx.concatenate([begin, begin])], axis=1)
    return td.tap("logits", t3.speech_head(t3.tfmr(inputs_embeds=embeds)["last_hidden_state"]))


def _run_generation(stage: str) -> Callable[[Mapping[str, Any], Any], Any]:
    """Token after token as `T3MLX.inference` does it, up to the stop token or the number wanted: the tokens (1, n)."""

    def generate(models: Mapping[str, Any], context: Any) -> Any:
        import mlx.core as mx

        given = common.arrays(shared.t3_inputs(context, stage), context.dtype)
        mx.random.seed(context.seed)
        with _tokens(models["t3"], is_small=shared.size_of(context) is shared.SMALL):
            return models["t3"].inference(
                t3_cond=_t3_cond(given),
                text_tokens=given["text_tokens"],
                max_new_tokens=shared.size_of(context).new_tokens,
                show_progress=False,
                **shared.GENERATION[stage],
            )

    return generate


def _run_embedding(models: Mapping[str, Any], context: Any) -> Any:
    """The flow up to the encoder and from there to the decoder: both stand aside and what they are given is tapped."""
    import mlx.core as mx

    flow = models["s3gen"].flow
    given = common.arrays(shared.embedding_inputs(context), context.dtype)

    encode, decode = shared.flow_parts(given["encoded"], mx.ones((1, 1, given["encoded"].shape[1]), dtype=mx.bool_))
    with common.instead(flow.encoder, encode), common.instead(flow.decoder, decode):
        return flow(
            token=given["token"],
            token_len=mx.array([given["token"].shape[1]]),
            prompt_token=given["prompt_token"],
            prompt_token_len=int(given["prompt_token"].shape[1]),
            prompt_feat=given["prompt_feat"],
            prompt_feat_len=int(given["prompt_feat"].shape[1]),
            embedding=given["embedding"],
            finalize=True,
        )


def _run_block(models: Mapping[str, Any], context: Any) -> Any:
    given = common.arrays(shared.block_inputs(context), context.dtype)
    return models["s3gen"].flow.decoder.estimator.mid_blocks_0.transformer_blocks[0](**given)


def _run_time(models: Mapping[str, Any], context: Any) -> Any:
    given = common.arrays(shared.time_inputs(context), context.dtype)
    estimator = models["s3gen"].flow.decoder.estimator
    return estimator.time_mlp(estimator.time_embeddings(given["t"]).astype(given["t"].dtype))


def _run_ode(models: Mapping[str, Any], context: Any) -> Any:
    """As many evaluations of the velocity as the reference makes: the port takes half as many steps, of two evaluations each."""
    given = common.arrays(shared.ode_inputs(context), context.dtype)
    decoder = models["s3gen"].flow.decoder
    with common.steps(decoder.estimator):
        return decoder(n_timesteps=shared.size_of(context).steps // 2, **given)


def _run_decode(models: Mapping[str, Any], context: Any) -> Any:
    """The vocoder behind its source, whose rounding grows with time, so that it has a verdict of its own."""
    given = common.arrays(shared.decode_inputs(context))
    return models["s3gen"].mel2wav.decode(x=given["x"].swapaxes(1, 2), s=given["s"])


_WORK: dict[str, Callable[[Mapping[str, Any], Any], Any]] = {
    "voice.mel": _run_mel,
    "voice.xvector": _run_xvector,
    "text": _run_text,
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
}


def _t3_cond(given: Mapping[str, Any]) -> Any:
    """The conditionals as the port's pipeline makes them: the exaggeration as a number."""
    from chatterbox.models.t3_mlx.modules.cond_enc_mlx import T3CondMLX

    return T3CondMLX(
        speaker_emb=given["speaker_emb"],
        cond_prompt_speech_tokens=given["prompt_tokens"],
        emotion_adv=float(given["emotion_adv"].item()),
    )


@contextlib.contextmanager
def _tokens(t3: Any, *, is_small: bool) -> Iterator[None]:
    """While `T3MLX.inference` runs, what leads to its token number n is a scope ``token=n``, and what that is drawn from is tapped.

    The taps of each token: ``guided``, the logits (1, V) with guidance as the repetition penalty gets them; ``penalised``, those after
    it; ``probs``, the probabilities (1, V) of the draw.
    """
    import mlx.core as mx
    from chatterbox.models.t3_mlx.inference import alignment_stream_analyzer_mlx as analyzer
    from chatterbox.models.t3_mlx.inference import sampling_utils_mlx as sampling

    penalise, draw = sampling.apply_repetition_penalty, mx.random.categorical

    def penalised(logits: Any, *args: Any) -> Any:
        return td.tap("penalised", penalise(td.tap("guided", logits), *args))

    def drawn(logits: Any, *args: Any, **kwargs: Any) -> Any:
        shares = mx.exp(logits - mx.max(logits, axis=-1, keepdims=True))
        td.tap("probs", shares / mx.sum(shares, axis=-1, keepdims=True))
        return draw(logits, *args, **kwargs)

    with contextlib.ExitStack() as patches:
        patches.enter_context(shared.tokens(t3, functools.partial(common.around, t3.tfmr)))
        patches.enter_context(shared.attribute(sampling, "apply_repetition_penalty", penalised))
        patches.enter_context(shared.attribute(mx.random, "categorical", drawn))
        if is_small:
            patches.enter_context(shared.attribute(analyzer, "LLAMA_ALIGNED_HEADS", ALIGNED))
        patches.callback(setattr, t3, "patched_model", None)  # what it leaves in the model: a second way to all its modules
        yield


# --- the models ---


def build_t3(sizes: shared.Sizes) -> Any:
    """T3 at the given sizes, through its own constructor."""
    from chatterbox.models.t3.llama_configs import LLAMA_CONFIGS
    from chatterbox.models.t3.modules.t3_config import T3Config
    from chatterbox.models.t3_mlx.modules import cond_enc_mlx
    from chatterbox.models.t3_mlx.t3_mlx import T3MLX

    hp = T3Config.english_only()
    if sizes.t3 is None:
        return T3MLX(hp)
    hp.llama_config_name = "tracediff"
    LLAMA_CONFIGS["tracediff"] = {**LLAMA_CONFIGS["Llama_520M"], **sizes.t3}
    width = sizes.t3["hidden_size"]
    with common.classes(cond_enc_mlx, PerceiverMLX={"pre_attention_query_size": width, "embedding_dim": width}):
        return T3MLX(hp)


def build_s3gen(sizes: shared.Sizes, ears: voice.Front | None = None, *, has_voice: bool = True) -> Any:
    """S3Gen at the given sizes, through its own constructor.

    Without ``ears``, the sizes of the voice front end, the speaker encoder is left out; without ``has_voice`` flow and vocoder are.
    """
    from chatterbox.models.s3gen_mlx import s3gen_mlx
    from chatterbox.models.s3gen_mlx.transformer import upsample_encoder_mlx

    width = sizes.encoder_width
    speaking: dict[str, Mapping[str, Any] | None] = {
        "UpsampleConformerEncoderMLX": sizes.encoder,
        "ConditionalDecoderMLX": sizes.estimator,
        "CausalMaskedDiffWithXvecMLX": {"input_size": width},
        "HiFTGeneratorMLX": sizes.vocoder,
        "ConvRNNF0PredictorMLX": sizes.f0,
    }
    if not has_voice:
        speaking = dict.fromkeys([*speaking, "CausalConditionalCFMMLX"])
    ours = {"channels": width}
    with (
        common.classes(s3gen_mlx, CAMPPlusMLX=None if ears is None else ears.speaker, **speaking),
        common.classes(upsample_encoder_mlx, PreLookaheadLayerMLX=ours, Upsample1DMLX={**ours, "out_channels": width}),
    ):
        return s3gen_mlx.S3Token2WavMLX()


def build_text(context: Any) -> Any:
    """A module that holds the port's tokenizer."""
    import mlx.nn as nn
    from chatterbox.models.tokenizers import EnTokenizer

    import_torchaudio()  # the pipeline's module, which the normalisation is in, imports everything

    text = nn.Module()
    text.tokenizer = EnTokenizer(str(voice.tokenizer_file(context)))
    return text


def _load_t3(model: Any, weights: Iterator[tuple[str, Any]]) -> Any:
    """T3 with the reference's weights as `ChatterboxTTSPureMLX.from_local` gives them to it: as they are, and not strictly."""
    import mlx.core as mx

    model.load_weights([(key, mx.array(value)) for key, value in weights], strict=False)
    return model.eval()


def _load_s3gen(model: Any, state: Mapping[str, Any]) -> Any:
    """S3Gen with the reference's weights through the port's conversion, as `ChatterboxTTSPureMLX.from_local` does it: not strictly."""
    import mlx.core as mx
    from chatterbox.models.s3gen_mlx.convert_weights import convert_s3gen_state_dict

    converted = {key: mx.array(value) for key, value in convert_s3gen_state_dict(dict(state)).items() if not key.startswith("tokenizer.")}
    model.load_weights(list(converted.items()), strict=False)
    return model.eval()


def _weights(context: Any, root: str) -> Iterator[tuple[str, Any]]:
    """The reference's weights of one of its models by its keys: seeded, or from the reference's own files, which this port reads."""
    prefix = root.partition(".")[2]
    if shared.is_seeded(context):
        for key, value in shared.reference_weights(context, root):
            yield (f"{prefix}.{key}" if prefix else key), value
        return
    from safetensors.numpy import load_file

    file = {"t3": "t3_cfg.safetensors", "s3gen": "s3gen.safetensors"}[root.partition(".")[0]]
    inside: Sequence[str] = (prefix,) if prefix else ("flow", "mel2wav", "tfmr", "cond_enc", "text", "speech")
    for key, value in load_file(_folder(context.weights) / file).items():
        if key.startswith(tuple(inside)):
            yield key, value


def _folder(weights: str) -> Path:
    """The folder of a checkpoint, fetched from the hub where it is no folder here."""
    if Path(weights).is_dir():
        return Path(weights)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(weights, allow_patterns=["t3_cfg.safetensors", "s3gen.safetensors", "tokenizer.json"]))


def _belongs(stage: str, root: str) -> bool:
    return stage.startswith(shared.ROOTS[root])


def _check_package() -> None:
    """ModuleNotFoundError where the package ``chatterbox`` is not there, or is the reference's."""
    spec = importlib.util.find_spec("chatterbox")
    places = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    if not places:
        raise ModuleNotFoundError("chatterbox-mlx is not installed here", name="chatterbox")
    if not any((place / "models" / "t3_mlx").is_dir() for place in places):
        raise ModuleNotFoundError("the package 'chatterbox' that is installed here is not chatterbox-mlx's", name="chatterbox")
