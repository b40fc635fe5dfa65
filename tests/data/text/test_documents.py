"""Plain text files: their documents, and the lines on which these begin."""

import pytest

from slicefine_pl.data.text.documents import read_documents


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_without_text_part_documents(tmp_path, end):
    path = tmp_path / "a.txt"
    path.write_bytes(end.join(["", "one", " two", "  ", "", "three", "", ""]).encode())
    table = read_documents(path, whole=False)
    assert table.columns == [[f"one{end} two", "three"]]
    assert table.rows[1] == 6
    assert table.labels == [None, None]


def test_a_file_may_be_one_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n")
    assert read_documents(path, whole=True).columns == [["one\n\ntwo"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "contains no text"),
        (b" \n\n\t\n", "contains no text"),
        (b"one\n\ncaf\xe9", r"byte 0xe9 at offset 8 \(line 3\)"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_bad_files(tmp_path, content, message, whole):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_documents(tmp_path / "a.txt", whole=whole)
    with pytest.raises(FileNotFoundError, match=r"gone.txt' does not exist"):
        read_documents(tmp_path / "gone.txt", whole=whole)
