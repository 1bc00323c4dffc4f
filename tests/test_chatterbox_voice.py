"""The voice front end and the text of the real pair, and what is said of the shipped port there: each difference with its mend."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tracediff.observe.context import Context
from tracediff.observe.observer import Boundary, Observer
from tracediff.observe.recipe import find_recipe, load_file, load_recipe, observe_recipe

pytestmark = pytest.mark.real

STEPS = ["voice.resample", "voice.mel", "voice.tokenizer", "voice.xvector", "voice.trim", "voice.encoder"]
WHOLE = ("voice", "text")


def hooks(name: str) -> ModuleType:
    return load_file(find_recipe("chatterbox", "mlx").with_name(f"{name}.py"))


VOICE, MENDING = hooks("chatterbox_voice"), hooks("chatterbox_mends")
MENDS: Mapping[str, Any] = MENDING.MENDS
FRONT = [name for name, mend in MENDS.items() if all(stage.startswith(WHOLE) for stage, _ in mend.sites)]


class Taps(Observer):
    """Keeps the value of every tap, by stage and name; strings as they are."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str], Any] = {}

    def start(self, run: Any) -> None:
        self.adapter = run.adapter

    def see(self, boundary: Boundary) -> None:
        for end, value in boundary.leaves:
            if end == "value":
                kept = value if isinstance(value, str) else np.array(self.adapter.to_numpy(value))
                self.seen[boundary.stage, boundary.site.rpartition("#")[2]] = kept


class Side:
    """One side of the two stages: its models, and the taps of its run."""

    def __init__(self, impl: str) -> None:
        self.recipe = load_recipe("chatterbox", impl)
        self.context = Context(stages=WHOLE)
        self.models = self.recipe.load(self.context)
        self.taps = self.run()

    def run(self) -> dict[tuple[str, str], Any]:
        taps = Taps()
        observe_recipe(self.recipe, self.context, [taps], models=self.models)
        return taps.seen


@pytest.fixture(scope="module")
def reference() -> Side:
    if importlib.util.find_spec("chatterbox") is None:
        pytest.skip("chatterbox-tts is not installed")
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return Side("torch")
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def port() -> Side:
    pytest.importorskip("mlx_audio")
    return Side("mlx")


@pytest.fixture(scope="module")
def mended(port: Side) -> dict[tuple[str, str], Any]:
    """The port's taps with every difference of the two stages mended."""
    with MENDING.mended(port.models, *FRONT):
        return port.run()


def relative(reference: Any, port: Any) -> float:
    """Relative L2 of one tap; infinite where texts or shapes differ. The order of axes is the pair's own affair."""
    if isinstance(reference, str):
        return 0.0 if reference == port else np.inf
    kind = np.complex128 if reference.dtype.kind == "c" else np.float64
    ours, theirs = reference.squeeze().astype(kind), port.squeeze().astype(kind)
    theirs = theirs.T if ours.shape != theirs.shape else theirs
    if ours.shape != theirs.shape:
        return np.inf
    return float(np.linalg.norm(theirs - ours) / max(np.linalg.norm(ours), 1e-30))


# -- both sides


def test_both_sides_tap_the_same_names_in_every_step(reference: Side, port: Side) -> None:
    ours, theirs = ({name for name in side.taps if name[0] != "voice" or name[1] != "prompt_16k"} for side in (reference, port))
    assert ours == theirs
    assert {stage for stage, _ in ours} == {*STEPS, *WHOLE}


def test_both_sides_start_from_the_same_inputs(reference: Side, port: Side) -> None:
    inputs = ["source", "rate", "fine", "speech", *(name for stage, name in reference.taps if name.startswith("text_"))]
    inputs_of_steps = [(stage, "wav_16k") for stage in ("voice.tokenizer", "voice.xvector", "voice.trim")] + [("voice.mel", "wav_24k")]
    places = [place for place in reference.taps if place[1] in inputs] + inputs_of_steps
    assert len(places) >= 12
    assert all(relative(reference.taps[place], port.taps[place]) == 0 for place in places)


