"""Prompts and completions as tokens: labels, special tokens, and cuts."""

import warnings

import pytest
from transformers import AutoTokenizer

from slicefine_pl.data.tables.table import Table
from slicefine_pl.data.text.completions import IGNORED, CausalLMCollator, CompletionEncoder
from slicefine_pl.data.text.tokenization import TextTokenizer

PROMPTS = ["the film was", "i liked the acting but the plot was not very"]
ANSWERS = ["good", "good film"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLICEFINE_CACHE", str(tmp_path))


def pairs(prompts=PROMPTS, answers=ANSWERS):
    return Table("here.jsonl", [prompts], answers, range(1, len(prompts) + 1), "line")


def documents(*texts):
    return Table("here.txt", [list(texts)], [None] * len(texts), range(1, len(texts) + 1), "line")


def encode(folder, table, max_length=None, *, chat=False):
    examples = CompletionEncoder(TextTokenizer(str(folder), max_length), chat=chat).encode(table)
    return [examples[index] for index in range(len(examples))]


def shown(folder, item, name="labels"):
    """The tokens as words, and what is not learned as a dot."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return " ".join("." if token == IGNORED else tokenizer.convert_ids_to_tokens(token) for token in item[name])


def test_only_completion_and_end_are_learned(tiny_llama):
    first, second = encode(tiny_llama, pairs())
    assert shown(tiny_llama, first, "input_ids") == "<s> the film was good </s>"
    assert shown(tiny_llama, first) == ". . . . good </s>"
    assert shown(tiny_llama, second).endswith(". . . good film </s>")


def test_a_document_is_learned_but_for_its_first_token(tiny_llama):
    [only] = encode(tiny_llama, documents("the film was good"))
    assert shown(tiny_llama, only, "input_ids") == "<s> the film was good </s>"
    assert shown(tiny_llama, only) == ". the film was good </s>"


def test_chat_is_the_template_of_the_tokenizer(tiny_llama):
    """The reference is the whole conversation, tokenised by the tokenizer itself."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    for prompt, answer, item in zip(PROMPTS, ANSWERS, encode(tiny_llama, pairs(), chat=True), strict=True):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        assert item["input_ids"] == tokenizer.apply_chat_template(turns, return_dict=False)
        assert shown(tiny_llama, item).lstrip(". ") == f"{answer} </s>"


def test_prompts_alone_begin_like_those_of_training(tiny_llama):
    for chat in (False, True):
        completions = CompletionEncoder(TextTokenizer(str(tiny_llama), None), chat=chat)
        examples = completions.encode(pairs())
        for index, prompt in enumerate(completions.encode_prompts(PROMPTS)):
            assert examples[index]["input_ids"][: len(prompt)] == prompt
            assert examples[index]["labels"][: len(prompt)] == [IGNORED] * len(prompt)
            assert IGNORED not in examples[index]["labels"][len(prompt) :]


def test_long_prompts_lose_their_beginning_with_one_warning(tiny_llama):
    for _ in range(2):  # fresh, then cached
        with pytest.warns(
            UserWarning, match=r"1 of 2 examples .* max_length=8 .*\(the longest has 14\): the beginning"
        ):
            first, second = encode(tiny_llama, pairs(), 8)
    assert shown(tiny_llama, first, "input_ids") == "<s> the film was good </s>"
    assert shown(tiny_llama, second, "input_ids") == "<s> plot was not very good film </s>"
    assert shown(tiny_llama, second) == ". . . . . good film </s>"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(tiny_llama, pairs(), 14)


@pytest.mark.filterwarnings("ignore:.*longer than max_length")
def test_a_completion_longer_than_the_context_keeps_its_beginning(tiny_llama):
    [item] = encode(tiny_llama, pairs(["the film"], ["was not very good but i liked it"]), 6)
    assert shown(tiny_llama, item, "input_ids") == "<s> film was not very good"
    assert shown(tiny_llama, item) == ". . was not very good"


@pytest.mark.parametrize("words", [5, 6, 7, 17, 30])
def test_long_documents_are_shared_out_without_loss(tiny_llama, words):
    text = " ".join(["the film was good but dull"] * 6).split()[:words]
    items = encode(tiny_llama, documents(" ".join(text)), 7)
    tokens = " ".join(shown(tiny_llama, item, "input_ids") for item in items)
    assert tokens == " ".join(["<s>", *text, "</s>"])
    sizes = [len(item["input_ids"]) for item in items]
    assert max(sizes) <= 7
    assert max(sizes) - min(sizes) <= 1
    assert all(item["labels"][0] == IGNORED and IGNORED not in item["labels"][1:] for item in items)


def test_a_batch_is_padded_on_the_right(tiny_llama):
    batch = CausalLMCollator(0)(encode(tiny_llama, pairs()))
    assert batch["attention_mask"].sum(1).tolist() == [6, 14]
    assert batch["labels"][0, 6:].unique().tolist() == [IGNORED]
    assert batch["input_ids"][0, 6:].unique().tolist() == [0]


def test_what_does_not_fit_is_refused(tiny_llama, tiny_bert):
    with pytest.raises(ValueError, match="chat=True needs a chat template"):
        CompletionEncoder(TextTokenizer(str(tiny_bert), None), chat=True)
    with pytest.raises(ValueError, match=r"chat=True needs prompts and completions, and 'here.txt' has neither"):
        encode(tiny_llama, documents("good"), chat=True)
    tokens = TextTokenizer(str(tiny_llama), None)
    tokens.tokenizer.chat_template = "{{ messages | length }}"
    with pytest.raises(ValueError, match="the chat template does not continue its own prompt"):
        CompletionEncoder(tokens, chat=True).encode(pairs())
    tokens = TextTokenizer(str(tiny_llama), None)
    tokens.encode_bare = lambda texts: [[] for _ in texts]
    with pytest.raises(ValueError, match=r"'here.jsonl', line 1, has a completion without tokens"):
        CompletionEncoder(tokens, chat=False).encode(pairs())
    tokens.tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"'here.txt', line 1, has a text of less than two tokens"):
        CompletionEncoder(tokens, chat=False).encode(documents("good"))
