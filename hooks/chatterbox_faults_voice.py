"""Faults of the voice front end and of the text."""

from __future__ import annotations

from chatterbox_plant import PORT, Models, Place, edit, fault, module_at, rewrite

MEL = f"{PORT}.s3gen.mel"
LOG_MEL = f"{PORT}.s3tokenizer.utils"
XVECTOR = f"{PORT}.s3gen.xvector"
SPEAKER = "s3gen.speaker_encoder"
TOKENIZER = "s3gen.tokenizer"

# --- resampling ---

rewrite(
    "delayed_prompt",
    "the prompt at 16 kHz comes one sample late",
    stage="voice.resample",
    kind="padding.shift",
    port="",
    reference="",
    site="#prompt_16k",
    at="s3gen",
    method="embed_ref",
    old="ref_wav_16 = mx.expand_dims(ref_wav_16, 0)",
    new="ref_wav_16 = mx.expand_dims(mx.pad(ref_wav_16[:-1], [(1, 0)]), 0)",
)
rewrite(
    "wrong_ratio",
    "the prompt is brought to 12 kHz instead of 16",
    stage="voice.resample",
    kind="length",
    also=("transform",),
    port="",
    reference="",
    site="#prompt_16k",
    at="s3gen",
    method="embed_ref",
    old="ref_wav_16 = mx.expand_dims(ref_wav_16, 0)",
    new="ref_wav_16 = ref_wav[:, ::2]",
)

# --- the prompt's mel ---

edit(
    "decimal_logarithm",
    "the prompt's mel is in decimal logarithms",
    stage="voice.mel",
    kind="units.log",
    port="",
    reference="",
    site="#prompt_feat",
    place=Place(MEL, "mel_spectrogram", "mel_spec = mx.log("),
    new="mel_spec = mx.log10(",
)
edit(
    "higher_floor",
    "the prompt's mel is clipped at 1e-2 instead of 1e-5",
    stage="voice.mel",
    kind="clamp",
    port="",
    reference="",
    site="#prompt_feat",
    place=Place(MEL, "mel_spectrogram", "mx.maximum(mel_spec, 1e-5)"),
    new="mx.maximum(mel_spec, 1e-2)",
)
edit(
    "hop_off_by_one",
    "the prompt's frames are 481 samples apart instead of 480",
    stage="voice.mel",
    kind="transform",
    also=("length",),
    port="",
    reference="",
    site="#prompt_stft",
    place=Place(MEL, "mel_spectrogram", "hop_length=hop_size,"),
    new="hop_length=hop_size + 1,",
)
edit(
    "zeros_at_the_ends",
    "the prompt is padded with zeros instead of its reflection",
    stage="voice.mel",
    kind="padding.mode",
    port="",
    reference="",
    site="#prompt_stft",
    place=Place(MEL, "mel_spectrogram", "y = _reflect_pad_2d(y, pad_amount)"),
    new="y = mx.pad(y, [(0, 0), (pad_amount, pad_amount)])",
)

# --- the S3 tokenizer ---

