"""Table files: texts and labels are read unchanged, and every flaw is an error with its place."""

import json
from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from slicefine_pl.data.tables.labels import (
    check_classes_trained,
    class_indices,
    class_names,
    labels_are_indices,
    regression_targets,
    validate_names,
)
from slicefine_pl.data.tables.read import read_table
from slicefine_pl.data.tables.table import Table, normalize_text, split_by_text

TEXTS = ["null", 'a "quoted", word', '"all"', "naïve café", "a\u2028b\x0bc\x85d", "x" * 200_000]
LABELS = [1, 0, 1, 0, 1, 0]
READ = ["1", "0", "1", "0", "1", "0"]


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
    assert (read.columns, read.labels) == ([TEXTS], READ)


AS_WRITTEN = ["01", "1", "1.0", "1E1", "10", "1_0", "nan", "NA", "null", "True", "true", "yes", " a", "é", "-0", "+1"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_label_is_the_text_that_stands_in_the_file(tmp_path, suffix):
    path = tmp_path / f"data{suffix}"
    frame = pd.DataFrame({"text": "x", "label": AS_WRITTEN})
    if suffix == ".parquet":
        frame.to_parquet(path)
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in frame.to_dict("records")))
    else:
        frame.to_csv(path, index=False, sep="," if suffix == ".csv" else "\t")
    assert read_table(path, ["text"], "label").labels == AS_WRITTEN


def test_numbers_and_booleans_of_json_are_as_written(tmp_path):
    written = ["1", "1.0", "1.10", "1e3", "10000000000000000000000001", "-0", "true", "false"]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f'{{"text": "x", "label": {value}}}\n' for value in written))
    assert read_table(path, ["text"], "label").labels == written


@pytest.mark.parametrize(
    ("values", "kind", "labels"),
    [
        ([1, 2**62 + 1], pa.int64(), ["1", "4611686018427387905"]),
        ([1.0, 0.5], pa.float64(), ["1.0", "0.5"]),
        ([0.1, 16777217.0], pa.float32(), ["0.1", "16777216.0"]),
        ([0.1, 3.0], pa.float16(), ["0.1", "3.0"]),
        ([True, False], pa.bool_(), ["true", "false"]),
        ([Decimal("1.10"), Decimal("1.1")], pa.decimal128(4, 2), ["1.10", "1.10"]),
        (["01", "1"], pa.dictionary(pa.int8(), pa.string()), ["01", "1"]),
    ],
    ids=str,
)
def test_typed_labels_of_parquet(tmp_path, values, kind, labels):
    path = tmp_path / "label=7" / "data.parquet"  # a folder that Hive would take for a column
    path.parent.mkdir()
    pa.parquet.write_table(pa.table({"text": ["x", "y"], "label": pa.array(values, kind)}), path)
    assert read_table(path, ["text"], "label").labels == labels


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (None, pa.int64(), "row 2, has no label in column 'label'"),
        (None, pa.string(), "row 2, has no label"),
        (float("nan"), pa.float64(), "row 2, has no label"),
        ([1], pa.list_(pa.int64()), r"row 1, has \[1\] in column 'label', which is not a label"),
        (b"a", pa.binary(), r"row 1, has b'a' in column 'label', which is not a label"),
    ],
    ids=str,
)
def test_flawed_labels_of_parquet(tmp_path, value, kind, message):
    path = tmp_path / "data.parquet"
    whole = {pa.int64(): 1, pa.string(): "a", pa.float64(): 1.0}.get(kind, value)
    pa.parquet.write_table(pa.table({"text": ["x", "y"], "label": pa.array([whole, value], kind)}), path)
    with pytest.raises(ValueError, match=message):
        read_table(path, ["text"], "label")


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
    assert (read.columns, read.labels) == ([texts], ["0", "1", "2", "3", "4"])


