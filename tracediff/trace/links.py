"""The browsable tree ``/sites``: soft links from sites to the datasets of their values, for people with an HDF5 viewer."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from typing import Protocol

from tracediff.dtype import BY_CODE, Array
from tracediff.trace import schema
from tracediff.trace.container import Output

MOST_LINKS = 10_000
"""A link costs 10 us and 50 bytes; of a trace with more records the first ones are linked."""
_LONGEST = 80


class Texts(Protocol):
    """The texts of a trace by their numbers."""

    def __getitem__(self, number: int, /) -> str: ...


def add_links(output: Output, rows: Array, texts: Texts) -> None:
    """A link a stored record: ``/sites/<module>/<path>/<ordinal> <end>``; for a packed one also what lies where in its segment."""
    folders: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for row in rows[["site", "ordinal", "end", "dtype", "shape", "segment", "offset", "nbytes"]].tolist():
        site, ordinal, end, code, shape, segment, offset, nbytes = row
        packed = f" ({BY_CODE[code].name} {texts[shape] or '0-d'} at {offset})" if nbytes <= schema.PACK_LIMIT else ""
        name = link_name(f"{ordinal:06d} {texts[end]}{packed}")
        folders[texts[site]].setdefault(name, f"/{schema.TENSORS}/{schema.segment_name(segment)}")
    for folder, links in folders.items():
        output.link("/".join(map(link_name, folder.split("."))), links)


def link_name(name: str) -> str:
    """A name that HDF5 takes as one step of a path: escaped, and shortened with a hash where it is long.

    >>> link_name("a/b"), link_name("")
    ('a%2Fb', '(root)')
    """
    name = re.sub(r"[/\x00-\x1f\ud800-\udfff]", lambda match: f"%{ord(match[0]):02X}", name) or "(root)"
    if len(name) > _LONGEST:
        name = f"{name[: _LONGEST - 9]}~{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name.replace(".", "%2E") if not name.strip(".") else name
