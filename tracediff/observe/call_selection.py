"""How the calls of a site are chosen: by number, by range, or by a pattern on the printed call."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable

from tracediff.errors import CaptureError

CallTest = Callable[[int, str], bool]
"""Whether a call is chosen, told its number among the calls of its site (from 0) and its printed form."""

_NUMBERS = re.compile(r"(?P<first>\d+)\s*(?:(?P<range>[-:])\s*(?P<last>\d*))?")
_FORMS = "write 3 for one call, 0-3 or 0:3 for a range with both ends, 7- for all from 7 on, or a pattern on printed calls: '*@token=3*'"


def call_test(text: str) -> CallTest:
    """The test that one text of the option ``calls`` stands for.

    ``3`` is one call of each site, counted from 0. ``0-3`` and ``0:3`` are the calls 0, 1, 2 and 3: both ends are included. ``7-`` and
    ``7:`` are all calls from 7 on. A text with ``*``, ``?`` or ``[`` is a glob on the printed call. Raises CaptureError for any other text.

    >>> [number for number in range(6) if call_test("0:3")(number, "")]
    [0, 1, 2, 3]
    >>> call_test("*@token=3*")(7, "decoder[0]/@token=3/.layer[7]")
    True
    """
    numbers = _NUMBERS.fullmatch(text.strip())
    if numbers is not None:
        return _between(text, int(numbers["first"]), numbers["range"], numbers["last"])
    if not re.search(r"[*?\[]", text):  # a printed call ends in its number, [3], so that no pattern without these characters matches one
        raise CaptureError(f"The calls {text!r} are no number, no range and no pattern; {_FORMS}.")
    pattern = re.compile(fnmatch.translate(text))
    return lambda _, call: pattern.match(call) is not None


def _between(text: str, first: int, mark: str | None, end: str | None) -> CallTest:
    if mark and not end:
        return lambda number, _: number >= first
    last = int(end) if end else first
    if last < first:
        raise CaptureError(f"The calls {text!r} end before they begin; write the lower number first, for instance '{last}{mark}{first}'.")
    return lambda number, _: first <= number <= last
