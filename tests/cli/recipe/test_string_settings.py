"""String settings keep the characters of flags and YAML files."""

from collections.abc import Iterator, Sequence

import pytest
import yaml
from jsonargparse import ArgumentParser, set_loader

from slicefine_pl.cli.recipe.string_settings import STANDARD, StringSettings
from slicefine_pl.data import ImageDataModule, InstructionDataModule, KineticsDataModule, TextDataModule
from slicefine_pl.modules import ImageClassifier, TextClassifier, VideoClassifier

ODD = [
    "#x", "null", "~", "007", "1e3", "1_0", "yes", "[a, b]", "{a: b}", "a: b", "- a", "-x", "--data.source", "'q'",
    '"q"', "@x", "&a b", "*a", "!t", "%", "`", "x # y", "a\nb: c", " ", "\udce9", "😀", "2024-01-01", "a=b",
    "x" * 10_000,
]  # fmt: skip


class Data:
    """A class with the parameters of a data module."""

    def __init__(
        self,
        source: str = "reviews",
        root: str | None = None,
        names: Sequence[str] | None = None,
        columns: list[str] | None = None,
        images: str | Sequence[str] | None = None,
        size: int | None = None,
        mean: Sequence[float] | None = None,
    ) -> None:
        pass


@pytest.fixture
def parse() -> Iterator:
    """A function that parses flags, with the string settings of a class."""
    texts = StringSettings.of(data=Data)
    texts.install()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Data, "data")
    yield lambda *arguments: parser.parse_args(texts.rewritten(arguments)).data
    set_loader("yaml", STANDARD, exceptions=(yaml.YAMLError,))


@pytest.mark.parametrize("text", ODD, ids=lambda text: ascii(text[:12]))
def test_a_text_is_a_text(parse, text):
    assert parse("--data.source", text).source == text
    assert parse(f"--data.source={text}", "--data.size", "3").source == text
    assert parse("--data.root", text).root == (None if text == "null" else text)


@pytest.mark.parametrize(
    ("written", "texts"),
    [
        ("[no, yes]", ["no", "yes"]),
        ("[1, 2]", ["1", "2"]),
        ("[01, 1.0, 1e3, 0x1, 1_0]", ["01", "1.0", "1e3", "0x1", "1_0"]),
        ("[null, ~, true, 2024-01-01]", ["null", "~", "true", "2024-01-01"]),
        ("['a, b', \"no\", 😀, 'it''s']", ["a, b", "no", "😀", "it's"]),
    ],
)
@pytest.mark.parametrize("name", ["names", "columns", "images"])
def test_lists_hold_what_is_written(parse, tmp_path, written, texts, name):
    assert parse(f"--data.{name}", written)[name] == texts
    assert parse(f"--data.{name}={written}")[name] == texts
    assert parse(f"--data.{name}=[new]", f"--data.{name}+={written}")[name] == ["new", *texts]
    file = tmp_path / "settings.yaml"
    file.write_text(f"data:\n  {name}: {written}\n", "utf-8")
    assert parse("--config", str(file))[name] == texts


def test_a_whole_section_may_be_given(parse, tmp_path):
    file = tmp_path / "section.yaml"
    file.write_text(written := "{source: 007, names: [no, 1], size: 3, root: null}")
    for value in (written, str(file)):
        data = parse("--data", value)
        assert (data.source, data.names, data.size, data.root) == ("007", ["no", "1"], 3, None)


def test_lists_of_other_things_stay_what_they_are(parse):
    assert parse("--data.names", "null").names is None
    assert parse("--data.mean", "[0.5, 1, 1e-1]").mean == [0.5, 1.0, 0.1]
    assert parse("--data.images", "[x].jpg").images == "[x].jpg"
    for nested in ("[[a], b]", "[{a: b}]"):
        with pytest.raises(Exception, match=r"data\.names"):
            parse("--data.names", nested)


def test_texts_of_a_file_are_as_written(parse, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("data:\n  source: 007\n  root: yes\n  names:\n  - off\n  - 1\n  size: 010\n")
    data = parse("--config", str(file))
    assert (data.source, data.root, data.names, data.size) == ("007", "yes", ["off", "1"], 8)
    file.write_text("data:\n  source: 'null'\n  root: null\n  names: null\n")
    data = parse("--config", str(file))
    assert (data.source, data.root, data.names) == ("null", None, None)


def test_a_flag_without_its_value_is_an_error(parse):
    with pytest.raises(Exception, match="expected one argument"):
        parse("--data.source")


def test_texts_of_the_recipes():
    text = StringSettings.of(data=TextDataModule, model=TextClassifier)
    assert {"data.source", "data.predict_text", "data.predict_text_pair", "data.label_column"} <= text.single
    assert text.lists == {"data.text_columns", "data.label_names", "model.label_names"}
    assert "data.predict_text" in StringSettings.of(data=InstructionDataModule).single
    assert StringSettings.of(data=ImageDataModule, model=ImageClassifier).lists == {
        "data.predict_images",
        "model.label_names",
    }
    assert StringSettings.of(data=KineticsDataModule, model=VideoClassifier).lists == {
        "data.label_names",
        "model.label_names",
    }
