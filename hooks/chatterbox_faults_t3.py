"""Faults of T3: its conditioning, its transformer, and the generation of tokens."""

from __future__ import annotations

from typing import Any

from chatterbox_plant import Models, become, fault, module_at, rewrite

PERCEIVER = "t3.cond_enc.perceiver"

# --- conditioning ---


@fault(
    "a square weight, the perceiver's query projection, was loaded transposed",
    stage="t3.cond",
    kind="weights.layout",
    port=f"{PERCEIVER}.attn.to_q",
    reference=f"{PERCEIVER}.attn.to_q",
)
def transposed_weight(models: Models) -> None:
    layer = module_at(models, f"{PERCEIVER}.attn.to_q")
    layer.weight = layer.weight.T


@fault(
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

    become(models["t3"], prepare_conditioning=prepare)


rewrite(
    "conditions_in_another_order",
    "the exaggeration comes before the prompt among T3's conditions",
    stage="t3.cond",
    kind="order.concat",
    also=("order.channels",),
    port="t3.cond_enc",
    reference="t3.cond_enc",
    old="cond_prompt_speech_emb,\n            cond_emotion_adv,\n",
    new="cond_emotion_adv,\n            cond_prompt_speech_emb,\n",
)
rewrite(
    "unmerged_heads",
    "the perceiver's heads are put together by a reshape alone",
    stage="t3.cond",
    kind="heads.layout",
    port=f"{PERCEIVER}.attn.attention",
    reference=f"{PERCEIVER}.attn.attention",
    method="combine_heads",
    old="x = mx.transpose(x, (0, 2, 1, 3))",
    new="x = x * 1",
)
rewrite(
    "keys_for_values",
    "the perceiver's keys and values have changed places",
    stage="t3.cond",
    kind="order.roles",
    port=f"{PERCEIVER}.attn",
    reference=f"{PERCEIVER}.attn",
    old="self.attention(q, k, v, mask=mask)",
    new="self.attention(q, v, k, mask=mask)",
)
rewrite(
    "missing_residual",
    "the perceiver's attention is not added to its queries",
    stage="t3.cond",
    kind="residual.missing",
    port=f"{PERCEIVER}.attn",
    reference=f"{PERCEIVER}.attn",
    old="return x1 + h",
    new="return h",
)

# --- the transformer ---


@fault(
    "the two norms of T3's second layer were swapped",
    stage="t3.transformer",
    kind="weights.swapped",
    port="t3.tfmr.model.layers.1.input_layernorm",
    reference="t3.tfmr.layers.1.input_layernorm",
    spread="t3.tfmr.model.layers.1",
)
def swapped_norms(models: Models) -> None:
    layer = models["t3"].tfmr.model.layers[1]
    first, second = layer.input_layernorm, layer.post_attention_layernorm
    first.weight, second.weight = second.weight, first.weight


@fault(
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


rewrite(
    "missing_causal_mask",
    "T3 attends to later positions: its layers are given no causal mask",
    stage="t3.transformer",
    kind="mask.missing",
    port="t3.tfmr.model",
    reference="t3.tfmr",
    old="fa_mask = create_attention_mask(h, cache[self.fa_idx])",
    new="fa_mask = None",
)


@fault(
    "the second start token has position 1 instead of 0",
    stage="t3.transformer",
    kind="position.offset",
    port="t3.speech_pos_emb",
    reference="t3.speech_pos_emb",
)
def shifted_position(models: Models) -> None:
    become(models["t3"].speech_pos_emb, get_fixed_embedding=lambda original, self, idx: original(self, idx + 1))


@fault(
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


@fault(
    "T3's rotary embedding turns neighbouring pairs instead of halves",
    stage="t3.transformer",
    kind="rope.variant",
    port="t3.tfmr.model.layers.0.self_attn.rope",
    reference="t3.tfmr.layers.0.self_attn",
)
def interleaved_rope(models: Models) -> None:
    for layer in models["t3"].tfmr.model.layers:
        layer.self_attn.rope.traditional = True


@fault(
    "T3's norms have eps 1e-3 instead of 1e-5",
    stage="t3.transformer",
    kind="norm.eps",
    port="t3.tfmr.model.layers.0.input_layernorm",
    reference="t3.tfmr.layers.0.input_layernorm",
    spread="t3.tfmr.model",
)
def wrong_norm_eps(models: Models) -> None:
    for layer in models["t3"].tfmr.model.layers:
        layer.input_layernorm.eps = layer.post_attention_layernorm.eps = 1e-3


rewrite(
    "missing_text_positions",
    "the text reaches T3 without its position embedding",
    stage="t3.transformer",
    kind="position.missing",
    port="t3",
    reference="t3",
    method="prepare_input_embeds",
    old="text_emb = text_emb + self.text_pos_emb(text_tokens)",
    new="text_emb = text_emb * 1",
)
rewrite(
    "unconditional_text",
    "the row without guidance is given the text, too",
    stage="t3.transformer",
    kind="cfg.formula",
    also=("branch.extra",),
    port="t3",
    reference="t3",
    method="prepare_input_embeds",
    old="mx.zeros_like(text_emb[1:2])",
    new="text_emb[1:2]",
)
rewrite(
    "gate_for_value",
    "gate and value of T3's third feed-forward have changed places",
    stage="t3.transformer",
    kind="order.roles",
    also=("activation",),
    port="t3.tfmr.model.layers.2.mlp",
    reference="t3.tfmr.layers.2.mlp",
    old="swiglu(self.gate_proj(x), self.up_proj(x))",
    new="swiglu(self.up_proj(x), self.gate_proj(x))",
)
rewrite(
    "norm_behind",
    "T3's last layer normalises behind its feed-forward instead of before",
    stage="t3.transformer",
    kind="norm.placement",
    port="t3.tfmr.model.layers.3",
    reference="t3.tfmr.layers.3",
    old="r = self.mlp(self.post_attention_layernorm(h))",
    new="r = self.post_attention_layernorm(self.mlp(h))",
)
rewrite(
    "missing_last_norm",
    "T3's last norm is missing",
    stage="t3.transformer",
    kind="norm.missing",
    port="t3.tfmr.model",
    reference="t3.tfmr",
    old="return self.norm(h)",
    new="return h",
)
rewrite(
    "wrong_attention_scale",
    "the attention of T3's second layer is divided by the head's width instead of its root",
    stage="t3.transformer",
    kind="scale",
    port="t3.tfmr.model.layers.1.self_attn",
    reference="t3.tfmr.layers.1.self_attn",
    old="scale=self.scale,",
    new="scale=self.scale**2,",
)


@fault(
    "a feed-forward weight of T3's third layer, which is not square, was loaded transposed: the call raises",
    stage="t3.transformer",
    kind="raised",
    also=("weights.layout",),
    port="t3.tfmr.model.layers.2.mlp.down_proj",
    reference="t3.tfmr.layers.2.mlp.down_proj",
)
def wrong_shape(models: Models) -> None:
    layer = models["t3"].tfmr.model.layers[2].mlp.down_proj
    layer.weight = layer.weight.T


# --- generation, token after token ---

rewrite(
    "resting_position",
    "every generated token has position 1",
    stage="t3.generate",
    kind="position.offset",
    port="t3.speech_pos_emb",
    reference="t3.speech_pos_emb",
    at="t3",
    method="inference",
    old="self.speech_pos_emb.get_fixed_embedding(step + 1)",
    new="self.speech_pos_emb.get_fixed_embedding(1)",
)
rewrite(
    "wrong_token_guidance",
    "T3's guidance starts from the row without text",
    stage="t3.generate",
    kind="cfg.formula",
    port="t3",
    reference="t3",
    method="inference",
    old="logits = cond_logits + cfg_weight * (cond_logits - uncond_logits)",
    new="logits = uncond_logits + cfg_weight * (cond_logits - uncond_logits)",
)
rewrite(
    "cache_not_updated",
    "the second layer of T3 does not see the keys and values of earlier calls",
    stage="t3.generate",
    kind="cache",
    also=("length",),
    port="t3.tfmr.model.layers.1.self_attn",
    reference="t3.tfmr.layers.1.self_attn",
    old="keys, values = cache.update_and_fetch(keys, values)",
    new="cache.update_and_fetch(keys, values)",
)
rewrite(
    "resting_rotation",
    "the queries of T3's third layer are rotated as if each call began at position 0",
    stage="t3.generate",
    kind="position.offset",
    also=("rope.variant", "rope.missing"),
    port="t3.tfmr.model.layers.2.self_attn",
    reference="t3.tfmr.layers.2.self_attn",
    old="queries = self.rope(queries, offset=cache.offset)",
    new="queries = self.rope(queries, offset=0)",
)
rewrite(
    "token_before_last",
    "T3 is given the token before the last one",
    stage="t3.generate",
    kind="position.offset",
    also=("unknown",),
    port="t3",
    reference="t3",
    method="inference",
    old="mx.array([[next_token_id]])",
    new="mx.array([[generated_ids[-2]]])",
)
rewrite(
    "wrong_temperature",
    "the temperature is twice what was asked for",
    stage="t3.sample",
    kind="scale",
    port="t3",
    reference="t3",
    site="t3#probs",
    method="inference",
    old="temp=temperature,",
    new="temp=2 * temperature,",
)
rewrite(
    "filters_exchanged",
    "top_p and min_p have changed places",
    stage="t3.sample",
    kind="order.roles",
    port="t3",
    reference="t3",
    site="t3#probs",
    method="inference",
    old="top_p=top_p, min_p=min_p",
    new="top_p=min_p, min_p=top_p",
)
rewrite(
    "strong_penalty",
    "the repetition penalty is applied twice",
    stage="t3.sample",
    kind="scale",
    port="t3",
    reference="t3",
    site="t3#penalised",
    method="inference",
    old="repetition_penalty=repetition_penalty,",
    new="repetition_penalty=repetition_penalty**2,",
)
