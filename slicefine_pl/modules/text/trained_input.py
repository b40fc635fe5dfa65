"""A module that remembers how the texts of its training became tokens."""

from typing import Any

from lightning.pytorch import LightningModule

RECORD = "text_input"  # the key in checkpoints and in config.json of exports


class RemembersTextInput(LightningModule):
    """Keep the settings by which a data module made tokens of texts, such as columns and longest text.

    A fit takes them over from its data module's ``text_input``; checkpoints keep them. Evaluation and prediction then
    follow them. ``None`` where nothing is known, as with loaders of one's own.
    """

    text_input: dict[str, Any] | None = None

    def record_input(self, data: object) -> None:
        """Take over what ``data`` are about to show in training, if they say so; ``None`` before their ``setup``."""
        self.text_input = getattr(data, RECORD, self.text_input)

    def on_train_start(self) -> None:
        """Take over what training sees."""
        super().on_train_start()
        self.record_input(getattr(self.trainer, "datamodule", None))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what training saw."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[RECORD] = self.text_input

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what training saw, where the checkpoint says so."""
        super().on_load_checkpoint(checkpoint)
        self.text_input = checkpoint.get(RECORD) or self.text_input
