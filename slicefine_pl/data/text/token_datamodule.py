"""Base of data modules that serve tokens."""

from slicefine_pl.data.batching import ResumableDataModule
from slicefine_pl.data.training_input import TrainingInput
from slicefine_pl.inputs import TextInput


class TokenDataModule(ResumableDataModule):
    """Tokenize texts as training did.

    ``setup`` sets ``input``, so that the module can record it. A checkpoint that the trainer loads after ``setup`` may
    contain another record; a loader then calls ``setup`` again.

    Attributes:
        tokenizer: Name or folder of the tokenizer.
        input: How texts were tokenized; ``None`` before ``setup``.
    """

    tokenizer: str
    input: TextInput | None = None
    _training_input: TrainingInput[TextInput] | None = None  # what ``setup`` was based on

    @property
    def is_predicting(self) -> bool:
        """Whether only texts to predict are served."""
        raise NotImplementedError

    def look_up_training(self) -> TrainingInput[TextInput]:
        """Return what is known of training now."""
        return TrainingInput.of(self, TextInput, self.tokenizer, predicting=self.is_predicting)

    @property
    def is_outdated(self) -> bool:
        """Whether a checkpoint that was loaded after ``setup`` contains another record of training."""
        now = self.look_up_training()
        return now not in (self._training_input, TrainingInput(self.input, now.binding))
