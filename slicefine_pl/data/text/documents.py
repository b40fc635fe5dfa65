"""Documents from a plain text file."""

import re
from pathlib import Path

from slicefine_pl.data.tables import Table, decode

GAP = re.compile(r"(?:[^\S\n]*\r?\n){2,}")  # the end of a line, and at least one line without text


def read_documents(path: Path, *, whole: bool) -> Table:
    """Read a UTF-8 file.

    Args:
        path: The file.
        whole: It is one document; otherwise lines without text stand between documents.

    Returns:
        One column; every label is ``None``, and rows are the lines on which documents begin.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be decoded, or holds no text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"text file {str(path)!r} does not exist; give the path of one.")
    text = decode(path)
    ends = [] if whole else [(gap.start(), gap.end()) for gap in GAP.finditer(text)]
    bounds = zip([0, *(end for _, end in ends)], [*(start for start, _ in ends), len(text)], strict=True)
    found = [(begin, document) for begin, end in bounds if (document := text[begin:end].strip("\r\n")).strip()]
    if not found:
        raise ValueError(f"text file {str(path)!r} holds no text; give one with at least one document.")
    lines = [text.count("\n", 0, begin) + 1 for begin, _ in found]
    documents = [document for _, document in found]
    return Table(str(path), [documents], [None] * len(documents), lines, "line")
