"""A pair of recipes to start from, which run as they stand."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from tracediff.errors import RecipeError
from tracediff.observe.adapters.registry import FRAMEWORKS


def write_recipes(folder: str | os.PathLike[str], name: str) -> list[Path]:
    """Writes ``NAME_torch.py`` and ``NAME_mlx.py`` into a folder, and returns their paths: commented recipes of a toy model that run.

    Raises RecipeError where the name is no Python name, hides an installed package, or a file is there already.
    """
    if not name.isidentifier():
        raise RecipeError(f"{name!r} is no name for a recipe: use letters, digits and underscores, as in 'my_model'.")
    paths = {impl: Path(folder) / f"{name}_{impl}.py" for impl in FRAMEWORKS}
    for path in paths.values():
        if path.exists():
            raise RecipeError(f"{os.fspath(path)!r} is there already. Choose another name, or remove it first.")
        if importlib.util.find_spec(path.stem) is not None:
            raise RecipeError(f"A module {path.stem!r} is installed, which {os.fspath(path)!r} would hide. Choose another name.")
    Path(folder).mkdir(parents=True, exist_ok=True)
    for impl, path in paths.items():
        template = Path(__file__).with_name(f"starter_{impl}.py.txt").read_text(encoding="utf-8")
        path.write_text(template.replace("@NAME@", name), encoding="utf-8")
    return list(paths.values())
