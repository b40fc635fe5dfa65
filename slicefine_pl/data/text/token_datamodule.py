"""Base of data modules that serve tokens."""

from abc import abstractmethod

from slicefine_pl.data.batching import ResumableDataModule
from slicefine_pl.data.training_input import TrainingInput
from slicefine_pl.inputs import TextInput


class TokenDataModule(ResumableDataModule):
    """Tokenize texts as training did.

    A checkpoint that the trainer loads after ``setup`` may contain another record of training. A loader then calls
    ``setup`` again.

    Attributes:
        tokenizer: Name or folder of the tokenizer.
    """

    tokenizer: str
    _tokenized: TextInput | None = None  # how ``setup`` has tokenized
    _training_input: TrainingInput[TextInput] | None = None  # what ``setup`` was based on

    @property
    @abstractmethod
    def is_predicting(self) -> bool:
        """Whether only texts to predict are served."""

    @abstractmethod
    def resolve(self, training: TrainingInput[TextInput]) -> TextInput:
        """Combine the settings of the user with what is known of training."""

    @property
    def input(self) -> TextInput:
        """How texts are tokenized. Before ``setup`` it contains only what settings and training say."""
        return self.resolve(self.look_up_training()) if self._tokenized is None else self._tokenized

    def look_up_training(self) -> TrainingInput[TextInput]:
        """Return what is known of training now."""
        return TrainingInput.of(self, TextInput, self.tokenizer, predicting=self.is_predicting)

    @property
    def is_outdated(self) -> bool:
        """Whether a checkpoint that was loaded after ``setup`` contains another record of training."""
        now = self.look_up_training()
        return now not in (self._training_input, TrainingInput(self._tokenized, now.binding))
