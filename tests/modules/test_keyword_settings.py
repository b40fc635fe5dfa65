"""The signature of a module shows the settings that its base classes take, as the command line does."""

import inspect

import pytest
from jsonargparse import ArgumentParser

from slicefine_pl.modules import CausalLanguageModel, ImageClassifier, TextClassifier, VideoClassifier


@pytest.mark.parametrize("module", [CausalLanguageModel, ImageClassifier, TextClassifier, VideoClassifier])
def test_help_and_command_line_agree_on_settings_and_defaults(module):
    """jsonargparse follows the keywords through the calls of ``super().__init__``."""
    shown = {name: parameter.default for name, parameter in inspect.signature(module).parameters.items()}
    parser = ArgumentParser()
    parser.add_class_arguments(module, "model")
    assert shown == dict(vars(parser.get_defaults().model))
    assert "lr" in shown


def test_a_subclass_shows_its_own_keywords():
    class Subclass(TextClassifier):
        def __init__(self, temperature: float = 1.0, **settings):
            super().__init__(**settings)

    class WithoutInit(TextClassifier):
        pass

    assert list(inspect.signature(Subclass).parameters) == ["temperature", "settings"]
    assert inspect.signature(WithoutInit) == inspect.signature(TextClassifier)
