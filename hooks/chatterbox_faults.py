"""Faults for the real port, each as a porter makes it: wrong code or wrong weights, planted in loaded models before a run.

`FAULTS` names them. Each says where it truly is, so that a demonstration and the tests can tell whether it was found. Planting
changes the given models alone: no class or module of mlx-audio is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Models = Mapping[str, Any]
ESTIMATOR = "s3gen.flow.decoder.estimator"


@dataclass(frozen=True)
class Fault:
    """One fault: what is announced, the first stage that shows it, the kind of cause, and the module to blame on either side."""

    announcement: str
    stage: str
    kind: str
    port: str
    reference: str
    plant: Callable[[Models], None]


FAULTS: dict[str, Fault] = {}


def _fault(announcement: str, *, stage: str, kind: str, port: str, reference: str) -> Callable[[Callable[[Models], None]], Any]:
    def register(plant: Callable[[Models], None]) -> Callable[[Models], None]:
        FAULTS[plant.__name__] = Fault(announcement, stage, kind, port, reference, plant)
        return plant

    return register


def _become(module: Any, **methods: Callable[..., Any]) -> None:
    """Gives one module other methods; each gets the original one first, then the module."""
    original = type(module)
    changed = {name: _with_original(getattr(original, name), method) for name, method in methods.items()}
    module.__class__ = type(original.__name__, (original,), changed)


def _with_original(original: Callable[..., Any], method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: method(original, self, *args, **kwargs)


def _flow_blocks(models: Models) -> Iterator[Any]:
    """Every transformer block of the flow decoder: 56 at full size."""
    estimator = models["s3gen"].flow.decoder.estimator
    for group in (*estimator.down_blocks, *estimator.mid_blocks, *estimator.up_blocks):
        yield from group.transformer_blocks


# --- weights ---


@_fault(
    "the bias of every attention output projection in the flow decoder was dropped by the conversion",
    stage="flow.block",
    kind="weights.missing_bias",
    port=f"{ESTIMATOR}.mid_blocks_0.transformer_0.attn.out_proj",
    reference=f"{ESTIMATOR}.mid_blocks.0.1.0.attn1.to_out.0",
)
def dropped_bias(models: Models) -> None:
    for block in _flow_blocks(models):
        block.attn.out_proj.pop("bias")


@_fault(
    "the first conformer block was never loaded and keeps what its constructor made",
    stage="s3gen.encoder",
    kind="weights.unloaded",
    port="s3gen.flow.encoder.encoders_0.norm_mha",
    reference="s3gen.flow.encoder.encoders.0.norm_mha",
)
def unloaded_block(models: Models) -> None:
    import mlx.core as mx
    from mlx.utils import tree_map_with_path

    def initial(path: str, values: Any) -> Any:
        if path.endswith("bias"):
            return mx.zeros_like(values)
        if values.ndim == 1:
            return mx.ones_like(values)
        return mx.random.uniform(-1.0, 1.0, values.shape, key=mx.random.key(len(path))) * values.shape[-1] ** -0.5

    block = models["s3gen"].flow.encoder.encoders_0
    block.update(tree_map_with_path(initial, block.parameters()))


@_fault(
    "a square weight, the perceiver's query projection, was loaded transposed",
    stage="t3.cond",
    kind="weights.layout",
    port="t3.cond_enc.perceiver.attn.to_q",
    reference="t3.cond_enc.perceiver.attn.to_q",
)
def transposed_weight(models: Models) -> None:
    layer = models["t3"].cond_enc.perceiver.attn.to_q
    layer.weight = layer.weight.T


@_fault(
    "the two norms of T3's second layer were swapped",
    stage="t3.transformer",
    kind="weights.swapped",
    port="t3.tfmr.model.layers.1.input_layernorm",
    reference="t3.tfmr.layers.1.input_layernorm",
)
def swapped_norms(models: Models) -> None:
    layer = models["t3"].tfmr.model.layers[1]
    first, second = layer.input_layernorm, layer.post_attention_layernorm
    first.weight, second.weight = second.weight, first.weight


@_fault(
    "a feed-forward weight of T3's first layer went through bfloat16",
    stage="t3.transformer",
    kind="weights.precision",
    port="t3.tfmr.model.layers.0.mlp.down_proj",
    reference="t3.tfmr.layers.0.mlp.down_proj",
)
def rounded_weight(models: Models) -> None:
    import mlx.core as mx

    layer = models["t3"].tfmr.model.layers[0].mlp.down_proj
    layer.weight = layer.weight.astype(mx.bfloat16).astype(mx.float32)


@_fault(
    "the weight norm of the fundamental's first convolution was merged over the wrong axis",
    stage="vocoder",
    kind="weights.value",
    port="s3gen.mel2wav.f0_predictor.condnet.0",
    reference="s3gen.mel2wav.f0_predictor.condnet.0",
)
def merged_over_wrong_axis(models: Models) -> None:
    import mlx.core as mx

    conv = models["s3gen"].mel2wav.f0_predictor.condnet[0]
    magnitude = mx.sqrt(mx.sum(conv.weight**2, axis=(1, 2), keepdims=True))
    direction = conv.weight / magnitude
    conv.weight = magnitude * direction / mx.sqrt(mx.sum(direction**2, axis=(0, 1), keepdims=True))


# --- masks, positions, norms ---


@_fault(
    "the encoder's attention looks at padding: its mask is not applied",
    stage="s3gen.encoder",
    kind="mask.missing",
    port="s3gen.flow.encoder.encoders_0.self_attn",
    reference="s3gen.flow.encoder.encoders.0.self_attn",
)
def missing_mask(models: Models) -> None:
    encoder = models["s3gen"].flow.encoder
    for layer in (*encoder.encoders, *encoder.up_encoders):
        _become(layer.self_attn, forward_attention=lambda original, self, value, scores, mask=None: original(self, value, scores, None))


@_fault(
    "T3 attends to later positions: its causal mask is not applied",
    stage="t3.transformer",
    kind="mask.missing",
    port="t3.tfmr.model.layers.0.self_attn",
    reference="t3.tfmr.layers.0.self_attn",
)
def missing_causal_mask(models: Models) -> None:
    for layer in models["t3"].tfmr.model.layers:
        _become(layer.self_attn, __call__=lambda original, self, x, mask=None, cache=None: original(self, x, None, cache))


@_fault(
    "the prompt's speech tokens reach the perceiver without their position embedding",
    stage="t3.cond",
    kind="position.missing",
    port="t3",
    reference="t3",
)
def missing_position(models: Models) -> None:
    def prepare(original: Any, self: Any, t3_cond: Any) -> Any:
        if t3_cond.cond_prompt_speech_tokens is not None and t3_cond.cond_prompt_speech_emb is None:
            t3_cond.cond_prompt_speech_emb = self.speech_emb(t3_cond.cond_prompt_speech_tokens)
        return original(self, t3_cond)

    _become(models["t3"], prepare_conditioning=prepare)


@_fault(
    "the second start token has position 1 instead of 0",
    stage="t3.transformer",
    kind="position.offset",
    port="t3.speech_pos_emb",
    reference="t3.speech_pos_emb",
)
def shifted_position(models: Models) -> None:
    _become(models["t3"].speech_pos_emb, get_fixed_embedding=lambda original, self, idx: original(self, idx + 1))


@_fault(
    "T3's rotary embedding has base 10000 instead of 500000",
    stage="t3.transformer",
    kind="rope.variant",
    port="t3.tfmr.model.layers.0.self_attn.rope",
    reference="t3.tfmr.layers.0.self_attn",
)
def wrong_rope_base(models: Models) -> None:
    from mlx_audio.lm.models.rope_utils import initialize_rope

    args = models["t3"].tfmr.args
    for layer in models["t3"].tfmr.model.layers:
        attention = layer.self_attn
        attention.rope = initialize_rope(attention.head_dim, 10000.0, False, args.rope_scaling, args.max_position_embeddings)


@_fault(
    "T3's rotary embedding turns neighbouring pairs instead of halves",
    stage="t3.transformer",
    kind="rope.variant",
    port="t3.tfmr.model.layers.0.self_attn.rope",
    reference="t3.tfmr.layers.0.self_attn",
)
def interleaved_rope(models: Models) -> None:
    for layer in models["t3"].tfmr.model.layers:
        layer.self_attn.rope.traditional = True


@_fault(
    "T3's norms have eps 1e-3 instead of 1e-5",
    stage="t3.transformer",
    kind="norm.eps",
    port="t3.tfmr.model.layers.0.input_layernorm",
    reference="t3.tfmr.layers.0.input_layernorm",
)
def wrong_norm_eps(models: Models) -> None:
    for layer in models["t3"].tfmr.model.layers:
        layer.input_layernorm.eps = layer.post_attention_layernorm.eps = 1e-3


@_fault(
    "the encoder's input is not scaled by the root of its width",
    stage="s3gen.encoder",
    kind="scale",
    port="s3gen.flow.encoder.embed.pos_enc",
    reference="s3gen.flow.encoder.embed.pos_enc",
)
def missing_scale(models: Models) -> None:
    models["s3gen"].flow.encoder.embed.pos_enc.xscale = 1.0


@_fault(
    "the encoder was left in training mode, and drops out",
    stage="s3gen.encoder",
    kind="mode.train",
    port="s3gen.flow.encoder.embed",
    reference="s3gen.flow.encoder.embed",
)
def training_mode(models: Models) -> None:
    models["s3gen"].flow.encoder.train()


# --- the flow decoder ---


@_fault(
    "a transformer block's feed-forward has SiLU where the reference has GELU",
    stage="flow.block",
    kind="activation",
    port=f"{ESTIMATOR}.mid_blocks_0.transformer_0.ff",
    reference=f"{ESTIMATOR}.mid_blocks.0.1.0.ff.net.0",
)
def wrong_activation(models: Models) -> None:
    import mlx.nn as nn

    def forward(original: Any, self: Any, x: Any) -> Any:
        return self.layers[1](nn.silu(self.layers[0](x)))

    for block in _flow_blocks(models):
        _become(block.ff, __call__=forward)


@_fault(
    "the time embedding scales time by 100 instead of 1000",
    stage="flow.time",
    kind="time.scale",
    port=f"{ESTIMATOR}.time_embeddings",
    reference=f"{ESTIMATOR}.time_embeddings",
)
def wrong_time_scale(models: Models) -> None:
    time_embeddings = models["s3gen"].flow.decoder.estimator.time_embeddings
    _become(time_embeddings, __call__=lambda original, self, x, scale=100: original(self, x, scale=scale))


@_fault(
    "the causal convolutions of the flow decoder are padded on the right",
    stage="flow.ode",
    kind="padding.shift",
    port=f"{ESTIMATOR}.down_blocks_0.resnet.block1.conv",
    reference=f"{ESTIMATOR}.down_blocks.0.0.block1.block.0",
)
def wrong_padding(models: Models) -> None:
    import mlx.core as mx

    def forward(original: Any, self: Any, x: Any) -> Any:
        padded = mx.pad(mx.swapaxes(x, 1, 2), [(0, 0), (0, self.causal_padding), (0, 0)])
        return mx.swapaxes(self.conv(padded), 1, 2)

    estimator = models["s3gen"].flow.decoder.estimator
    for _, module in estimator.named_modules():
        if hasattr(module, "causal_padding"):
            _become(module, __call__=forward)


@_fault(
    "the guided velocity is interpolated between the two, not extrapolated beyond the conditional one",
    stage="flow.ode",
    kind="cfg.formula",
    port="s3gen.flow.decoder",
    reference="s3gen.flow.decoder",
)
def wrong_guidance(models: Models) -> None:
    def solve(original: Any, self: Any, x: Any, t_span: Any, mu: Any, mask: Any, spks: Any, cond: Any) -> Any:
        rate = self.inference_cfg_rate
        for step in range(len(t_span) - 1):
            given, free = _velocity(self.estimator, x, t_span[step], mu, mask, spks, cond)
            x = x + (t_span[step + 1] - t_span[step]) * ((1.0 - rate) * free + rate * given)
        return x

    _become(models["s3gen"].flow.decoder, solve_euler=solve)


def _velocity(estimator: Any, x: Any, t: Any, mu: Any, mask: Any, spks: Any, cond: Any) -> tuple[Any, Any]:
    """The conditional and the unconditional velocity, in one evaluation."""
    import mlx.core as mx

    def twice(values: Any) -> Any:
        return mx.concatenate([values, values])

    def once(values: Any) -> Any:
        return mx.concatenate([values, mx.zeros_like(values)])

    both = estimator(twice(x), twice(mask), once(mu), mx.stack([t, t]), once(spks), once(cond))
    return both[:1], both[1:]


@_fault(
    "the ODE's steps are evenly spaced instead of along a cosine",
    stage="flow.ode",
    kind="ode.schedule",
    port="s3gen.flow.decoder",
    reference="s3gen.flow.decoder",
)
def wrong_schedule(models: Models) -> None:
    models["s3gen"].flow.decoder.t_scheduler = "linear"


@_fault(
    "the ODE starts from the port's own noise, not from the reference's",
    stage="flow.ode",
    kind="random",
    port="s3gen.flow.decoder",
    reference="s3gen.flow.decoder",
)
def noise_not_shared(models: Models) -> None:
    import mlx.core as mx

    decoder = models["s3gen"].flow.decoder
    decoder.rand_noise = mx.random.normal(decoder.rand_noise.shape, key=mx.random.key(0))
