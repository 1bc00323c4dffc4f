"""Checks a project's cases: runs each port against its kept reference, and tells what is new from what was there and what is accepted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracediff import api
from tracediff.errors import AlignmentError, CaptureError, TracediffError
from tracediff.observe.options import Progress, silent
from tracediff.project.accepted import Accepted, read_accepted, today, write_accepted
from tracediff.project.config import Case, Project, find_project
from tracediff.project.outcome import (
    LOUD,
    CaseOutcome,
    CaseState,
    Fault,
    Outcome,
    faults_of,
    make_folder,
    read_outcome,
    told_apart,
    write_outcome,
)
from tracediff.trace import open_trace
from tracediff.trace.schema import RAISED

if TYPE_CHECKING:
    from tracediff.show.drawn import Report

PathLike = str | os.PathLike[str]
TRACES = (".h5", ".hdf5")
_MOST_NAMES = 5


class _NotRunError(TracediffError):
    """A port gave nothing that could be compared."""


def check(
    cases: Sequence[str] = (),
    *,
    config: PathLike | None = None,
    baseline: PathLike | None = None,
    keep_state: bool = True,
    progress: Progress = silent,
) -> Outcome:
    """Runs the ports of a project's cases, all unless some are named, and compares each with its kept reference.

    ``config``: the file that declares the cases; by default the nearest from here upwards. ``baseline``: an outcome by which new
    differences are told from those that were there, in the place of the last check's. ``keep_state``: whether the outcome is kept for the
    next check. Raises TracediffError where nothing is declared, or a name is no case.
    """
    project = find_project(config)
    chosen = project.chosen(tuple(cases))
    last = _last(project, baseline)
    known = {case.case: case for case in last.cases} if last is not None else {}
    accepted = read_accepted(project.accepted)
    found = []
    for case in chosen:
        progress(f"{case.name}: running its port")
        found.append(_checked(project, case, [one for one in accepted if one.case == case.name], known.get(case.name), progress))
    outcome = Outcome(os.fspath(project.file), tuple(found))
    if keep_state:
        kept = {**known, **{case.case: _kept(case, known.get(case.case)) for case in found}}
        write_outcome(project.last, replace(outcome, cases=tuple(case for name, case in kept.items() if name in project.cases)))
    return outcome


def update(cases: Sequence[str] = (), *, config: PathLike | None = None, progress: Progress = silent) -> list[Path]:
    """Captures the references of a project's cases anew, keeps each as its case says, and returns their files.

    Raises whatever a capture raises; what was kept before is then as it was.
    """
    project = find_project(config)
    chosen, paths = project.chosen(tuple(cases)), []
    project.golden.mkdir(parents=True, exist_ok=True)
    for case in chosen:
        progress(f"{case.name}: capturing its reference")
        with tempfile.TemporaryDirectory(prefix=".tracediff-", dir=project.golden) as folder:
            whole = Path(folder) / "reference.h5"
            _capture_reference(project, case, whole, progress)
            paths.append(_keep(whole, project.golden_of(case), case))
    return paths


def accept(site: str, *, because: str, case: str | None = None, config: PathLike | None = None, forget: bool = False) -> list[Accepted]:
    """Accepts the differences that the last check found at a site, at the size that they had there, and returns them.

    ``site``: the site, or the path of the culprit, on either side. ``forget``: what is accepted there is accepted no longer.
    Raises TracediffError where no check was made, it found no difference there, or the reason is empty.
    """
    project = find_project(config)
    rows = {one.key: one for one in read_accepted(project.accepted)}
    if forget:
        gone = [one for one in rows.values() if one.site == site and case in (None, one.case)]
        if not gone:
            names = ", ".join(sorted({one.site for one in rows.values()})) or "none"
            raise TracediffError(f"Nothing is accepted at {site!r}; accepted are: {names}.")
        write_accepted(project.accepted, [one for one in rows.values() if one not in gone])
        return gone
    if not because.strip():
        raise TracediffError("An accepted difference needs its reason: --because '...'.")
    if not project.last.exists():
        raise TracediffError("There is no last check, so no difference is known to accept. Run: tracediff check")
    outcome = read_outcome(project.last)
    found = [(one.case, fault) for one in outcome.cases if case in (None, one.case) for fault in one.faults if _is_at(fault, site)]
    if not found:
        there = sorted({fault.site or "(root)" for one in outcome.cases for fault in one.faults if fault.state != "fixed"})
        listed = ", ".join(there[:_MOST_NAMES]) or "none"
        raise TracediffError(
            f"The last check found no difference at {site!r}. Differences are at: {listed}. Check again with: tracediff check"
        )
    made = [Accepted(name, fault.site, fault.end, because.strip(), fault.size, fault.places, today()) for name, fault in found]
    write_accepted(project.accepted, ({**rows, **{one.key: one for one in made}}).values())
    return made


def _is_at(fault: Fault, site: str) -> bool:
    return fault.state in (*LOUD, "accepted") and ("" if site == "(root)" else site) in (fault.site, fault.port, *fault.culprit)


def last_check(config: PathLike | None = None) -> Outcome:
    """The outcome of the last check; TracediffError where there was none."""
    project = find_project(config)
    if not project.last.exists():
        raise TracediffError("There is no last check of this project. Run: tracediff check")
    return read_outcome(project.last)


def _last(project: Project, baseline: PathLike | None) -> Outcome | None:
    if baseline is not None:
        return read_outcome(baseline)
    return read_outcome(project.last) if project.last.exists() else None


def _kept(case: CaseOutcome, before: CaseOutcome | None) -> CaseOutcome:
    """What the next check is to know of a case: of a case that was not run, the differences that were known before."""
    if case.state == "not run" and before is not None:
        return replace(case, faults=tuple(fault for fault in before.faults if fault.state != "fixed"))
    return case


# ------------------------------------------------------------------------------------------------------------------ one case


def _checked(project: Project, case: Case, accepted: Sequence[Accepted], before: CaseOutcome | None, progress: Progress) -> CaseOutcome:
    golden, port = project.golden_of(case), project.last.parent / f"{case.name}.h5"
    empty = CaseOutcome(case.name, "not run", "", (), 0, 0, "", (os.fspath(golden), os.fspath(port)))
    if not golden.exists():
        return replace(empty, why=f"no reference is kept at {os.fspath(golden)!r}; make it with: tracediff check --update {case.name}")
    try:
        make_folder(port.parent)
        _run_port(project, case, golden, port, progress)
        mapping = None if case.map is None else project.root / case.map
        report = api.diff(golden, port, stages=case.stages, mapping=mapping, strict=case.strict)
    except AlignmentError as error:
        return replace(empty, state="no verdict", why=str(error))
    except (TracediffError, OSError) as error:
        return replace(empty, why=str(error))
    faults = told_apart(faults_of(report), accepted, before)
    return _of_report(empty, report, faults)


def _of_report(empty: CaseOutcome, report: Report, faults: Sequence[Fault]) -> CaseOutcome:
    is_loud = any(fault.state in LOUD for fault in faults)
    is_accepted = report.verdict == "different" and bool(report.divergences) and not is_loud
    state: CaseState = "different" if is_loud or (report.verdict == "different" and not is_accepted) else "same"
    why, caveats = "", report.caveats
    if report.mode == "free" and any(fault.state == "accepted" for fault in faults):
        caveats = (*caveats, 'What comes behind an accepted difference is not judged in a free run; keep = "full" feeds the port past it.')
    if report.verdict is None:
        state, why = "no verdict", report.withheld.text if report.withheld else ""
    return replace(
        empty,
        state=state,
        why=why,
        faults=tuple(faults),
        compared=report.coverage.compared,
        total=report.coverage.reference_records,
        mode=report.mode,
        caveats=caveats,
        notes=tuple(map(str, report.certificate.get("notes") or ())),
    )


def _run_port(project: Project, case: Case, golden: Path, to: Path, progress: Progress) -> None:
    """Writes the trace of the port's run; `_NotRunError` where there is nothing to compare."""
    if case.run is not None and case.dump is not None:
        _run_command(project, case, to)
        return
    with open_trace(golden) as reference:
        is_thin = reference.samples is not None
    if case.is_forced and is_thin:
        raise _NotRunError(f"{os.fspath(golden)!r} keeps a few values only, so nothing can be fed: tracediff check --update {case.name}")
    given: dict[str, Any] = {"feed": golden} if case.is_forced else {"random": golden}
    _attempt(lambda: _capture(project, case, "port", to, progress, given), to, case)


def _attempt(capture: Callable[[], None], to: Path, case: Case) -> None:
    """A capture of a port. What it raises is a difference where the trace holds it; else nothing was run."""
    before = to.stat().st_mtime_ns if to.exists() else None
    try:
        capture()
    except (TracediffError, KeyboardInterrupt):
        raise
    except BaseException as error:
        is_new = to.exists() and to.stat().st_mtime_ns != before
        if is_new and _has_raised(to):
            return
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise _NotRunError(f"the port of {case.name!r} raised {type(error).__name__}: {error} ({last.filename}:{last.lineno})") from error


def _has_raised(path: Path) -> bool:
    with open_trace(path) as trace:
        return bool((trace.index["flags"] & RAISED).any())


def _capture_reference(project: Project, case: Case, to: Path, progress: Progress) -> None:
    _capture(project, case, "reference", to, progress, {})


def _capture(project: Project, case: Case, side: str, to: Path, progress: Progress, given: dict[str, Any]) -> None:
    """Captures one side of a case that a recipe or a callable makes."""
    name = case.reference if side == "reference" else case.port
    if name is None:
        impl = "torch" if side == "reference" else "mlx"
        options: dict[str, Any] = {"dtype": case.dtype} if side == "port" else {}
        options |= {"floor_dtypes": (case.dtype,)} if side == "reference" and case.dtype in ("float16", "bfloat16") else {}
        options |= {"stages": case.stages, "weights": case.weights, "seed": case.seed, "python": case.python.get(impl)}
        trace = api.capture_recipe(
            impl=impl, recipe=_recipe(project, case, impl), output=to, force=True, progress=progress, **options, **given
        )
    else:
        from tracediff.observe.recipe import importable

        with redirect_stdout(sys.stderr), importable((project.root / name.rpartition(":")[0]).parent):
            model, run, told = _way(project, case, name)
            given = given or {"seed": case.seed}
            options = {"floor_dtypes": ("float64", case.dtype)} if side == "reference" and case.dtype in ("float16", "bfloat16") else {}
            trace = api.capture(model, run, to=to, force=True, stages=case.stages, meta=told, **options, **given)
    trace.close()


def _recipe(project: Project, case: Case, impl: str) -> str:
    """The recipe's file in the project's own hooks/, else its name."""
    assert case.recipe is not None
    places = (project.root / "hooks" / f"{case.recipe}_{impl}.py", project.root / f"{case.recipe}_{impl}.py")
    return next((os.fspath(path) for path in places if path.is_file()), case.recipe)


def _way(project: Project, case: Case, name: str) -> tuple[Any, Any, Mapping[str, Any]]:
    """As `tracediff.runs.two_ways.way_of`, of a callable of the project's; TracediffError where it returns something else."""
    from tracediff.runs.two_ways import way_of

    file, mark, what = name.rpartition(":")
    if not mark:
        raise TracediffError(f"{name!r} of case {case.name!r} is no FILE:CALLABLE, such as 'cases.py:reference'.")
    try:
        return way_of(f"{project.root / file}:{what}")
    except CaptureError as error:
        raise TracediffError(f"Case {case.name!r}: {error}") from error


def _keep(whole: Path, to: Path, case: Case) -> Path:
    from tracediff.trace.thinning import thin

    if case.kept == "samples":
        return thin(whole, to, force=True)
    os.replace(whole, to)
    return to


# -------------------------------------------------------------------------------------------------------------- a command's port


def _run_command(project: Project, case: Case, to: Path) -> None:
    """Runs a case's command in the project's folder, and makes a trace of the dump that it wrote anew.

    `_NotRunError` where it fails, or leaves the dump as it was: an old dump would be a verdict on an old port.
    """
    assert case.run is not None
    assert case.dump is not None
    dump = project.root / case.dump
    before = _stamp(dump)
    try:
        done = subprocess.run(
            case.run, shell=True, cwd=project.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    except OSError as error:
        raise _NotRunError(f"the command {case.run!r} could not be started: {error}") from error
    if done.returncode:
        tail = " / ".join(done.stdout.strip().splitlines()[-3:])
        raise _NotRunError(f"the command {case.run!r} ended with status {done.returncode}" + (f": {tail}" if tail else ""))
    if not dump.exists():
        raise _NotRunError(f"the command {case.run!r} did not write {os.fspath(dump)!r}")
    if _stamp(dump) == before:
        raise _NotRunError(f"{os.fspath(dump)!r} was not renewed by {case.run!r}: it is older than this check")
    if dump.suffix.lower() in TRACES:
        shutil.copyfile(dump, to)
        return
    api.convert(dump, to, stored=case.stored, force=True)


def _stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """What tells whether a file, or a folder's files, were written since; empty where there are none."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.exists() else []
    return tuple((os.fspath(one), one.stat().st_ino, one.stat().st_mtime_ns) for one in files)
