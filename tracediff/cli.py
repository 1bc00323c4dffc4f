"""The command line: parse, call one function, show, exit.

Exit status: 0 same (or done), 1 different, 2 trouble, 130 interrupted. The answer goes to stdout, progress and trouble to stderr.
Only click is imported here; everything else is imported by the command that needs it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from tracediff import completion
from tracediff.outputs import check_output, write_output

if TYPE_CHECKING:
    from tracediff.report import Report

Command = TypeVar("Command", bound=Callable[..., Any])

SAME, DIFFERENT, TROUBLE, INTERRUPTED = 0, 1, 2, 130
SKIP = 125
"""By this status `git bisect run` passes over a commit that cannot be judged."""

_FUNCTIONS = "Observe functions that are no modules, such as 'my_package.**' (may be repeated)."
_CALLS = (
    "Record only these calls of each site, counted from 0: 3, or the range 0-3 or 0:3 (both ends included), or 7- for all from 7 on; or a "
    "pattern such as '*@token=3*' (may be repeated)."
)
_SAVE = "Values, or statistics only."
_BUDGET = (
    "Keep the file within this size, such as 2GB or 500MiB: where it is short, tensors of repeated calls are kept as 32 values and their "
    "statistics first. While it runs the whole trace lies on the disk."
)
_FEED = (
    "Feed each site this reference's tensors: a forced run (implies --random). It runs the port twice or more, and promises nothing of "
    "side effects."
)
_WEIGHTS_FROM = (
    "Run the reference with a port's weights as they are stored (4-bit codes, float16): the port's trace with --save-params, its weights "
    "file or folder, or mlx for the port of the same recipe."
)
_FULL = "The reference's trace with its own weights, where REFERENCE ran with the port's: tells what the storage of weights costs."
_NO_REPEAT = "Do not run once more at the end, unperturbed, to see whether it repeats."
_FLOOR = (
    "Measure the noise floor, or do not (three to six more runs); of a port its own counts where it is larger [default: of "
    "PyTorch runs on their own inputs]."
)
_FLOOR_DTYPE = "Measure the noise floor for ports in this dtype too, tf32 being float32 with coarse products (may be repeated)."
_FLOOR_DTYPES = click.Choice(["float16", "bfloat16", "tf32"])
_PRECISE = (
    "Take float32 products in full precision where the framework lets them be; MLX on M5 Macs and CUDA multiplies TF32's 10 bits "
    "otherwise [default: with --feed, and where the noise floor is measured]."
)
_STORED = "The port ran in float32 and stored its arrays in this dtype [default: what their numbers show]."
_SCHEDULER = (
    "Have the workers of a Dask cluster read the pairs, such as tcp://host:8786; the traces lie on storage that all share (extra: dask)."
)
_TABLE = "A TOML file that says how tensors lie over the ranks where no DTensor does: [mesh], [records] and [parameters] (docs/scale.md)."
_FORM = "text, JSON, annotations for GitHub's workflows, or a Markdown comment."
_BASELINE = "What check --json printed before: by it new is told from still there [default: the last check here]."
_BISECT_RUN = "Exit with 125 in the place of 2, so that git bisect run passes over what cannot be judged; keep nothing for the next check."
_CALIBRATE_DTYPE = (
    "For ports in this dtype (may be repeated); float64 serves float32 ports, tf32 those with coarse products [default: all four]."
)


class StatusGroup(click.Group):
    """A group whose exit statuses are those of diff: click by itself answers 1 to a crash and to Ctrl-C."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, *_: Any, **extra: Any) -> NoReturn:
        extra["standalone_mode"] = False
        try:
            status = super().main(args, prog_name, **extra)
        except click.ClickException as error:
            error.show()
            status = TROUBLE
        except (click.Abort, KeyboardInterrupt):
            is_capture = (args if args is not None else sys.argv[1:])[:1] == ["capture"]
            click.echo("Interrupted; what was recorded is kept." if is_capture else "Interrupted.", err=True)
            status = INTERRUPTED
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status = TROUBLE
        except Exception as error:  # noqa: BLE001 - the last line of defence: any failure is status 2 with a message
            status = _trouble(error)
        sys.exit(status if isinstance(status, int) else SAME)


