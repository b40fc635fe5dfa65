"""How a data module learns what the network that it serves saw during training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic

from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn

from slicefine_pl.inputs.record import Input, resolve_input, stored_input


@dataclass(frozen=True)
class TrainingInput(Generic[Input]):
    """What the network behind a data module saw during training.

    Attributes:
        trained: The record of training, or ``None`` if it is not known.
        binding: Whether the settings of the data module must agree with it. A new fit may choose others.
    """

    trained: Input | None
    binding: bool

    @classmethod
    def of(
        cls, data: LightningDataModule, kind: type[Input], source: str | None, *, predicting: bool
    ) -> "TrainingInput[Input]":
        """Look the record up: in the module that the trainer runs, else in a checkpoint or export.

        A checkpoint that the trainer loads after ``setup`` changes the answer, so ask again when loaders are made.

        Args:
            data: The data module, attached to a trainer or not.
            kind: Class of the record.
            source: Backbone, exported folder or checkpoint that ``data`` was configured with; ``None`` for none.
            predicting: Whether ``data`` serves predictions only.
        """
        trainer: Any = data.trainer
        module = getattr(trainer, "lightning_module", None)
        found = getattr(module, "input", None)
        trained = found if isinstance(found, kind) else stored_input(source, kind) if source else None
        fits_anew = module is None or (trainer.state.fn == TrainerFn.FITTING and trainer.ckpt_path is None)
        return cls(trained, binding=predicting or not fits_anew)

    def resolve(self, given: Mapping[str, Any], default: Callable[[], Input]) -> Input:
        """Combine settings of the user, the record of training and a default, see :func:`resolve_input`."""
        return resolve_input(given, self.trained, default, binding=self.binding)
