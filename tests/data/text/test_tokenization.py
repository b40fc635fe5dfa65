"""Tokens equal those of the tokenizer itself; they are cached, cut if too long, and padded per batch."""

import io
import json
import shutil
import warnings

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from transformers import AutoTokenizer

from slicefine_pl.data.text.tokenization import TextCollator, TextTokenizer, TokenDataset

TEXTS = ["a good film", "the plot was not very good but i liked it", "dull"]
PAIRS = [TEXTS, ["great", "a bad movie", "hated it"]]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLICEFINE_CACHE", str(tmp_path))
    return tmp_path / "tokens"


@pytest.mark.parametrize("columns", [[TEXTS], PAIRS], ids=["texts", "pairs"])
@pytest.mark.parametrize("again", [False, True], ids=["fresh", "cached"])
def test_tokens_are_those_of_the_tokenizer(tiny_bert, columns, again):
    expected = AutoTokenizer.from_pretrained(tiny_bert)(*columns)
    tokens = TextTokenizer(str(tiny_bert), None)
    for _ in range(1 + again):
        encoded = tokens.encode(columns)
    assert encoded["input_ids"] == expected["input_ids"]
    assert encoded.get("token_type_ids") == (expected["token_type_ids"] if len(columns) == 2 else None)


def test_second_run_does_not_tokenize(tiny_bert, monkeypatch):
    first = TextTokenizer(str(tiny_bert), 16).encode([TEXTS])
    again = TextTokenizer(str(tiny_bert), 16)
    monkeypatch.setattr(again, "_tokenize", lambda columns: pytest.fail("not cached"))
    assert again.encode([TEXTS]) == first