def _trouble(error: Exception) -> int:
    from tracediff.errors import TracediffError

    if os.environ.get("TRACEDIFF_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    elif isinstance(error, TracediffError | OSError):
        _say(f"Error: {error}")
    else:
        hint = "set TRACEDIFF_TRACEBACK=1 to see where"
        _say(f"Error: {type(error).__name__}: {error} ({hint})")
    return TROUBLE


def json_option(command: Command) -> Command:
    """``--json``: the answer as one JSON object."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")(command)


def config_option(command: Command) -> Command:
    """``--config``: the file that declares a project's cases."""
    text = "The file that declares the cases [default: the nearest tracediff.toml or pyproject.toml from here upwards]."
    return click.option("--config", type=click.Path(), help=text)(command)


def verbose_option(command: Command) -> Command:
    """``-v``: all that is known instead of the answer alone."""
    return click.option("-v", "--verbose", is_flag=True, help="All that is known of the first divergence, the others, stages, coverage.")(
        command
    )


def judging_options(command: Command) -> Command:
    """What `diff` and `plot` share: the two traces, how they are paired and what error is allowed."""
    return click.argument("reference", type=click.Path())(click.argument("port", type=click.Path())(comparing_options(command)))


def comparing_options(command: Command) -> Command:
    """How two sides are paired, what error is allowed, and which stages count."""
    for option in reversed(
        (
            click.option("--map", "mapping", type=click.Path(exists=True), help="A mapping file that overrides the alignment."),
            click.option("--rtol", type=float, help="Allow |port - reference| <= atol + rtol * |reference|; goes with --atol."),
            click.option("--atol", type=float, help="Goes with --rtol."),
            click.option("--strict", is_flag=True, help="Count what is borderline as a divergence."),
            click.option("--stage", "stages", multiple=True, shell_complete=completion.stages, help="Only this stage (may be repeated)."),
        )
    ):
        command = option(command)
    return command


def working_options(command: Command) -> Command:
    """Who reads the pairs and takes their metrics."""
    for option in reversed(
        (
            click.option("--jobs", type=click.IntRange(min=1), help="Read the pairs in so many processes.", metavar="N"),
            click.option("--scheduler", metavar="ADDRESS", help=_SCHEDULER),
        )
    ):
        command = option(command)
    return command


def capture_options(command: Command) -> Command:
    """What is recorded and measured: `tracediff.observe.options.CaptureOptions` by its field names, which a test checks."""
    for option in reversed(
        (
            click.option("--include", multiple=True, help="Record only sites that match this pattern, such as 't3.tfmr.**'."),
            click.option("--exclude", multiple=True, help="Leave out sites that match this pattern."),
            click.option("--functions", multiple=True, help=_FUNCTIONS),
            click.option("--calls", multiple=True, help=_CALLS),
            click.option("--save", type=click.Choice(["full", "stats"]), default="full", show_default=True, help=_SAVE),
            click.option("--save-params", is_flag=True, help="Store the parameters' values too, not only their fingerprints."),
            click.option("--budget", metavar="SIZE", help=_BUDGET),
            click.option("--no-repeat", "repeat", is_flag=True, callback=lambda *given: not given[-1], help=_NO_REPEAT),
            click.option("--floor/--no-floor", "floor", default=None, help=_FLOOR),
            click.option(
                "--floor-dtype", "floor_dtypes", multiple=True, type=click.Choice(["float16", "bfloat16", "tf32"]), help=_FLOOR_DTYPE
            ),
            click.option("--precise/--no-precise", "precise", default=None, help=_PRECISE),
        )
    ):
        command = option(command)
    return command


@click.group(cls=StatusGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="tensor-tracediff", prog_name="tracediff")
def main() -> None:
    """Find where a port of a neural network first parts from its reference, and why.

    \b
    tracediff weights CHECKPOINT PORT                   what never loaded, is missing, transposed, swapped
    tracediff capture --impl torch -o ref.h5            record the reference
    tracediff capture --impl mlx -o mlx.h5              record the port
    tracediff bisect ref.h5 mlx.h5                      name the first divergence

    Exit status: 0 same, 1 different, 2 trouble, 130 interrupted.
    """


@main.command()
@click.option("--impl", type=click.Choice(["torch", "mlx"]), required=True, help="Which side to run.")
@click.option("-o", "--output", type=click.Path(), help="The trace to write [default: traces/RECIPE_IMPL.h5, or the next free number].")
@click.option("--recipe", default=None, shell_complete=completion.recipes, help="A recipe's name or file [default: the one in hooks/].")
@click.option("--stage", "stages", multiple=True, shell_complete=completion.stages, help="Only this stage (may be repeated).")
@click.option("--weights", default="seeded", show_default=True, help="seeded, seeded:full, a checkpoint FOLDER, or a hub id.")
@click.option("--seed", default=0, show_default=True, help="Seeds weights, inputs and random draws, alike on both sides.")
@click.option("--random", "random", type=click.Path(exists=True), help="Play back this trace's inputs and random draws.")
@click.option("--feed", type=click.Path(exists=True), help=_FEED)
@click.option("--weights-from", "weights_from", help=_WEIGHTS_FROM)
@click.option("--from", "start", type=click.Path(exists=True), help="Start the wanted stages from the inputs they had in this trace.")
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="Run the model in this dtype.")
@capture_options
@click.option("--python", "python", type=click.Path(), help="Run this side with another environment's Python.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@json_option
def capture(as_json: bool, **options: Any) -> int:
    """Record one side of a pair, as its recipe runs it.

    \b
    Example:
      tracediff capture --impl torch -o ref.h5
      tracediff capture --impl mlx --feed ref.h5 -o forced.h5
      tracediff capture --impl mlx --random ref.h5 -o free.h5
      tracediff capture --impl torch --weights-from quantised.safetensors -o ref.h5
      tracediff capture --impl mlx --stage vocoder --from ref.h5 -o vocoder.h5
      tracediff capture --impl mlx --functions 'mlx_audio.tts.models.chatterbox.**'
    """
    from tracediff import api
    from tracediff.show import tables

    with api.capture_recipe(progress=_progress, **options) as trace:
        _print(api.summary(trace) if as_json else tables.captured(trace), as_json)
    return SAME


@main.command()
@click.argument("trace", type=click.Path())
@click.option(
    "--recipe", default=None, shell_complete=completion.recipes, help="The recipe's name or file [default: the one that made the trace]."
)
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(["float64", "float16", "bfloat16", "tf32"]), help=_CALIBRATE_DTYPE)
@click.option("--python", "python", type=click.Path(), help="Run the reference with another environment's Python.")
@json_option
def calibrate(trace: str, as_json: bool, **options: Any) -> int:
    """Add the noise floor to a reference's trace, or further dtypes to the one that it has.

    The reference runs again as its trace says: recipe, seed, weights, stages. What was measured before is kept. Refused where the run
    does not give bit for bit what the trace holds.

    \b
    Example:
      tracediff calibrate ref.h5 --dtype bfloat16
    """
    from tracediff import api
    from tracediff.show import tables

    with api.calibrate_recipe(trace, progress=_progress, **options) as calibrated:
        _print(api.summary(calibrated) if as_json else tables.captured(calibrated), as_json)
    return SAME


