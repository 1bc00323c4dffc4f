"""Scores the pairing of ports that arrive as files, and what is said of them.

    python -m benchmarks.file_ports                 # the ports that the pairing was made on
    python -m benchmarks.file_ports --group held    # models and styles of names that were looked at late
    python -m benchmarks.file_ports --group last    # those that nobody looked at while the pairing was made
    python -m benchmarks.file_ports encoder --each 20 --show

For every model as many random dumps: style of names, choice of tensors, container, layout, storage, further arrays that the
reference does not have. Each is written clean, and with one fault. It counts: arrays paired with the right content (*right*), with a wrong
one (*wrong*), not at all; clean ports that are "same"; faults whose first divergence is the spoilt tensor (*exact*), or, where that was not
dumped, a stretch that holds it and says so (*stretch*), or the smallest compared module that holds it (*inside*). Ports that run in half
precision themselves are judged more leniently, and counted apart.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import tracediff as td
from benchmarks.file_ports import models, ports
from benchmarks.file_ports.ports import Dump, Fault, Key, Namer
from tracediff.alignment.array_files.contents import Contents
from tracediff.alignment.structure import Side
from tracediff.errors import AlignmentError
from tracediff.trace import Trace, open_trace


def paired(
    reference: Trace, contents: Contents, alignment: td.alignment.Alignment | None, port: Trace, truth: dict[str, Key]
) -> Counter[str]:
    """How many arrays are paired right, wrongly, or not at all; "extra": arrays that the reference does not have, paired all the same."""
    own = {}
    for record in reference.records:
        own.setdefault(
            (record.site, record.end.split("[")[0] if record.end.startswith("output") else record.end), contents.of_row.get(record.row)
        )
    found: Counter[str] = Counter()
    names = port.meta["converted"]["arrays"]
    partner = {} if alignment is None else {pair.port[0]: contents.of_row[pair.reference[0]] for pair in alignment.records}
    for row, name in enumerate(names):
        key = truth.get(name)
        if key is None:
            found["extra"] += row in partner
        elif row not in partner:
            found["none"] += 1
        else:
            found["right" if partner[row] == own.get(key) else "wrong"] += 1
    return found


def placed(report: td.Report, reference: Trace, contents: Contents, fault: Fault, dumped: set[int | None]) -> str:
    """Where the first divergence is, beside the truth."""
    if report.verdict != "different":
        return "GREEN" if report.verdict == "same" else "no verdict"
    end = "input[0]" if fault.of_caller else "output"
    rows = [record.row for record in reference.records if record.site == fault.path and record.end.startswith(end)]
    first = report.first
    assert first is not None
    seen = [
        record.row
        for record in reference.records
        if (record.site, record.end, record.call) == (first.site.reference, first.site.end, first.site.call)
    ]
    truth = {contents.of_row.get(row) for row in rows}
    if contents.of_row.get(seen[0]) in truth:
        return "exact"
    if truth & dumped and not fault.of_caller:
        return "WRONG"
    last = first.last_same
    start = (
        -1 if last is None else next(r.row for r in reference.records if (r.site, r.end, r.call) == (last.reference, last.end, last.call))
    )
    holds = start < rows[-1] <= seen[0] or (rows[-1] < seen[0] and fault.of_caller and start < seen[0])
    arrives = ((report.certificate.get("judged") or [{}])[0] or {}).get("arrives")
    if holds and arrives in ("not recorded", "in part"):
        return "stretch"
    culprit = first.culprit.reference
    is_inside = not culprit or fault.path == culprit or fault.path.startswith(culprit + ".")
    if is_inside and seen[0] > rows[-1]:
        return "inside"
    return "WRONG"


def one(
    folder: Path, reference: Path, model: torch.nn.Module, given: torch.Tensor, dump: Dump, namer: Namer, fault: Fault | None, seed: int
) -> dict[str, Any]:
    seen = ports.run_port(model, given, fault, torch.float16 if dump.stored == "float16 run" else torch.float64)
    chosen = ports.planned(model, seen, dump.plan, random.Random(seed))
    path, truth = ports.write(folder, model, chosen, dump, namer, seed)
    td.convert(path, folder / "port.h5", impl="cpp", force=True)
    with open_trace(reference) as ref, open_trace(folder / "port.h5") as port:
        contents = Contents(Side(ref))
        try:
            alignment = td.align(ref, port)
        except AlignmentError as error:
            return {"pairs": paired(ref, contents, None, port, truth), "state": "no pairs", "error": str(error)}
        counts = paired(ref, contents, alignment, port, truth)
        report = td.bisect(ref, port)
        if fault is None:
            state = (
                "same"
                if report.verdict == "same"
                else "ALARM"
                if report.verdict == "different"
                else f"none: {report.withheld.code if report.withheld else ''}"
            )
        else:
            own = {
                (r.site, r.end.split("[")[0] if r.end.startswith("output") else r.end): contents.of_row.get(r.row)
                for r in reversed(list(ref.records))
            }
            state = placed(report, ref, contents, fault, {own.get(key) for key in truth.values()})
        counts["storage wrong"] = (alignment.stored is not None and alignment.stored.in_float32) != (
            dump.stored not in ("float32", "float16 run")
        )
        return {"pairs": counts, "state": state, "report": report}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--group", choices=["tuned", "held", "last"], default="tuned")
    parser.add_argument("--each", type=int, default=12, help="dumps of each model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print what is not right")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    group = args.group
    known = {"tuned": models.TUNED, "held": models.HELD, "last": models.LAST}[group]
    kinds = ("clean", "faulty", "clean, run in half precision", "faulty, run in half precision")
    pairs: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    states: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    for place, (name, model) in enumerate(known.items()):
        if args.names and name not in args.names:
            continue
        made, given = ports.seeded(model, args.seed)
        chance = random.Random(args.seed + 7)
        faults = ports.faults_of(made)
        with tempfile.TemporaryDirectory() as folder:
            reference = Path(folder) / "ref.h5"

            def run(made: torch.nn.Module = made, given: torch.Tensor = given) -> Any:
                with torch.no_grad():
                    return made(given)

            td.capture(made, run, to=reference)
            for number, (dump, namer) in enumerate(ports.dumps(group, args.each, args.seed * 1000 + place)):
                for fault in (None, chance.choice(faults)):
                    own = Path(folder) / f"{number}{fault is None}"
                    own.mkdir()
                    begin = time.perf_counter()
                    try:
                        got = one(own, reference, made, given, dump, namer, fault, args.seed + number)
                    except Exception as error:  # noqa: BLE001 - counted, and shown
                        got = {"pairs": Counter(), "state": f"{type(error).__name__}"}
                        if args.show:
                            traceback.print_exc(limit=-4)
                    kind = ("clean" if fault is None else "faulty") + (", run in half precision" if dump.stored == "float16 run" else "")
                    pairs[kind] += got["pairs"]
                    states[kind][got["state"]] += 1
                    is_good = got["state"] in ("same", "exact", "stretch", "inside")
                    if args.show and (not is_good or (got["pairs"]["wrong"] and fault is None)):
                        where = "" if fault is None else f"{fault.path} ({fault.kind})"
                        first = got.get("report") and got["report"].first
                        told = f" says {first.site.reference} {first.site.end} <- {first.site.port} {first.introduced:.1e}" if first else ""
                        print(
                            f"{name} {kind} {got['state']} {where}{told} {dict(got['pairs'])} {dump} {time.perf_counter() - begin:.1f}s",
                            flush=True,
                        )
    for kind in pairs:
        right, wrong = pairs[kind]["right"], pairs[kind]["wrong"]
        total = right + wrong + pairs[kind]["none"]
        share = right / max(1, right + wrong), right / max(1, total)
        print(f"{group}, {kind}: {total} arrays, right {right}, wrong {wrong}, unpaired {pairs[kind]['none']}", end=", ")
        print(f"further ones paired {pairs[kind]['extra']}; precision {share[0]:.1%}, recall {share[1]:.1%}")
        print(f"   {dict(states[kind])}, storage misjudged {pairs[kind]['storage wrong']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