# What each step gives in the shipped port, seen: decoded 3.4e-3, resampled 1.3e-3 to 4.7e-3, transforms 1e-3 to 5e-3, x-vector 7e-3.
@pytest.mark.parametrize(
    ("stage", "tap", "least"),
    [
        ("voice.resample", "decoded", 1e-3),
        ("voice.resample", "wav_24k", 1e-3),
        ("voice.resample", "wav_16k", 5e-4),
        ("voice.resample", "prompt_16k", 1e-3),
        ("voice.mel", "prompt_stft", 5e-4),
        ("voice.mel", "prompt_filters", 1e-6),
        ("voice.tokenizer", "log_mel_stft", 1e-3),
        ("voice.xvector", "fbank_filters", 1e-3),
        ("voice.xvector", "x_vector", 1e-3),
        ("voice.trim", "trimmed", 1e-2),
        ("voice.encoder", "encoder_mel", 1e-3),
        ("voice", "speaker_emb", 1e-2),
        ("text", "normalised_2", 1.0),
        ("text", "normalised_4", 1.0),
    ],
)
def test_the_shipped_port_departs_from_its_reference(reference: Side, port: Side, stage: str, tap: str, least: float) -> None:
    assert relative(reference.taps[stage, tap], port.taps[stage, tap]) > least


def test_with_every_mend_all_steps_and_the_whole_agree(reference: Side, mended: dict[tuple[str, str], Any]) -> None:
    apart = {place: relative(value, mended[place]) for place, value in reference.taps.items()}
    assert len(FRONT) >= 14
    assert len(apart) > 50
    assert {place: error for place, error in apart.items() if error > 2e-5} == {}


def test_the_speech_tokens_are_varied(reference: Side) -> None:
    for place in (("voice.tokenizer", "tokens"), ("voice", "prompt_token"), ("voice", "cond_prompt_speech_tokens")):
        tokens = reference.taps[place]
        assert len(np.unique(tokens)) > tokens.size // 4
        assert tokens.min() >= 0
        assert tokens.max() < 6561


def test_the_limits_of_the_conditioning_cut_the_voice(reference: Side) -> None:
    assert reference.taps["voice", "wav_24k"].size > VOICE.SMALL.decoder_limit * VOICE.RATE_S3GEN
    assert reference.taps["voice", "cond_prompt_speech_tokens"].shape[1] == VOICE.SMALL.prompt_tokens
    mel, tokens = reference.taps["voice", "prompt_feat"].shape[1], reference.taps["voice", "prompt_token"].shape[1]
    assert mel % 2 == 1
    assert tokens == mel // 2


# -- the mends


@pytest.mark.parametrize("name", MENDS)
def test_a_difference_is_where_it_is_said_to_be_in_both_packages(name: str) -> None:
    for place in (MENDS[name].reference, MENDS[name].port):
        if importlib.util.find_spec(place.module.partition(".")[0]) is None:
            pytest.skip(f"{place.module} is not installed")
        file, _, line = str(place).rpartition(":")
        spec = importlib.util.find_spec(file.partition("/")[0])
        assert spec is not None
        assert spec.submodule_search_locations is not None
        path = Path(next(iter(spec.submodule_search_locations))).parent / file
        text = "".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[int(line) - 1 :])
        assert "".join(place.code.split()) in "".join(text[: len(place.code) + 200].split()), place


def test_mending_leaves_the_port_as_it_was(port: Side) -> None:
    from mlx_audio import dsp
    from mlx_audio.tts.models.chatterbox import chatterbox

    before = [function.__code__ for function in (dsp.stft, chatterbox.punc_norm)]
    with MENDING.mended(port.models, *FRONT):
        assert chatterbox.punc_norm("“a”") == '"a".'
        assert dsp.stft.__code__ is not before[0]
    assert [function.__code__ for function in (dsp.stft, chatterbox.punc_norm)] == before
    assert chatterbox.punc_norm("“a”") == "“a”."
    assert port.models["s3_tokenizer"].encoder.blocks[0].attn_ln.eps == 1e-6


def test_one_mend_alone_mends_one_difference(port: Side, reference: Side) -> None:
    pytest.importorskip("mlx_audio")
    from mlx_audio.tts.models.chatterbox import chatterbox

    with MENDING.mended(port.models, "lost_quotes"):
        mended = [chatterbox.punc_norm(text) for text in VOICE.TEXTS]
    truth = [reference.taps["text", f"normalised_{number}"] for number in range(len(VOICE.TEXTS))]
    assert [ours == theirs for ours, theirs in zip(truth, mended, strict=True)] == [True, True, True, True, False, True]


def test_an_unknown_mend_is_an_error(port: Side) -> None:
    with pytest.raises(KeyError, match="no_such_mend"), MENDING.mended(port.models, "no_such_mend"):
        pass


