"""What is no module: the functions and methods of named packages are sites, and nothing else changes for it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_observe_sites import Boundaries, seen

import tracediff as td
from tracediff.observe import observe
from tracediff.observe.recipe import run_recipe

DSP = """
import functools
import numpy as np

def scaled(x, gain=2.0):
    return x * gain

def doubled(x):
    return scaled(scaled(x), gain=1.0)

def window(size):
    return np.hanning(size)

def hertz(mel):
    return 700.0 * mel

@functools.lru_cache
def bank(size):
    return np.arange(size, dtype=np.float32)

def frames(x):
    for step in range(2):
        sent = yield scaled(x, gain=float(step))
        x = x if sent is None else sent

async def later(x):
    return scaled(x)

def sampler(gain):
    def choose(x):
        return x * gain
    return choose

def processors():
    return [lambda x: x + 1.0]

def failing(x):
    raise ValueError("no")

class Mel:
    scale = 3.0

    def __call__(self, x):
        return self.apply(x)

    def apply(self, x):
        return x * self.scale

    @staticmethod
    def half(x):
        return x * 0.5

    @classmethod
    def tripled(cls, x):
        return x * cls.scale

    def __len__(self):
        return 3

class Other(Mel):
    scale = 5.0

    def apply(self, x):
        return super().apply(x) + 1.0
"""
TEXT = """
def cleaned(text, mode="plain"):
    return text.strip()

def scaled(x):
    return x * 7.0

