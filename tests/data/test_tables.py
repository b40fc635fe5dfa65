"""Reading files: what is in them comes out whole, and every flaw is named."""

import json

import pandas as pd
import pytest

from slicefine_pl.data.labels import check_trained, class_indices, class_names, values
from slicefine_pl.data.tables import Table, normalise, read_table, split_by_text

TEXTS = ["null", 'a "quoted", word', "two\nlines", "naïve café"]
LABELS = [1, 0, 1, 0]


def table(labels):
    return Table("train.csv", [[f"text {row}" for row in range(len(labels))]], labels, range(1, len(labels) + 1))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_table(tmp_path, suffix):
    frame = pd.DataFrame({"text": TEXTS, "label": LABELS})
    path = tmp_path / f"data{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in frame.to_dict("records")), "utf-8")
    else:
        frame.to_csv(path, index=False, sep="," if suffix == ".csv" else "\t", encoding="utf-8-sig")
    read = read_table(path, ["text"], "label")
    assert (read.columns, read.labels) == ([TEXTS], LABELS)


def test_two_text_columns_stay_apart(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("a,b,score\nx,y,0.5\nu,v,2\n")
    read = read_table(path, ["b", "a"], "score")
    assert (read.columns, read.labels) == ([["y", "v"], ["x", "u"]], [0.5, 2.0])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"body,label\nx,1\n", r"no column 'text'; it has \['body', 'label'\]"),
        ("a.csv", b"text,label\n", "has no rows"),
        ("a.csv", b"", "is empty"),
        ("a.jsonl", b"\n\n", "is empty"),
        ("a.csv", b"text,label\nfine,1\ncaf\xe9,0\n", r"not UTF-8: byte 0xe9 at offset 21 \(line 3\)"),
        ("a.csv", b"text,label\nfine,1\n,0\n", "row 2, has no text in column 'text'"),
        ("a.csv", b"text,label\nfine,1\nbad,\n", "row 2, has no label in column 'label'"),
        ("a.csv", b"text,label\nfine,1\nbad\n", "row 2, has no label"),
        ("a.csv", b"text,label\nfine,1\nbad,nan\n", "row 2, has the label 'nan'"),
        ("a.csv", b"text,label\nfine,1,2\nbad,nan,3,4\n", "cannot be parsed"),
        ("a.jsonl", b'{"text": "x", "label": 1}\n{"text"\n', "line 2, is not JSON"),
        ("a.jsonl", b"[1]\n", "line 1, is no JSON object"),
        ("a.jsonl", b'{"text": "x", "label": 1}\n{"text": "y"}\n', "row 2, has no label"),
        ("a.jsonl", b'{"text": "x", "label": 1}\n{"text": 7, "label": 0}\n', "row 2, has no text .* but 7"),
        ("a.parquet", b"PAR1 no", "no readable Parquet"),
        ("a.xlsx", b"", "unknown suffix '.xlsx'"),
    ],
)
def test_flaws_are_named_with_their_place(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_table(path, ["text"], "label")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.csv' does not exist"):
        read_table(tmp_path / "gone.csv", ["text"], "label")


def test_split_depends_on_each_text_alone():
    """Taking rows away or reordering them moves no other row, and spellings of one text stay together."""
    texts = [f"sentence number {row}" for row in range(1000)]
    shares = {"train": 70, "val": 10, "test": 20}
    place = lambda some: {
        text: name
        for name, part in split_by_text(Table("x", [some], [0] * len(some), range(len(some))), shares).items()
        for text in part.columns[0]
    }
    whole = place(texts)
    fewer = place(texts[::-3])
    assert fewer == {text: whole[text] for text in fewer}
    counts = pd.Series(list(whole.values())).value_counts()
    assert [counts[name] for name in shares] == pytest.approx([700, 100, 200], abs=50)
    assert normalise("A  Great\tﬁlm") == normalise("a great film")
    spellings = place(["A  Great\tFILM", "a great film"])
    assert len(set(spellings.values())) == 1


@pytest.mark.parametrize(
    ("labels", "names"),
    [([10, 2, -1], ["-1", "2", "10"]), (["b", "a"], ["a", "b"]), ([0.0, 1.0], ["0", "1"])],
)
def test_classes_are_numbers_by_size_or_names_by_alphabet(labels, names):
    assert class_names(table(labels)) == names
    assert [names[index] for index in class_indices(table(labels), names)] == [
        str(x).removesuffix(".0") for x in labels
    ]


def test_integers_index_given_names():
    assert class_indices(table([1, 0, 1]), ["no", "yes"]) == [1, 0, 1]


def test_wrong_labels_are_refused():
    with pytest.raises(ValueError, match=r"row 2, has the label 2, outside 0 to 1 for the classes 'no', 'yes'"):
        class_indices(table([1, 2]), ["no", "yes"])
    with pytest.raises(ValueError, match=r"row 2, has the label 'perhaps', which is none of the 2 classes"):
        class_indices(table(["no", "perhaps"]), ["no", "yes"])
    with pytest.raises(ValueError, match=r"such as 0\.5, which are values and no classes"):
        class_names(table([0.5, 1.0]))
    with pytest.raises(ValueError, match="only the class 1"):
        class_names(table([1, 1]))
    with pytest.raises(ValueError, match="such as 'no', which are no numbers"):
        values(table(["no"]))
    with pytest.raises(ValueError, match="class 'yes' has no training example"):
        check_trained([0, 0], ["no", "yes"], "train.csv")