def test_two_voices_at_once_raise_in_the_shipped_tokenizer(port: Side, reference: Side) -> None:
    import mlx.core as mx
    import torch

    mel = reference.taps["voice.tokenizer", "log_mel"].astype(np.float32)[:, :80]
    twice, lengths = np.stack([mel, mel]), np.array([80, 60], np.int32)
    tokenizer = port.models["s3_tokenizer"]
    with pytest.raises(ValueError, match="cannot be broadcast"):
        mx.eval(tokenizer.quantize(mx.array(twice), mx.array(lengths)))
    with MENDING.mended(port.models, "mask_without_heads", "other_norm_eps"):
        tokens, counts = tokenizer.quantize(mx.array(twice), mx.array(lengths))
        mx.eval(tokens, counts)
    ours, ours_counts = reference.models["s3gen"].tokenizer.quantize(torch.tensor(twice), torch.tensor(lengths))
    assert np.array_equal(np.array(tokens), ours.numpy())
    assert np.array_equal(np.array(counts), ours_counts.numpy())


# -- what the project made itself


def test_the_voice_is_the_seeds_alone() -> None:
    one, again, other = (VOICE.speak(np.random.default_rng(seed), 1.0, 24_000) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert relative(one, other) > 0.5


def test_the_voice_fits_16_bits_is_quiet_at_its_ends_and_reaches_above_8_khz() -> None:
    wave = VOICE.speak(np.random.default_rng(0), 2.0, VOICE.RATE)
    assert np.array_equal(wave * 2**15, np.round(wave * 2**15))
    assert 0.1 < abs(wave).max() < 1
    quiet = wave[: int(0.19 * VOICE.RATE)]
    assert 0 < quiet.std() < wave.std() / 100
    spectrum = abs(np.fft.rfft(wave)) ** 2
    above = np.fft.rfftfreq(wave.size, 1 / VOICE.RATE) > 8_000
    assert 1e-6 < spectrum[above].sum() / spectrum.sum() < 0.1


def test_a_recording_of_ones_own_can_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import wavfile

    stereo = np.random.default_rng(0).integers(-1000, 1000, (4_800, 2)).astype(np.int16)
    wavfile.write(tmp_path / "own.wav", 48_000, stereo)
    monkeypatch.setenv(VOICE.VOICE, str(tmp_path / "own.wav"))
    given = VOICE.source(Context(), "voice")
    assert int(given["rate"]) == 48_000
    assert np.array_equal(given["source"], (stereo[:, 0] / 2**15).astype(np.float32))


@pytest.mark.parametrize(("bits", "kind"), [(16, np.int16), (32, np.float32)])
def test_a_file_holds_what_was_asked_for(bits: int, kind: type) -> None:
    from scipy.io import wavfile

    samples = VOICE.speak(np.random.default_rng(0), 0.2, 24_000)
    with VOICE.file_of(samples, 24_000, bits=bits) as path:
        rate, values = wavfile.read(path)
    assert rate == 24_000
    assert values.dtype == kind
    assert np.array_equal(values.astype(np.float64) / (2**15 if bits == 16 else 1), samples)
    assert not Path(path).exists()


def test_the_tokenizer_is_what_its_corpus_trains() -> None:
    assert VOICE.train_tokenizer() == VOICE.TOKENIZER.read_text(encoding="utf-8")


def test_training_the_tokenizer_repeats_in_another_process() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import chatterbox_voice as v, hashlib; "
        "print(hashlib.sha256(v.train_tokenizer().encode()).hexdigest())"
    )
    command = [sys.executable, "-c", code, str(VOICE.TOKENIZER.parent)]
    import hashlib

    ran = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7", "PATH": ""}, timeout=60)
    assert ran.stdout.strip() == hashlib.sha256(VOICE.TOKENIZER.read_bytes()).hexdigest()


def test_the_tokenizer_splits_words_knows_its_marks_and_not_the_rest() -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(VOICE.TOKENIZER))
    assert {"[START]", "[STOP]", "[UNK]", "[SPACE]"} <= set(tokenizer.get_vocab())
    assert tokenizer.get_vocab_size() <= 704  # the text embedding's rows
    assert 3 < len(tokenizer.encode("remembered").ids) + 3 < 3 + len("remembered")
    assert tokenizer.token_to_id("[UNK]") in tokenizer.encode("“你").ids
    assert json.loads(VOICE.TOKENIZER.read_text(encoding="utf-8"))["model"]["type"] == "BPE"


@pytest.fixture(autouse=True, scope="module")
def no_voice_of_the_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(VOICE.VOICE, raising=False)
        yield
