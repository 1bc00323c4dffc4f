"""The names of places and moments: what is printed can be parsed back, whatever the names hold."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracediff.errors import TracediffError
from tracediff.site import Call, End, NumberedSite, Scope, Site, escape, is_below, is_in_stage, join, module_of, stage_chain, unescape

names = st.text(min_size=1, max_size=12)
paths = st.lists(names.map(lambda name: escape(name, dots=True)), max_size=4).map(lambda parts: join(*parts))
sites = st.builds(Site, paths, st.sampled_from(["method", "tap", "function"]), names) | st.builds(Site, paths)
frames = st.builds(NumberedSite, sites.map(str), st.integers(0, 10**6)) | st.builds(Scope, names, names)


@settings(deadline=None)
@given(names)
def test_an_escaped_name_comes_back(name: str) -> None:
    assert unescape(escape(name, dots=True)) == name


@settings(deadline=None)
@given(sites)
def test_a_printed_site_is_parsed_back(site: Site) -> None:
    assert Site.parse(str(site)) == site
    assert module_of(str(site)) == site.path


@settings(deadline=None)
@given(st.lists(frames, max_size=6).map(tuple))
def test_a_printed_call_is_parsed_back(frames: tuple[NumberedSite | Scope, ...]) -> None:
    assert Call.parse(str(Call(frames))) == Call(frames)


@settings(deadline=None)
@given(st.sampled_from(["input", "output", "param", "attr"]), st.lists(names | st.integers(0, 99), max_size=4).map(tuple))
def test_a_printed_end_is_parsed_back(kind: str, keys: tuple[str | int, ...]) -> None:
    keys = tuple(key if isinstance(key, int) or not key.isdigit() else f"k{key}" for key in keys)
    assert End.parse(str(End(kind, keys))) == End(kind, keys)


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (End("input", (0,)), "input[0]"),
        (End("input", ("mask",)), "input[mask]"),
        (End("output"), "output"),
        (End("output", (0, "key")), "output[0].key"),
        (End("attr", ("eps",)), "attr[eps]"),
        (End("draw"), "draw"),
    ],
)
def test_ends_read_as_the_documentation_shows_them(end: End, text: str) -> None:
    assert str(end) == text
    assert End.parse(text) == end


def test_a_child_of_a_module_is_told_from_a_sibling_with_a_longer_name() -> None:
    assert is_below("layers.1", "layers.1")
    assert is_below("layers.1.attn", "layers.1")
    assert not is_below("layers.10", "layers.1")
    assert is_below("anything", "")


@pytest.mark.parametrize("text", ["inputs[0]", "", "weight"])
def test_what_is_no_end_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(TracediffError, match="looks like"):
        End.parse(text)


def test_a_call_with_a_frame_that_has_no_number_is_refused() -> None:
    with pytest.raises(TracediffError, match="is no frame"):
        Call.parse("flow/decoder[0]")


def test_a_stage_lies_in_the_stages_around_it_even_where_these_go_round_in_a_circle() -> None:
    outer_of = {"filter": "vocoder", "vocoder": "speech", "speech": "vocoder", "other": ""}
    assert stage_chain("filter", outer_of) == ["filter", "vocoder", "speech"]
    assert is_in_stage("filter", "speech", outer_of)
    assert is_in_stage("speech.late", "speech", outer_of)
    assert not is_in_stage("other", "speech", outer_of)