@main.command()
@click.argument("trace", type=click.Path())
@click.argument("pattern", default="")
@click.option("--stage", "stages", multiple=True, shell_complete=completion.stages, help="Only this stage (may be repeated).")
@click.option("--modules", is_flag=True, help="The module tree instead of the records.")
@click.option("--params", is_flag=True, help="The parameters instead of the records.")
@click.option("--limit", default=200, show_default=True, help="Rows at most; 0 for all.")
@click.option("--verify", is_flag=True, help="First compare all stored values with their digests; exit status 2 where one is damaged.")
@json_option
def show(trace: str, as_json: bool, **options: Any) -> int:
    """List what a trace holds: its records in execution order, its modules, or its parameters.

    \b
    Example:
      tracediff show ref.h5 't3.tfmr.layers.0.**'
    """
    from tracediff import api
    from tracediff.show import tables

    listed = api.listing(trace, **options)
    _print(listed.to_dict() if as_json else tables.listing(listed), as_json)
    return SAME


@main.command()
@click.argument("reference", type=click.Path())
@click.argument("port", type=click.Path())
@click.option("--map", "mapping", type=click.Path(exists=True), help="A mapping file that overrides the alignment.")
@click.option("--write-map", type=click.Path(), help="Write the pairs as a mapping file to edit.")
@click.option("--unpaired", is_flag=True, help="Only what found no partner or is ambiguous.")
@click.option(
    "--why",
    metavar="SITE",
    shell_complete=completion.sites,
    help="Only this site: what speaks for its pair, and for the layouts of its tensors.",
)
@click.option("--force", is_flag=True, help="Overwrite the mapping file.")
@json_option
def align(
    reference: str, port: str, mapping: str | None, write_map: str | None, unpaired: bool, why: str | None, force: bool, as_json: bool
) -> int:
    """Show which sites of two traces correspond, with the evidence.

    \b
    Example:
      tracediff align ref.h5 mlx.h5 --unpaired
    """
    from tracediff import api
    from tracediff.show import tables

    if write_map:
        check_output(write_map, force=force)
        alignment = api.map_skeleton(reference, port, write_map, mapping=mapping, force=force)
        _say(f"wrote {write_map}")
    else:
        alignment = api.align(reference, port, mapping=mapping)
    if why is not None:
        told = alignment.why(why)
        _print(told.to_json() if as_json else tables.why(told), as_json)
        return SAME
    _print(alignment.to_map() if as_json else tables.alignment(alignment, unpaired=unpaired), as_json)
    return SAME


@main.command()
@click.argument("reference", type=click.Path())
@click.argument("port", type=click.Path())
@click.argument("checkpoint", type=click.Path(), required=False)
@click.option("--write-rules", type=click.Path(), help="Write the renamings and transposes that would mend the port, as Python.")
@click.option("--force", is_flag=True, help="Overwrite the file of rules.")
@json_option
def weights(reference: str, port: str, checkpoint: str | None, write_rules: str | None, force: bool, as_json: bool) -> int:
    """Compare weights without running anything: traces, .safetensors, .npz or .pt files, or folders of them.

    A third file, the checkpoint, tells which side is wrong.

    \b
    Example:
      tracediff weights checkpoint.safetensors mlx.h5
    """
    from tracediff import api
    from tracediff.show import weight_findings as shown

    if write_rules:
        check_output(write_rules, force=force)
    report = api.weights(reference, port, checkpoint=checkpoint)
    if write_rules:
        _say(f"wrote {report.write_rules(write_rules, force=force)}")
    _print(report.to_dict() if as_json else shown.render(report), as_json)
    return _status(report.verdict)


