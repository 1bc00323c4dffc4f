"""Chatterbox TTS in PyTorch, the reference: chatterbox-tts 0.1.7."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import chatterbox_shared as shared

import tracediff as td

IMPL = "torch"
REQUIRES = ["chatterbox-tts==0.1.7", "s3tokenizer==0.3.0", "torch>=2.6", "torchaudio>=2.6", "safetensors>=0.5.3"]
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
    """The models that the wanted stages need, in evaluation mode: seeded, or from the reference's own files."""
    if shared.is_seeded(context):
        sizes = shared.size_of(context)
        models = {root: _seed(_BUILD[root](sizes), root, context) for root in shared.wanted_roots(context)}
    else:
        models = _load_files(_folder(context.weights), shared.wanted_roots(context))
    return {root: _cast(model.eval(), context.dtype) for root, model in models.items()}


def run(models: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Runs every wanted stage on its own inputs, so that each has its own verdict; returns what each gave."""
    import torch

    given = {}
    with torch.inference_mode():  # as the reference's own `inference` methods do
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


def _run_embedding(models: Mapping[str, Any], context: Any) -> Any:
    """`flow.inference` up to the encoder and from there to the decoder: both stand aside and what they are given is tapped."""
    import torch

    flow = models["s3gen"].flow
    given = _tensors(shared.embedding_inputs(context), context.dtype)

    def encode(xs: Any, xs_lens: Any) -> tuple[Any, Any]:
        td.tap("encoder_xs", xs)
        td.tap("encoder_xs_lens", xs_lens)
        return given["encoded"], torch.ones((1, 1, given["encoded"].shape[1]), dtype=torch.bool)

    def decode(mu: Any, mask: Any, spks: Any, cond: Any, **_: Any) -> tuple[Any, None]:
        for name, value in {"mu": mu, "mask": mask, "spks": spks, "cond": cond}.items():
            td.tap(name, value)
        return mu, None

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


def build_s3gen(sizes: shared.Sizes) -> Any:
    """S3Gen at the given sizes, through its own constructor; the voice front end is left out."""
    _import_reference()
    from chatterbox.models.s3gen import s3gen
    from chatterbox.models.s3gen.transformer import upsample_encoder

    width = sizes.encoder_width
    with (
        _classes(
            s3gen,
            UpsampleConformerEncoder=sizes.encoder,
            ConditionalDecoder=sizes.estimator,
            CausalMaskedDiffWithXvec={"input_size": width},
            HiFTGenerator=sizes.vocoder,
            ConvRNNF0Predictor=sizes.f0,
            S3Tokenizer=None,
            CAMPPlus=None,
        ),
        _classes(upsample_encoder, PreLookaheadLayer={"channels": width}, Upsample1D={"channels": width, "out_channels": width}),
    ):
        return s3gen.S3Token2Wav()


@contextlib.contextmanager
def _classes(module: types.ModuleType, **changed: Mapping[str, Any] | None) -> Iterator[None]:
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
    import torch

    return torch.nn.Module()


_BUILD = {"t3": build_t3, "s3gen": build_s3gen}


def _seed(module: Any, root: str, context: Any) -> Any:
    """Every parameter and buffer of the module's state set by the seed."""
    import torch

    state = {key: torch.from_numpy(shared.seeded(context, f"{root}.{key}", tuple(old.shape))) for key, old in _seeded_state(module).items()}
    module.load_state_dict(state, strict=True)
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
    if "s3gen" in wanted:
        models["s3gen"] = S3Gen()
        models["s3gen"].load_state_dict(load_file(folder / "s3gen.safetensors"), strict=False)
    return models


def _folder(weights: str) -> Path:
    """The folder of a checkpoint, fetched from the hub where it is no folder here."""
    if Path(weights).is_dir():
        return Path(weights)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(weights, allow_patterns=["t3_cfg.safetensors", "s3gen.safetensors"]))


def _cast(module: Any, dtype: str | None) -> Any:
    """The model in another dtype; the vocoder stays in float32, since the reference's Fourier transforms know no other."""
    import torch

    if dtype is None:
        return module
    for name, part in module.named_children():
        if name != "mel2wav":
            part.to(getattr(torch, dtype))
    return module


def _seeded_state(module: Any) -> dict[str, Any]:
    return {key: value for key, value in module.state_dict().items() if value.is_floating_point()}


def manifest() -> dict[str, dict[str, dict[str, list[int]]]]:
    """The shapes of the reference's weights at both sizes: what `hooks/chatterbox_weights.json` holds."""
    import torch

    shapes: dict[str, dict[str, dict[str, list[int]]]] = {}
    for size, sizes in shared.SIZES.items():
        with torch.device("meta"):
            built = {"t3": build_t3(sizes), "s3gen": build_s3gen(sizes)}
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
    """Makes chatterbox's modules importable without its package's own import, which loads every text front end.

    torchaudio's wheel looks for CUDA libraries that a CPU-only torch does not have, and raises OSError. Chatterbox needs only its
    parts in pure Python, so then its extension module is replaced by an empty one.
    """
    try:
        import torchaudio  # noqa: F401
    except OSError:
        sys.modules["torchaudio._extension"] = types.ModuleType("torchaudio._extension")
    if "chatterbox" in sys.modules:
        return
    spec = importlib.util.find_spec("chatterbox")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("No module named 'chatterbox'", name="chatterbox")
    bare = types.ModuleType("chatterbox")
    bare.__path__ = list(spec.submodule_search_locations)
    sys.modules["chatterbox"] = bare
    try:
        import chatterbox.models.s3gen
        import chatterbox.models.t3  # noqa: F401
    finally:
        del sys.modules["chatterbox"]
