"""Sentences of film reviews as plain texts, for a language model: a JSONL file with a column ``text``."""

import json
from pathlib import Path

from slicefine_pl.data.cache import cache_folder
from slicefine_pl.data.text.demo import load_demo
from slicefine_pl.files.atomic import write_atomic


def sentences() -> Path:
    """Write the 10,605 sentences of the demo dataset ``"reviews"``, in their order there, without their labels."""
    path = cache_folder() / "film_sentences.jsonl"
    [texts] = load_demo("reviews", ratings=True).columns
    write_atomic(path, "".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
    return path
