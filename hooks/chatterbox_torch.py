"""Chatterbox TTS in PyTorch, the reference: chatterbox-tts 0.1.7."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import chatterbox_shared as shared
import chatterbox_torch_voice as front
import chatterbox_voice as voice
from chatterbox_torchaudio import import_torchaudio

import tracediff as td

IMPL = "torch"
REQUIRES = ["chatterbox-tts==0.1.7", "s3tokenizer==0.3.0", "torch>=2.6", "torchaudio>=2.6", "safetensors>=0.5.3"]
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
    """The models that the wanted stages need, in evaluation mode: seeded, or from the reference's own files."""
    if shared.is_seeded(context):
        models = {root: _seed(model, root, context) for root, model in _built(context).items()}
    else:
        models = _load_files(_folder(context.weights), shared.wanted_roots(context))
    if "text" in shared.wanted_roots(context):
        models["text"] = front.build_text(context)
    if context.wants(shared.WHOLE):
        _watermarker()
    return {root: model.eval() if root == "ve" else _cast(model.eval(), context.dtype) for root, model in models.items()}


def run(models: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Runs every wanted stage on its own inputs, so that each has its own verdict; returns what each gave."""
    import torch

    with torch.inference_mode():  # as the reference's own `inference` methods do
        given = front.run(models, context)
        for stage, work in _WORK.items():
            if context.wants(stage):
                with td.stage(stage):
                    given[stage] = work(models, context)
    return given


# --- the stages ---


def _run_cond(models: Mapping[str, Any], context: Any) -> Any:
    given = _tensors(shared.t3_inputs(context, "t3.cond"), context.dtype)
    return td.tap("cond", models["t3"].prepare_conditioning(_t3_cond(given)))


def _run_transformer(models: Mapping[str, Any], context: Any) -> Any:
    """What `T3.inference` does before it samples: conditioning, text and two start tokens, with an unconditional second row."""
    import torch

    t3 = models["t3"]
    given = _tensors(shared.t3_inputs(context, "t3.transformer"), context.dtype)
    start = torch.full_like(given["text_tokens"][:, :1], t3.hp.start_speech_token)
    embeds, _ = t3.prepare_input_embeds(t3_cond=_t3_cond(given), text_tokens=given["text_tokens"], speech_tokens=start, cfg_weight=0.5)
    begin = t3.speech_emb(start[:1]) + t3.speech_pos_emb.get_fixed_embedding(0)
    embeds = torch.cat([embeds, torch.cat([begin, begin])], dim=1)
    hidden = t3.tfmr(inputs_embeds=embeds, use_cache=True, output_hidden_states=True, return_dict=True).hidden_states[-1]
    return td.tap("logits", t3.speech_head(hidden))


def _run_generation(stage: str) -> Callable[[Mapping[str, Any], Any], Any]:
    """Token after token as `T3.inference` does it, up to the stop token or the number wanted: the tokens (1, n)."""

    def generate(models: Mapping[str, Any], context: Any) -> Any:
        import torch

        t3 = models["t3"]
        given = _tensors(shared.t3_inputs(context, stage), context.dtype)
        torch.manual_seed(context.seed)
        with _tokens(t3):
            return t3.inference(
                t3_cond=_t3_cond(given),
                text_tokens=given["text_tokens"],
                max_new_tokens=shared.size_of(context).new_tokens,
                **shared.GENERATION[stage],
            )

    return generate


def _run_embedding(models: Mapping[str, Any], context: Any) -> Any:
    """`flow.inference` up to the encoder and from there to the decoder: both stand aside and what they are given is tapped."""
    import torch

    flow = models["s3gen"].flow
    given = _tensors(shared.embedding_inputs(context), context.dtype)

    encode, decode = shared.flow_parts(given["encoded"], torch.ones((1, 1, given["encoded"].shape[1]), dtype=torch.bool))
    with _instead(flow.encoder, encode), _instead(flow.decoder, decode):
        return flow.inference(
            token=given["token"],
            token_len=torch.tensor([given["token"].shape[1]]),
            prompt_token=given["prompt_token"],
            prompt_token_len=torch.tensor([given["prompt_token"].shape[1]]),
            prompt_feat=given["prompt_feat"],
            prompt_feat_len=None,
            embedding=given["embedding"],
            finalize=True,
        )


def _run_encoder(models: Mapping[str, Any], context: Any) -> Any:
    given = _tensors(shared.encoder_inputs(context), context.dtype)
    return models["s3gen"].flow.encoder(given["xs"], given["xs_lens"])


def _run_block(models: Mapping[str, Any], context: Any) -> Any:
    given = _tensors(shared.block_inputs(context), context.dtype)
    return models["s3gen"].flow.decoder.estimator.mid_blocks[0][1][0](**given)


def _run_time(models: Mapping[str, Any], context: Any) -> Any:
    given = _tensors(shared.time_inputs(context), context.dtype)
    estimator = models["s3gen"].flow.decoder.estimator
    return estimator.time_mlp(estimator.time_embeddings(given["t"]).to(given["t"].dtype))


def _run_ode(models: Mapping[str, Any], context: Any) -> Any:
    given = _tensors(shared.ode_inputs(context), context.dtype)
    decoder = models["s3gen"].flow.decoder
    with _steps(decoder.estimator):
        return decoder(n_timesteps=shared.size_of(context).steps, **given)


def _run_vocoder(models: Mapping[str, Any], context: Any) -> Any:
    import torch

    given = _tensors(shared.vocoder_inputs(context))
    return models["s3gen"].mel2wav.inference(speech_feat=given["speech_feat"], cache_source=torch.zeros(1, 1, 0))


def _run_decode(models: Mapping[str, Any], context: Any) -> Any:
    """The vocoder behind its source, whose rounding grows with time, so that it has a verdict of its own."""
    return models["s3gen"].mel2wav.decode(**_tensors(shared.decode_inputs(context)))


def _run_end_to_end(models: Mapping[str, Any], context: Any) -> Any:
    """From a text and a file with a voice to the wave (1, samples), as a user has it: `ChatterboxTTS.generate` with its defaults.

    Only the number of tokens and of steps and how long the voice is heard are those of the sizes. The wave is tapped before the
    watermark, too.
    """
    import torch

    size, t3, flow = shared.size_of(context), models["t3"], models["s3gen"].flow
    text = td.tap("text", shared.sentence(context))
    given = {name: td.tap(name, value) for name, value in voice.source(context, shared.WHOLE).items()}
    tts = front.speaker(models, context)
    tts.DEC_COND_LEN = round(size.heard * voice.RATE_S3GEN)
    tts.sr, tts.t3, tts.tokenizer, tts.watermarker = 24_000, t3, models["text"].tokenizer, _Watermarker()
    torch.manual_seed(context.seed)
    with (
        voice.file_of(given["source"], given["rate"]) as path,
        shared.limited(flow, "inference", n_timesteps=size.steps),
        _tokens(t3, max_new_tokens=size.new_tokens),
        _steps(flow.decoder.estimator),
    ):
        return td.tap("audio", tts.generate(text, audio_prompt_path=path))


class _Watermarker:
    """The reference's watermarker, which lets the wave (samples,) be seen first; where it cannot be had it leaves that as it is."""

    def apply_watermark(self, wave: Any, sample_rate: int) -> Any:
        wave, own = td.tap("wav", wave), _watermarker()
        return wave if own is None else own.apply_watermark(wave, sample_rate=sample_rate)


@functools.lru_cache
def _watermarker() -> Any:
    """What marks the reference's waves, made once, since that draws the weights which it then loads; None where it cannot be had."""
    import perth

    if perth.PerthImplicitWatermarker is None:  # so where setuptools has no pkg_resources
        warnings.warn("resemble-perth cannot be used here: the reference's wave is not watermarked.", stacklevel=2)
        return None
    return perth.PerthImplicitWatermarker()


_WORK: dict[str, Callable[[Mapping[str, Any], Any], Any]] = {
    "t3.cond": _run_cond,
    "t3.transformer": _run_transformer,
    "t3.generate": _run_generation("t3.generate"),
    "t3.sample": _run_generation("t3.sample"),
    "s3gen.embedding": _run_embedding,
    "s3gen.encoder": _run_encoder,
    "flow.block": _run_block,
    "flow.time": _run_time,
    "flow.ode": _run_ode,
    "vocoder": _run_vocoder,
    "vocoder.decode": _run_decode,
    shared.WHOLE: _run_end_to_end,
}


def _tensors(arrays: Mapping[str, Any], dtype: str | None = None) -> dict[str, Any]:
    """NumPy inputs as tensors, the real ones in the model's dtype, each tapped by its name."""
    import torch

    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if dtype is not None:
        tensors = {name: value.to(getattr(torch, dtype)) if value.is_floating_point() else value for name, value in tensors.items()}
    return {name: td.tap(name, value) for name, value in tensors.items()}


def _t3_cond(given: Mapping[str, Any]) -> Any:
    from chatterbox.models.t3.modules.cond_enc import T3Cond

    return T3Cond(
        speaker_emb=given["speaker_emb"],
        cond_prompt_speech_tokens=given["prompt_tokens"],
        emotion_adv=given["emotion_adv"],
    )


@contextlib.contextmanager
def _tokens(t3: Any, **arguments: Any) -> Iterator[None]:
    """While `T3.inference` runs, what leads to its token number n is a scope ``token=n``, and what that is drawn from is tapped.

    It gets the ``arguments``, whatever its caller gives.

    The taps of each token: ``guided``, the logits (1, V) with guidance; ``penalised``, those after the repetition penalty; ``probs``,
    the probabilities (1, V) of the draw.
    """
    import torch
    from chatterbox.models.t3 import t3 as module

    evaluate, draw = t3.tfmr.forward, torch.multinomial

    class Penalty(module.RepetitionPenaltyLogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            return td.tap("penalised", super().__call__(input_ids, td.tap("guided", scores)))

    def drawn(probs: Any, *args: Any, **kwargs: Any) -> Any:
        return draw(td.tap("probs", probs), *args, **kwargs)

    with contextlib.ExitStack() as patches:
        patches.enter_context(shared.tokens(t3, lambda step: _instead(t3.tfmr, functools.partial(step, evaluate)), **arguments))
        patches.enter_context(shared.attribute(module, "RepetitionPenaltyLogitsProcessor", Penalty))
        patches.enter_context(shared.attribute(torch, "multinomial", drawn))
        patches.enter_context(shared.attribute(module, "tqdm", lambda steps, **_: steps))  # no progress bar among ours
        patches.callback(_forget_backend, t3)
        yield


def _forget_backend(t3: Any) -> None:
    """Takes away what `T3.inference` leaves in the model: a second way to all its modules."""
    t3.compiled = False
    if hasattr(t3, "patched_model"):
        del t3.patched_model


@contextlib.contextmanager
def _steps(estimator: Any) -> Iterator[None]:
    """Each evaluation of the velocity is a scope ``ode=k``."""
    evaluate, taken = estimator.forward, 0

    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal taken
        with td.scope("ode", taken):
            taken += 1
            return evaluate(*args, **kwargs)

    with _instead(estimator, step):
        yield


@contextlib.contextmanager
def _instead(module: Any, function: Callable[..., Any]) -> Iterator[None]:
    """For a while a module's forward is ``function``."""
    before = vars(module).get("forward")
    module.forward = function
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


# --- the models ---


def build_t3(sizes: shared.Sizes) -> Any:
    """T3 at the given sizes, through its own constructor."""
    _import_reference()
    from chatterbox.models.t3 import T3
    from chatterbox.models.t3.llama_configs import LLAMA_CONFIGS
    from chatterbox.models.t3.modules import cond_enc
    from chatterbox.models.t3.modules.t3_config import T3Config

    hp = T3Config.english_only()
    if sizes.t3 is None:
        return T3(hp)
    hp.llama_config_name = "tracediff"
    LLAMA_CONFIGS["tracediff"] = {**LLAMA_CONFIGS["Llama_520M"], **sizes.t3}
    width = sizes.t3["hidden_size"]
    with _classes(cond_enc, Perceiver={"pre_attention_query_size": width, "embedding_dim": width}):
        return T3(hp)


def build_s3gen(sizes: shared.Sizes, ears: voice.Front | None = None, *, has_voice: bool = True) -> Any:
    """S3Gen at the given sizes, through its own constructor.

    Without ``ears``, the sizes of the voice front end, that one is left out; without ``has_voice`` flow and vocoder are.
    """
    _import_reference()
    from chatterbox.models.s3gen import s3gen
    from chatterbox.models.s3gen.transformer import upsample_encoder

    width = sizes.encoder_width
    speaking: dict[str, Mapping[str, Any] | None] = {
        "UpsampleConformerEncoder": sizes.encoder,
        "ConditionalDecoder": sizes.estimator,
        "CausalMaskedDiffWithXvec": {"input_size": width},
        "HiFTGenerator": sizes.vocoder,
        "ConvRNNF0Predictor": sizes.f0,
    }
    if not has_voice:
        speaking = dict.fromkeys([*speaking, "CausalConditionalCFM"])
    hearing: dict[str, Mapping[str, Any] | None] = {
        "S3Tokenizer": None if ears is None else {},
        "CAMPPlus": None if ears is None else ears.speaker,
    }
    with (
        contextlib.nullcontext() if ears is None else front.tokenizer_sizes(ears),
        _classes(s3gen, **speaking, **hearing),
        _classes(upsample_encoder, PreLookaheadLayer={"channels": width}, Upsample1D={"channels": width, "out_channels": width}),
    ):
        return s3gen.S3Token2Wav()


def _classes(module: types.ModuleType, **changed: Mapping[str, Any] | None) -> AbstractContextManager[None]:
    """For a while a module's classes are built with other arguments than it gives; None leaves the part out."""
    return shared.classes(module, _left_out, **changed)


def _left_out(*_: Any, **__: Any) -> Any:
    """A module without content, which says that it is in float32: the whole is asked for the dtype of its parts."""
    import torch

    module = torch.nn.Module()
    module.parameters = lambda: iter([torch.zeros(())])
    return module


def _built(context: Any) -> dict[str, Any]:
    """The models that the wanted stages need, with the weights that their constructors give."""
    sizes, wanted = shared.size_of(context), shared.wanted_roots(context)
    ears = voice.front_of(context) if "ve" in wanted else None
    models: dict[str, Any] = {}
    if "t3" in wanted:
        models["t3"] = build_t3(sizes)
    if "s3gen" in wanted or ears is not None:
        models["s3gen"] = build_s3gen(sizes, ears, has_voice="s3gen" in wanted)
    if ears is not None:
        models["ve"] = front.build_voice_encoder(ears)
    return models


def _seed(module: Any, root: str, context: Any) -> Any:
    """Every parameter and buffer of the module's state set by the seed."""
    import torch

    state = {key: torch.from_numpy(shared.seeded(context, f"{root}.{key}", tuple(old.shape))) for key, old in _seeded_state(module).items()}
    module.load_state_dict({**module.state_dict(), **state}, strict=True)
    return module


def _load_files(folder: Path, wanted: Sequence[str]) -> dict[str, Any]:
    """The models as `ChatterboxTTS.from_local` loads them from the reference's own files, without the watermark and the tokenizer."""
    _import_reference()
    from chatterbox.models.s3gen import S3Gen
    from chatterbox.models.t3 import T3
    from safetensors.torch import load_file

    models: dict[str, Any] = {}
    if "t3" in wanted:
        state = load_file(folder / "t3_cfg.safetensors")
        models["t3"] = T3()
        models["t3"].load_state_dict(state["model"][0] if "model" in state else state)
    if "s3gen" in wanted or "ve" in wanted:
        models["s3gen"] = S3Gen()
        models["s3gen"].load_state_dict(load_file(folder / "s3gen.safetensors"), strict=False)
    if "ve" in wanted:
        from chatterbox.models.voice_encoder import VoiceEncoder

        models["ve"] = VoiceEncoder()
        models["ve"].load_state_dict(load_file(folder / "ve.safetensors"))
    return models


def _folder(weights: str) -> Path:
    """The folder of a checkpoint, fetched from the hub where it is no folder here."""
    if Path(weights).is_dir():
        return Path(weights)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(weights, allow_patterns=["t3_cfg.safetensors", "s3gen.safetensors", "ve.safetensors", "tokenizer.json"]))


def _cast(module: Any, dtype: str | None) -> Any:
    """The model in another dtype; the vocoder stays in float32, since the reference's Fourier transforms know no other."""
    import torch

    if dtype is None:
        return module
    for name, part in module.named_children():
        if name not in ("mel2wav", *voice.IN_FLOAT32):
            part.to(getattr(torch, dtype))
    return module


def _seeded_state(module: Any) -> dict[str, Any]:
    """The state that a checkpoint holds: all but the counts of batches and the constants that the S3 tokenizer computes."""
    state = {key: value for key, value in module.state_dict().items() if value.is_floating_point()}
    return {key: value for key, value in state.items() if key.rpartition(".")[2] not in ("_mel_filters", "window")}


def manifest() -> dict[str, dict[str, dict[str, list[int]]]]:
    """The shapes of the reference's weights at both sizes: what `hooks/chatterbox_weights.json` holds."""
    import torch

    shapes: dict[str, dict[str, dict[str, list[int]]]] = {}
    for size, sizes in shared.SIZES.items():
        with torch.device("meta"):
            ears = voice.SMALL if sizes is shared.SMALL else voice.FULL
            hearing = build_s3gen(sizes, ears, has_voice=False)
            built = {
                "t3": build_t3(sizes),
                "s3gen": build_s3gen(sizes),
                "s3gen.tokenizer": hearing.tokenizer,
                "s3gen.speaker_encoder": hearing.speaker_encoder,
                "ve": front.build_voice_encoder(ears),
            }
        shapes[size] = {
            root: shared.compact({key: tuple(value.shape) for key, value in _seeded_state(module).items()})
            for root, module in built.items()
        }
    return shapes


def write_manifest() -> None:
    """Writes `hooks/chatterbox_weights.json` anew; needed when the reference's version changes."""
    lines = json.dumps(manifest(), indent=1)
    shared.MANIFEST.write_text(
        re.sub(r"\[\s+([\d,\s]+?)\s+\]", lambda shape: f"[{' '.join(shape[1].split())}]", lines) + "\n", encoding="utf-8"
    )


def _import_reference() -> None:
    """Makes chatterbox's modules importable without its package's own import, which loads every text front end."""
    import_torchaudio()
    front.imported("chatterbox.models.s3gen")
    front.imported("chatterbox.models.t3")