edit(
    "wrong_window",
    "the S3 tokenizer's spectra have a Hamming window instead of a Hann window",
    stage="voice.tokenizer",
    kind="transform",
    port="",
    reference="",
    site="#log_mel_stft",
    place=Place(LOG_MEL, "log_mel_spectrogram", 'window="hann"'),
    new='window="hamming"',
)
edit(
    "natural_logarithm",
    "the S3 tokenizer's mel is in natural logarithms instead of decimal ones",
    stage="voice.tokenizer",
    kind="units.log",
    port="",
    reference="",
    site="#log_mel",
    place=Place(LOG_MEL, "log_mel_spectrogram", "log_spec = mx.log10("),
    new="log_spec = mx.log(",
)
edit(
    "wrong_end_dropped",
    "of the S3 tokenizer's frames the first one is dropped instead of the last",
    stage="voice.tokenizer",
    kind="padding.shift",
    port="",
    reference="",
    site="#log_mel",
    place=Place(LOG_MEL, "log_mel_spectrogram", "spec[:, :-1, :]"),
    new="spec[:, 1:, :]",
)
rewrite(
    "lost_memory",
    "a block of the S3 tokenizer does not add its convolved memory",
    stage="voice.tokenizer",
    kind="branch.missing",
    also=("residual.missing",),
    port="s3_tokenizer.encoder.blocks.1.attn",
    reference=f"{TOKENIZER}.encoder.blocks.1.attn",
    old="self.out(wv) + fsm_memory",
    new="self.out(wv)",
)
rewrite(
    "memory_of_the_past",
    "the memory of the S3 tokenizer's first block is padded on the left only",
    stage="voice.tokenizer",
    kind="padding.shift",
    port="s3_tokenizer.encoder.blocks.0.attn",
    reference=f"{TOKENIZER}.encoder.blocks.0.attn",
    method="forward_fsmn",
    old="mx.concatenate([pad_left, inputs, pad_right], axis=1)",
    new="mx.concatenate([pad_left, pad_right, inputs], axis=1)",
)
rewrite(
    "digits_backwards",
    "the digits of a speech token are taken in the other order",
    stage="voice.tokenizer",
    kind="order.reversed",
    also=("order.channels",),
    port="s3_tokenizer",
    reference=TOKENIZER,
    at="s3_tokenizer.quantizer.fsq_codebook",
    method="encode",
    old="mx.arange(2**self.level, dtype=h.dtype)",
    new="mx.arange(2**self.level, dtype=h.dtype)[::-1]",
)


@fault(
    "the S3 tokenizer's rotary embedding has base 1000 instead of 10000",
    stage="voice.tokenizer",
    kind="rope.variant",
    port="s3_tokenizer.encoder",
    reference=f"{TOKENIZER}.encoder",
)
def tokenizer_rope_base(models: Models) -> None:
    from mlx_audio.codec.models.s3.model_v2 import precompute_freqs_cis

    module_at(models, "s3_tokenizer.encoder")._freqs_cis = precompute_freqs_cis(64, 1024 * 2, theta=1000.0)


# --- the x-vector ---

edit(
    "missing_preemphasis",
    "the filter bank's waves are not pre-emphasised",
    stage="voice.xvector",
    kind="transform",
    port="",
    reference="",
    site="#fbank_fft",
    place=Place(XVECTOR, "kaldi_fbank", "preemph = 0.97"),
    new="preemph = 0.0",
)
rewrite(
    "missing_mean_subtraction",
    "the filter bank's mean over time is not taken off",
    stage="voice.xvector",
    kind="norm.missing",
    also=("branch.missing", "residual.missing"),
    port="",
    reference="",
    site=SPEAKER,
    at=SPEAKER,
    method="inference",
    old="fbank = fbank - mx.mean(fbank, axis=0, keepdims=True)",
    new="fbank = fbank * 1",
)


@fault(
    "the first normalisation of the x-vector's head has eps 1e-2 instead of 1e-5",
    stage="voice.xvector",
    kind="norm.eps",
    port=f"{SPEAKER}.head.bn1",
    reference=f"{SPEAKER}.head.bn1",
)
def wrong_batch_eps(models: Models) -> None:
    module_at(models, f"{SPEAKER}.head.bn1").eps = 1e-2


