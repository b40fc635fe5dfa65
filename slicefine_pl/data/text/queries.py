"""Which texts are to be predicted: one from the command line, or the lines of a file."""

from pathlib import Path

from slicefine_pl.data.tables import decode, lines


def check_queries(text: str | None, file: str | None) -> None:
    """Refuse two sources of texts.

    Raises:
        ValueError: Both are given.
    """
    if file is not None and text is not None:
        raise ValueError("predict_text and predict_file are both given; choose one.")


def queries(text: str | None, file: str | None) -> list[str]:
    """Return the texts to predict, in order.

    Args:
        text: The only text, or ``None``.
        file: File with one text a line, UTF-8, or ``None``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Neither is given, or a line holds no text.
    """
    if text is not None:
        texts, place = [text], "predict_text"
    elif file is not None:
        if not Path(file).is_file():
            raise FileNotFoundError(f"predict_file={file!r} does not exist; give a file of texts.")
        texts, place = lines(decode(Path(file))), f"predict_file={file!r}"
    else:
        raise ValueError("nothing to predict; give predict_text, or predict_file with one text a line.")
    if not texts or (empty := [row for row, line in enumerate(texts, start=1) if not line.strip()]):
        raise ValueError(f"{place} has {f'no text in line {empty[0]}' if texts else 'no lines'}; give one text a line.")
    return texts
