"""How the texts became tokens on which a model was trained, so that evaluation and prediction do the same.

The module keeps a record of it (``text_input``: plain values by the name of a setting), in checkpoints and exports too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn

Value = TypeVar("Value")


@dataclass(frozen=True)
class TrainedInput:
    """What is known of the training of the model that a data module serves.

    Attributes:
        record: Settings by name; empty where nothing is known.
        binding: Whether they must be kept. A fit that starts anew may choose others.
    """

    record: Mapping[str, Any] = field(default_factory=dict)
    binding: bool = False

    @classmethod
    def of(cls, data: LightningDataModule) -> "TrainedInput":
        """Ask the module that ``data`` serve; a checkpoint is known once the trainer has loaded it."""
        trainer: Any = data.trainer
        module = getattr(trainer, "lightning_module", None)
        starts = module is None or (trainer.state.fn == TrainerFn.FITTING and trainer.ckpt_path is None)
        return cls(dict(getattr(module, "text_input", None) or {}), not starts)

    def settle(self, name: str, given: Value | None, default: Value) -> Value:
        """Return a setting: what was given, else what the model was trained with, else the default.

        Args:
            name: Of the setting.
            given: By the user; ``None`` where it was left out.
            default: For a model of which nothing is known.

        Raises:
            ValueError: The setting contradicts what is binding.
        """
        trained: Value | None = self.record.get(name)
        if given is None:
            return default if trained is None else trained
        if trained not in (None, given) and self.binding:
            raise ValueError(
                f"{name}={given} contradicts the trained model, which saw {name}={trained}; leave {name} out."
            )
        return given

    def check_columns(self, count: int, cure: str) -> None:
        """Refuse pairs for a model of single texts, and single texts for a model of pairs.

        Args:
            count: Columns of texts at hand, 1 or 2.
            cure: What to do instead.

        Raises:
            ValueError: The model was trained on another number of columns, and that is binding.
        """
        columns = self.record.get("columns", [])
        if columns and count != len(columns) and self.binding:
            kinds = {1: "single texts", 2: "pairs of texts"}
            raise ValueError(
                f"the model was trained on {kinds[len(columns)]} ({', '.join(columns)}), and these are {kinds[count]}; "
                f"{cure}."
            )


class FollowsTraining(LightningDataModule):
    """Base of data modules that make tokens as the training of their model did.

    ``text_input`` holds the settings that matter once ``setup`` has settled them; a module keeps them.
    """

    text_input: dict[str, Any] | None = None
    _trained: TrainedInput | None = None

    @property
    def _is_outdated(self) -> bool:
        """Whether a checkpoint that was loaded after ``setup`` says something else of the model's training."""
        trained = TrainedInput.of(self)
        return trained not in (self._trained, TrainedInput(self.text_input or {}, trained.binding))
