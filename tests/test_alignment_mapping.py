"""Mapping files: what a person states is taken as it is, and what they got wrong is said clearly."""

from __future__ import annotations

import json

import pytest
from synthetic import stack

from tracediff.alignment import align
from tracediff.alignment.mapping import read
from tracediff.errors import AlignmentError, TraceExistsError
from tracediff.trace import open_trace

REFERENCE = ["encoder.layers.0.attn", "encoder.layers.1.attn", "encoder.norm", "head"]
PORT = ["enc.0.mixer", "enc.1.mixer", "enc.ln", "out"]


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    reference, port, _ = stack(tmp_path_factory.mktemp("stack"), 2)
    return open_trace(reference), open_trace(port)


def stated(*pairs, **ignore):
    return {"pairs": [dict(zip(("reference", "port", "layout"), pair, strict=False)) for pair in pairs], "ignore": ignore}


def test_a_star_is_filled_in_on_the_ports_side():
    found = read(stated(("encoder.layers.*.attn", "enc.*.mixer")), REFERENCE, PORT)
    assert [(given.reference, given.port) for given in found.pairs] == [(0, 0), (1, 1)]


def test_two_stars_stand_for_any_depth():
    assert read(stated(), REFERENCE, PORT).pairs == ()
    assert read(stated(reference=["encoder.**"]), REFERENCE, PORT).ignored[0] == {0, 1, 2}


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (stated(("encoder.layer.0.attn", "enc.0.mixer")), r"'encoder.layer.0.attn'.*reference \(4 sites; nearest: 'encoder.layers.0.attn'"),
        (stated(("encoder.layers.*.attn", "enc.*.mix")), r"'enc.0.mix' \(paired with 'encoder.layers.0.attn'\).*nearest: 'enc.0.mixer'"),
        (stated(("head", "out"), ("encoder.norm", "out")), "port's site 'out' more than once"),
        (stated(("encoder.layers.*.attn", "out")), "same stars"),
        (stated(("head", "out", "channels last")), "no layout"),
        (stated(port=["nothing.*"]), "no such site is in the port"),
        ({"pairs": [["a", "b"]]}, "must name a site of each side"),
        ({"pairs": {"a": "b"}}, "must look like"),
        (
            {"pairs": [{"reference": "head", "port": "out", "part": {"of": "neither"}}]},
            "part of a fused site",
        ),
    ],
)
def test_a_wrong_mapping_says_what_is_wrong_and_names_the_nearest_sites(mapping, message):
    with pytest.raises(AlignmentError, match=message):
        read(mapping, REFERENCE, PORT)


def test_a_mapping_file_that_cannot_be_read_says_so(tmp_path):
    with pytest.raises(AlignmentError, match="write-map"):
        read(tmp_path / "absent.json", REFERENCE, PORT)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(AlignmentError, match="no JSON"):
        read(tmp_path / "broken.json", REFERENCE, PORT)


def test_what_is_stated_overrides_all_evidence(traces):
    alignment = align(*traces, mapping=stated(("layers.0.attn.q", "h.1.mixer.out"), reference=["layers.1.norm1"]))
    (pair,) = [pair for pair in alignment.pairs if pair.reference == "layers.0.attn.q"]
    assert (pair.port, pair.confidence) == ("h.1.mixer.out", 1.0)
    assert "layers.1.norm1" not in alignment.port_of


def test_a_written_map_gives_the_same_alignment_again(traces, tmp_path):
    first = align(*traces)
    path = first.write_map(tmp_path / "map.json")
    again = align(*traces, mapping=path)
    assert again.port_of == first.port_of
    assert [(pair.reference, pair.port, str(pair.layout)) for pair in again.records] == [
        (pair.reference, pair.port, str(pair.layout)) for pair in first.records
    ]
    assert set(json.loads(path.read_text())) == {"pairs", "ignore", "unpaired"}
    with pytest.raises(TraceExistsError, match="exists already"):
        first.write_map(path)
