"""What the two Chatterbox recipes share: the stages, the sizes, the inputs and the list of the reference's weights.

Nothing here imports a framework. Both sides call the same functions with the same seed, so that they agree by construction.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import tracediff as td

STAGES = {
    "voice.resample": "voice: decoding and resampling to 24 and 16 kHz",
    "voice.mel": "voice: mel of the prompt for S3Gen",
    "voice.tokenizer": "voice: log mel and S3 tokenizer",
    "voice.xvector": "voice: filter bank and x-vector (CAMPPlus)",
    "voice.trim": "voice: silence cut off at both ends",
    "voice.encoder": "voice: mel, partial utterances and voice encoder",
    "voice": "voice: all of it, from a file to the conditionals",
    "text": "text: normalisation and tokens",
    "t3.cond": "T3 conditioning with the perceiver",
    "t3.transformer": "T3 transformer: prefill, every layer",
    "t3.generate": "T3 token generation with guidance and cache: always the likeliest token",
    "t3.sample": "T3 token generation with guidance and cache: tokens drawn",
    "s3gen.embedding": "S3Gen token embedding, speaker projection and masks",
    "s3gen.encoder": "S3Gen encoder: conformer with upsampling",
    "flow.block": "flow decoder: one transformer block",
    "flow.time": "flow decoder: time embedding",
    "flow.ode": "flow decoder: every step of the ODE solver, with guidance",
    "vocoder": "HiFT vocoder: fundamental, source and wave",
    "vocoder.decode": "HiFT vocoder: mel and a given source to wave",
    "end_to_end": "the whole: from a text and a voice to the wave",
}
FRONT = ("ve", "s3gen.speaker_encoder", "s3gen.tokenizer")
"""The parts of the voice front end, as the reference names them."""
WHOLE = "end_to_end"
SOURCES = {
    "s3gen.encoder": {"xs": "s3gen.flow.encoder/input[0]", "xs_lens": "s3gen.flow.encoder/input[1]"},
    "flow.ode": {name: f"s3gen.flow.decoder/input[{name}]" for name in ("mu", "mask", "spks", "cond")},
    "vocoder": {"speech_feat": "s3gen.mel2wav:inference/input[speech_feat]"},
    "vocoder.decode": {name: f"s3gen.mel2wav:decode/input[{name}]" for name in ("x", "s")},
}
"""Where the reference's run of the whole is given what these stages start from."""
ROOTS = {
    "t3": ("t3.", WHOLE),
    "s3gen": ("s3gen.", "flow.", "vocoder", WHOLE),
    "ve": ("voice", WHOLE),
    "text": ("text", WHOLE),
}

SPEECH_TOKENS = 6561
START_TEXT, STOP_TEXT = 255, 0
MELS = 80
SPEAKER = 192
SAMPLES_A_FRAME = 480


@dataclass(frozen=True)
class Sizes:
    """The widths and depths of the two models, and the lengths of their inputs.

    ``None`` keeps a class's own size. Widths differ from each other and from the kernel sizes (3, 7, 11, 16), because the port's
    conversion decides by "does the shape differ" whether to transpose. ``new_tokens``: how many are generated at most; ``heard``: how
    many seconds of the voice S3Gen hears before it speaks them, in the whole.
    """

    t3: dict[str, int] | None
    encoder: dict[str, Any]
    estimator: dict[str, Any]
    vocoder: dict[str, Any]
    f0: dict[str, Any]
    encoder_width: int
    estimator_width: int
    prompt: int
    text: int
    tokens: int
    frames: int
    steps: int
    mel_frames: int
    new_tokens: int
    heard: float


SMALL = Sizes(
    t3={
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
    },
    encoder={"input_size": 96, "output_size": 96, "attention_heads": 4, "linear_units": 160, "num_blocks": 2},
    estimator={"channels": [48], "attention_head_dim": 24, "num_heads": 4, "n_blocks": 2, "num_mid_blocks": 2},
    vocoder={"base_channels": 48},
    f0={"cond_channels": 40},
    encoder_width=96,
    estimator_width=48,
    prompt=14,
    text=9,
    tokens=11,
    frames=22,
    steps=4,
    mel_frames=6,
    new_tokens=8,
    heard=1.1,
)
FULL = Sizes(
    t3=None,
    encoder={},
    estimator={},
    vocoder={},
    f0={},
    encoder_width=512,
    estimator_width=256,
    prompt=150,
    text=26,
    tokens=40,
    frames=80,
    steps=10,
    mel_frames=12,
    new_tokens=20,
    heard=10.0,
)
SIZES = {"small": SMALL, "full": FULL}

