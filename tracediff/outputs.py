"""The files that a command writes: what lies there already is refused before anything runs, and a new one appears whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from tracediff.errors import TraceExistsError, TraceFileError

PathLike = str | os.PathLike[str]


def check_output(path: PathLike, *, force: bool = False) -> Path:
    """The path, if a file may be written there.

    Raises TraceExistsError where a file is there and not ``force``; TraceFileError where a folder or a device is there, or where the
    folder that it would lie in is not.
    """
    to = Path(path)
    try:
        to.lstat()
    except FileNotFoundError:
        pass
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise TraceFileError(f"{str(to)!r} cannot be written: {error.strerror}.") from error
    if not to.parent.is_dir():
        raise TraceFileError(f"{str(to)!r} cannot be written: there is no folder {str(to.parent)!r}. Make it, or name another file.")
    if to.is_dir() or (to.exists() and not to.is_file()):
        raise TraceFileError(f"{str(to)!r} cannot be written: it is a {'folder' if to.is_dir() else 'device'}. Name a file.")
    if to.exists() and not force:
        raise exists_already(to)
    return to


def exists_already(to: Path) -> TraceExistsError:
    """The error of an output that is there and may not be replaced."""
    return TraceExistsError(f"{str(to)!r} exists already; name another file, or replace it with --force (force=True).")


def write_output(path: PathLike, content: bytes | str | Callable[[Path], None], *, force: bool = False) -> Path:
    """Writes a file beside the path and moves it there once it is whole; returns the path.

    ``content``: what it holds (a text as UTF-8), or what writes it to the file that it is called with. Raises as `check_output` does, and
    TraceFileError where the disk is full or the folder may not be written; what was there is then untouched.
    """
    to = check_output(path, force=force)
    part = to.with_name(f".{to.stem[:80]}.{secrets.token_hex(4)}{to.suffix}")
    try:
        if callable(content):
            content(part)
        else:
            part.write_bytes(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
        os.replace(part, to)
    except OSError as error:
        raise TraceFileError(f"{str(to)!r} could not be written: {error.strerror or error}.") from error
    finally:
        part.unlink(missing_ok=True)
    return to
