"""Faults of the vocoder, and of the whole."""

from __future__ import annotations

from chatterbox_plant import PORT, Models, Place, edit, fault, module_at, rewrite

VOCODER = "s3gen.mel2wav"
SINES = f"{VOCODER}.m_source.l_sin_gen"

# --- fundamental and source ---


@fault(
    "the weight norm of the fundamental's first convolution was merged over the wrong axis",
    stage="vocoder",
    kind="weights.value",
    port=f"{VOCODER}.f0_predictor.condnet.0",
    reference=f"{VOCODER}.f0_predictor.condnet.0",
)
def merged_over_wrong_axis(models: Models) -> None:
    import mlx.core as mx

    conv = module_at(models, f"{VOCODER}.f0_predictor.condnet.0")
    magnitude = mx.sqrt(mx.sum(conv.weight**2, axis=(1, 2), keepdims=True))
    direction = conv.weight / magnitude
    conv.weight = magnitude * direction / mx.sqrt(mx.sum(direction**2, axis=(0, 1), keepdims=True))


rewrite(
    "signed_fundamental",
    "the fundamental's absolute value is not taken",
    stage="vocoder",
    kind="activation",
    port=f"{VOCODER}.f0_predictor",
    reference=f"{VOCODER}.f0_predictor",
    old="return mx.abs(x)",
    new="return -x",
)
rewrite(
    "wrong_fundamental_activation",
    "the fundamental's convolutions are followed by ReLU instead of ELU",
    stage="vocoder",
    kind="activation",
    port=f"{VOCODER}.f0_predictor",
    reference=f"{VOCODER}.f0_predictor",
    old="nn.elu(conv(x))",
    new="nn.relu(conv(x))",
)
rewrite(
    "fundamental_repeated_as_a_whole",
    "the fundamental is repeated as a whole instead of frame by frame",
    stage="vocoder",
    kind="transform",
    also=("order.channels", "order.concat"),
    port=VOCODER,
    reference=VOCODER,
    method="_f0_upsample",
    old="mx.repeat(f0, self.f0_upsample_scale, axis=2)",
    new="mx.tile(f0, (1, 1, self.f0_upsample_scale))",
)
rewrite(
    "harmonics_from_zero",
    "the source's harmonics are counted from 0 instead of 1",
    stage="vocoder",
    kind="position.offset",
    also=("scale",),
    port=SINES,
    reference=SINES,
    old="mx.arange(1, self.harmonic_num + 2).reshape(1, -1, 1)",
    new="mx.arange(0, self.harmonic_num + 1).reshape(1, -1, 1)",
)
rewrite(
    "louder_noise",
    "the noise of voiced parts is twice as loud",
    stage="vocoder",
    kind="scale",
    port=SINES,
    reference=SINES,
    old="uv * self.noise_std + ",
    new="2 * uv * self.noise_std + ",
)
rewrite(
    "missing_tanh",
    "the merged harmonics do not go through tanh",
    stage="vocoder",
    kind="activation",
    port=f"{VOCODER}.m_source",
    reference=f"{VOCODER}.m_source",
    old="mx.tanh(self.l_linear(sine_wavs))",
    new="self.l_linear(sine_wavs)",
)

# --- from mel and source to the wave ---