# Seeded weights keep every activation near 1. What follows departs from that, so that what would hide a fault does not:
# sharper attention, sublayers that matter beside a residual stream of width ** 0.5, a fundamental of 0 to 200 Hz, a wave below its limit.
# Each line: which of the reference's keys, and by how much the seeded weight is multiplied and shifted.
ADJUSTED = (
    (r"(to_q|to_k|q_proj|k_proj|linear_q|linear_k|linear_pos)\.weight$", 1.7, 0.0),
    (r"encoders\.\d+\.(self_attn\.linear_out|feed_forward\.w_2)\.weight$", 4.0, 0.0),
    (r"f0_predictor\.classifier\.weight$", 120.0, 0.0),
    (r"f0_predictor\.classifier\.bias$", 1.0, 45.0),
    (r"m_source\.l_linear\.weight$", 3.0, 0.0),
    (r"resblocks\.\d+\.convs2\.\d+\.parametrizations\.weight\.original0$", 0.4, 0.0),
    (r"conv_post\.parametrizations\.weight\.original0$", 0.3, 0.0),
    (r"conv_post\.bias$", 1.0, -1.0),
)

# What both sides' `T3.inference` is called with, besides the number of tokens; what is not named keeps its own default there. Neither
# has a switch for taking the likeliest token, but with min_p = 1 nothing else is left to be drawn.
LIKELIEST = {"temperature": 1.0, "top_p": 1.0, "min_p": 1.0}
GENERATION: dict[str, dict[str, float]] = {"t3.generate": LIKELIEST, "t3.sample": {}}

SENTENCE = "Where do they first part, and why?"

MANIFEST = Path(__file__).with_name("chatterbox_weights.json")


def size_of(context: Any) -> Sizes:
    """The sizes that ``--weights`` asks for: small unless ``seeded:full`` or real weights."""
    return SMALL if context.weights in ("seeded", "seeded:small") else FULL


def is_seeded(context: Any) -> bool:
    """Whether the weights come from the seed, not from files."""
    return context.weights in ("seeded", "seeded:small", "seeded:full")


def wanted_roots(context: Any) -> list[str]:
    """Which of the models the wanted stages need; with ``ve`` goes the whole voice front end."""
    return [root for root, starts in ROOTS.items() if any(stage.startswith(starts) and context.wants(stage) for stage in STAGES)]