rewrite(
    "wrong_gate",
    "a context gate of the x-vector has tanh instead of the sigmoid",
    stage="voice.xvector",
    kind="activation",
    port=f"{SPEAKER}.blocks.1.layers.3.cam_layer",
    reference=f"{SPEAKER}.xvector.block2.tdnnd4.cam_layer",
    old="m = nn.sigmoid(",
    new="m = nn.tanh(",
)
rewrite(
    "dense_backwards",
    "the x-vector's last dense block puts what is new before what was there",
    stage="voice.xvector",
    kind="order.concat",
    port=f"{SPEAKER}.blocks.2",
    reference=f"{SPEAKER}.xvector.block3",
    old="mx.concatenate([x, layer(x)], axis=1)",
    new="mx.concatenate([layer(x), x], axis=1)",
)
rewrite(
    "pooled_backwards",
    "the x-vector's pooling puts the deviations before the means",
    stage="voice.xvector",
    kind="order.concat",
    also=("order.channels",),
    port=f"{SPEAKER}.stats",
    reference=f"{SPEAKER}.xvector.stats",
    old="statistics_pooling(x)",
    new="mx.roll(statistics_pooling(x), x.shape[1], axis=-1)",
)
rewrite(
    "variance_pooled",
    "the x-vector's pooling has variances instead of standard deviations",
    stage="voice.xvector",
    kind="transform",
    also=("activation", "scale"),
    port=f"{SPEAKER}.stats",
    reference=f"{SPEAKER}.xvector.stats",
    old="statistics_pooling(x)",
    new="mx.concatenate([mx.mean(x, axis=-1), mx.var(x, axis=-1, ddof=1)], axis=-1)",
)

# --- the voice encoder ---

rewrite(
    "not_trimmed",
    "silence is not cut off",
    stage="voice.trim",
    kind="length",
    port="",
    reference="",
    site="#trimmed",
    at="ve",
    method="embeds_from_wavs",
    old="if trim_top_db is not None:",
    new="if trim_top_db is None:",
)
edit(
    "magnitude_for_power",
    "the voice encoder's mel is of magnitudes instead of their squares",
    stage="voice.encoder",
    kind="activation",
    also=("transform", "scale"),
    port="",
    reference="",
    site="#encoder_mel",
    place=Place(f"{PORT}.voice_encoder.melspec", "melspectrogram", "spec_magnitudes = spec_magnitudes**hp.mel_power"),
    new="spec_magnitudes = spec_magnitudes * 1",
)


@fault(
    "the bias of the voice encoder's second LSTM layer was never loaded",
    stage="voice.encoder",
    kind="weights.missing_bias",
    also=("weights.unloaded", "weights.value"),
    port="ve.lstm.layers.1",
    reference="ve.lstm",
)
def lost_recurrent_bias(models: Models) -> None:
    layer = module_at(models, "ve.lstm.layers.1")
    layer.bias = layer.bias * 0


rewrite(
    "unclipped_embedding",
    "the voice encoder's last ReLU is missing",
    stage="voice.encoder",
    kind="activation",
    also=("clamp",),
    port="ve",
    reference="ve",
    old="raw_embeds = nn.relu(raw_embeds)",
    new="raw_embeds = raw_embeds * 1",
)
rewrite(
    "unnormalised_embedding",
    "the embeddings of parts of an utterance are not normalised",
    stage="voice.encoder",
    kind="norm.missing",
    also=("scale",),
    port="ve",
    reference="ve",
    old="embeds = raw_embeds / mx.linalg.norm(raw_embeds, axis=1, keepdims=True)",
    new="embeds = raw_embeds * 1",
)

# --- the voice as a whole, and the text ---

edit(
    "voice_not_cut",
    "the tokens for T3 are taken of the whole voice, not of its beginning",
    stage="voice",
    kind="length",
    port="",
    reference="",
    place=Place(f"{PORT}.chatterbox", "Model.prepare_conditionals", "ref_wav_16k = ref_wav_16k_full[: self.ENC_COND_LEN]"),
    new="ref_wav_16k = ref_wav_16k_full",
)
edit(
    "missing_capital",
    "a small letter at the start of a text stays small",
    stage="text",
    kind="unknown",
    port="",
    reference="",
    site="#normalised_1",
    place=Place(f"{PORT}.chatterbox", "punc_norm", "text[0].islower()"),
    new="text[0].isspace()",
)
edit(
    "spaces_lost",
    "spaces are not replaced by their special token",
    stage="text",
    kind="length",
    also=("unknown",),
    port="",
    reference="",
    site="#ids_0",
    spread="",
    place=Place(f"{PORT}.tokenizer", "EnTokenizer.encode", 'txt = txt.replace(" ", SPACE)'),
    new="txt = txt.strip()",
)
