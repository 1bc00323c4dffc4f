"""What the documentation says is what the program does."""

import os
import re
from pathlib import Path

import click
import pytest

from tracediff import cli

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "cli.md"


def help_of(command: click.Command, name: str) -> str:
    context = click.Context(command, info_name=name, max_content_width=100, terminal_width=100, help_option_names=["-h", "--help"])
    return command.get_help(context)


def reference() -> str:
    parts = ["# The command line\n\nGenerated from the commands' own help: `UPDATE_DOCS=1 pytest tests/test_docs.py` writes it anew.\n"]
    parts.append(f"```text\n{help_of(cli.main, 'tracediff')}\n```\n")
    for name, command in sorted(cli.main.commands.items()):
        parts.append(f"## tracediff {name}\n\n```text\n{help_of(command, f'tracediff {name}')}\n```\n")
    return "\n".join(parts)


def test_the_command_reference_is_what_the_commands_say() -> None:
    if os.environ.get("UPDATE_DOCS"):
        REFERENCE.write_text(reference(), encoding="utf-8")
    assert REFERENCE.read_text(encoding="utf-8") == reference()


@pytest.mark.parametrize("name", sorted(cli.main.commands))
def test_every_command_has_help_and_an_example(name: str) -> None:
    command = cli.main.commands[name]
    assert command.help
    assert "Example:" in command.help
    assert f"tracediff {name}" in command.help


@pytest.mark.parametrize("name", sorted(cli.main.commands))
def test_every_option_is_explained(name: str) -> None:
    unexplained = [p.name for p in cli.main.commands[name].params if isinstance(p, click.Option) and not p.help]
    assert not unexplained


@pytest.mark.parametrize("page", ["README.md", *(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))])
def test_a_page_names_only_commands_and_options_that_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    called = r"(?:^(?=tracediff [a-z]+(?: |$))|run (?:--extra \w+ )*|`|\| )tracediff ([a-z]+)((?: [^`\n#|]*)?)"
    for name, rest in re.findall(called, text, re.MULTILINE):
        assert name in cli.main.commands, f"{page}: tracediff {name}"
        known = {option for p in cli.main.commands[name].params for option in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
        assert set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest)) <= known, f"{page}: tracediff {name}{rest}"


def test_every_linked_page_is_there() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
