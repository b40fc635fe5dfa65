"""Names that patterns select, and what the errors say."""

import pytest

from slicefine_pl.network.names import match_names, patterns_of, shortlist

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


LAYERS = ["net.blocks.0.query", "net.blocks.1.query", "net.blocks.10.query", "net.pooler.a", "net.pooler.b", "a"]


@pytest.mark.parametrize(
    ("names", "patterns"),
    [
        (LAYERS[3:4], [r"\.a$"]),
        (LAYERS[:3], [r"\.query$"]),
        (LAYERS[:2], [r"\.(0|1)\.query$"]),
        (LAYERS[3:5], [r"^net\.pooler\."]),
        (LAYERS[5:], ["^a$"]),
        ([LAYERS[0], LAYERS[4]], [r"\.0\.query$", r"\.b$"]),
    ],
)
def test_short_patterns_match_the_names_and_no_others(names, patterns):
    assert patterns_of(names, LAYERS) == patterns
    assert list(match_names("exclude", patterns, dict.fromkeys(LAYERS), "layer")) == names
