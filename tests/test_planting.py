"""Changes of models and of installed code: they are where they say, bear no mark, and are gone afterwards, whatever happened."""

from __future__ import annotations

import functools
import importlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

mx = pytest.importorskip("mlx.core")
import numpy as np  # noqa: E402
from mlx import nn  # noqa: E402

from tracediff.observe.recipe import find_recipe, load_file  # noqa: E402
from tracediff.runs.planting import Edit, Place, changed, changes_of, modules_at, planted  # noqa: E402

PACKAGE = '''
import functools

class Text:
    def clean(self, text, mark="!"):
        """Cleans."""
        return text.strip() + mark

@functools.lru_cache
def table(size):
    return list(range(size))
'''


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.gain = 1.0

    def __call__(self, x: Any) -> Any:
        return self.second(nn.gelu(self.first(x))) * self.gain


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = [Block(), Block()]

    def __call__(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture
def net() -> Net:
    mx.random.seed(0)
    return Net()


X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


def result(net: Net) -> np.ndarray:
    return np.array(net(mx.array(X)))


CHANGES = {
    "a piece of source": {"at": "net.blocks.1", "old": "nn.gelu(", "new": "nn.silu("},
    "a piece of source in every block": {"at": "net.blocks.*", "old": "nn.gelu(", "new": "nn.silu("},
    "a class wherever it is": {"at": "net.**", "of": "Block", "old": "nn.gelu(", "new": "nn.silu("},
    "a constant": {"assign": {"net.blocks.*.gain": "2.0"}},
    "a parameter by what it was": {"assign": {"net.blocks.0.first.weight": "mx.transpose(old)"}},
    "a parameter less": {"drop": ["net.blocks.0.first.bias"]},
    "two that changed places": {"swap": ["net.blocks.0.first.weight", "net.blocks.0.second.weight"]},
}


@pytest.mark.parametrize("entry", CHANGES.values(), ids=CHANGES)
def test_a_change_shows_while_it_lasts_and_is_gone_even_where_the_run_raises(net: Net, entry: dict[str, Any]) -> None:
    before, kinds = result(net), [type(module) for module in net.modules()]
    with suppress(ZeroDivisionError), changed({"net": net}, *changes_of(entry)):
        assert not np.array_equal(result(net), before)
        assert [type(module).__qualname__ for module in net.modules()] == [kind.__qualname__ for kind in kinds]
        raise ZeroDivisionError
    assert [type(module) for module in net.modules()] == kinds
    assert np.array_equal(result(net), before)


def test_star_is_every_element_and_two_stars_are_a_module_and_all_within(net: Net) -> None:
    assert modules_at({"net": net}, "net.blocks.*.first") == [block.first for block in net.blocks]
    assert len(modules_at({"net": net}, "net.**")) == len(net.modules())
    assert modules_at({"net": net}, "other.blocks") == []


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        ({"at": "net.blocks.1", "old": "self", "new": "x"}, ValueError, "'self' is 4 times in Block.__call__, not once"),
        ({"at": "net.layers.1", "old": "a", "new": "b"}, LookupError, "No module at 'net.layers.1'"),
        ({"assign": {"net.norm.eps": "1"}}, LookupError, "No module at 'net.norm'"),
    ],
)
def test_what_is_not_there_cannot_be_changed(net: Net, entry: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message), changed({"net": net}, *changes_of(entry)):
        pass


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "plantable").mkdir()
    (tmp_path / "plantable" / "__init__.py").touch()
    (tmp_path / "plantable" / "texts.py").write_text(PACKAGE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("plantable.texts")


def test_a_function_edited_twice_is_edited_under_every_name_and_then_what_it_was(package: Any) -> None:
    clean, code = package.Text.clean, package.Text.clean.__code__
    first = Edit(Place(package.__name__, "Text.clean", "text.strip()"), "text")
    second = Edit(Place(package.__name__, "Text.clean", 'mark="!"'), 'mark="?"')
    with changed({}, first, second):
        assert clean(None, " a") == " a?"
    assert clean(None, " a") == "a!"
    assert package.Text.clean.__code__ is code


def test_what_an_edited_function_remembers_is_forgotten(package: Any) -> None:
    assert isinstance(package.table, functools._lru_cache_wrapper)
    assert package.table(2) == [0, 1]
    with changed({}, Edit(Place(package.__name__, "table", "range(size)"), "range(1, size)")):
        assert package.table(2) == [1]
    assert package.table(2) == [0, 1]


def test_a_place_is_told_by_file_and_line(package: Any) -> None:
    assert str(Place(package.__name__, "Text.clean", "text.strip()")) == "plantable/texts.py:7"


# -- Chatterbox ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hooks() -> Any:
    return load_file(find_recipe("chatterbox", "mlx").with_name("chatterbox_faults.py"))


def test_every_fault_has_its_stage_and_no_announcement_is_said_twice(hooks: Any) -> None:
    stages = list(hooks.chatterbox_shared.STAGES)
    named = [fault.stage for fault in hooks.FAULTS.values()]
    assert len(named) == 112
    assert named == sorted(named, key=stages.index)
    assert len({fault.announcement for fault in hooks.FAULTS.values()}) == len(named)


def test_what_both_ports_have_in_common_is_written_once() -> None:
    folder = find_recipe("chatterbox", "mlx").parent
    first, second = (load_file(folder / f"{name}_mends.py") for name in ("chatterbox", "chatterbox-mlx"))
    assert second.MENDS["lost_quotes"].text == first.MENDS["lost_quotes"].text
    assert second.MENDS["lost_quotes"].port != first.MENDS["lost_quotes"].port
    own = " ".join(second.TABLE.read_text(encoding="utf-8").split())
    assert [name for name, mend in first.MENDS.items() if mend.text in own] == []


@pytest.mark.real
def test_every_fault_and_every_mend_fits_the_installed_port_and_leaves_it_as_it_was(hooks: Any) -> None:
    pytest.importorskip("mlx_audio")
    from tracediff.observe.context import Context
    from tracediff.observe.recipe import load_recipe

    recipe = load_recipe("chatterbox", "mlx")
    models = recipe.load(Context(stages=tuple(recipe.stages)))
    modules = [module for root in models.values() for module in root.modules()]
    before = [(type(module), dict(module)) for module in modules]
    for fault in hooks.FAULTS.values():
        with planted(models, fault):
            pass
    with hooks.mended(models):
        pass
    for module, (kind, items) in zip(modules, before, strict=True):
        assert type(module) is kind
        assert all(module[name] is value for name, value in items.items())
