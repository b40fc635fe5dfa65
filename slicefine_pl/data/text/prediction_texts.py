"""The texts to predict: one text or pair from the command line, or the texts of a file."""

from collections.abc import Sequence
from pathlib import Path

from slicefine_pl.data.tables.formats import READERS, read_utf8, split_lines
from slicefine_pl.data.tables.read import read_texts
from slicefine_pl.data.tables.values import check_characters


def check_predict_settings(text: str, pair: str, file: str | None) -> None:
    """Check that the settings of a data module do not contradict each other.

    Raises:
        ValueError: Both a text and a file are given, or only the second text of a pair.
    """
    if file is not None and (text or pair):
        raise ValueError("predict_text and predict_file are both given; choose one.")
    if pair and not text:
        raise ValueError("predict_text_pair is the second text of a pair; give the first one as predict_text.")


def texts_to_predict(
    text: str, pair: str, file: str | None, alternatives: Sequence[Sequence[str]], remedy: str
) -> list[list[str]]:
    """Return the texts to predict, in order.

    Args:
        text: The only text, or the first text of the only pair; empty for none.
        pair: The second text of the pair; empty for none.
        file: A table file, or any other UTF-8 file with one text per line; ``None`` for none.
        alternatives: Column names of a table, as in :func:`~slicefine_pl.data.tables.read.read_texts`.
        remedy: End of the message for a missing column, as in that function.

    Returns:
        One list of N texts, or two for pairs.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: Nothing is given, a text is blank, or a text is not Unicode.
    """
    if file is not None:
        return _read(Path(file), alternatives, remedy)
    if not text:
        raise ValueError("nothing to predict; give predict_text, or predict_file with one text a line or a table.")
    given = {"predict_text": text} | ({"predict_text_pair": pair} if pair else {})
    for name, value in given.items():
        if not value.strip():
            raise ValueError(f"{name}={value!r} is blank; give a text.")
        check_characters(value, f"{name} is")
    return [[value] for value in given.values()]


def _read(path: Path, alternatives: Sequence[Sequence[str]], remedy: str) -> list[list[str]]:
    if not path.is_file():
        raise FileNotFoundError(f"predict_file={str(path)!r} does not exist; give a file of texts.")
    if path.suffix.lower() in READERS:
        return read_texts(path, alternatives, remedy).columns
    texts = split_lines(read_utf8(path))
    if not texts or (blank := [row for row, line in enumerate(texts, start=1) if not line.strip()]):
        flaw = f"no text in line {blank[0]}" if texts else "no lines"
        raise ValueError(f"predict_file={str(path)!r} has {flaw}; give one text a line.")
    return [texts]
