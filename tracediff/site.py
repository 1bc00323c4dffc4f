"""Site, End and Call: the names of the places and moments at which tensors are seen.

The grammar is frozen, since trace files, mapping files and reports refer to it:

- **site** ``flow.decoder.mid_blocks.3`` (a module, absolute; the root is the empty string), ``flow:inference`` (a named method),
  ``flow#mel`` (a tap), ``attn1!attention`` (a functional call inside a module, by its canonical name);
- **end** ``input[0]``, ``input[mask]``, ``output``, ``output[0].key``, ``param[weight]``, ``draw``, ``value``, ``attr[eps]``:
  which tensor at the site. The first key of an input, parameter or attribute stands in brackets; below that integers stand in
  brackets and names behind a dot;
- **call** ``flow[0]/.decoder[0]/@ode=3/.estimator[3]``: the frames that were entered, outermost first. Each is a site and its
  number, counted per (site, parent call). A leading dot stands for the enclosing frame's module path, a leading ``^`` for the root
  where the enclosing frame is another module; ``@name=value`` is a named scope.

The characters ``% / [ ] @ # ! : ^`` inside a name are percent-escaped, and so is a dot inside one segment of a module path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self
from urllib.parse import unquote

from tracediff.errors import TracediffError

Key = str | int
EndKind = Literal["input", "output", "param", "draw", "value", "attr"]

INPUTS: tuple[EndKind, ...] = ("input", "attr")
"""Kinds of ends at which a call is handed something: its tensors, and its scalar arguments."""

RETURNED = "##returned"
"""The reserved tap that holds what a run returned. No tap of a model's code has this site, since ``#`` is escaped in a name."""

MOST_NAMES = 4
"""So many names are listed where nobody asks for another number."""

_HIDDEN = "\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff"
"""Characters that move the cursor, reorder a line, end it, cannot be seen or cannot be encoded; not the new line of a text of ours."""
_SPECIAL = re.compile(rf"[%/\[\]@#!:^\n{_HIDDEN}]")
_SPECIAL_OR_DOT = re.compile(rf"[%/\[\]@#!:^.\n{_HIDDEN}]")
_UNSEEN = re.compile(f"[{_HIDDEN}]")
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.:#! ])")
_MARKS = {":": "method", "#": "tap", "!": "function"}


def printable(text: str) -> str:
    """A text that shows what it holds: names come from files, and a control character in one is no instruction to a terminal.

    What stands for such a character is JSON's own escape, so that a JSON text stays one.

    >>> print(printable("enc" + chr(27) + "[2J.0"))
    enc\\u001b[2J.0
    """
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def escape(name: str, *, dots: bool = False) -> str:
    """``name`` with the grammar's own characters percent-escaped, and those that cannot be seen or encoded; dots too where asked.

    >>> escape("a/b[0]")
    'a%2Fb%5B0%5D'
    """
    return (_SPECIAL_OR_DOT if dots else _SPECIAL).sub(_escaped, name)