def both(x):
    from toy_audio.deep.dsp import scaled as other
    return other(scaled(x))
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A package of functions with a nested module, and a script that took some of them over by name."""
    folder = tmp_path / "toy_audio" / "deep"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("from toy_audio.deep.dsp import scaled\n")
    (folder / "__init__.py").write_text("")
    (folder / "dsp.py").write_text(DSP)
    (folder.parent / "text.py").write_text(TEXT)
    (folder.parent / "late.py").write_text("def unseen(x):\n    return x\n")
    (tmp_path / "toy_user.py").write_text("from toy_audio.deep.dsp import scaled as mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    import toy_audio.deep.dsp as dsp
    import toy_audio.text as text
    import toy_user as user

    yield SimpleNamespace(dsp=dsp, text=text, user=user)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("toy_audio", "toy_user")]:
        del sys.modules[name]


def watched(side: SimpleNamespace, run: Any, functions: tuple[str, ...] = ("toy_audio.**",), models: Any = None) -> Boundaries:
    return seen(models, run, functions=functions, impl=side.name)


def sites(found: Boundaries) -> list[str]:
    return [b.site for b in found.all if b.moment == "enter"]


def test_functions_are_sites_inside_each_other_and_wherever_they_were_imported(side: SimpleNamespace, x: Any, toy: Any) -> None:
    found = watched(side, lambda: toy.user.mine(toy.dsp.doubled(x), gain=3.0))
    assert [b.call for b in found.all if b.moment == "enter"] == [
        "!doubled[0]",
        "!doubled[0]/!scaled[0]",
        "!doubled[0]/!scaled[1]",
        "!scaled[0]",
    ]
    assert found.ends("!scaled") == ["input[x]"]
    assert found.one("!scaled", ordinal=2).note == {"scalars": {"input[gain]": 3.0}}


def test_functions_called_by_a_module_stand_in_it(side: SimpleNamespace, x: Any, toy: Any) -> None:
    class Caller(side.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return toy.dsp.scaled(x)

    model = Caller()
    model.held = toy.text.scaled
    found = watched(side, lambda: (model(x), model.held(x)), models={"front": model})
    assert sites(found) == ["front", "front!scaled", "!scaled"]
    assert model.held is toy.text.scaled


def test_methods_of_plain_classes_are_sites_of_their_class(side: SimpleNamespace, x: Any, toy: Any) -> None:
    mel = toy.dsp.Other()
    found = watched(side, lambda: (mel(x), toy.dsp.Mel.half(x), mel.half(x), toy.dsp.Other.tripled(x), len(mel)))
    assert sites(found) == ["!Mel", "!Other.apply", "!Mel.apply", "!Mel.half", "!Mel.half", "!Mel.tripled"]
    assert {b.leaves[0][0] for b in found.all if b.moment == "enter"} == {"input[x]"}
    assert (found.values["!Mel.tripled[0]", "output"] == found.values["!Mel.tripled[0]", "input[x]"] * 5.0).all()  # cls stays the subclass


@pytest.mark.parametrize("ending", ["return", "raise", "abandon"])
def test_everything_is_as_before_on_every_way_out(side: SimpleNamespace, x: Any, toy: Any, ending: str) -> None:
    def held() -> list[Any]:
        return [dict(vars(holder)) for holder in (toy.dsp, toy.text, toy.user, toy.dsp.Mel, toy.dsp.Other, sys.modules["toy_audio"])]

    before = held()
    if ending == "raise":
        with pytest.raises(ValueError, match="no"):
            watched(side, lambda: toy.dsp.failing(x))
    elif ending == "abandon":
        watched(side, lambda: next(toy.dsp.frames(x)))
    else:
        watched(side, lambda: toy.dsp.Mel()(toy.dsp.scaled(x)))
    assert all(one.items() == other.items() for one, other in zip(before, held(), strict=True))


def test_results_are_the_same_bits(side: SimpleNamespace, x: Any, toy: Any) -> None:
    def run() -> list[Any]:
        steps = list(toy.dsp.frames(x))
        made = [*toy.dsp.processors(), toy.dsp.sampler(0.3)]
        return [toy.dsp.doubled(x), toy.dsp.Other()(x), *steps, *(one(x) for one in made), asyncio.run(toy.dsp.later(x))]

    bare = [side.numpy(value).tobytes() for value in run()]
    seen_too = observe(None, run, [Boundaries()], functions=["toy_audio.**"], impl=side.name)
    assert [side.numpy(value).tobytes() for value in seen_too] == bare


def test_a_generator_goes_on_inside_its_call_and_each_value_is_a_tap(side: SimpleNamespace, x: Any, toy: Any) -> None:
    def run() -> None:
        steps = toy.dsp.frames(x)
        next(steps)
        steps.send(x + 1.0)

    found = watched(side, run)
    assert [b.call for b in found.all if b.moment in ("enter", "value")] == [
        "!frames[0]",
        "!frames[0]/!scaled[0]",
        "!frames[0]/#frames[0]",
        "!frames[0]/!scaled[1]",
        "!frames[0]/#frames[1]",
    ]


def test_a_coroutine_runs_inside_its_call_and_its_result_is_a_tap(side: SimpleNamespace, x: Any, toy: Any) -> None:
    async def both() -> list[Any]:
        return list(await asyncio.gather(toy.dsp.later(x), asyncio.create_task(toy.dsp.later(x))))

    found = watched(side, lambda: asyncio.run(both()))
    calls = sorted(b.call for b in found.all if b.moment in ("enter", "value"))
    assert calls == sorted(f"!later[{call}]{inner}" for call in (0, 1) for inner in ("", "/!scaled[0]", "/#later[0]"))


def test_the_functions_that_a_function_makes_are_sites(side: SimpleNamespace, x: Any, toy: Any) -> None:
    kept = []

    def run() -> None:
        kept.extend([toy.dsp.sampler(0.5), *toy.dsp.processors()])
        for one in kept:
            one(x)

    found = watched(side, run)
    assert sites(found)[-2:] == ["!sampler.choose", "!processors.lambda"]
    assert side.numpy(kept[0](x)).tobytes() == side.numpy(x * 0.5).tobytes()  # and works on when nobody observes any more


def test_texts_are_records_and_plain_numbers_are_not(side: SimpleNamespace, toy: Any, tmp_path: Path) -> None:
    def run() -> None:
        assert toy.text.cleaned(" a b ", mode="plain") == "a b"
        toy.dsp.hertz(3.0)
        toy.dsp.window(4)
        toy.dsp.bank(3)

    trace = td.capture(None, run, to=tmp_path / "x.h5", functions=["toy_audio.**"], impl=side.name, floor=False)
    records = [(r.site, r.end, r.text() if r.dtype == "text" else r.shape) for r in trace.records]
    assert records == [
        ("!cleaned", "input[text]", " a b "),
        ("!cleaned", "input[mode]", "plain"),
        ("!cleaned", "output", "a b"),
        ("!window", "output", (4,)),
        ("!bank", "output", (3,)),
    ]


def test_methods_of_modules_are_sites_of_their_modules_once(side: SimpleNamespace, x: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = ModuleType("toy_models")
    net = type("Net", (side.Net,), {"decode": lambda self, x: self.first(x)})
    net.__module__ = holder.__name__
    holder.Net = net  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_models", holder)
    model = net()
    found = seen({"net": model}, lambda: model.decode(model(x)), functions=["toy_models.**"], methods=["net:decode"])
    assert [site for site in sites(found) if ".lin" not in site and "first" not in site] == ["net", "net.second", "net:decode"]
    assert "decode" not in vars(model)


def test_two_functions_of_one_name_in_one_place_are_told_apart(side: SimpleNamespace, x: Any, toy: Any) -> None:
    found = watched(side, lambda: toy.text.both(x))
    assert sites(found) == ["!both", "!scaled", "!dsp.scaled"]
    assert sites(watched(side, lambda: toy.text.scaled(x))) == ["!scaled"]


def test_a_name_without_stars_may_be_the_one_that_a_package_hands_on(side: SimpleNamespace, x: Any, toy: Any) -> None:
    assert sites(watched(side, lambda: toy.user.mine(x), ("toy_audio.scaled",))) == ["!scaled"]


def test_what_matched_nothing_was_never_called_or_came_too_late_is_said(side: SimpleNamespace, x: Any, toy: Any) -> None:
    def run() -> None:
        import toy_audio.late

        toy_audio.late.unseen(x)

    patterns = ("toy_audio.deep.dsp.scalled", "toy_audi.**", "toy_audio.text.*", "toy_audio.**")
    text = "\n".join(watched(side, run, patterns).run.not_seen)
    assert "functions 'toy_audio.deep.dsp.scalled': there are none" in text
    assert "nearest: 'toy_audio.deep.dsp.scaled'" in text
    assert "nearest: 'toy_audio.**'" in text
    assert "functions 'toy_audio.text.*': never called" in text
    assert "'toy_audio.late' was imported during the run" in text


def test_numpy_arrays_are_seen_in_a_run_of_any_framework(side: SimpleNamespace, toy: Any) -> None:
    found = watched(side, lambda: toy.dsp.scaled(np.ones(3)))
    assert found.values["!scaled[0]", "output"].tolist() == [2.0, 2.0, 2.0]


def test_a_compiled_function_is_a_site_from_outside(x: Any, side: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    if side.name != "mlx":
        pytest.skip("MLX compiles functions into objects of its own")
    import mlx.core as mx

    holder = ModuleType("toy_compiled")
    exec("import mlx.core as mx\n@mx.compile\ndef gelu(x):\n    return x * mx.sigmoid(1.702 * x)\n", holder.__dict__)
    monkeypatch.setitem(sys.modules, "toy_compiled", holder)
    original = holder.gelu
    found = seen(None, lambda: holder.gelu(x), functions=["toy_compiled.**"], impl="mlx")
    assert (found.values["!gelu[0]", "output"] == np.array(original(x))).all()
    assert holder.gelu is original
    assert mx.allclose(holder.gelu(x), original(x))


FAULTY = "def cleaned(text):\n    return text.strip() + '...'\ndef ids(text):\n    return np.array([ord(c) for c in text])\n"


def test_a_forced_run_hands_on_texts_so_that_only_the_culprit_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, code in (("toy_ours", FAULTY.replace(" + '...'", "")), ("toy_theirs", FAULTY)):
        module = ModuleType(name)
        exec("import numpy as np\n" + code, module.__dict__)
        monkeypatch.setitem(sys.modules, name, module)
    ours, theirs = sys.modules["toy_ours"], sys.modules["toy_theirs"]
    td.capture(None, lambda: ours.ids(ours.cleaned(" ab ")), to=tmp_path / "a.h5", functions=["toy_ours.*"], floor=False)
    run = lambda: theirs.ids(theirs.cleaned(" ab "))  # noqa: E731
    td.capture(None, run, to=tmp_path / "b.h5", functions=["toy_theirs.*"], feed=tmp_path / "a.h5")
    report = td.diff(tmp_path / "a.h5", tmp_path / "b.h5")
    assert [(d.site.port, d.site.end) for d in report.divergences] == [("!cleaned", "output")]
    with td.open_trace(tmp_path / "b.h5") as forced:
        assert next(r for r in forced.records if r.site == "!ids" and r.end == "output").read().tolist() == [97, 98]


RECIPE = '''"""A toy."""
IMPL = "torch"
STAGES = {"one": "The first"}

def load(context):
    import torch
    return {"model": torch.nn.Linear(2, 2)}

def run(models, context):
    import toy_user, torch
    models["model"](toy_user.mine(torch.ones(1, 2)))
'''


def test_a_recipe_is_run_with_the_functions_that_are_asked_for(toy: Any, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "toy_torch.py").write_text(RECIPE)
    path = run_recipe("torch", tmp_path / "toy_torch.py", output=tmp_path / "x.h5", functions=["toy_audio.**"], repeat=False)
    with td.open_trace(path) as trace:
        assert list(trace.sites) == ["!scaled", "model"]


def test_a_submodule_can_be_imported_though_the_package_has_a_function_of_that_name() -> None:
    import tracediff.alignment.axes as axes
    import tracediff.observe.recorder as recorder

    assert recorder.Recorder.__module__ == "tracediff.observe.recorder"
    assert axes.Layout.__module__ == "tracediff.alignment.axes"
    assert callable(td.capture)
    assert callable(td.align)


def test_an_array_of_the_other_byte_order_repeats(tmp_path: Path) -> None:
    trace = td.capture(None, lambda: td.tap("x", np.arange(9, dtype=">f4").reshape(3, 3)), to=tmp_path / "x.h5", floor=False)
    assert trace.meta["repeats"] is True
    assert trace.records[0].read().tolist() == np.arange(9.0).reshape(3, 3).tolist()


PACKAGES = {"torch": "chatterbox.**", "mlx": "mlx_audio.tts.models.chatterbox.**"}


@pytest.mark.real
@pytest.mark.parametrize("impl", list(PACKAGES))
def test_the_real_code_gives_the_same_bits_and_shows_its_functions(impl: str) -> None:
    pytest.importorskip("chatterbox")
    pytest.importorskip("mlx_audio")
    from tracediff.observe.context import Context
    from tracediff.observe.recipe import load_recipe

    recipe, context = load_recipe("chatterbox", impl), Context(stages=("t3.cond", "s3gen.encoder"))
    models = recipe.load(context)
    found = Boundaries()
    bare = recipe.run(models, context)
    watched = observe(dict(models), lambda: recipe.run(models, context), [found], functions=[PACKAGES[impl]], impl=impl)
    assert _bits(bare) == _bits(watched) != b""
    seen_sites = set(sites(found))
    assert seen_sites >= {
        "t3:prepare_conditioning",
        "t3.cond_enc.perceiver.attn.attention:split_heads",
        "s3gen.flow.encoder!make_pad_mask",
        "s3gen.flow.encoder!add_optional_chunk_mask",
        "s3gen.flow.encoder:forward_layers",
    }
    assert not [line for line in found.run.not_seen if line.startswith("functions")]


def _bits(value: Any) -> bytes:
    """The bytes of all arrays in nested containers."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return b"".join(_bits(part) for part in value)
    return np.array(value).tobytes()
