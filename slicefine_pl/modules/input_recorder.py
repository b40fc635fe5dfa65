"""A module that records what training saw, and keeps the record in checkpoints and exports."""

from typing import Any, ClassVar

from lightning.pytorch import LightningModule

from slicefine_pl.inputs import RECORD_KEY, InputRecord, parse_input


class InputRecorder(LightningModule):
    """Base class of modules that remember how their data module presented examples in training.

    **When.** ``on_train_start`` copies the attribute ``input`` of the data module. With plain data loaders nothing is
    recorded; set ``module.input`` yourself before you export.
    **Checkpoint.** Contains the record under ``"input"``. Loading a checkpoint restores it.

    Attributes:
        input_kind: Class of the record.
        input: The record, or ``None`` if it is not known.
    """

    input_kind: ClassVar[type[InputRecord]]
    input: InputRecord | None = None

    def record_input(self, data: object) -> None:
        """Copy the attribute ``input`` of a data module, if it has one of this module's kind."""
        found = getattr(data, "input", None)
        if isinstance(found, self.input_kind):
            self.input = found

    @property
    def input_record(self) -> dict[str, Any]:
        """The record as checkpoints and exports store it; empty if it is not known."""
        return {} if self.input is None else self.input.as_record()

    def on_train_start(self) -> None:
        """Record what training sees."""
        super().on_train_start()
        self.record_input(getattr(self.trainer, "datamodule", None))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the record."""
        super().on_save_checkpoint(checkpoint)
        checkpoint.update(self.input_record)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the record, if the checkpoint contains one.

        Raises:
            ValueError: The record is damaged.
        """
        super().on_load_checkpoint(checkpoint)
        if RECORD_KEY in checkpoint:
            self.input = parse_input(checkpoint[RECORD_KEY], self.input_kind)
