"""Which file is the recipe of a name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path

from tracediff.errors import RecipeError
from tracediff.observe.adapters.registry import FRAMEWORKS

PACKAGE = Path(__file__).parents[2]
"""The folder of the installed package."""
DEFAULT = "chatterbox"
"""The recipe that is taken where nothing tells which."""


def folders() -> list[Path]:
    """Where recipes are looked for: ``hooks/`` of the current folder, of the installed package, of the checkout it was installed from."""
    places = [Path.cwd() / "hooks", PACKAGE / "hooks"]
    if (PACKAGE.parent / "pyproject.toml").is_file():
        places.append(PACKAGE.parent / "hooks")
    return list(dict.fromkeys(folder for folder in places if folder.is_dir()))


def known_recipes() -> list[str]:
    """The names of the recipes that can be found, as ``chatterbox (mlx, torch)``."""
    sides: dict[str, set[str]] = {}
    for path in _recipes():
        name, _, impl = path.stem.rpartition("_")
        sides.setdefault(name, set()).add(impl)
    return [f"{name} ({', '.join(sorted(impls))})" for name, impls in sides.items()]


def _recipes() -> Iterator[Path]:
    for folder in folders():
        yield from sorted(path for path in folder.glob("*_*.py") if path.stem.rpartition("_")[2] in FRAMEWORKS)


def find_recipe(recipe: str | os.PathLike[str] | None, impl: str) -> Path:
    """The file of a recipe for one side.

    ``recipe`` is a name (``chatterbox``, for ``hooks/chatterbox_torch.py``), a file, or None. None stands for the only recipe for that
    side in the current folder's ``hooks/``; of several, for the only one that has a recipe for the other side too; of none, for
    `DEFAULT`. Raises RecipeError naming the recipes there are.
    """
    if recipe is None:
        return _only_recipe(impl)
    name = os.fspath(recipe)
    if name.endswith(".py") or Path(name).is_file():
        if Path(name).is_file():
            return Path(name).resolve()
        raise RecipeError(f"No recipe file {name!r}. {_known(impl)}")
    for path in _recipes():
        if path.stem in (f"{name}_{impl}", name) and path.stem.endswith(f"_{impl}"):
            return path
    raise RecipeError(f"No recipe {name!r} for {impl!r}. {_known(impl, name)}")


def _only_recipe(impl: str) -> Path:
    own = sorted((Path.cwd() / "hooks").glob(f"*_{impl}.py"))
    pairs = [path for path in own if _has_both_sides(path)]
    if len(pairs) == 1:  # a recipe with one side only is another port of some reference, which is asked for by its name
        return pairs[0]
    if len(own) > 1:
        names = ", ".join(path.stem.removesuffix(f"_{impl}") for path in own)
        raise RecipeError(
            f"{os.fspath(Path.cwd() / 'hooks')!r} has {len(own)} recipes for {impl!r}: {names}. Choose one with --recipe NAME."
        )
    return own[0] if own else find_recipe(DEFAULT, impl)


def _has_both_sides(path: Path) -> bool:
    name = path.stem.rpartition("_")[0]
    return all(path.with_name(f"{name}_{impl}.py").is_file() for impl in FRAMEWORKS)


def _known(impl: str, name: str = "") -> str:
    names = [path.stem.removesuffix(f"_{impl}") for path in _recipes() if path.stem.endswith(f"_{impl}")]
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    listed = ", ".join(dict.fromkeys(names)) or "none"
    return f"Recipes for {impl!r}: {listed}.{hint} Write a pair of your own with: tracediff init NAME"
