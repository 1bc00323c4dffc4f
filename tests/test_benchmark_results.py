"""The kept figures of benchmarks: one schema, one file a version, and nothing that tells whose machine it was."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import pytest

import tracediff
from benchmarks import results

KEYS = {"schema", "benchmark", "version", "commit", "date", "machine", "options", "figures"}


def options(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json")
    results.add_option(parser)
    return parser.parse_args(given)


def test_nothing_is_written_unless_it_was_asked_for(tmp_path: Path) -> None:
    assert results.record("toy", [{"right": 1}], options(), tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("given", "name"), [((), "toy.json"), (("small",), "toy-small.json")])
def test_the_file_is_named_by_version_benchmark_and_what_the_run_is_called(given: tuple[str, ...], name: str, tmp_path: Path) -> None:
    path = results.record("toy", [{"right": 1}], options("--record", *given), tmp_path)
    assert path == tmp_path / tracediff.__version__ / name
    assert json.loads(path.read_text(encoding="utf-8")).keys() == KEYS


def test_options_say_how_large_the_run_was_and_no_path() -> None:
    given = options("gpt", "--seeds", "0", "1", "--folder", "/kept/traces", "--json", "out.json", "--record")
    assert results.result("toy", [], given)["options"] == {"names": ["gpt"], "seeds": [0, 1]}


def test_figures_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        results.record("toy", [{"share": float("nan")}], options("--record"), tmp_path)


@pytest.mark.parametrize("path", sorted(results.RESULTS.glob("*/*.json")), ids=lambda path: path.stem)
def test_what_is_kept_has_the_schema_and_names_no_host_and_no_path(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    kept = json.loads(text)
    assert kept.keys() == KEYS
    assert kept["schema"] == results.SCHEMA
    assert kept["version"] == path.parent.name
    assert kept["benchmark"] == path.stem.partition("-")[0]
    assert kept["figures"]
    assert "/home/" not in text
    assert "/tmp/" not in text
    assert platform.node() not in text or not platform.node()
