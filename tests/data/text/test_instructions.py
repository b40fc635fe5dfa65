"""InstructionDataModule: sources, splits, batches, and settings that are refused."""

import json
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from transformers import AutoTokenizer

from slicefine_pl.data import InstructionDataModule
from slicefine_pl.data.tables.table import Table
from slicefine_pl.data.text import demo
from slicefine_pl.data.text.completions import IGNORED
from slicefine_pl.inputs import TextInput

NOUNS = ("film", "movie", "plot", "acting")
ROWS = [
    {"prompt": f"the {a} {b} {c}", "completion": "good" if a < b else "bad"}
    for a in NOUNS
    for b in NOUNS
    for c in NOUNS
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLICEFINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path):
    """A file of prompts and completions."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def module(tiny_llama, source, **settings):
    settings = {"batch_size": 4, "max_length": 16, **settings}
    return InstructionDataModule(str(source), tokenizer=str(tiny_llama), **settings)


def ready(tiny_llama, source, **settings):
    data = module(tiny_llama, source, **settings)
    data.prepare_data()
    data.setup("fit")
    return data


def learned(batches):
    """Every learned token of all batches."""
    return sorted(chain.from_iterable(batch["labels"][batch["labels"] != IGNORED].tolist() for batch in batches))


def test_one_file_is_split_and_every_row_served_once(tiny_llama, file):
    data = ready(tiny_llama, file)
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    batches = [batch for loader in loaders for batch in loader]
    assert sum(len(batch["input_ids"]) for batch in batches) == len(ROWS)
    assert {tuple(batch) for batch in batches} == {("input_ids", "attention_mask", "labels")}
    good = data._datasets["train"][0]["input_ids"]
    assert len(good) == 7  # <s>, four words, a word to learn, </s>
    assert len(learned(batches)) == 2 * len(ROWS)


def test_a_prompt_stays_in_its_split_whatever_follows_it(tiny_llama, tmp_path):
    """Otherwise a model could be tested on prompts it has learned."""
    path = tmp_path / "twice.jsonl"
    path.write_text("\n".join(json.dumps({**row, "completion": word}) for row in ROWS for word in ("good", "bad")))
    data = ready(tiny_llama, path)
    prompts = {name: {tuple(each["input_ids"][:5]) for each in map(set_.__getitem__, range(len(set_)))}
               for name, set_ in data._datasets.items()}  # fmt: skip
    assert not prompts["train"] & prompts["val"] | prompts["train"] & prompts["test"]
    assert sum(map(len, prompts.values())) == len(ROWS)


def test_prompts_to_predict_are_chat_where_training_was(tiny_llama, tmp_path):
    """A model that learned to answer turns must not be asked in another form, in silence."""
    (tmp_path / "ask.csv").write_text("id,prompt\n1,the film\n")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    turns = [{"role": "user", "content": "the film"}]
    chat = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)

    def prompt(record, **settings):
        data = module(tiny_llama, "reviews", predict_file=str(tmp_path / "ask.csv"), **settings)
        served = SimpleNamespace(input=None if record is None else TextInput(**record))
        data.trainer = SimpleNamespace(
            lightning_module=served,
            state=SimpleNamespace(fn=TrainerFn.PREDICTING),
            ckpt_path=None,
            global_rank=0,
            world_size=1,
        )
        data.setup("predict")
        [batch] = data.predict_dataloader()
        return batch["input_ids"][0].tolist()

    assert prompt({"chat": True}) == prompt({"chat": True}, chat=True) == prompt(None, chat=True) == chat
    assert prompt({"chat": False}) == prompt(None) == tokenizer("the film")["input_ids"]
    with pytest.raises(ValueError, match=r"chat=False contradicts the trained network, which saw data.chat=True"):
        prompt({"chat": True}, chat=False)


def test_packing_serves_the_same_tokens_in_fewer_rows(tiny_llama, file):
    padded, packed = (ready(tiny_llama, file, packing=packing, max_length=32) for packing in (False, True))
    one, other = list(padded.train_dataloader()), list(packed.train_dataloader())
    assert learned(one) == learned(other)
    rows = [sum(len(batch["input_ids"]) for batch in batches) for batches in (one, other)]
    assert rows[1] == -(-rows[0] // 4)  # 32 tokens hold four examples of 7
    assert {tuple(batch) for batch in other} == {("input_ids", "position_ids", "labels")}
    assert learned(padded.val_dataloader()) == learned(packed.val_dataloader())
    assert all("attention_mask" in batch for batch in packed.val_dataloader())


def test_a_folder_has_its_own_split_and_may_mix_kinds(tiny_llama, tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "train.txt").write_text("the film was good\n\nthe plot was dull")
    (folder / "valid.csv").write_text("text\na good film\n")
    (folder / "test.jsonl").write_text('{"prompt": "the film was", "completion": "good"}\n')
    data = ready(tiny_llama, folder)
    assert [len(data._datasets[name]) for name in ("train", "val", "test")] == [2, 1, 1]
    assert len(learned(data.train_dataloader())) == 10
    assert len(learned(data.test_dataloader())) == 2
    assert len(ready(tiny_llama, folder, documents="file")._datasets["train"]) == 1


def test_demo_asks_for_the_sentiment(tiny_llama, monkeypatch):
    table = Table("reviews", [[f"film {n}" for n in range(60)]], ["negative", "positive"] * 30, range(1, 61))
    monkeypatch.setattr(demo, "fetch", bytes)
    monkeypatch.setattr(demo, "load_demo", lambda name, ratings: table)
    data = module(tiny_llama, "reviews", eval_examples=2)
    tables = data._load()
    assert tables["train"].columns[0][0].startswith("Review: film")
    assert tables["train"].columns[0][0].endswith(" Sentiment:")
    assert set(tables["train"].labels) == {" negative", " positive"}
    assert (len(tables["val"]), len(tables["test"])) == (2, 2)
    data.setup("fit")
    assert len(data._datasets["train"]) == len(tables["train"]) > 30


def test_predict_keeps_the_order_of_the_lines(tiny_llama, tmp_path):
    lines = ["the film was very very bad", "good", "a good film"]
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n")
    data = module(tiny_llama, "reviews", predict_file=str(tmp_path / "lines.txt"), max_length=1000)  # of no use here
    data.prepare_data()
    data.setup("predict")
    assert data.predict_names == lines
    [batch] = data.predict_dataloader()
    assert batch["attention_mask"].sum(1).tolist() == [7, 2, 4]
    assert batch["input_ids"].dtype == torch.int64


def test_a_column_that_is_missing_is_named_once(tiny_llama, file):
    with pytest.raises(ValueError, match=r"rows.jsonl' has no column 'text'; it has \['prompt', 'completion'\]"):
        ready(tiny_llama, file, prompt_column="text")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"prompt": "good", "completion": "film"}\n{"prompt": \n', r"a.jsonl', line 2, is not JSON"),
        ("a.jsonl", b'{"prompt": "good"}\n', r"no column 'completion' and no column 'text'; it has \['prompt'\]"),
        (
            "a.jsonl",
            b'{"prompt": "a", "completion": "b"}\n\n{"prompt": "c"}\n',
            r"line 3, has no text in column 'compl",
        ),
        ("a.jsonl", b'{"prompt": "a", "completion": " "}\n', r"line 1, has no text in column 'completion' but ' '"),
        ("a.jsonl", b'{"prompt": "a", "completion": 4}\n', r"line 1, has no text in column 'completion' but 4"),
        ("a.jsonl", b"[1, 2]\n", r"line 1, is not a JSON object"),
        ("a.jsonl", b"", r"a.jsonl' is empty"),
        ("a.jsonl", b'{"text": "caf\xe9"}', r"not UTF-8: byte 0xe9 at offset 13 \(line 1\)"),
        ("a.csv", b"text\n", r"a.csv' has no rows"),
        ("a.txt", b"\n \n", r"a.txt' contains no text"),
        ("a.txt", b"\xff\xfe", r"not UTF-8: byte 0xff"),
        ("a.txt", b"good film\n", r"has no texts for .*1 of 1 texts are different\. Give more"),
        ("a.doc", b"good film\n", r"unknown suffix '.doc'"),
    ],
)
def test_bad_files_are_reported_in_one_sentence(tiny_llama, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        module(tiny_llama, tmp_path / name).setup("fit")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"source": "nowhere"},
            FileNotFoundError,
            r"'nowhere' is not a file or folder; give one, or one of \['editorials'",
        ),
        ({"documents": "lines"}, ValueError, "documents='lines' is unknown; choose one of 'blocks', 'file'"),
        ({"eval_examples": 0}, ValueError, "eval_examples=0 is not a number of examples"),
        ({"batch_size": 0}, ValueError, "batch_size=0 is not a number of examples"),
        ({"batch_size": "2"}, ValueError, "batch_size='2'"),
        ({"seed": -1}, ValueError, "seed=-1 is not a seed"),
        ({"max_length": 4.5}, ValueError, "max_length=4.5 is not a number of tokens"),
        ({"max_length": 33}, ValueError, "max_length=33 is out of range"),
        ({"predict_text": "a", "predict_file": "b"}, ValueError, "both given"),
    ],
)
def test_wrong_settings_are_refused(tiny_llama, file, settings, error, message):
    with pytest.raises(error, match=message):
        ready(tiny_llama, **{"source": file, **settings}).train_dataloader()
