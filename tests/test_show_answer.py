"""show.answer: the answer in a minute. Golden texts at three widths; write them anew with TRACEDIFF_SNAPSHOTS=write."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_show_text import DIFFERENT, DIVERGENCE, REPORTS, SAME, SITE, check

from tracediff.report import Cause, Coverage, Culprit, Report
from tracediff.show import answer
from tracediff.show.words import plain, verdict_word
from tracediff.verdict import Withheld

WIDTHS = (60, 80, 120)
LONG = "a_module_with_a_long_name." * 6 + "attn"


def long() -> Report:
    """A report in which every text is longer than any line."""
    cause = Cause("weights.layout", 0.9, True, " ".join(f"word{i}" for i in range(80)))
    site = replace(SITE, reference=LONG, port=LONG)
    one = replace(DIVERGENCE, site=site, culprit=Culprit(LONG, LONG), last_same=site, causes=(cause,), times=3.2e6)
    return replace(DIFFERENT, divergences=(one,), caveats=("the reference ran in training mode " * 5,))


def withheld(code: str) -> Report:
    return replace(SAME, verdict=None, withheld=Withheld(code, ("a",), "a was not compared"))  # type: ignore[arg-type]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_answer_reads_well(width: int) -> None:
    shown = [f"== {name}\n{plain(answer.render(told), width=width)}" for name, told in {**REPORTS, "long": long()}.items()]
    check(f"answer_{width}", "\n".join(shown))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", [*REPORTS, "long"])
def test_the_answer_takes_at_most_fifteen_lines_and_no_line_is_too_long(name: str, width: int) -> None:
    lines = plain(answer.render(long() if name == "long" else REPORTS[name]), width=width).splitlines()
    assert len(lines) <= answer.MOST_LINES
    assert all(len(line) <= width for line in lines if not line.lstrip().startswith("Next"))


def test_the_answer_says_what_where_how_much_why_and_what_next() -> None:
    cause = Cause("weights.missing_bias", 0.95, True, "linear_out.bias is zero in the port")
    shown = plain(answer.render(replace(DIFFERENT, divergences=(replace(DIVERGENCE, causes=(cause,), times=321.4),))), width=200)
    for words in (
        "Different: 1 fault at 1 place, in s3gen.encoder.layers.3.attn",
        "encoder.py:88",
        "encoder_layer.py:201",
        "320 times what is allowed: relative L2 3.2e-02, allowed 1.0e-04",
        "weights.missing_bias, proved: linear_out.bias is zero in the port",
        "Give the port's layer a bias",
        "the same up to s3gen.flow.encoder.encoders.3.norm_mha output",
        "free run; reference repeats itself",
        "311/368 weights equal; 812/900 records compared; 14 sites unpaired",
        "tracediff weights ref.h5 mlx.h5",
    ):
        assert words in shown


def test_a_cause_that_is_not_proved_is_said_to_be_likely() -> None:
    cause = Cause("scale", 0.42, False, "the port is 2 times the reference")
    shown = plain(answer.render(replace(DIFFERENT, divergences=(replace(DIVERGENCE, causes=(cause,)),))), width=200)
    assert "scale, 42% likely, not proved: the port is 2 times the reference" in shown


def test_a_command_is_never_cut() -> None:
    path = "a_folder_of_traces/" * 10 + "mlx.h5"
    shown = plain(answer.render(replace(DIFFERENT, port={**DIFFERENT.port, "path": path})), width=60)
    assert path in shown


@pytest.mark.parametrize(
    ("report", "word"),
    [
        (SAME, "same"),
        (DIFFERENT, "different"),
        (withheld("noise"), "cannot tell"),
        (withheld("cannot tell"), "cannot tell"),
        (withheld("outputs"), "not compared"),
        (withheld("nothing paired"), "not compared"),
        (replace(withheld("unfinished"), coverage=Coverage(9, 9, 0, 0, 0, 0)), "not compared"),
    ],
)
def test_screens_know_four_verdicts(report: Report, word: str) -> None:
    assert verdict_word(report) == word
    assert plain(answer.render(report)).startswith(word.capitalize())


def test_all_faults_and_their_places_are_counted() -> None:
    told = replace(DIFFERENT, divergences=(replace(DIVERGENCE, count=52), replace(DIVERGENCE, count=3)))
    assert answer.headline(told) == "2 faults at 55 places, first in s3gen.encoder.layers.3.attn"


def test_a_bisection_does_not_say_that_there_is_one_fault_only() -> None:
    assert answer.headline(replace(DIFFERENT, method="bisect")).startswith("the first fault at 1 place")
