"""Reading files: what is in them comes out whole, and every flaw is named."""

import json

import pandas as pd
import pytest

from slicefine_pl.data.labels import check_trained, class_indices, class_names, values
from slicefine_pl.data.tables import Table, normalise, read_table, split_by_text

TEXTS = ["null", 'a "quoted", word', '"all"', "naïve café", "a\u2028b\x0bc\x85d", "x" * 200_000]
LABELS = [1, 0, 1, 0, 1, 0]


def table(labels):
    return Table("train.csv", [[f"text {row}" for row in range(len(labels))]], labels, range(1, len(labels) + 1))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_table(tmp_path, suffix):
    frame = pd.DataFrame({"text": TEXTS, "label": LABELS})
    path = tmp_path / f"data{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in frame.to_dict("records")), "utf-8")
    else:
        frame.to_csv(path, index=False, sep="," if suffix == ".csv" else "\t", encoding="utf-8-sig")
    read = read_table(path, ["text"], "label")
    assert (read.columns, read.labels) == ([TEXTS], LABELS)


def test_line_breaks_within_a_csv_field(tmp_path):
    path = tmp_path / "data.csv"
    pd.DataFrame({"text": ["two\nlines", "one"], "label": [1, 0]}).to_csv(path, index=False)
    read = read_table(path, ["text"], "label")
    assert (read.columns, read.rows) == ([["two\nlines", "one"]], [2, 4])


def test_stray_quotes_of_a_tsv_are_text(tmp_path):
    """Two texts with one quote each must not become one text that swallows the rows between."""
    texts = ['"so good', 'said "no"', "it's 5\" long", '"a" and "b"', 'the end"']
    path = tmp_path / "data.tsv"
    path.write_text("text\tlabel\n" + "".join(f"{text}\t{row}\n" for row, text in enumerate(texts)))
    read = read_table(path, ["text"], "label")
    assert (read.columns, read.labels) == ([texts], [0, 1, 2, 3, 4])


def test_labels_with_underscores_are_names(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text,label\na,1_0\nb,10\n")
    assert read_table(path, ["text"], "label").labels == ["1_0", "10"]


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
        ("a.csv", b"text,label\nfine,1\n,0\n", "line 3, has no text in column 'text'"),
        ("a.csv", b"text,label\nfine,1\nbad,\n", "line 3, has no label in column 'label'"),
        ("a.csv", b"text,label\nfine,1\nbad\n", "line 3, has 1 fields, and the first line names 2 columns"),
        ("a.csv", b"text,label\nfine,1\nbad,nan\n", "line 3, has the label 'nan'"),
        ("a.csv", b"text,label\n\nwell, fine,1\nbad, really,0\n", "line 3, has 3 fields, .* into double quotes"),
        ("a.csv", b'text,label\nfine,1\n\n"two\nlines",1\n,0\n', "line 6, has no text"),
        ("a.csv", b'text,label\nfine,1\n"bad,0\nend,1\n', "cannot be parsed from line 3 on"),
        ("a.csv", b'text,label\nfine,1\n"bad" film,0\nend,1\n', "cannot be parsed from line 3 on"),
        ("a.csv", b"text,text,label\nfine,bad,1\n", "two columns 'text'"),
        ("a.tsv", b'text\tlabel\nfine\t1\n"two\nlines"\t1\n', "line 3, has 1 fields"),
        ("a.jsonl", b'{"text": "x", "label": 1}\n{"text"\n', "line 2, is not JSON"),
        ("a.jsonl", b"[1]\n", "line 1, is no JSON object"),
        ("a.jsonl", b'{"text": "x", "label": 1}\n{"text": "y"}\n', "line 2, has no label"),
        ("a.jsonl", b'{"text": "x", "label": 1}\n{"text": 7, "label": 0}\n', "line 2, has no text .* but 7"),
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
    assert class_indices(table([1, 0, 1]), ["no", "yes"], positions=True) == [1, 0, 1]


@pytest.mark.parametrize("positions", [True, False])
def test_integers_that_are_names_never_shift(positions):
    """Training data with 1, 2, 3 and validation data with 0, 1, 2: the 0 is an error, not the class 1."""
    names = class_names(table([1, 2, 3]))
    assert class_indices(table([3, 1]), names, positions=positions) == [2, 0]
    with pytest.raises(ValueError, match=r"'train\.csv', row 2, has the label '0', which is none of the 3 classes '1'"):
        class_indices(table([1, 0, 2]), names, positions=positions)


def test_integers_index_no_names_of_the_training_data():
    with pytest.raises(ValueError, match="row 1, has the label '1', which is none of the 2 classes 'no', 'yes'"):
        class_indices(table([1, 0]), ["no", "yes"])


def test_wrong_labels_are_refused():
    with pytest.raises(ValueError, match=r"row 2, has the label 2, outside 0 to 1 for the classes 'no', 'yes'"):
        class_indices(table([1, 2]), ["no", "yes"], positions=True)
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