def test_two_text_columns_stay_apart(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("a,b,score\nx,y,0.5\nu,v,2\n")
    read = read_table(path, ["b", "a"], "score")
    assert (read.columns, read.labels) == ([["y", "v"], ["x", "u"]], ["0.5", "2"])


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
        ("a.csv", b"text,label\nfine,1\nbad,  \n", "line 3, has no label in column 'label'"),
        ("a.csv", b"text,label\n\nwell, fine,1\nbad, really,0\n", "line 3, has 3 fields, .* into double quotes"),
        ("a.csv", b'text,label\nfine,1\n\n"two\nlines",1\n,0\n', "line 6, has no text"),
        ("a.csv", b'text,label\nfine,1\n"bad,0\nend,1\n', "cannot be parsed from line 3 on"),
        ("a.csv", b'text,label\nfine,1\n"bad" film,0\nend,1\n', "cannot be parsed from line 3 on"),
        ("a.csv", b"text,text,label\nfine,bad,1\n", "two columns 'text'"),
        ("a.tsv", b'text\tlabel\nfine\t1\n"two\nlines"\t1\n', "line 3, has 1 fields"),
        ("a.jsonl", b'{"text": "x", "label": 1}\n{"text"\n', "line 2, is not JSON"),
        ("a.jsonl", b"[1]\n", "line 1, is not a JSON object"),
        ("a.jsonl", b'{"text": "x", "label": 1}\n{"text": "y"}\n', "line 2, has no label"),
        ("a.jsonl", b'{"text": "x", "label": 1}\n{"text": 7, "label": 0}\n', "line 2, has no text .* but 7"),
        ("a.jsonl", b'{"text": "x", "label": "\\t"}\n', "line 1, has no label"),
        ("a.jsonl", b'{"text": "x", "label": null}\n', "line 1, has no label"),
        ("a.jsonl", b'{"text": "x", "label": NaN}\n', "line 1, has no label"),
        ("a.jsonl", b'{"text": "x", "label": [1]}\n', r"line 1, has \[1\] in column 'label', which is not a label"),
        ("a.jsonl", b'{"text": "x", "label": {"a": 1}}\n', r"line 1, has \{'a': 1\} in .*; write a text or a number"),
        (
            "a.jsonl",
            b'{"text": "x", "label": "1"}\n{"text": "y", "label": 1}\n',
            "line 2, has the label 1 in column 'label' as a number, and .* line 1 as a text; write all of them alike",
        ),
        (
            "a.jsonl",
            b'{"text": "x", "label": true}\n{"text": "y", "label": "true"}\n',
            "as a text, and .* as a boolean",
        ),
        ("a.jsonl", b'{"text": "x", "label": 1, "label": 2}\n', "line 1, has the field 'label' twice"),
        (
            "a.jsonl",
            b'{"text": "\\ud800 x", "label": 1}\n',
            r"line 1, has in column 'text' the text '\\ud800 x', where",
        ),
        ("a.jsonl", b'{"text": "x", "label": ' + b"[" * 200_000 + b"}", "line 1, is nested too deeply"),
        ("a.parquet", b"PAR1 no", "not a readable Parquet"),
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
    assert normalize_text("A  Great\tﬁlm") == normalize_text("a great film")
    spellings = place(["A  Great\tFILM", "a great film"])
    assert len(set(spellings.values())) == 1


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "2", "-1"], ["-1", "2", "10"]),
        (["b", "a"], ["a", "b"]),
        (["10", "1", "01"], ["01", "1", "10"]),
        (["1.0", "1.10", "1.1"], ["1.0", "1.1", "1.10"]),
        (["2E1", "10", "1E1"], ["10", "1E1", "2E1"]),
    ],
)
def test_classes_are_numbers_by_size_or_names_by_alphabet(labels, names):
    assert class_names(table(labels)) == names
    assert [names[index] for index in class_indices(table(labels), names)] == labels


def test_integers_index_given_names():
    labels = table(["1", "0", "1"])
    assert labels_are_indices(labels, ["no", "yes"])
    assert class_indices(labels, ["no", "yes"], are_indices=True) == [1, 0, 1]
    for other in (["1", "0", "01"], ["1", "0", "1.0"], ["1", "0", "no"]):
        assert not labels_are_indices(table(other), ["no", "yes"])


def test_integers_that_are_names_never_shift():
    """Training data with 1, 2, 3 and validation data with 0, 1, 2: the 0 is an error, not the class 1."""
    train = table(["1", "2", "3"])
    names = class_names(train)
    assert not labels_are_indices(train, names)
    assert class_indices(table(["3", "1"]), names) == [2, 0]
    with pytest.raises(
        ValueError, match=r"'train\.csv', row 2, has the label '0', which is not one of the 3 classes '1'"
    ):
        class_indices(table(["1", "0", "2"]), names)


@pytest.mark.parametrize("labels", [["a", " a", "b"], ["caf\u00e9", "b", "cafe\u0301"]])
def test_labels_that_look_the_same_are_refused(labels):
    with pytest.raises(
        ValueError, match=r"'train\.csv', row \d, has the label .*, and row 1 has .*; they look the same"
    ):
        class_names(table(labels))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        *((label, "is not a number") for label in ("no", "nan", "inf", "1_0", "0x1", "true", "1,5", "\u0661", "1e")),
        ("1e39", "float32 cannot represent"),
    ],
)
def test_values_are_plain_numbers(label, message):
    assert regression_targets(table(["0.5", "-1e-3", "+2", " 007", ".5", "3."])) == [0.5, -1e-3, 2.0, 7.0, 0.5, 3.0]
    with pytest.raises(ValueError, match=rf"'train\.csv', row 2, has the label '{label}', .*{message}"):
        regression_targets(table(["1", label]))


def test_names_that_a_user_gives_are_texts():
    assert validate_names(("no", "1")) == ["no", "1"]
    assert validate_names(None) is None
    with pytest.raises(ValueError, match=r"label_names=\[False, True\] has False, which is not a text"):
        validate_names([False, True])
    with pytest.raises(ValueError, match="has 'a' twice"):
        validate_names(["a", "b", "a"])


def test_wrong_labels_are_refused():
    for wrong in ("2", "-1", "maybe", "01"):
        with pytest.raises(ValueError, match=rf"row 2, has the label '{wrong}', and the classes .* from 0 to 1"):
            class_indices(table(["1", wrong]), ["no", "yes"], are_indices=True)
    with pytest.raises(ValueError, match=r"row 2, has the label 'perhaps', which is not one of the 2 classes"):
        class_indices(table(["no", "perhaps"]), ["no", "yes"])
    with pytest.raises(ValueError, match=r"has the label '0\.7', .* values rather than classes, set task='regression'"):
        class_indices(table(["0.7"]), class_names(table(["0.5", "1.0"])))
    with pytest.raises(ValueError, match="only the class '1'"):
        class_names(table(["1", "1"]))
    with pytest.raises(ValueError, match="class 'yes' has no training example"):
        check_classes_trained([0, 0], ["no", "yes"], "train.csv")
