"""Read the documents of a plain text file."""

import re
from pathlib import Path

from slicefine_pl.data.tables.formats import read_utf8
from slicefine_pl.data.tables.table import Table

BLANK_LINES = re.compile(r"(?:[^\S\n]*\r?\n){2,}")  # a line break and at least one blank line


def read_documents(path: Path, *, whole: bool) -> Table:
    """Read a UTF-8 file.

    Args:
        path: The file.
        whole: Whether the file is one document. Otherwise blank lines separate documents.

    Returns:
        Table with one column. All labels are ``None``, and ``rows`` are the lines on which documents begin.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file cannot be decoded, or contains no text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"text file {str(path)!r} does not exist; give the path of one.")
    text = read_utf8(path)
    gaps = [] if whole else [(gap.start(), gap.end()) for gap in BLANK_LINES.finditer(text)]
    bounds = zip([0, *(end for _, end in gaps)], [*(start for start, _ in gaps), len(text)], strict=True)
    found = [(begin, document) for begin, end in bounds if (document := text[begin:end].strip("\r\n")).strip()]
    if not found:
        raise ValueError(f"text file {str(path)!r} contains no text; give one with at least one document.")
    lines = [text.count("\n", 0, begin) + 1 for begin, _ in found]
    documents = [document for _, document in found]
    return Table(str(path), [documents], [None] * len(documents), lines, "line")
