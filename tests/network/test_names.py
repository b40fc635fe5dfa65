"""Names that patterns select, and what the errors say."""

import pytest

from slicefine_pl.network.names import match_names, shortlist

NAMED = {"": 0, "layers.0.query": 1, "layers.1.query": 2, "head": 3}


def test_any_pattern_selects_and_the_order_is_the_network_s():
    assert match_names("targets", ["head", r"0\.query"], NAMED, "layer") == {"layers.0.query": 1, "head": 3}


def test_a_whole_name_or_a_part_of_it():
    assert list(match_names("blocks", r"layers\.\d", NAMED, "module")) == ["layers.0.query", "layers.1.query"]
    with pytest.raises(ValueError, match=r"blocks='layers.+' does not match the whole name of any module"):
        match_names("blocks", r"layers\.\d", NAMED, "module", whole=True)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "qeury",
            r"targets='qeury' does not match any layer name; similar names: layers\.0\.query, layers\.1\.query\.",
        ),
        ("zzz", r"the last names of this network: layers\.0\.query, layers\.1\.query, head\."),
        ("(", r"targets='\(' is not a regular expression"),
    ],
)
def test_an_error_lists_similar_names(pattern, message):
    with pytest.raises(ValueError, match=message):
        match_names("targets", ["head", pattern], NAMED, "layer")


@pytest.mark.parametrize("patterns", [3, ["head", 3]])
def test_a_pattern_is_a_string(patterns):
    with pytest.raises(ValueError, match=r"targets=.*3\]? is not a regular expression; give a string, or a list"):
        match_names("targets", patterns, NAMED, "layer")


def test_a_shortlist_counts_the_rest():
    assert shortlist("abcde") == "a, b, c and 2 more"
    assert shortlist("", none="nothing") == "nothing"