@main.command()
@judging_options
@working_options
@click.option("--all", "every", is_flag=True, help="Every pair, not only those that diverged and their neighbours; with --json too.")
@json_option
def diff(reference: str, port: str, every: bool, as_json: bool, jobs: int | None, scheduler: str | None, **options: Any) -> int:
    """Compare every pair of two traces, in execution order.

    \b
    Example:
      tracediff diff ref.h5 mlx.h5 --all
    """
    from tracediff import api
    from tracediff.show import text

    with _engine(jobs, scheduler) as executor:
        report = api.diff(reference, port, progress=_progress, executor=executor, **options)
    pairs = {"pairs": report.pairs_to_dict()} if as_json and every else {}
    _print({**report.to_dict(), **pairs} if as_json else text.diff(report, every=every), as_json)
    return _status(report.verdict)


@main.command()
@click.argument("reference", type=click.Path(), required=False)
@click.argument("port", type=click.Path(), required=False)
@comparing_options
@working_options
@click.option("--scan", is_flag=True, help="Read everything instead of bisecting; the answer is the same.")
@click.option("--live", is_flag=True, help="Store no trace: run both sides of a recipe again for every round.")
@click.option(
    "--recipe", default=None, shell_complete=completion.recipes, help="With --live: a recipe's name [default: the one in hooks/]."
)
@click.option("--weights", default="seeded", show_default=True, help="With --live: seeded, seeded:full, a checkpoint FOLDER, or a hub id.")
@click.option("--seed", default=0, show_default=True, help="With --live: seeds weights, inputs and random draws, alike on both sides.")
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="With --live: run the port in this dtype.")
@click.option("--python", "python", multiple=True, metavar="IMPL=PATH", help="With --live: run a side with another environment's Python.")
@verbose_option
@json_option
def bisect(as_json: bool, verbose: bool, live: bool, jobs: int | None, scheduler: str | None, **options: Any) -> int:
    """Name the first divergence, its culprit on both sides, the likely cause, and what to do next.

    \b
    Example:
      tracediff bisect ref.h5 mlx.h5
      tracediff bisect --live --recipe chatterbox --stage t3.transformer
    """
    from tracediff import api

    if live and (jobs or scheduler):
        raise click.UsageError("--live stores nothing that workers could read: leave out --jobs and --scheduler.")
    given = _of_live(options) if live else _of_traces(options)
    with _engine(jobs, scheduler) as executor:
        report = api.bisect_recipe(progress=_progress, **given) if live else api.bisect(progress=_progress, executor=executor, **given)
    return _show_report(report, as_json, verbose)


@contextmanager
def _engine(jobs: int | None, scheduler: str | None) -> Iterator[Any]:
    """The executor that was asked for, or what makes one; None for neither."""
    from tracediff import engines

    if jobs and scheduler:
        raise click.UsageError("--jobs starts processes here, --scheduler asks a cluster: leave out one.")
    if scheduler:
        with engines.of_scheduler(scheduler) as executor:
            yield executor
    else:
        yield engines.of_processes(jobs) if jobs else None


_LIVE = ("recipe", "weights", "seed", "dtype", "python")
"""What only a live bisection takes."""


