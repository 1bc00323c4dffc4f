"""The notebooks run from a clean kernel, and are kept with what they then show; UPDATE_NOTEBOOKS=1 keeps it anew."""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")
pytest.importorskip("torch")
pytest.importorskip("mlx.core")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 600_000
"""Bytes of a notebook, pictures and all."""


def pictures(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]


def kept(notebook: Any) -> Any:
    """The notebook with its outputs, without warnings of libraries and without the names of this machine's folders."""
    temporary = re.escape(tempfile.gettempdir())
    here = re.compile(rf"{temporary}/tmp\w+/|{temporary}/ipykernel_\w+/|{re.escape(str(ROOT))}/")
    for cell in notebook.cells:
        cell.get("metadata", {}).pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                for kind, text in output.get("data", {}).items():
                    if isinstance(text, str) and kind.startswith("text/"):
                        output.data[kind] = here.sub("", text)
    return notebook


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_from_a_clean_kernel(path: Path) -> None:
    import nbclient

    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    assert len(pictures(notebook)) == 2
    if os.environ.get("UPDATE_NOTEBOOKS"):
        nbformat.write(kept(notebook), path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_reader_on_the_web_sees_what_the_notebook_shows(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert len(pictures(notebook)) == 2
    assert path.stat().st_size < LARGEST
    assert not re.search(r"/tmp/|/home/|site-packages|/work/", path.read_text(encoding="utf-8"))