def _escaped(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass"))


def unescape(name: str) -> str:
    """The name that `escape` was given."""
    return unquote(name, errors="surrogatepass")


def join(*segments: str) -> str:
    """A module path from its segments; empty segments (the root) vanish.

    >>> join("flow", "", "decoder")
    'flow.decoder'
    """
    return ".".join(segment for segment in segments if segment)


def pattern_of(name: str) -> str:
    """A site, or what begins with one, with a star for each number in its path: siblings of one role have it in common.

    >>> pattern_of("layers.3.attn1"), pattern_of("blocks.0!attention")
    ('layers.*.attn1', 'blocks.*!attention')
    """
    return _NUMBER.sub("*", name)


def is_returned(end: str) -> bool:
    """Whether an end is of what a call returned; an input that it changed in place (``output.input[0]``) is not.

    >>> is_returned("output[0].key"), is_returned("output.input[0]"), is_returned("input[0]")
    (True, False, False)
    """
    return end.startswith("output") and not end.startswith("output.input[")


def is_below(path: str, ancestor: str) -> bool:
    """Whether a module path is ``ancestor`` itself or lies below it (everything lies below the root)."""
    return not ancestor or path == ancestor or path.startswith(ancestor + ".")


@dataclass(frozen=True, slots=True)
class Site:
    """A named place in a model: a module, or a method, tap or functional call inside one.

    ``path`` is the module's path as it is printed (already escaped); ``name`` is the plain name of the method, tap or function.

    >>> str(Site("flow", "method", "inference"))
    'flow:inference'
    >>> Site.parse("attn1!random.normal")
    Site(path='attn1', kind='function', name='random.normal')
    """

    path: str
    kind: Literal["module", "method", "tap", "function"] = "module"
    name: str = ""

    def __str__(self) -> str:
        mark = {"module": "", "method": ":", "tap": "#", "function": "!"}[self.kind]
        return f"{self.path}{mark}{escape(self.name)}"

    @classmethod
    def parse(cls, text: str) -> Self:
        match = re.search(r"[:#!]", text)
        if match is None:
            return cls(text)
        kind = _MARKS[match[0]]
        return cls(text[: match.start()], kind, unescape(text[match.end() :]))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class End:
    """Which tensor at a site: what kind of end, and the keys that lead to it through nested containers.

    >>> str(End("output", (0, "key"))), str(End("input", ("mask", 1))), str(End("output"))
    ('output[0].key', 'input[mask][1]', 'output')
    """

    kind: EndKind
    keys: tuple[Key, ...] = ()

    def __str__(self) -> str:
        parts = []
        for position, key in enumerate(self.keys):
            if isinstance(key, int):
                parts.append(f"[{key}]")
            elif position == 0 and self.kind in ("input", "param", "attr"):
                parts.append(f"[{escape(key)}]")
            else:
                parts.append(f".{escape(key, dots=True)}")
        return self.kind + "".join(parts)

    @classmethod
    def parse(cls, text: str) -> Self:
        match = re.match(r"(input|output|param|draw|value|attr)(?=[\[.]|$)", text)
        if match is None:
            raise TracediffError(f"{text!r} is no end; one looks like 'input[0]', 'output' or 'output[0].key'.")
        keys: list[Key] = []
        for bracket, dotted in re.findall(r"\[([^\]]*)\]|\.([^.\[]*)", text[match.end() :]):
            keys.append(int(bracket) if re.fullmatch(r"-?\d+", bracket) else unescape(bracket or dotted))
        return cls(match[1], tuple(keys))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class NumberedSite:
    """One frame of a call: the site that was entered, and its number, counted per (site, parent call)."""

    site: str
    number: int


@dataclass(frozen=True, slots=True)
class Scope:
    """A named scope of the run: an ODE step, a generated token."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Call:
    """The frames and scopes that were entered, outermost first.

    >>> call = Call((NumberedSite("flow", 0), Scope("ode", "3"), NumberedSite("flow.estimator", 3)))
    >>> str(call)
    'flow[0]/@ode=3/.estimator[3]'
    >>> Call.parse(str(call)) == call
    True
    """

    frames: tuple[NumberedSite | Scope, ...] = ()

    def __str__(self) -> str:
        parts, enclosing = [], ""
        for frame in self.frames:
            if isinstance(frame, Scope):
                parts.append(f"@{escape(frame.name).replace('=', '%3D')}={escape(frame.value)}")
                continue
            parts.append(frame_text(frame.site, frame.number, enclosing))
            enclosing = module_of(frame.site)
        return "/".join(parts)

    @classmethod
    def parse(cls, text: str) -> Self:
        frames: list[NumberedSite | Scope] = []
        enclosing = ""
        for part in text.split("/") if text else []:
            if part.startswith("@"):
                name, _, value = part[1:].partition("=")
                frames.append(Scope(unescape(name), unescape(value)))
                continue
            match = re.fullmatch(r"(.*)\[(\d+)\]", part, re.DOTALL)
            if match is None:
                raise TracediffError(f"{part!r} in the call {text!r} is no frame; one looks like 'flow.decoder[0]' or '@ode=3'.")
            site = match[1]
            if site.startswith("^"):
                site = site[1:]
            elif enclosing and (site[:1] in (".", ":", "#", "!") or not site):
                site = enclosing + site
            frames.append(NumberedSite(site, int(match[2])))
            enclosing = module_of(site)
        return cls(tuple(frames))


def stage_chain(stage: str, outer_of: Mapping[str, str]) -> list[str]:
    """A stage and the stages around it, innermost first; ``outer_of`` maps each stage to the stage around it.

    >>> stage_chain("vocoder.filter", {"vocoder.filter": "vocoder", "vocoder": ""})
    ['vocoder.filter', 'vocoder']
    """
    chain = [stage]
    while (outer := outer_of.get(chain[-1], "")) and outer not in chain:
        chain.append(outer)
    return chain


def is_in_stage(stage: str, asked: str, outer_of: Mapping[str, str]) -> bool:
    """Whether a stage is the stage asked for, lies inside it, or has it as the first part of its dotted name."""
    return any(one == asked or one.startswith(asked + ".") for one in stage_chain(stage, outer_of))


def around(call: str) -> str:
    """The printed call around a printed call, "" for an outermost one; named scopes are no calls.

    >>> around("flow[0]/@ode=3/.estimator[3]")
    'flow[0]'
    """
    parts = call.split("/")[:-1]
    while parts and parts[-1].startswith("@"):
        parts.pop()
    return "/".join(parts)


def module_of(site: str) -> str:
    """The module path of a printed site.

    >>> module_of("layers.3.attn!attention")
    'layers.3.attn'
    """
    return re.split(r"[:#!]", site, maxsplit=1)[0]


def frame_text(site: str, number: int, enclosing: str) -> str:
    """One frame as it is printed below the enclosing module path: what the site adds, behind a dot, or the whole site."""
    path = module_of(site)
    if enclosing and is_below(path, enclosing):
        site = site[len(enclosing) :]
    elif enclosing and not path:
        site = f"^{site}"
    return f"{site}[{number}]"


def listed(names: Sequence[str], most: int = MOST_NAMES) -> str:
    """The first few names, "" as the root, and how many more there are."""
    shown = ", ".join(name or "the root" for name in names[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown
