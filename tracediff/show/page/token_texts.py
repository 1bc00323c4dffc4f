"""The texts of tokens, from the ``tokenizer.json`` that a trace names for the ids at some of its sites."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracediff.json_text import parse_json
from tracediff.site import printable

if TYPE_CHECKING:
    from tracediff.trace import Trace

MOST_BYTES = 64 * 2**20
"""Of a larger file of a tokenizer nothing is read."""


def texts_of(ids: Iterable[int], site: str, trace: Trace) -> dict[str, str]:
    """The texts of some ids at a site, by id; none where the trace's meta names no tokenizer for it, or its file is not there.

    ``tokenizers`` of meta maps globs on sites to files, relative ones to the trace's folder.
    """
    named = trace.meta.get("tokenizers") or {}
    file = next((file for glob, file in named.items() if fnmatchcase(site, glob)), None)
    texts = {} if file is None else _vocabulary(trace.path.parent / file)
    return {str(one): texts[one] for one in dict.fromkeys(ids) if one in texts}


@lru_cache(8)
def _vocabulary(file: Path) -> Mapping[int, str]:
    """The tokens of a ``tokenizer.json`` by id, with spaces as spaces; nothing where it cannot be read as one.

    A trace may name any file: only ordinary ones of this kind are opened, never a pipe.
    """
    try:
        if file.suffix != ".json" or not file.is_file() or file.stat().st_size > MOST_BYTES:
            return {}
        data: Any = parse_json(file.read_bytes())
        vocabulary = data["model"]["vocab"]
        numbered = enumerate(token for token, _ in vocabulary) if isinstance(vocabulary, list) else ((n, t) for t, n in vocabulary.items())
        found = {int(number): str(token) for number, token in numbered}
        found |= {int(one["id"]): str(one["content"]) for one in data.get("added_tokens") or ()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {number: printable(token.translate({0x2581: " ", 0x120: " ", 0x10A: "\n"})) for number, token in found.items()}
