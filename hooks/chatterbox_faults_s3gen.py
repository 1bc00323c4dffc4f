"""Faults of S3Gen's flow: token embedding, encoder, flow decoder and its ODE."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from chatterbox_plant import PORT, Models, Place, become, edit, fault, module_at, rewrite

FLOW = "s3gen.flow"
ENCODER = f"{FLOW}.encoder"
DECODER = f"{FLOW}.decoder"
ESTIMATOR = f"{DECODER}.estimator"
BLOCK = f"{ESTIMATOR}.mid_blocks_0.transformer_0"
REFERENCE_BLOCK = f"{ESTIMATOR}.mid_blocks.0.1.0"


def _flow_blocks(models: Models) -> Iterator[Any]:
    """Every transformer block of the flow decoder: 56 at full size."""
    estimator = module_at(models, ESTIMATOR)
    for group in (*estimator.down_blocks, *estimator.mid_blocks, *estimator.up_blocks):
        yield from group.transformer_blocks


# --- embedding ---

rewrite(
    "unnormalised_speaker",
    "the x-vector is not normalised before its projection",
    stage="s3gen.embedding",
    kind="norm.missing",
    also=("scale",),
    port=FLOW,
    reference=FLOW,
    method="inference",
    old="embedding = embedding / (norm + 1e-8)",
    new="embedding = embedding * 1",
)
rewrite(
    "prompt_behind",
    "the prompt's tokens come after those to speak",
    stage="s3gen.embedding",
    kind="order.concat",
    port=FLOW,
    reference=FLOW,
    method="inference",
    old="mx.concatenate([prompt_token, token], axis=1)",
    new="mx.concatenate([token, prompt_token], axis=1)",
)
rewrite(
    "tokens_off_by_one",
    "tokens are embedded one row further, as if a special token came first",
    stage="s3gen.embedding",
    kind="position.offset",
    also=("unknown",),
    port=FLOW,
    reference=FLOW,
    method="inference",
    old="token = mx.clip(token, 0, num_embeddings - 1)",
    new="token = mx.clip(token + 1, 0, num_embeddings - 1)",
)
rewrite(
    "condition_at_the_end",
    "the prompt's mel stands at the end of the condition",
    stage="s3gen.embedding",
    kind="order.concat",
    also=("padding.shift", "order.channels"),
    port=FLOW,
    reference=FLOW,
    method="inference",
    old="conds[:, :mel_len1] = prompt_feat",
    new="conds[:, -mel_len1:] = prompt_feat",
)

# --- encoder ---


@fault(
    "the first conformer block was never loaded and keeps what its constructor made",
    stage="s3gen.encoder",
    kind="weights.unloaded",
    port=f"{ENCODER}.encoders_0.norm_mha",
    reference=f"{ENCODER}.encoders.0.norm_mha",
    spread=f"{ENCODER}.encoders_0",
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

    block = module_at(models, f"{ENCODER}.encoders_0")
    block.update(tree_map_with_path(initial, block.parameters()))


@fault(
    "the encoder's attention looks at padding: its mask is not applied",
    stage="s3gen.encoder",
    kind="mask.missing",
    port=f"{ENCODER}.encoders_0.self_attn",
    reference=f"{ENCODER}.encoders.0.self_attn",
    spread=ENCODER,
)
def missing_mask(models: Models) -> None:
    encoder = module_at(models, ENCODER)
    for layer in (*encoder.encoders, *encoder.up_encoders):
        become(layer.self_attn, forward_attention=lambda original, self, value, scores, mask=None: original(self, value, scores, None))


@fault(
    "the encoder's input is not scaled by the root of its width",
    stage="s3gen.encoder",
    kind="scale",
    port=f"{ENCODER}.embed.pos_enc",
    reference=f"{ENCODER}.embed.pos_enc",
)
def missing_scale(models: Models) -> None:
    module_at(models, f"{ENCODER}.embed.pos_enc").xscale = 1.0


@fault(
    "the encoder was left in training mode, and drops out",
    stage="s3gen.encoder",
    kind="mode.train",
    also=("dropout", "random"),
    port=f"{ENCODER}.embed",
    reference=f"{ENCODER}.embed",
    spread=ENCODER,
)
def training_mode(models: Models) -> None:
    module_at(models, ENCODER).train()


rewrite(
    "inverted_mask",
    "an attention of the encoder looks at padding and at nothing else: its mask is upside down",
    stage="s3gen.encoder",
    kind="mask.wrong",
    port=f"{ENCODER}.encoders_1.self_attn",
    reference=f"{ENCODER}.encoders.1.self_attn",
    method="forward_attention",
    old='scores = mx.where(mask == 0, -float("inf"), scores)',
    new='mask = mask == 0\n        scores = mx.where(mask == 0, -float("inf"), scores)',
)
rewrite(
    "unshifted_positions",
    "relative positions are cut off instead of shifted, in the encoder's second layer",
    stage="s3gen.encoder",
    kind="position.offset",
    also=("rope.variant",),
    port=f"{ENCODER}.encoders_1.self_attn",
    reference=f"{ENCODER}.encoders.1.self_attn",
    method="rel_shift",
    old="x = mx.reshape(x_padded[:, :, 1:], x.shape)[:, :, :, : x.shape[-1] // 2 + 1]",
    new="x = x[:, :, :, : x.shape[-1] // 2 + 1]",
)


@fault(
    "the two biases of relative positions have changed places in the encoder's third upsampled layer",
    stage="s3gen.encoder",
    kind="weights.swapped",
    port=f"{ENCODER}.up_encoders_2.self_attn",
    reference=f"{ENCODER}.up_encoders.2.self_attn",
)
def swapped_biases(models: Models) -> None:
    attention = module_at(models, f"{ENCODER}.up_encoders_2.self_attn")
    attention.pos_bias_u, attention.pos_bias_v = attention.pos_bias_v, attention.pos_bias_u


rewrite(
    "repeated_as_a_whole",
    "upsampling repeats the sequence instead of each of its frames",
    stage="s3gen.encoder",
    kind="transform",
    also=("order.channels", "order.concat"),
    port=f"{ENCODER}.up_layer",
    reference=f"{ENCODER}.up_layer",
    old="mx.repeat(inputs, self.stride, axis=2)",
    new="mx.tile(inputs, (1, 1, self.stride))",
)
rewrite(
    "missing_lookahead_residual",
    "the look-ahead layer does not add its input",
    stage="s3gen.encoder",
    kind="residual.missing",
    port=f"{ENCODER}.pre_lookahead_layer",
    reference=f"{ENCODER}.pre_lookahead_layer",
    old="outputs = outputs + inputs",
    new="outputs = outputs * 1",
)
rewrite(
    "looking_back",
    "the look-ahead layer is padded on the left, so that it looks back",
    stage="s3gen.encoder",
    kind="padding.shift",
    port=f"{ENCODER}.pre_lookahead_layer",
    reference=f"{ENCODER}.pre_lookahead_layer",
    old="outputs = mx.pad(outputs, [(0, 0), (0, self.pre_lookahead_len), (0, 0)])\n    else",
    new="outputs = mx.pad(outputs, [(0, 0), (self.pre_lookahead_len, 0), (0, 0)])\n    else",
)
rewrite(
    "missing_encoder_norm",
    "the encoder's last norm is missing",
    stage="s3gen.encoder",
    kind="norm.missing",
    port=ENCODER,
    reference=ENCODER,
    old="xs = self.after_norm(xs)",
    new="xs = xs * 1",
)


@fault(
    "the positions of the encoder's upsampled half run backwards",
    stage="s3gen.encoder",
    kind="order.reversed",
    port=f"{ENCODER}.up_embed.pos_enc",
    reference=f"{ENCODER}.up_embed.pos_enc",
)
def positions_backwards(models: Models) -> None:
    encoding = module_at(models, f"{ENCODER}.up_embed.pos_enc")
    encoding.pe = encoding.pe[:, ::-1]


# --- a block of the flow decoder ---


@fault(
    "the bias of every attention output projection in the flow decoder was dropped by the conversion",
    stage="flow.block",
    kind="weights.missing_bias",
    port=f"{BLOCK}.attn.out_proj",
    reference=f"{REFERENCE_BLOCK}.attn1.to_out.0",
)
def dropped_bias(models: Models) -> None:
    for block in _flow_blocks(models):
        block.attn.out_proj.pop("bias")


@fault(
    "a transformer block's feed-forward has SiLU where the reference has GELU",
    stage="flow.block",
    kind="activation",
    port=f"{BLOCK}.ff",
    reference=f"{REFERENCE_BLOCK}.ff.net.0",
)
def wrong_activation(models: Models) -> None:
    import mlx.nn as nn

    def forward(original: Any, self: Any, x: Any) -> Any:
        return self.layers[1](nn.silu(self.layers[0](x)))

    for block in _flow_blocks(models):
        become(block.ff, __call__=forward)


rewrite(
    "mixed_heads",
    "the heads of the flow decoder's attention are put together by a reshape alone",
    stage="flow.block",
    kind="heads.layout",
    port=f"{BLOCK}.attn",
    reference=f"{REFERENCE_BLOCK}.attn1",
    old="out = out.transpose(0, 2, 1, 3).reshape(B, T, self.inner_dim)",
    new="out = out.reshape(B, T, self.inner_dim)",
)
rewrite(
    "unscaled_attention",
    "the scores of the flow decoder's attention are not scaled",
    stage="flow.block",
    kind="scale",
    port=f"{BLOCK}.attn",
    reference=f"{REFERENCE_BLOCK}.attn1",
    old="(q @ k.transpose(0, 1, 3, 2)) * self.scale",
    new="(q @ k.transpose(0, 1, 3, 2))",
)
rewrite(
    "shifted_mask",
    "the mask of the flow decoder's attention hides one position too few",
    stage="flow.block",
    kind="mask.wrong",
    port=f"{BLOCK}.attn",
    reference=f"{REFERENCE_BLOCK}.attn1",
    old="scores = scores + attention_mask[:, None, :, :]",
    new="scores = scores + mx.pad(attention_mask[:, None, :, :-1], [(0, 0), (0, 0), (0, 0), (1, 0)])",
)
rewrite(
    "rounded_attention",
    "the flow decoder's attention is computed in bfloat16",
    stage="flow.block",
    kind="precision",
    port=f"{BLOCK}.attn",
    reference=f"{REFERENCE_BLOCK}.attn1",
    old="out = weights @ v",
    new="out = (weights.astype(mx.bfloat16) @ v.astype(mx.bfloat16)).astype(mx.float32)",
)
rewrite(
    "normalised_twice",
    "a transformer block adds its attention to the normalised states",
    stage="flow.block",
    kind="norm.placement",
    also=("residual.missing", "branch.extra", "norm.missing"),
    port=BLOCK,
    reference=REFERENCE_BLOCK,
    old="hidden_states = hidden_states + attn_out",
    new="hidden_states = normed + attn_out",
)

# --- time ---


@fault(
    "the time embedding scales time by 100 instead of 1000",
    stage="flow.time",
    kind="time.scale",
    port=f"{ESTIMATOR}.time_embeddings",
    reference=f"{ESTIMATOR}.time_embeddings",
)
def wrong_time_scale(models: Models) -> None:
    become(module_at(models, f"{ESTIMATOR}.time_embeddings"), __call__=lambda original, self, x, scale=100: original(self, x, scale=scale))


rewrite(
    "cosine_first",
    "the time embedding has its cosines before its sines",
    stage="flow.time",
    kind="order.concat",
    also=("order.channels",),
    port=f"{ESTIMATOR}.time_embeddings",
    reference=f"{ESTIMATOR}.time_embeddings",
    old="[mx.sin(emb), mx.cos(emb)]",
    new="[mx.cos(emb), mx.sin(emb)]",
)
rewrite(
    "wrong_frequencies",
    "the time embedding's frequencies are spread over one more",
    stage="flow.time",
    kind="time.scale",
    port=f"{ESTIMATOR}.time_embeddings",
    reference=f"{ESTIMATOR}.time_embeddings",
    old="math.log(10000) / (half_dim - 1)",
    new="math.log(10000) / half_dim",
)
rewrite(
    "wrong_time_activation",
    "the time embedding's MLP has GELU instead of SiLU",
    stage="flow.time",
    kind="activation",
    port=f"{ESTIMATOR}.time_mlp",
    reference=f"{ESTIMATOR}.time_mlp",
    old='nn.silu(sample) if self.act_fn == "silu" else nn.gelu(sample)',
    new="nn.gelu(sample)",
)

# --- the ODE ---


@fault(
    "the causal convolutions of the flow decoder are padded on the right",
    stage="flow.ode",
    kind="padding.shift",
    port=f"{ESTIMATOR}.down_blocks_0.resnet.block1.conv",
    reference=f"{ESTIMATOR}.down_blocks.0.0.block1.block.0",
    spread=ESTIMATOR,
)
def wrong_padding(models: Models) -> None:
    import mlx.core as mx

    def forward(original: Any, self: Any, x: Any) -> Any:
        padded = mx.pad(mx.swapaxes(x, 1, 2), [(0, 0), (0, self.causal_padding), (0, 0)])
        return mx.swapaxes(self.conv(padded), 1, 2)

    for _, module in module_at(models, ESTIMATOR).named_modules():
        if hasattr(module, "causal_padding"):
            become(module, __call__=forward)


@fault(
    "the guided velocity is interpolated between the two, not extrapolated beyond the conditional one",
    stage="flow.ode",
    kind="cfg.formula",
    port=DECODER,
    reference=DECODER,
)
def wrong_guidance(models: Models) -> None:
    def solve(original: Any, self: Any, x: Any, t_span: Any, mu: Any, mask: Any, spks: Any, cond: Any) -> Any:
        rate = self.inference_cfg_rate
        for step in range(len(t_span) - 1):
            given, free = _velocity(self.estimator, x, t_span[step], mu, mask, spks, cond)
            x = x + (t_span[step + 1] - t_span[step]) * ((1.0 - rate) * free + rate * given)
        return x

    become(module_at(models, DECODER), solve_euler=solve)


def _velocity(estimator: Any, x: Any, t: Any, mu: Any, mask: Any, spks: Any, cond: Any) -> tuple[Any, Any]:
    """The conditional and the unconditional velocity, in one evaluation."""
    import mlx.core as mx

    def twice(values: Any) -> Any:
        return mx.concatenate([values, values])

    def once(values: Any) -> Any:
        return mx.concatenate([values, mx.zeros_like(values)])

    both = estimator(twice(x), twice(mask), once(mu), mx.stack([t, t]), once(spks), once(cond))
    return both[:1], both[1:]


@fault(
    "the ODE's steps are evenly spaced instead of along a cosine",
    stage="flow.ode",
    kind="ode.schedule",
    port=DECODER,
    reference=DECODER,
)
def wrong_schedule(models: Models) -> None:
    module_at(models, DECODER).t_scheduler = "linear"


@fault(
    "the ODE starts from the port's own noise, not from the reference's",
    stage="flow.ode",
    kind="random",
    port=DECODER,
    reference=DECODER,
)
def noise_not_shared(models: Models) -> None:
    import mlx.core as mx

    decoder = module_at(models, DECODER)
    decoder.rand_noise = mx.random.normal(decoder.rand_noise.shape, key=mx.random.key(0))


rewrite(
    "wrong_direction",
    "the ODE goes against its velocity",
    stage="flow.ode",
    kind="ode.sign",
    port=DECODER,
    reference=DECODER,
    method="solve_euler",
    old="x = x + dt * dphi_dt",
    new="x = x - dt * dphi_dt",
)
rewrite(
    "resting_time",
    "the ODE's time does not go on",
    stage="flow.ode",
    kind="ode.schedule",
    port=DECODER,
    reference=DECODER,
    method="solve_euler",
    old="t = t + dt",
    new="t = t * 1",
)
rewrite(
    "unconditional_speaker",
    "the row without guidance is given the speaker, too",
    stage="flow.ode",
    kind="cfg.formula",
    also=("branch.extra",),
    port=DECODER,
    reference=DECODER,
    method="solve_euler",
    old="mx.concatenate([spks, mx.zeros_like(spks)], axis=0)",
    new="mx.concatenate([spks, spks], axis=0)",
)
rewrite(
    "skip_first",
    "the flow decoder puts what skips its middle before what comes from there",
    stage="flow.ode",
    kind="order.concat",
    port=ESTIMATOR,
    reference=ESTIMATOR,
    old="mx.concatenate([x[:, :, : skip.shape[-1]], skip], axis=1)",
    new="mx.concatenate([skip, x[:, :, : skip.shape[-1]]], axis=1)",
)
rewrite(
    "wrong_last_activation",
    "the flow decoder's last block has SiLU instead of Mish",
    stage="flow.ode",
    kind="activation",
    port=f"{ESTIMATOR}.final_block",
    reference=f"{ESTIMATOR}.final_block",
    old="nn.mish(output)",
    new="nn.silu(output)",
)
edit(
    "infinite_mask",
    "the flow decoder's masks are made with infinity, so that nothing times infinity is in them",
    stage="flow.ode",
    kind="nonfinite",
    also=("mask.wrong",),
    port=ESTIMATOR,
    reference=ESTIMATOR,
    place=Place(f"{PORT}.s3gen.decoder", "mask_to_bias", "-1.0e10"),
    new='-float("inf")',
)
