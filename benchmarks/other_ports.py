"""Real differences in shipped ports of other models, each found by tracediff and proved by one change.

    python benchmarks/other_ports.py [--write docs/other-ports.md]      # needs mlx-lm and transformers

The reference computes as it is configured by default, the port as it is shipped, with the same seeded weights. The proof: the reference
is configured as the port computes, and nothing else; then every pair is within its noise floor. Files and lines are those installed.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import tracediff as td
from benchmarks import real_pairs

LINES = {"gemma": "nn.gelu(", "starcoder2": "nn.gelu(", "gpt_neox": "nn.gelu_approx(", "glm": "nn.RoPE("}
"""The piece of the port's source that differs."""
BEGIN, END = "<!-- measured -->", "<!-- end of measured -->"
HEADER = (
    "| port | where | what tracediff says | relative L2 there, allowed | reference configured as the port | then |\n" + 6 * "|---" + "|"
)


def compared(kind: str, folder: Path, *, shipped: bool, is_fed: bool = True) -> td.Report:
    """The forced run of a port against its reference, with its noise floor."""
    pair = real_pairs.build(kind, shipped=shipped)
    with torch.no_grad():
        reference = td.capture(pair.reference, pair.run_reference, to=folder / f"{kind}_{shipped}.h5", force=True)
    fed = {"feed": reference} if is_fed else {}
    return td.diff(reference, td.capture(pair.port, pair.run_port, to=folder / f"{kind}_{shipped}_port.h5", force=True, **fed))


def row(kind: str, folder: Path) -> str:
    """One line of the table. Raises AssertionError where the port no longer differs, or the change does not mend it."""
    found, mended = compared(kind, folder, shipped=True), compared(kind, folder, shipped=False)
    free = compared(kind, folder, shipped=False, is_fed=False)
    first = found.first
    assert first is not None, f"{kind} no longer differs"
    assert mended.verdict == free.verdict == "same", f"{kind} differs in more than {real_pairs.DIFFERENT[kind]}"
    cause = first.causes[0].evidence if first.causes else "cause unknown"
    setting = real_pairs.DIFFERENT[kind]
    limit = found.certificate["judged"][0]["limit"]
    configured = {name: value for name, value in real_pairs.MODELS[kind][0].items() if name == setting}
    then = f"same, forced and free: {mended.coverage.compared} of {mended.coverage.reference_records} records"
    return (
        f"| `{kind}` | `{line_of(kind)}` | `{first.culprit.port}`, {first.site.end} of `{first.site.port}`: {cause} "
        f"| {first.introduced:.1e}, {limit:.1e} | `{configured}` | {then} |"
    )


def line_of(kind: str) -> str:
    """The file and the line of the port's piece of source in the installed package."""
    module: Any = importlib.import_module(f"mlx_lm.models.{kind}")
    number = next(number for number, text in enumerate(inspect.getsource(module).splitlines(), 1) if LINES[kind] in text)
    return f"mlx_lm/models/{kind}.py:{number}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the marks of this page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(kind, Path(folder)) for kind in real_pairs.DIFFERENT]
    versions = ", ".join(f"{name} {version(name)}" for name in ("mlx-lm", "mlx", "transformers", "torch"))
    table = "\n".join([HEADER, *rows, "", f"Measured with {versions}; float32, seeded weights, small sizes."])
    print(table)
    if options.write:
        page = options.write.read_text(encoding="utf-8")
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        options.write.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
