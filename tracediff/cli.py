"""The command line: parse, call one function, show, exit.

Exit status: 0 same (or done), 1 different, 2 trouble, 130 interrupted. The answer goes to stdout, progress and trouble to stderr.
Only click is imported here; everything else is imported by the command that needs it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from tracediff.report import Report

Command = TypeVar("Command", bound=Callable[..., Any])

SAME, DIFFERENT, TROUBLE, INTERRUPTED = 0, 1, 2, 130


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
            click.echo("Interrupted; what was recorded is kept.", err=True)
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
        click.echo(f"Error: {error}", err=True)
    else:
        hint = "set TRACEDIFF_TRACEBACK=1 to see where"
        click.echo(f"Error: {type(error).__name__}: {error} ({hint})", err=True)
    return TROUBLE


def json_option(command: Command) -> Command:
    """``--json``: the answer as one JSON object."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")(command)


def judging_options(command: Command) -> Command:
    """What `diff`, `bisect` and `plot` share: the two traces, how they are paired and what error is allowed."""
    for option in reversed(
        (
            click.argument("reference", type=click.Path()),
            click.argument("port", type=click.Path()),
            click.option("--map", "mapping", type=click.Path(exists=True), help="A mapping file that overrides the alignment."),
            click.option("--rtol", type=float, help="Allow |port - reference| <= atol + rtol * |reference|; goes with --atol."),
            click.option("--atol", type=float, help="Goes with --rtol."),
            click.option("--stage", "stages", multiple=True, help="Only this stage (may be repeated)."),
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
@click.option("--recipe", default=None, help="A recipe's name or file [default: the one in hooks/].")
@click.option("--stage", "stages", multiple=True, help="Only this stage (may be repeated).")
@click.option("--weights", default="seeded", show_default=True, help="seeded, seeded:full, a checkpoint FOLDER, or a hub id.")
@click.option("--seed", default=0, show_default=True, help="Seeds weights, inputs and random draws, alike on both sides.")
@click.option("--random", "random", type=click.Path(exists=True), help="Play back this trace's inputs and random draws.")
@click.option("--feed", type=click.Path(exists=True), help="Feed each site this reference's tensors: a forced run (implies --random).")
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="Run the model in this dtype.")
@click.option("--include", multiple=True, help="Record only sites that match this pattern, such as 't3.tfmr.**'.")
@click.option("--exclude", multiple=True, help="Leave out sites that match this pattern.")
@click.option("--calls", help="Record only these calls: an ordinal, or a range such as 0:3.")
@click.option("--save", type=click.Choice(["full", "stats"]), default="full", show_default=True, help="Values, or statistics only.")
@click.option("--save-params", is_flag=True, help="Store the parameters' values too, not only their fingerprints.")
@click.option("--no-repeat", is_flag=True, help="Do not run the reference a second time to see whether it repeats.")
@click.option("--no-floor", is_flag=True, help="Do not measure the reference's noise floor (seven more runs).")
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
    """
    from tracediff import api
    from tracediff.show import tables

    with api.capture_recipe(progress=_progress, **options) as trace:
        _print(api.summary(trace) if as_json else tables.captured(trace), as_json)
    return SAME


@main.command()
@click.argument("trace", type=click.Path())
@click.argument("pattern", default="")
@click.option("--stage", "stages", multiple=True, help="Only this stage (may be repeated).")
@click.option("--modules", is_flag=True, help="The module tree instead of the records.")
@click.option("--params", is_flag=True, help="The parameters instead of the records.")
@click.option("--limit", default=200, show_default=True, help="Rows at most; 0 for all.")
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
@json_option
def align(reference: str, port: str, mapping: str | None, write_map: str | None, unpaired: bool, as_json: bool) -> int:
    """Show which sites of two traces correspond, with the evidence.

    \b
    Example:
      tracediff align ref.h5 mlx.h5 --unpaired
    """
    from tracediff import api
    from tracediff.show import tables

    alignment = api.align(reference, port, mapping=mapping)
    if write_map:
        alignment.write_map(write_map)
    _print(alignment.to_map() if as_json else tables.alignment(alignment, unpaired=unpaired), as_json)
    return SAME


@main.command()
@click.argument("reference", type=click.Path())
@click.argument("port", type=click.Path())
@click.argument("checkpoint", type=click.Path(), required=False)
@click.option("--write-rules", type=click.Path(), help="Write the renamings and transposes that would mend the port, as Python.")
@json_option
def weights(reference: str, port: str, checkpoint: str | None, write_rules: str | None, as_json: bool) -> int:
    """Compare weights without running anything: traces, .safetensors, .npz or .pt files, or folders of them.

    A third file, the checkpoint, tells which side is wrong.

    \b
    Example:
      tracediff weights checkpoint.safetensors mlx.h5
    """
    from tracediff import api
    from tracediff.show import weights as shown

    report = api.weights(reference, port, checkpoint=checkpoint)
    if write_rules:
        report.write_rules(write_rules)
    _print(report.to_dict() if as_json else shown.render(report), as_json)
    return _status(report.verdict)


@main.command()
@judging_options
@click.option("--all", "every", is_flag=True, help="Every pair, not only those that diverged and their neighbours.")
@json_option
def diff(reference: str, port: str, every: bool, as_json: bool, **options: Any) -> int:
    """Compare every pair of two traces, in execution order.

    \b
    Example:
      tracediff diff ref.h5 mlx.h5 --all
    """
    from tracediff import api
    from tracediff.show import text

    report = api.diff(reference, port, progress=_progress, **options)
    _print(report.to_dict() if as_json else text.diff(report, every=every), as_json)
    return _status(report.verdict)


@main.command()
@judging_options
@click.option("--scan", is_flag=True, help="Read everything instead of bisecting; the answer is the same.")
@json_option
def bisect(reference: str, port: str, scan: bool, as_json: bool, **options: Any) -> int:
    """Name the first divergence, its culprit on both sides and the likely cause.

    \b
    Example:
      tracediff bisect ref.h5 mlx.h5
    """
    from tracediff import api

    report = api.bisect(reference, port, scan=scan, progress=_progress, **options)
    return _show_report(report, as_json)


@main.command()
@judging_options
@click.option("-o", "--output", type=click.Path(), default="divergence.png", show_default=True, help="A .png, .svg or .pdf file.")
@click.option("--culprit", is_flag=True, help="Reference against port at the culprit, instead of the error of every site.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
def plot(reference: str, port: str, output: str, culprit: bool, force: bool, **options: Any) -> int:
    """Draw the error of every site in execution order, or reference against port at the culprit.

    \b
    Example:
      tracediff plot ref.h5 mlx.h5 -o divergence.png
    """
    from tracediff import api

    path = _free(Path(output), force)
    report = api.diff(reference, port, progress=_progress, **options)
    report.plot("culprit" if culprit else "sites").savefig(path, dpi=150)
    click.echo(path)
    return _status(report.verdict)


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
    """Say what is installed, what can run here, and what slows it down.

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
@click.option("--fault", default="dropped_bias", show_default=True, help="The fault to plant in the port; 'none' for the port as shipped.")
@click.option("--list", "listing", is_flag=True, help="List the faults and stop.")
@click.option("--folder", type=click.Path(), default="traces", show_default=True, help="Where the two traces go.")
@click.option("--seed", default=0, show_default=True, help="Seeds weights, inputs and random draws.")
@json_option
def demo(fault: str, listing: bool, folder: str, seed: int, as_json: bool) -> int:
    """Capture the real Chatterbox pair, plant one announced fault in the port, and find it.

    \b
    Example:
      tracediff demo --fault wrong_time_scale
    """
    from tracediff import demo as demo_module

    if listing:
        for name, announcement in demo_module.faults().items():
            click.echo(f"{name:24}{announcement}")
        return SAME
    report = demo_module.run(fault, folder=folder, seed=seed, progress=_progress)
    return _show_report(report, as_json)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print a shell's completion script.

    \b
    Example:
      eval "$(tracediff completion bash)"
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(main, {}, "tracediff", "_TRACEDIFF_COMPLETE").source())
    return SAME


def _show_report(report: Report, as_json: bool) -> int:
    from tracediff.show import text

    _print(report.to_dict() if as_json else text.report(report), as_json)
    return _status(report.verdict)


def _print(answer: Any, as_json: bool) -> None:
    """One JSON object without NaN literals, or a rich renderable, on stdout."""
    if as_json:
        click.echo(json.dumps(answer, allow_nan=False))
        return
    from tracediff.show import text

    text.console().print(answer)


def _progress(message: str) -> None:
    click.echo(message, err=True)


def _status(verdict: str | None) -> int:
    return {"same": SAME, "different": DIFFERENT}.get(verdict or "", TROUBLE)


def _free(path: Path, force: bool) -> Path:
    from tracediff.errors import TracediffError

    if path.exists() and not force:
        raise TracediffError(f"{str(path)!r} exists already; give another name with -o, or --force to overwrite it.")
    return path
