"""What a text network saw during training: text columns, longest text, chat template."""

from dataclasses import dataclass
from typing import ClassVar

from slicefine_pl.inputs.record import InputRecord

KINDS = {1: "single texts", 2: "pairs of texts"}


@dataclass(frozen=True)
class TextInput(InputRecord):
    """What a network saw of texts. ``None`` and empty values mean that the record does not say.

    Attributes:
        columns: Names of the text columns: one, or two for pairs of texts.
        max_length: Longest text, in tokens with the special ones. Longer texts were cut.
        limit: Longest text, in tokens, that tokenizer and model allow.
        chat: Whether prompts and completions were turns of the tokenizer's chat template.
    """

    columns: tuple[str, ...] = ()
    max_length: int | None = None
    limit: int | None = None
    chat: bool | None = None
    evaluation_settings: ClassVar[tuple[str, ...]] = ("columns",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))  # JSON has lists

    def check_columns(self, count: int, remedy: str) -> None:
        """Refuse pairs for a network that was trained on single texts, and single texts for one trained on pairs.

        Args:
            count: Number of text columns now, 1 or 2.
            remedy: What to do instead, for the message.

        Raises:
            ValueError: The network was trained on another number of columns.
        """
        if self.columns and count != len(self.columns):
            trained = f"{KINDS[len(self.columns)]} ({', '.join(self.columns)})"
            raise ValueError(f"the model was trained on {trained}, and these are {KINDS[count]}; {remedy}.")