def seeded(context: Any, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The seeded weight of one key of the reference, adjusted."""
    values = context.weight(key, shape)
    for pattern, factor, shift in ADJUSTED:
        if re.search(pattern, key):
            return (values * np.float32(factor) + np.float32(shift)).astype(np.float32)
    return values


@contextlib.contextmanager
def limited(module: Any, method: str, **arguments: Any) -> Iterator[None]:
    """For a while a method of one module gets these arguments, whatever its caller gives."""
    original = getattr(module, method)
    setattr(module, method, lambda *args, **kwargs: original(*args, **{**kwargs, **arguments}))
    try:
        yield
    finally:
        delattr(module, method)


def culprits(entry: Mapping[str, Any]) -> tuple[str, str]:
    """The module to blame that an entry of a table names, on the reference's side and on the port's; the root where it names none."""
    named = entry.get("culprit", "")
    reference, port = (named, named) if isinstance(named, str) else named
    return reference, port


def flow_parts(encoded: Any, mask: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What takes the place of the flow's encoder and of its decoder: each taps what it is given.

    The first gives ``encoded`` (1, T, C) and ``mask`` (1, 1, T) back, the second its ``mu``.
    """

    def encode(xs: Any, xs_lens: Any, **_: Any) -> tuple[Any, Any]:
        td.tap("encoder_xs", xs)
        td.tap("encoder_xs_lens", xs_lens)
        return encoded, mask

    def decode(mu: Any, mask: Any, spks: Any, cond: Any, **_: Any) -> tuple[Any, None]:
        for name, value in {"mu": mu, "mask": mask, "spks": spks, "cond": cond}.items():
            td.tap(name, value)
        return mu, None

    return encode, decode


@contextlib.contextmanager
def tokens(t3: Any, instead: Callable[[Callable[..., Any]], contextlib.AbstractContextManager[None]], **arguments: Any) -> Iterator[None]:
    """While ``t3.inference`` runs, what leads to its token number n is a scope ``token=n``.

    ``instead`` puts a function in the place of the transformer's call for a while; the function is given that call, then its arguments.
    The ``arguments`` go to ``t3.inference``, whatever its caller gives.
    """
    infer, began = t3.inference, 0
    with contextlib.ExitStack() as token:

        def forward(evaluate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            nonlocal began
            token.close()
            token.enter_context(td.scope("token", began))
            began += 1
            return evaluate(*args, **kwargs)

        def inference(*args: Any, **kwargs: Any) -> Any:
            with token:
                return infer(*args, **{**kwargs, **arguments})

        t3.inference = inference
        try:
            with instead(forward):
                yield
        finally:
            del t3.inference


@contextlib.contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """For a while an attribute of an instance, a class, a function or a module is ``value``; afterwards it is what it was."""
    is_own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if not is_own:
            delattr(owner, name)
        if is_own or (not inspect.ismethod(before) and getattr(owner, name, None) is not before):
            setattr(owner, name, before)


@contextlib.contextmanager
def classes(module: Any, left_out: Callable[..., Any], **changed: Mapping[str, Any] | None) -> Iterator[None]:
    """For a while a module's classes are built with other arguments than it gives, or, for None, by ``left_out``."""
    originals = {name: getattr(module, name) for name in changed}
    for name, ours in changed.items():
        setattr(module, name, left_out if ours is None else built_with(originals[name], ours))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(module, name, original)


def built_with(cls: Any, ours: Mapping[str, Any]) -> Callable[..., Any]:
    """Builds a class with these arguments, whatever its caller gives for them."""
    return lambda *args, **theirs: cls(*args, **{**theirs, **ours})


def reference_weights(context: Any, root: str) -> Iterator[tuple[str, np.ndarray]]:
    """Every seeded weight of one of the reference's models, by the reference's key, from the manifest's shapes."""
    size = "small" if size_of(context) is SMALL else "full"
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    for pattern, shape in manifest[size].get(root, {}).items():
        for key in expand(pattern):
            yield key, seeded(context, f"{root}.{key}", tuple(shape))


def expand(pattern: str) -> Iterator[str]:
    """The keys that a pattern with ranges stands for.

    >>> list(expand("layers.{0-1}.weight"))
    ['layers.0.weight', 'layers.1.weight']
    """
    parts = re.split(r"\{(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)\}", pattern)
    choices = [[part] if place % 2 == 0 else list(_numbers(part)) for place, part in enumerate(parts)]
    yield from map("".join, product(*choices))


def _numbers(ranges: str) -> Iterator[str]:
    for piece in ranges.split(","):
        first, _, last = piece.partition("-")
        yield from map(str, range(int(first), int(last or first) + 1))


def compact(shapes: dict[str, tuple[int, ...]]) -> dict[str, list[int]]:
    """Keys and shapes with runs of numbered keys folded into patterns: what `expand` undoes."""
    folded = {key: tuple(shape) for key, shape in shapes.items()}
    places = max((len(re.findall(r"(?<=[.a-z])\d+(?=\.)", key)) for key in folded), default=0)
    for place in range(places):
        groups: dict[tuple[str, str, tuple[int, ...]], list[int]] = {}
        rest: dict[str, tuple[int, ...]] = {}
        for key, shape in folded.items():
            numbers = list(re.finditer(r"(?<=[.a-z])(\d+|\{[\d,-]+\})(?=\.)", key))
            if place < len(numbers) and numbers[place][0].isdigit():
                at = numbers[place]
                groups.setdefault((key[: at.start()], key[at.end() :], shape), []).append(int(at[0]))
            else:
                rest[key] = shape
        folded = rest | {f"{head}{_ranges(sorted(found))}{tail}": shape for (head, tail, shape), found in groups.items()}
    return {key: list(shape) for key, shape in sorted(folded.items())}


def _ranges(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return "{" + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) + "}"


# --- inputs: one function a stage, each array by the name that its tap bears ---


def t3_inputs(context: Any, stage: str) -> dict[str, np.ndarray]:
    """A voice (1, 256), the prompt's speech tokens (1, P), the exaggeration (1, 1, 1), and text twice for guidance (2, L)."""
    size = size_of(context)
    array = context.array
    text = array(stage, "text_tokens", lambda g: _text(g, size.text))
    return {
        "speaker_emb": array(stage, "speaker_emb", lambda g: _unit(g.standard_normal((1, 256)))),
        "prompt_tokens": array(stage, "prompt_tokens", lambda g: g.integers(0, SPEECH_TOKENS, (1, size.prompt))),
        "emotion_adv": array(stage, "emotion_adv", lambda g: g.uniform(0.3, 0.9, (1, 1, 1)).astype(np.float32)),
        "text_tokens": text,
    }


def sentence(context: Any) -> str:
    """What the whole is to say."""
    return str(context.array(WHOLE, "text", lambda g: SENTENCE))


def embedding_inputs(context: Any) -> dict[str, np.ndarray]:
    """Tokens to speak and of the prompt, the prompt's log mel (1, 2P, 80), its x-vector (1, 192), and what the encoder would give."""
    size, stage, array = size_of(context), "s3gen.embedding", context.array
    prompt = size.prompt // 2
    return {
        "token": array(stage, "token", lambda g: g.integers(0, SPEECH_TOKENS, (1, size.tokens))),
        "prompt_token": array(stage, "prompt_token", lambda g: g.integers(0, SPEECH_TOKENS, (1, prompt))),
        "prompt_feat": array(stage, "prompt_feat", lambda g: _log_mel(g, (1, 2 * prompt, MELS))),
        "embedding": array(stage, "embedding", lambda g: _float(g.standard_normal((1, SPEAKER)))),
        "encoded": array(stage, "encoded", lambda g: _float(g.standard_normal((1, 2 * (prompt + size.tokens), size.encoder_width)))),
    }


def encoder_inputs(context: Any) -> dict[str, np.ndarray]:
    """Embedded tokens of two utterances of different length (2, T, D) and their lengths, so that the padding mask matters."""
    size, stage, array = size_of(context), "s3gen.encoder", context.array
    length = size.tokens + 2
    return {
        "xs": array(stage, "xs", lambda g: _float(g.standard_normal((2, length, size.encoder_width)))),
        "xs_lens": array(stage, "xs_lens", lambda g: np.array([length, length - 4], np.int64)),
    }


def block_inputs(context: Any) -> dict[str, np.ndarray]:
    """Hidden states (2, T, C), an additive attention mask (2, T, T) that hides the end of the second, a time embedding (2, 4C)."""
    size, stage, array = size_of(context), "flow.block", context.array
    length, width = size.frames, size.estimator_width
    return {
        "hidden_states": array(stage, "hidden_states", lambda g: _float(g.standard_normal((2, length, width)))),
        "attention_mask": array(stage, "attention_mask", lambda g: _hide_end(2, length, length // 4)),
        "timestep": array(stage, "timestep", lambda g: _float(g.standard_normal((2, 4 * width)))),
    }


def time_inputs(context: Any) -> dict[str, np.ndarray]:
    """The times of the cosine schedule (n,)."""
    steps = size_of(context).steps
    schedule = [1 - math.cos(step / steps * math.pi / 2) for step in range(steps + 1)]
    return {"t": context.array("flow.time", "t", lambda g: np.array(schedule, np.float32))}


def ode_inputs(context: Any) -> dict[str, np.ndarray]:
    """The encoder's mean (1, 80, T), a frame mask with a masked end, the speaker (1, 80) and the prompt's mel as condition."""
    size, stage, array = size_of(context), "flow.ode", context.array
    frames = size.frames
    return {
        "mu": array(stage, "mu", lambda g: _float(g.standard_normal((1, MELS, frames)))),
        "mask": array(stage, "mask", lambda g: (np.arange(frames) < frames - 3).astype(np.float32).reshape(1, 1, frames)),
        "spks": array(stage, "spks", lambda g: _float(g.standard_normal((1, MELS)))),
        "cond": array(stage, "cond", lambda g: _prompt_only(_log_mel(g, (1, MELS, frames)), frames // 3)),
    }


def vocoder_inputs(context: Any) -> dict[str, np.ndarray]:
    """A log mel (1, 80, F)."""
    frames = size_of(context).mel_frames
    return {"speech_feat": context.array("vocoder", "speech_feat", lambda g: _log_mel(g, (1, MELS, frames)))}


def decode_inputs(context: Any) -> dict[str, np.ndarray]:
    """A log mel (1, 80, F) and a source signal (1, 1, 480 F)."""
    frames, stage, array = size_of(context).mel_frames, "vocoder.decode", context.array
    return {
        "x": array(stage, "x", lambda g: _log_mel(g, (1, MELS, frames))),
        "s": array(stage, "s", lambda g: _float(0.2 * g.standard_normal((1, 1, SAMPLES_A_FRAME * frames)))),
    }


def _float(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)


def _unit(values: np.ndarray) -> np.ndarray:
    return _float(values / np.linalg.norm(values))


def _log_mel(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return _float(generator.standard_normal(shape) * 1.5 - 4.0)


def _prompt_only(mel: np.ndarray, frames: int) -> np.ndarray:
    mel[:, :, frames:] = 0
    return mel


def _text(generator: np.random.Generator, length: int) -> np.ndarray:
    words = generator.integers(1, START_TEXT, (1, length))
    row = np.concatenate([[[START_TEXT]], words, [[STOP_TEXT]]], axis=1)
    return np.concatenate([row, row])


def _hide_end(batch: int, length: int, hidden: int) -> np.ndarray:
    bias = np.zeros((batch, length, length), np.float32)
    bias[-1, :, length - hidden :] = -1e10
    return bias
