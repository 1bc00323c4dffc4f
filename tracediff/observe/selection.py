"""Which boundaries of a run are recorded, and which parts of that selection never matched."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from tracediff.observe.call_selection import call_test
from tracediff.observe.observer import Boundary
from tracediff.observe.options import CaptureOptions
from tracediff.site import module_of

_SAID_AS = {
    "include": "include",
    "exclude": "exclude",
    "stages": "stages",
    "calls": "calls",
    "methods": "method",
    "functions": "functions",
}
"""The options that select something, each with the word that begins a line on it among what a trace did not see."""


class Selection:
    """The boundaries that a capture's options choose: by site or module path, by stage, and by call.

    >>> selection = Selection(CaptureOptions.of(include=["encoder*"], calls=["0-2", "5"]))
    >>> selection.wants(Boundary("encoder", "encoder[3]", 3, "enter", []), lambda stage: [stage])
    False
    """

    def __init__(self, options: CaptureOptions) -> None:
        self.left_out = 0
        self._options = options
        self._include = _globs("include", "site", options.include)
        self._exclude = _globs("exclude", "site", options.exclude)
        self._stages = _globs("stages", "stage", options.stages)
        self._calls = _Choices("calls", "call of a wanted site", {text: call_test(text) for text in options.calls})
        self._sites: dict[str, bool] = {}

    def wants(self, boundary: Boundary, stages: Callable[[str], Iterable[str]]) -> bool:
        """Whether a boundary is wanted; ``stages`` gives a stage and those around it. ``left_out`` counts the unwanted ones."""
        is_wanted = (
            self._wants_site(boundary.site)
            and (not self._stages or self._stages.match(*stages(boundary.stage)))
            and (not self._calls or self._calls.match(boundary.ordinal, boundary.call))
        )
        self.left_out += not is_wanted
        return is_wanted

    def unmatched(self) -> list[str]:
        """One line for each pattern, and for each choice of calls, that matched nothing so far."""
        return [line for part in (self._include, self._exclude, self._stages, self._calls) for line in part.unmatched()]

    def chose_nothing(self) -> str:
        """What is said where everything was left out."""
        given = [(name, getattr(self._options, name)) for name in ("include", "exclude", "stages", "calls")]
        chosen = "; ".join(f"{name} {', '.join(map(repr, texts))}" for name, texts in given if texts)
        return f"nothing was recorded: the selection ({chosen}) left out all {self.left_out:,} boundaries"

    def _wants_site(self, site: str) -> bool:
        """Whether the site, or the module it belongs to, is included and not excluded."""
        if site not in self._sites:
            names = (site, module_of(site))
            is_excluded = self._exclude.match(*names)
            self._sites[site] = (not self._include or self._include.match(*names)) and not is_excluded
        return self._sites[site]


def unmatched_lines(options: CaptureOptions, not_seen: Sequence[str]) -> list[str]:
    """The lines, among what a trace did not see, on patterns of these options that matched nothing."""
    heads = tuple(f"{word} {text!r}:" for option, word in _SAID_AS.items() for text in getattr(options, option))
    return [line for line in not_seen if line.startswith(heads)]


class _Choices:
    """What one option chooses: a test for each of its texts, and which of the tests ever held."""

    def __init__(self, option: str, kind: str, tests: Mapping[str, Callable[..., bool]]) -> None:
        self._option, self._kind = option, kind
        self._unused = dict(tests)
        self._used: list[Callable[..., bool]] = []

    def __bool__(self) -> bool:
        return bool(self._unused or self._used)

    def match(self, *seen: int | str) -> bool:
        """Whether a test holds for what was seen."""
        matching = [text for text, test in self._unused.items() if test(*seen)]
        self._used += [self._unused.pop(text) for text in matching]
        return bool(matching) or any(test(*seen) for test in self._used)

    def unmatched(self) -> Iterator[str]:
        return (f"{self._option} {text!r}: matched no {self._kind}" for text in self._unused)


def _globs(option: str, kind: str, globs: Iterable[str]) -> _Choices:
    """The choices of an option whose texts are globs, of which one has to match one of the names seen."""
    return _Choices(option, kind, {glob: _glob_test(glob) for glob in globs})


def _glob_test(glob: str) -> Callable[..., bool]:
    pattern = re.compile(fnmatch.translate(glob))
    return lambda *names: any(pattern.match(name) for name in names)