def _of_traces(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a bisection of two traces."""
    if not options["port"]:
        raise click.UsageError("Give two traces, REFERENCE and PORT; or --live to run both sides of a recipe.")
    return {name: value for name, value in options.items() if name not in _LIVE}


def _of_live(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a live bisection."""
    if options["reference"] or options["scan"]:
        raise click.UsageError("--live runs both sides itself: leave out REFERENCE, PORT and --scan.")
    wrong = [text for text in options["python"] if text.partition("=")[0] not in ("torch", "mlx") or not text.partition("=")[2]]
    if wrong:
        raise click.UsageError(f"--python {wrong[0]!r} does not say which side; write for instance --python torch=env/bin/python.")
    given = {name: value for name, value in options.items() if name not in ("reference", "port", "scan")}
    return {**given, "python": dict(text.split("=", 1) for text in options["python"])}


@main.command()
@judging_options
@click.option("-o", "--output", type=click.Path(), default="divergence.png", show_default=True, help="A .png, .svg or .pdf file.")
@click.option("--culprit", is_flag=True, help="Reference against port at the culprit, instead of the error of every site.")
@click.option("--number", default=1, show_default=True, help="With --culprit: which divergence, counted from 1.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
def plot(reference: str, port: str, output: str, culprit: bool, number: int, force: bool, **options: Any) -> int:
    """Draw the error of every site in execution order, or reference against port at the culprit.

    \b
    Example:
      tracediff plot ref.h5 mlx.h5 -o divergence.png
    """
    from tracediff import api
    from tracediff.show.formats import check_picture

    check_picture(output)
    path = check_output(output, force=force)
    report = api.diff(reference, port, progress=_progress, **options)
    figure = report.plot("culprit", place=number - 1) if culprit else report.plot()
    click.echo(write_output(path, lambda part: figure.savefig(part, dpi=150), force=force))
    return SAME


@main.command()
@judging_options
@click.argument("port2", type=click.Path(), required=False)
@click.option("--full", type=click.Path(), help=_FULL)
@click.option("--format", "form", type=click.Choice(["text", "markdown", "json"]), help="[default: as -o's suffix says, else text]")
@click.option("-o", "--output", type=click.Path(), help="Write it to this file.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@json_option
def status(
    reference: str, port: str, port2: str | None, form: str | None, output: str | None, force: bool, as_json: bool, **options: Any
) -> int:
    """Say how far a port is, stage by stage: a row a stage, a column each for its forced and its free run.

    PORT and PORT2 are the two runs, in any order; one of them will do, but then the whole is never called the same.

    \b
    Example:
      tracediff status ref.h5 forced.h5 free.h5
      tracediff status ref.h5 forced.h5 free.h5 -o STATUS.md
      tracediff status ref4.h5 forced.h5 free.h5 --full ref.h5
    """
    from tracediff import api
    from tracediff.show import stage_table as shown

    path = None if output is None else check_output(output, force=force)
    table = api.status(reference, *(trace for trace in (port, port2) if trace), progress=_progress, **options)
    form = "json" if as_json else form or {".md": "markdown", ".json": "json"}.get(path.suffix if path else "", "text")
    if path is not None:
        click.echo(write_output(path, shown.written(table, form), force=force))
    elif form == "text":
        _print(shown.render(table), False)
    else:
        click.echo(shown.written(table, form), nl=False)
    return _status(table.verdict)


@main.command()
@judging_options
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    default="report.html",
    show_default=True,
    help="A .html, .md, .json, .csv or .txt file, a picture (.png, .svg, .pdf), or a folder for Model Explorer: NAME.modelexplorer.",
)
@click.option("--force", is_flag=True, help="Overwrite the output.")
def report(reference: str, port: str, output: str, force: bool, **options: Any) -> int:
    """Write all that comparing two traces shows to one file: the page of `view`, Markdown, JSON, a table of all pairs, text, a picture.

    \b
    Example:
      tracediff report ref.h5 mlx.h5 -o report.html
    """
    from tracediff import api
    from tracediff.show.formats import check_report

    path = check_report(output, force=force)
    compared = api.diff(reference, port, progress=_progress, **options)
    click.echo(compared.save(path, force=force))
    return SAME


@main.command()
@judging_options
@click.argument("free", type=click.Path(), required=False)
@click.option(
    "-o", "--output", type=click.Path(), default="view.html", show_default=True, help="The page to write; an older page is replaced."
)
@click.option(
    "--site", "sites", multiple=True, shell_complete=completion.sites, help="Draw all tensors of this site too (may be repeated)."
)
@click.option("--open/--no-open", "opens", default=None, help="Open it in the browser [default: where this is a terminal with a screen].")
@click.option("--force", is_flag=True, help="Overwrite the output, whatever it is.")
def view(reference: str, port: str, free: str | None, output: str, opens: bool | None, **options: Any) -> int:
    """Write what comparing shows as one interactive page, and open it: findings, heat map, both models, all pairs, tensors.

    PORT and FREE are a port's forced and free run, in any order; one of them will do. The page is one file that fetches nothing and works
    from a disk.

    \b
    Example:
      tracediff view ref.h5 mlx.h5
      tracediff view ref.h5 forced.h5 free.h5 -o port.html
    """
    from tracediff import api

    path = api.view(reference, *(trace for trace in (port, free) if trace), to=output, progress=_progress, **options)
    click.echo(path)
    if opens or (opens is None and _has_screen()):
        click.launch(path.absolute().as_uri())
    return SAME


def _has_screen() -> bool:
    """Whether a person at a terminal can see a browser."""
    is_local = sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return sys.stdout.isatty() and is_local and "SSH_CONNECTION" not in os.environ


@main.command()
@click.argument("cases", nargs=-1)
@config_option
@click.option("--update", is_flag=True, help="Capture the cases' references anew and keep them, instead of checking their ports.")
@click.option("--format", "form", type=click.Choice(["text", "json", "github", "markdown"]), default="text", show_default=True, help=_FORM)
@click.option("--junit", type=click.Path(), help="Write JUnit's XML to this file too.")
@click.option("--baseline", type=click.Path(exists=True), help=_BASELINE)
@click.option("--bisect-run", is_flag=True, help=_BISECT_RUN)
@json_option
def check(
    cases: Sequence[str],
    config: str | None,
    update: bool,
    form: str,
    junit: str | None,
    baseline: str | None,
    bisect_run: bool,
    as_json: bool,
) -> int:
    """Run the ports of a project's cases against their kept references: what is new, still there, fixed, accepted.

    The cases are declared in [tool.tracediff] of pyproject.toml, or in tracediff.toml (docs/check.md).

    \b
    Example:
      tracediff check --update              capture the references, once
      tracediff check                       run the ports
      tracediff check --format github --junit tracediff.xml
      git bisect run tracediff check --bisect-run
    """
    from tracediff import checking
    from tracediff.show import check as shown

    if update:
        for path in checking.update(cases, config=config, progress=_progress):
            click.echo(path)
        return SAME
    with _skipped_if(bisect_run):
        outcome = checking.check(cases, config=config, baseline=baseline, keep_state=not bisect_run, progress=_progress)
    if junit:
        write_output(junit, shown.junit(outcome), force=True)
    form = "json" if as_json else form
    if form in shown.FORMATS:
        click.echo(shown.FORMATS[form](outcome), nl=False)
    else:
        _print(outcome.to_dict() if form == "json" else shown.render(outcome), form == "json")
    return SKIP if bisect_run and outcome.verdict is None else _status(outcome.verdict)


@contextmanager
def _skipped_if(bisect_run: bool) -> Iterator[None]:
    """Trouble inside the block ends the command with the status by which `git bisect run` passes over a commit."""
    try:
        yield
    except Exception as error:
        if not bisect_run:
            raise
        _trouble(error)
        sys.exit(SKIP)


@main.command()
@click.argument("first", metavar="FILE:CALLABLE")
@click.argument("second", metavar="FILE:CALLABLE")
@comparing_options
@click.option("-o", "--output", "to", type=click.Path(), help="A folder that keeps the traces, first.h5 and second.h5.")
@click.option("--seed", default=0, show_default=True, help="Seeds the first way's random draws; the second takes the same.")
@click.option("--functions", multiple=True, help=_FUNCTIONS)
@click.option("--python", "python", type=click.Path(), help="Run the second way with another environment's Python.")
@click.option("--force", is_flag=True, help="Overwrite the traces.")
@verbose_option
@json_option
def compare(first: str, second: str, as_json: bool, verbose: bool, **options: Any) -> int:
    """Compare two ways to run one model: whole passes and loops over tokens, batches, padding, chunks, compiled, versions, devices.

    Each FILE:CALLABLE names a function without arguments that returns (model, run), as td.capture takes them. The first is the reference.

    \b
    Example:
      tracediff compare ways.py:prefill ways.py:token_by_token
      tracediff compare ways.py:run ways.py:run --python other/bin/python
    """
    from tracediff import api

    return _show_report(api.compare_named(first, second, progress=_progress, **options), as_json, verbose)


@main.command()
@click.argument("reference", type=click.Path(), required=False)
@click.argument("port", type=click.Path(), required=False)
@comparing_options
@config_option
def brief(reference: str | None, port: str | None, config: str | None, **options: Any) -> int:
    """Say in at most 40 lines of plain text what is wrong first, where in the code on both sides, why, and the next command.

    Of the last check of this project, or of two traces. The exit status is that of check and bisect.

    \b
    Example:
      tracediff brief
      tracediff brief ref.h5 mlx.h5
    """
    from tracediff import api, checking
    from tracediff.show import brief as shown

    if (reference is None) != (port is None):
        raise click.UsageError("Give two traces, REFERENCE and PORT; or none, for the last check.")
    if reference is None or port is None:
        outcome = checking.last_check(config)
        lines, verdict = shown.of_outcome(outcome), outcome.verdict
    else:
        report = api.diff(reference, port, progress=_progress, **options)
        lines, verdict = shown.of_report(report), report.verdict
    click.echo("\n".join(lines))
    return _status(verdict)


@main.command()
def skill() -> int:
    """Print one page for coding agents: the loop, the commands, the exit statuses, how to read the JSON, what not to conclude.

    \b
    Example:
      tracediff skill > skills/tracediff/SKILL.md
    """
    from tracediff.show.skill import skill as page

    click.echo(page(), nl=False)
    return SAME


@main.command()
@click.argument("site")
@click.option("--because", default="", help="Why the difference is right, or must be lived with.")
@click.option("--case", default=None, help="Only in this case.")
@click.option("--forget", is_flag=True, help="Accept it no longer.")
@config_option
def accept(site: str, because: str, case: str | None, forget: bool, config: str | None) -> int:
    """Accept the difference that the last check found at a site, with its reason and its size; it fails again when it grows.

    SITE is the site or the culprit, as `tracediff check` prints it. What is accepted lies in tracediff-accepted.toml.

    \b
    Example:
      tracediff accept encoder.norm --because "the checkpoint was trained with eps 1e-6"
    """
    from tracediff import checking
    from tracediff.show import check as shown

    accepted = checking.accept(site, because=because, case=case, config=config, forget=forget)
    _print(shown.listed((one.case, one.site, one.size) for one in accepted), False)
    return SAME


@main.command()
@click.argument("source", type=click.Path())
@click.argument("target", type=click.Path(), required=False)
@click.option("-o", "--output", type=click.Path(), help="The same as TARGET.")
@click.option("--impl", default="", help="Which framework made the arrays, such as swift; the trace says so.")
@click.option("--stored", type=click.Choice(["float16", "bfloat16"]), default=None, help=_STORED)
@click.option(
    "--like", type=click.Path(), help="Write the reference SOURCE under the names of this port's trace, in its axis order and dtype."
)
@click.option("--map", "mapping", type=click.Path(exists=True), help="With --like: a mapping file that overrides the alignment.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
def convert(source: str, target: str | None, output: str | None, stored: str | None, **options: Any) -> int:
    """Turn arrays by name (.npz, .safetensors, a folder of .npy) into a trace, or a trace into those.

    \b
    A name is SITE, SITE/END or SITE/CALL/END: encoder.0, encoder.0/input[0], encoder.0/3/output; or one of your own.

    \b
    Example:
      tracediff convert swift.safetensors swift.h5 --impl swift
      tracediff convert ref.h5 ref.npz
      tracediff convert ref.h5 --like swift.h5 -o feed.safetensors
    """
    from tracediff import api

    if (target is None) == (output is None):
        raise click.UsageError("Name the file to write once: as TARGET, or with -o.")
    click.echo(api.convert(source, target or output or "", stored=stored or "", **options))
    return SAME


@main.command()
@click.argument("traces", type=click.Path(), nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(), required=True, help="The trace to write.")
@click.option("--table", type=click.Path(exists=True), help=_TABLE)
@click.option("--force", is_flag=True, help="Overwrite the output.")
@json_option
def merge(traces: Sequence[str], output: str, table: str | None, force: bool, as_json: bool) -> int:
    """Make one trace of those of all ranks of a run: tensor-, sequence-, expert-, pipeline- or data-parallel.

    Parts are joined, partial sums added, replicas compared. The exit status is 1 where a rank differs from its replicas.

    \b
    Example:
      tracediff merge ref.rank0.h5 ref.rank1.h5 -o ref.h5
      tracediff merge rank*.h5 --table ranks.toml -o port.h5
    """
    from tracediff import api
    from tracediff.ranks import differences
    from tracediff.show import tables

    with api.merge(traces, output, table=table, force=force) as trace:
        found = differences(trace)
        _print(api.summary(trace) if as_json else tables.merged(trace, found), as_json)
    return DIFFERENT if found else SAME


@main.command()
@click.argument("port", type=click.Path())
@click.option("--like", type=click.Path(), help="A reference's trace that tells what is usual; its inputs may be others.")
@json_option
def look(port: str, like: str | None, as_json: bool) -> int:
    """Look at one trace for what is wrong in itself: alarms, never a verdict.

    NaN, constants, ids that loop, a pure tone, a solver that runs away; with --like also signs, spread and range unlike the
    reference's. The exit status is 0 with alarms too.

    \b
    Example:
      tracediff look mlx.h5
      tracediff look mlx.h5 --like ref.h5
    """
    from tracediff import api
    from tracediff.show import alarms as shown

    found = api.look(port, like=like)
    _print(found.to_dict() if as_json else shown.render(found), as_json)
    return SAME


@main.command("try")
@click.argument("reference", type=click.Path())
@click.argument("site", shell_complete=completion.sites)
@click.argument("name", metavar="[FILE:CLASS]", required=False)
@click.option("--impl", type=click.Choice(["torch", "mlx"]), default="mlx", show_default=True, help="Without FILE:CLASS: the port's side.")
@click.option(
    "--recipe",
    default=None,
    shell_complete=completion.recipes,
    help="Without FILE:CLASS: the recipe that loads the port [default: the reference's].",
)
@click.option("--module", default=None, help="Without FILE:CLASS: the module's path in the port, where it differs from the site.")
@click.option("--weights", type=click.Path(exists=True), help="A .safetensors or .npz file that the module loads itself.")
@click.option("--call", "calls", type=int, multiple=True, help="Only this call of the site, counted from 0 (may be repeated).")
@click.option("--arg", "arguments", multiple=True, metavar="REF=PORT", help="What the module calls an argument of the reference.")
@click.option("-o", "--output", "to", type=click.Path(), help="Keep the trace of the module here.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@click.option("--rtol", type=float, help="Allow |port - reference| <= atol + rtol * |reference|; goes with --atol.")
@click.option("--atol", type=float, help="Goes with --rtol.")
@verbose_option
@json_option
def try_(reference: str, site: str, name: str | None, arguments: Sequence[str], as_json: bool, verbose: bool, **options: Any) -> int:
    """Run one module of the port on the reference's inputs of its site, and judge what it returns.

    FILE:CLASS names a class, or a function, of a Python file that makes the module when it is called without arguments. Without it the
    module is the one of that site among those that the port's recipe loads.

    \b
    Example:
      tracediff try ref.h5 flow.decoder.mid_blocks.0 port.py:make_block --weights block.safetensors
      tracediff try ref.h5 flow.encoder --impl mlx --recipe chatterbox
    """
    from tracediff import api

    stated = dict(_pair(text) for text in arguments)
    report = api.try_named(reference, site, name, arguments=stated, progress=_progress, **options)
    return _show_report(report, as_json, verbose)


@main.command()
@click.argument("trace", type=click.Path())
@click.option("-o", "--output", type=click.Path(), help="Write the recovered trace here instead of in place.")
def recover(trace: str, output: str | None) -> int:
    """Make a trace whose capture was killed an ordinary file again, with every record that was written.

    \b
    Example:
      tracediff recover ref.h5
    """
    from tracediff import api

    recovered = api.recover(trace, output)
    click.echo(f"{recovered.path}: {len(recovered.records):,} records recovered")
    return SAME


@main.command()
@click.argument("name", default="my_model")
@click.option("--folder", type=click.Path(), default="hooks", show_default=True, help="Where the two files go.")
def init(name: str, folder: str) -> int:
    """Write a pair of recipes to start from: hooks/NAME_torch.py and hooks/NAME_mlx.py.

    \b
    Example:
      tracediff init my_model
    """
    from tracediff import api

    for path in api.write_recipes(name, folder):
        click.echo(path)
    return SAME


@main.command()
@json_option
def doctor(as_json: bool) -> int:
    """Say what is installed, what can run here, how exactly it multiplies, and what slows it down.

    \b
    Example:
      tracediff doctor
    """
    from tracediff import doctor as doctor_module
    from tracediff.show import tables

    checks = doctor_module.examine()
    _print(doctor_module.to_dict(checks) if as_json else tables.checks(checks), as_json)
    return SAME


@main.command()
@click.option(
    "--fault",
    default="dropped_bias",
    show_default=True,
    shell_complete=completion.faults,
    help="The fault to plant in the port; 'none' for the port as shipped.",
)
@click.option("--list", "listing", is_flag=True, help="List the faults and stop.")
@click.option("--folder", type=click.Path(), default="traces", show_default=True, help="Where the two traces go.")
@click.option("--seed", default=0, show_default=True, help="Seeds weights, inputs and random draws.")
@verbose_option
@json_option
def demo(fault: str, listing: bool, folder: str, seed: int, as_json: bool, verbose: bool) -> int:
    """Capture the real Chatterbox pair, plant one announced fault in the port, and find it.

    \b
    Example:
      tracediff demo --fault wrong_time_scale
    """
    from tracediff import demo as demo_module

    if listing:
        for name, announcement in demo_module.faults().items():
            click.echo(f"{name}: {announcement}")
        return SAME
    _show_report(demo_module.run(fault, folder=folder, seed=seed, progress=_progress), as_json, verbose)
    return SAME


@main.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_(shell: str) -> int:
    """Print a shell's completion script.

    \b
    Example:
      eval "$(tracediff completion bash)"
    """
    from click.shell_completion import get_completion_class

    completion_class = get_completion_class(shell)
    assert completion_class is not None
    click.echo(completion_class(main, {}, "tracediff", "_TRACEDIFF_COMPLETE").source())
    return SAME


def _show_report(report: Report, as_json: bool, verbose: bool) -> int:
    from tracediff.show import answer, text

    _print(report.to_dict() if as_json else text.report(report) if verbose else answer.render(report), as_json)
    return _status(report.verdict)


def _print(answer: Any, as_json: bool) -> None:
    """One JSON object without NaN literals, or a rich renderable, on stdout."""
    if as_json:
        click.echo(json.dumps(answer, allow_nan=False))
        return
    from tracediff.show.words import put

    put(answer)


def _progress(message: str) -> None:
    """A line of progress on stderr, with the time since the first one."""
    from tracediff.progress import to_stderr

    if not _SAYS:
        _SAYS.append(to_stderr())
    _SAYS[0](message)


_SAYS: list[Callable[[str], None]] = []


def _say(message: str) -> None:
    """A line on stderr; names in it may come from a stranger's file."""
    from tracediff.site import printable

    click.echo(printable(message), err=True)


def _status(verdict: str | None) -> int:
    return {"same": SAME, "different": DIFFERENT}.get(verdict or "", TROUBLE)


def _pair(text: str) -> tuple[str, str]:
    from tracediff.errors import TracediffError

    before, mark, after = text.partition("=")
    if not (before and mark and after):
        raise TracediffError(f"{text!r} is no pair of names; write REFERENCE=PORT, for instance --arg x=hidden_states.")
    return before, after
