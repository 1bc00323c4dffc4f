"""The catalogue of causes is what the code yields, what the page says, and what the scenes show."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from cause_scenes import SCENES

from tracediff.causes import catalogue, from_tensors
from tracediff.causes.catalogue import CATALOGUE, KINDS
from tracediff.causes.cause import Cause, in_order
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.replay.functions import FUNCTIONS
from tracediff.thresholds import changed, described

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "causes.md"


@pytest.mark.parametrize("kind", CATALOGUE)
def test_a_kind_is_named_in_its_scene(kind: str, tmp_path: Path) -> None:
    assert SCENES[kind].scene(tmp_path)[:1] == [kind]


@pytest.mark.parametrize("kind", CATALOGUE)
def test_a_kind_is_not_named_in_its_look_alike(kind: str, tmp_path: Path) -> None:
    assert kind not in SCENES[kind].look_alike(tmp_path)


def test_every_scene_is_of_a_kind() -> None:
    assert list(SCENES) == list(CATALOGUE)


def test_a_cause_of_a_kind_that_the_catalogue_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no kind 'norm\.epsilon'"):
        Cause("norm.epsilon", 0.5, False, "")


def test_a_cause_that_a_later_version_wrote_is_read() -> None:
    written = {"kind": "quantum.noise", "confidence": 0.5, "confirmed": False, "evidence": "later"}
    assert [cause.kind for cause in in_order([Cause.read(written), Cause("scale", 0.9, True, "")])] == ["scale", "quantum.noise"]


def nodes(*folders: str) -> list[ast.AST]:
    """The syntax of everything in some folders of the package but the catalogue."""
    files = [file for folder in folders for file in (ROOT / "tracediff" / folder).rglob("*.py") if file.name != "catalogue.py"]
    return [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]


def test_no_kind_is_in_the_catalogue_that_nothing_yields() -> None:
    spelled = {node.value for node in nodes("causes", "parameters") if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert not CATALOGUE.keys() - spelled


def test_every_kind_that_a_detector_spells_is_in_the_catalogue() -> None:
    calls = (node for node in nodes("causes") if isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
    made = (node for node in calls if node.func.id in ("Cause", "Claim", "recorded"))
    spelled = [node.args[0].value for node in made if node.args and isinstance(node.args[0], ast.Constant)]
    assert len(spelled) > 30
    assert set(spelled) <= set(CATALOGUE)


def test_nothing_but_the_proof_confirms_a_cause() -> None:
    files = [file for file in (ROOT / "tracediff" / "causes").rglob("*.py") if file.name != "proof.py"]
    made = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    confirms = [node for node in made if getattr(node.func, "id", "") == "Cause" and ast.unparse(node.args[2]) != "False"]
    assert not confirms


def test_every_number_of_the_table_is_read_somewhere() -> None:
    read = {node.attr for node in nodes("causes") if isinstance(node, ast.Attribute)}
    assert {name for name, *_ in described(THRESHOLDS)} <= read


def test_names_are_unique_and_every_row_is_filled() -> None:
    assert len(CATALOGUE) == len(KINDS)
    assert all((kind.meaning, kind.found, kind.remedy, kind.scene, kind.look_alike) for kind in KINDS)


def test_weights_speak_before_what_is_confirmed() -> None:
    weights, tensors = Cause("weights.value", 0.3, False, ""), Cause("norm.eps", 1.0, True, "")
    assert in_order([tensors, weights]) == [weights, tensors]


def test_the_page_is_what_the_catalogue_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert catalogue.main(["--check", str(PAGE)]) == 0, capsys.readouterr().err


def test_a_stale_page_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stale = tmp_path / "causes.md"
    stale.write_text("# Causes\n", encoding="utf-8")
    assert catalogue.main(["--check", str(stale)]) == 1
    assert "is stale" in capsys.readouterr().err
    assert catalogue.main(["--write", str(stale)]) == catalogue.main(["--check", str(stale)]) == 0


def test_the_page_counts_functions_and_limits_from_the_code() -> None:
    page = catalogue.page()
    assert f"one of {len(FUNCTIONS)} functions" in page
    assert f"the latest\n{THRESHOLDS.latest_in_hand} tensors in hand" in page


def test_a_detector_that_is_switched_off_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    named = SCENES["norm.placement"].scene
    assert named(tmp_path) == ["norm.placement"]
    without = tuple(detect for detect in from_tensors.DETECTORS if not detect.__module__.endswith(".calls"))
    monkeypatch.setattr(from_tensors, "DETECTORS", without)
    assert named(tmp_path) == []


def test_a_threshold_is_read_when_it_is_needed(tmp_path: Path) -> None:
    with changed(THRESHOLDS, "shifts_tried", 0):
        assert "padding.shift" not in SCENES["padding.shift"].scene(tmp_path)