def damages(whole):
    """Every kind of damage: cut, empty, foreign, one bit anywhere, zeroed blocks."""
    arrays = io.BytesIO()
    np.savez(arrays, input_ids=np.zeros(3, np.int32), input_ids_sizes=np.array([3], np.int32))
    yield from (b"", b"no archive", arrays.getvalue(), whole[:-1], whole[:-20], whole[: len(whole) // 2], whole + b"x")
    for place in range(0, len(whole), 7):
        yield whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        if any(whole[place : place + 64]):
            yield whole[:place] + bytes(len(whole[place : place + 64])) + whole[place + 64 :]


def test_damaged_cache_is_seen_and_made_again(tiny_bert, cache):
    tokens = TextTokenizer(str(tiny_bert), 16)
    first = tokens.encode([TEXTS])
    [path] = cache.iterdir()
    whole = path.read_bytes()
    for damaged in damages(whole):
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match=r"Cache file '.*npz' is damaged; it is made again"):
            assert tokens.encode([TEXTS]) == first
        assert path.read_bytes() == whole
    assert [file.name for file in cache.iterdir()] == [path.name]  # no draft left behind


def test_a_whole_file_under_another_name_is_damaged(tiny_bert, cache):
    tokens = TextTokenizer(str(tiny_bert), 16)
    tokens.encode([TEXTS])
    [one] = cache.iterdir()
    expected = tokens.encode([TEXTS[::-1]])
    [other] = set(cache.iterdir()) - {one}
    shutil.copy(one, other)
    with pytest.warns(UserWarning, match="is damaged"):
        assert tokens.encode([TEXTS[::-1]]) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"truncation_side": "left"},
        {"padding_side": "left"},
        {"model_input_names": ["input_ids", "attention_mask"]},
        {"split_special_tokens": True},
        {"do_lower_case": False},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_setting_of_the_tokenizer_is_another_cache(tiny_bert, tmp_path, monkeypatch, changes):
    other = tmp_path / "other"
    shutil.copytree(tiny_bert, other)
    settings = other / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | changes))
    columns = [[f"A {text} [SEP] x" for text in TEXTS], TEXTS]

    def encode(folder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # cut texts
            return TextTokenizer(str(folder), 8).encode(columns)

    encode(tiny_bert)
    shared = encode(other)
    monkeypatch.setenv("SLICEFINE_CACHE", str(tmp_path / "fresh"))
    assert shared == encode(other)


def test_other_rules_with_the_same_vocabulary_are_another_cache(tmp_path, cache):
    """A tokenizer in Python, of which no library holds all rules as one text."""
    found = []
    for number, merges in enumerate(("a b\nab c</w>", "b c</w>\na bc</w>", "a b\nab c</w>")):
        (tmp_path / "vocab.json").write_text(json.dumps({"abc": 0, "a@@": 1, "bc": 2, "<unk>": 3}))
        (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
        folder = tmp_path / str(number)
        transformers.CTRLTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")).save_pretrained(folder)
        transformers.CTRLConfig().save_pretrained(folder)
        found.append(TextTokenizer(str(folder), 16).encode([["abc"]])["input_ids"])
    assert len(list(cache.iterdir())) == 2
    assert found[0] == found[2]


def test_the_place_of_a_tokenizer_does_not_matter(tiny_bert, tmp_path, cache):
    shutil.copytree(tiny_bert, tmp_path / "moved")
    for folder in (tiny_bert, tmp_path / "moved"):
        TextTokenizer(str(folder), 16).encode([TEXTS])
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("library", [transformers, tokenizers])
def test_another_version_is_another_cache(tiny_bert, cache, monkeypatch, library):
    TextTokenizer(str(tiny_bert), 16).encode([TEXTS])
    monkeypatch.setattr(library, "__version__", "0")
    TextTokenizer(str(tiny_bert), 16).encode([TEXTS])
    assert len(list(cache.iterdir())) == 2


def test_other_text_or_length_is_other_cache(tiny_bert, cache):
    for texts, length in ((TEXTS, 16), (TEXTS, 15), (TEXTS[::-1], 16), ([*TEXTS[:2], TEXTS[2] + " "], 16)):
        TextTokenizer(str(tiny_bert), length).encode([texts])
    assert len(list(cache.iterdir())) == 4


def test_long_texts_are_cut_with_one_warning(tiny_bert):
    tokens = TextTokenizer(str(tiny_bert), 6)
    for _ in range(2):  # fresh, then cached
        with pytest.warns(UserWarning, match=r"1 of 3 texts .* max_length=6 tokens \(the longest has 12\)"):
            encoded = tokens.encode([TEXTS])
        expected = AutoTokenizer.from_pretrained(tiny_bert)(TEXTS, truncation=True, max_length=6)
        assert encoded["input_ids"] == expected["input_ids"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TextTokenizer(str(tiny_bert), 12).encode([TEXTS])


@pytest.mark.parametrize("max_length", [33, 2, 0])
def test_length_beyond_the_model_is_refused(tiny_bert, max_length):
    with pytest.raises(ValueError, match=rf"max_length={max_length} is out of range; .* allows 3 to 32 tokens"):
        TextTokenizer(str(tiny_bert), max_length)


def test_cache_that_cannot_be_written_is_done_without(tiny_bert, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SLICEFINE_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be cached"):
        assert len(TextTokenizer(str(tiny_bert), 16).encode([TEXTS])["input_ids"]) == 3


def test_batch_equals_the_tokenizers_own_padding(tiny_bert):
    tokens = TextTokenizer(str(tiny_bert), None)
    dataset = TokenDataset(tokens.encode(PAIRS), [0.5, 1.0, -2.0])
    batch = TextCollator(tokens.pad)([dataset[index] for index in range(3)])
    expected = AutoTokenizer.from_pretrained(tiny_bert)(*PAIRS, padding=True, return_tensors="pt")
    assert batch.keys() == expected.keys() | {"labels"}
    for name in expected:
        assert torch.equal(batch[name], expected[name])
    assert torch.equal(batch["labels"], torch.tensor([0.5, 1.0, -2.0]))