rewrite(
    "missing_alpha",
    "a snake does not divide by its alpha",
    stage="vocoder.decode",
    kind="activation",
    also=("scale",),
    port=f"{VOCODER}.resblocks.0.activations1.0",
    reference=f"{VOCODER}.resblocks.0.activations1.0",
    old="(1.0 / alpha_clamped) * mx.power",
    new="mx.power",
)
rewrite(
    "wrong_slope",
    "the leaky ReLU before each upsampling has a slope of 0.2 instead of 0.1",
    stage="vocoder.decode",
    kind="activation",
    port=VOCODER,
    reference=VOCODER,
    site=f"{VOCODER}.ups.0",
    method="decode",
    old="x = nn.leaky_relu(x, negative_slope=self.lrelu_slope)\n        #",
    new="x = nn.leaky_relu(x, negative_slope=2 * self.lrelu_slope)\n        #",
)
rewrite(
    "padded_on_the_other_side",
    "the last upsampling is padded at its end instead of its beginning",
    stage="vocoder.decode",
    kind="padding.shift",
    port=VOCODER,
    reference=VOCODER,
    method="decode",
    old="mx.concatenate([x[:, :, 1:2], x], axis=2)",
    new="mx.concatenate([x, x[:, :, -2:-1]], axis=2)",
)
rewrite(
    "summed_kernels",
    "the three resblocks are added up instead of averaged",
    stage="vocoder.decode",
    kind="scale",
    port=VOCODER,
    reference=VOCODER,
    method="decode",
    old="x = mx.mean(",
    new="x = mx.sum(",
)
rewrite(
    "missing_source",
    "the source is not added in the second resolution",
    stage="vocoder.decode",
    kind="branch.missing",
    also=("residual.missing",),
    port=VOCODER,
    reference=VOCODER,
    method="decode",
    old="x = x + si",
    new="x = x + si if i == 0 else x",
)
rewrite(
    "missing_sine",
    "the phase is taken as it is, without its sine",
    stage="vocoder.decode",
    kind="activation",
    port=VOCODER,
    reference=VOCODER,
    method="decode",
    old="phase = mx.sin(x[:, n_fft_half:, :])",
    new="phase = x[:, n_fft_half:, :]",
)
rewrite(
    "lower_limit",
    "the wave is clipped at a tenth of its limit",
    stage="vocoder.decode",
    kind="clamp",
    port=VOCODER,
    reference=VOCODER,
    method="decode",
    old="mx.clip(x, -self.audio_limit, self.audio_limit)",
    new="mx.clip(x, -0.1 * self.audio_limit, 0.1 * self.audio_limit)",
)
edit(
    "source_padded_with_zeros",
    "the source's spectrum is padded with zeros instead of its reflection",
    stage="vocoder.decode",
    kind="padding.mode",
    port=VOCODER,
    reference=VOCODER,
    place=Place(f"{PORT}.s3gen.hifigan", "stft", "x_padded = mx.concatenate([left_pad, x, right_pad], axis=1)"),
    new="x_padded = mx.pad(x, [(0, 0), (pad_length, pad_length)])",
)
edit(
    "unnormalised_overlap",
    "overlapping frames are added up without dividing by their windows",
    stage="vocoder.decode",
    kind="transform",
    also=("norm.missing", "scale"),
    port=VOCODER,
    reference=VOCODER,
    place=Place(f"{PORT}.s3gen.hifigan", "istft", "output = output / window_sum"),
    new="output = output * 1",
)


@fault(
    "a dilated convolution of a resblock has the dilation of the next one",
    stage="vocoder.decode",
    kind="unknown",
    also=("transform", "padding.shift"),
    port=f"{VOCODER}.resblocks.1.convs1.1",
    reference=f"{VOCODER}.resblocks.1.convs1.1",
)
def wrong_dilation(models: Models) -> None:
    conv = module_at(models, f"{VOCODER}.resblocks.1.convs1.1")
    other = module_at(models, f"{VOCODER}.resblocks.1.convs1.2")
    conv.dilation, conv.padding = other.dilation, other.padding


# --- the whole ---

edit(
    "missing_end_of_text",
    "the token that ends a text is not appended",
    stage="end_to_end",
    kind="length",
    port="",
    reference="",
    place=Place(f"{PORT}.chatterbox", "Model.generate", "mx.concatenate([sot_tokens, text_tokens, eot_tokens], axis=1)"),
    new="mx.concatenate([sot_tokens, text_tokens], axis=1)",
)
edit(
    "wrong_exaggeration",
    "half of the exaggeration that was asked for reaches T3",
    stage="end_to_end",
    kind="scale",
    port="",
    reference="",
    place=Place(f"{PORT}.chatterbox", "Model.generate", "if exaggeration != float(conds.t3.emotion_adv[0, 0, 0]):"),
    new="exaggeration = exaggeration / 2\n    if exaggeration != float(conds.t3.emotion_adv[0, 0, 0]):",
)
