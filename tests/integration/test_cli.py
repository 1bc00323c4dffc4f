"""The command line as its user meets it: real processes, their answers and their exit statuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tracediff.trace import open_trace
from tracediff.trace.writer import TraceWriter

pytestmark = pytest.mark.slow

SAME, DIFFERENT, TROUBLE, INTERRUPTED = 0, 1, 2, 130


def tracediff(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tracediff", *map(str, arguments)]
    given = {**os.environ, "MPLBACKEND": "Agg", "NO_COLOR": "1", "COLUMNS": "160", **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=given, timeout=120, check=False)


def write(path: Path, gain: float = 1.0, impl: str = "torch", names: tuple[str, str] = ("encoder", "decoder")) -> Path:
    """A trace of two linear layers; ``gain`` scales what the second returns."""
    generator = np.random.default_rng(0)
    x, weight = generator.standard_normal((2, 5, 8), dtype=np.float32), generator.standard_normal((8, 8), dtype=np.float32)
    modules = [
        {"path": site, "type": "Linear", "training": False, "attrs": {}, "aliases": [], "children": list(names) if not site else []}
        for site in ("", *names)
    ]
    with TraceWriter(path, meta={"impl": impl, "dtype": "float32", "modules": modules}) as writer:
        for name in names:
            writer.add_param(f"{name}.weight", weight, path=name, kind="parameter")
        root = writer.add(site="", call="[0]", ordinal=0, end="input[0]", values=x)
        for number, name in enumerate(names):
            writer.add_again(root, site=name, call=f"[0]/{name}[0]", ordinal=0, end="input[0]", parent=root)
            x = (x @ weight * (gain if number else 1)).astype(np.float32)
            root = writer.add(site=name, call=f"[0]/{name}[0]", ordinal=0, end="output", values=x, parent=0)
        writer.add_again(root, site="", call="[0]", ordinal=0, end="output")
    return path


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("traces")
    return {
        "reference": write(folder / "ref.h5"),
        "same": write(folder / "same.h5", impl="mlx", names=("enc", "dec")),
        "wrong": write(folder / "wrong.h5", gain=1.5, impl="mlx", names=("enc", "dec")),
    }


@pytest.mark.parametrize("command", ["bisect", "diff"])
def test_the_exit_status_is_that_of_diff(command: str, traces: dict[str, Path]) -> None:
    assert tracediff(command, traces["reference"], traces["same"]).returncode == SAME
    assert tracediff(command, traces["reference"], traces["wrong"]).returncode == DIFFERENT
    assert tracediff(command, traces["reference"], "absent.h5").returncode == TROUBLE


def test_the_first_line_names_the_culprit_on_both_sides(traces: dict[str, Path]) -> None:
    answer = tracediff("bisect", traces["reference"], traces["wrong"])
    assert answer.stdout.splitlines()[0].endswith("in dec")


def test_the_answer_is_on_stdout_and_the_progress_on_stderr(traces: dict[str, Path]) -> None:
    answer = tracediff("bisect", traces["reference"], traces["wrong"], "--json")
    report = json.loads(answer.stdout)
    assert report["schema"] == "tracediff.report/1"
    assert report["first"]["culprit"] == {"reference": "decoder", "port": "dec"}
    assert "pairing" in answer.stderr


def test_scan_and_bisection_answer_alike(traces: dict[str, Path]) -> None:
    reports = [json.loads(tracediff("bisect", traces["reference"], traces["wrong"], "--json", *more).stdout) for more in ((), ("--scan",))]
    assert reports[0]["first"]["site"] == reports[1]["first"]["site"]
    assert [report["method"] for report in reports] == ["bisect", "scan"]


def test_a_tolerance_comes_as_a_pair(traces: dict[str, Path]) -> None:
    alone = tracediff("diff", traces["reference"], traces["wrong"], "--rtol", 1)
    assert alone.returncode == TROUBLE
    assert "together" in alone.stderr
    assert tracediff("diff", traces["reference"], traces["wrong"], "--rtol", 10, "--atol", 10).returncode == SAME


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.h5", b"", "is empty"),
        ("notes.txt", b"dear diary, this is no trace at all", "not a trace"),
        ("cut.h5", b"\x89HDF\r\n\x1a\n" + bytes(100), "Record it again"),
    ],
)
def test_a_bad_trace_gets_a_clear_error_and_status_2(
    name: str, content: bytes, words: str, traces: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    for arguments in (("bisect", traces["reference"], tmp_path / name), ("show", tmp_path / name), ("recover", tmp_path / name)):
        answer = tracediff(*arguments)
        assert answer.returncode == TROUBLE
        assert words in answer.stderr
        assert "Traceback" not in answer.stderr


def test_two_traces_that_share_nothing_are_no_verdict(traces: dict[str, Path], tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "other.h5", meta={"impl": "mlx", "modules": []}) as writer:
        writer.add(site="x", call="x[0]", ordinal=0, end="output", values=np.arange(7))
    answer = tracediff("bisect", traces["reference"], tmp_path / "other.h5")
    assert answer.returncode == TROUBLE
    assert "Same" not in answer.stdout


def test_an_empty_trace_is_never_called_same(tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5"):
        TraceWriter(tmp_path / name, meta={"impl": "torch", "modules": []}).close()
    answer = tracediff("bisect", tmp_path / "a.h5", tmp_path / "b.h5")
    assert answer.returncode == TROUBLE
    assert "no records" in answer.stderr


def test_show_lists_records_modules_and_parameters(traces: dict[str, Path]) -> None:
    shown = tracediff("show", traces["reference"], "dec*")
    assert "decoder" in shown.stdout
    assert "encoder" not in shown.stdout
    assert "Linear" in tracediff("show", traces["reference"], "--modules").stdout
    parameters = json.loads(tracediff("show", traces["reference"], "--params", "--json").stdout)
    assert [row["parameter"] for row in parameters["rows"]] == ["encoder.weight", "decoder.weight"]


def test_show_says_what_it_left_out(traces: dict[str, Path]) -> None:
    assert "and 4 more" in tracediff("show", traces["reference"], "--limit", 2).stdout


def test_show_of_a_pattern_that_fits_nothing_is_trouble(traces: dict[str, Path]) -> None:
    answer = tracediff("show", traces["reference"], "vocoder")
    assert answer.returncode == TROUBLE
    assert "'vocoder'" in answer.stderr


def test_a_mapping_file_goes_out_and_comes_in(traces: dict[str, Path], tmp_path: Path) -> None:
    assert tracediff("align", traces["reference"], traces["same"], "--write-map", tmp_path / "map.json").returncode == SAME
    assert tracediff("bisect", traces["reference"], traces["same"], "--map", tmp_path / "map.json").returncode == SAME


def test_align_says_why_a_site_is_paired_and_refuses_one_that_is_in_neither_trace(traces: dict[str, Path]) -> None:
    answer = json.loads(tracediff("align", traces["reference"], traces["same"], "--why", "encoder", "--json").stdout)
    assert [(pair["reference"], pair["port"]) for pair in answer["pairs"]] == [("encoder", "enc")]
    assert "encoder | enc: " in tracediff("align", traces["reference"], traces["same"], "--why", "encoder").stdout
    missing = tracediff("align", traces["reference"], traces["same"], "--why", "encodr")
    assert missing.returncode == TROUBLE
    assert "nearest: 'encoder'" in missing.stderr


def test_weights_of_equal_traces_are_the_same(traces: dict[str, Path]) -> None:
    answer = tracediff("weights", traces["reference"], traces["same"], "--json")
    assert json.loads(answer.stdout)["verdict"] in ("same", None)
    assert answer.returncode in (SAME, TROUBLE)


def test_plot_writes_a_picture_and_overwrites_none(traces: dict[str, Path], tmp_path: Path) -> None:
    arguments = ("plot", traces["reference"], traces["wrong"], "-o", tmp_path / "p.png")
    assert tracediff(*arguments).returncode == SAME  # done; the verdict is no part of it
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    again = tracediff(*arguments)
    assert again.returncode == TROUBLE
    assert "--force" in again.stderr
    assert tracediff(*arguments, "--culprit", "--force").returncode == SAME


def test_an_unknown_option_is_trouble_not_difference() -> None:
    assert tracediff("bisect", "--no-such-option").returncode == TROUBLE


def test_an_unknown_recipe_names_those_there_are(tmp_path: Path) -> None:
    answer = tracediff("capture", "--impl", "torch", "--recipe", "no_such_model", "-o", tmp_path / "x.h5")
    assert answer.returncode == TROUBLE
    assert "chatterbox" in answer.stderr
    assert not (tmp_path / "x.h5").exists()


LOOP = '''"""A loop, the reference."""
import tracediff as td
IMPL = "torch"
STAGES = {"loop": "The loop"}
def load(context):
    import torch
    return {"model": torch.nn.Linear(2, 2)}
def run(models, context):
    import torch
    with td.stage("loop"):
        for step in range(6):
            models["model"](torch.full((1, 2), float(step)))
'''


def captured_loop(folder: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    pytest.importorskip("torch")
    (folder / "loop_torch.py").write_text(LOOP, encoding="utf-8")
    quick = ("--no-repeat", "--no-floor")
    made = tracediff("capture", "--impl", "torch", "--recipe", folder / "loop_torch.py", "-o", folder / "x.h5", *quick, *options)
    return made, folder / "x.h5"


@pytest.mark.parametrize("calls", ["0:3", "0-3"])
def test_a_range_of_calls_keeps_these_calls_with_both_ends(calls: str, tmp_path: Path) -> None:
    made, path = captured_loop(tmp_path, "--calls", calls)
    assert made.returncode == SAME
    assert "warning" not in made.stderr
    with open_trace(path) as trace:
        assert [record.ordinal for record in trace.records if record.end == "output"] == [0, 1, 2, 3]


def test_a_selection_that_matches_nothing_is_said_on_stderr(tmp_path: Path) -> None:
    selection = ("--include", "decoder*", "--include", "model", "--exclude", "absent", "--calls", "0", "--calls", "7")
    made, _ = captured_loop(tmp_path, *selection, "--functions", "no_such.**")
    assert made.returncode == SAME
    said = [line.removeprefix("warning: ") for line in made.stderr.splitlines() if line.startswith("warning: ")]
    assert [line.partition(":")[0] for line in said] == [
        "functions 'no_such.**'",
        "include 'decoder*'",
        "exclude 'absent'",
        "calls '7'",
    ]


def test_a_capture_that_recorded_nothing_says_so_on_stderr_and_stdout(tmp_path: Path) -> None:
    made, _ = captured_loop(tmp_path, "--calls", "6-")
    words = "warning: nothing was recorded: the selection (calls '6-')"
    assert words in made.stderr
    assert words in made.stdout


@pytest.mark.parametrize("calls", ["3-1", "a:b:c"])
def test_malformed_calls_are_trouble_before_anything_runs(calls: str, tmp_path: Path) -> None:
    made, path = captured_loop(tmp_path, "--calls", calls)
    assert made.returncode == TROUBLE
    assert f"Error: The calls {calls!r}" in made.stderr
    assert "loading" not in made.stderr
    assert not path.exists()


def test_init_writes_a_pair_that_is_not_overwritten(tmp_path: Path) -> None:
    assert tracediff("init", "toy", cwd=tmp_path).returncode == SAME
    assert (tmp_path / "hooks" / "toy_torch.py").exists()
    assert tracediff("init", "toy", cwd=tmp_path).returncode == TROUBLE


def test_ctrl_c_is_130(tmp_path: Path) -> None:
    (tmp_path / "slow_torch.py").write_text(
        '"""Slow."""\nimport time\nIMPL = "torch"\nSTAGES = {"a": "a"}\ndef load(context):\n'
        "    import os, signal\n    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(30)\ndef run(models, context): ...\n"
    )
    started = time.monotonic()
    answer = tracediff("capture", "--impl", "torch", "--recipe", tmp_path / "slow_torch.py", "-o", tmp_path / "x.h5")
    assert answer.returncode == INTERRUPTED
    assert time.monotonic() - started < 30


def test_help_loads_click_only() -> None:
    heavy = ("numpy", "h5py", "pandas", "matplotlib", "scipy", "torch", "mlx")
    code = f"import sys, tracediff.cli; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_doctor_says_what_is_installed() -> None:
    checks = {check["name"]: check for check in json.loads(tracediff("doctor", "--json").stdout)["checks"]}
    assert checks["core"]["state"] == "ok"
    assert all(check["cure"] for check in checks.values() if check["state"] != "ok")


def test_a_closed_pipe_leaves_no_traceback(traces: dict[str, Path]) -> None:
    command = f"{sys.executable} -m tracediff show {traces['reference']} | true"
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in answer.stderr
