"""What a trained network saw, as a data module learns it: from its trainer's module, a checkpoint or an export."""

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn

from slicefine_pl.inputs import Input, agreed_input, trained_input


def settled_input(
    data: LightningDataModule,
    kind: type[Input],
    given: Mapping[str, Any],
    otherwise: Callable[[], Input],
    *,
    predicting: bool,
) -> Input:
    """Return what the data show a network: given settings, then those of its training, then ``otherwise``.

    A module that ``data`` serve says what it was trained with as its ``input``; before there is one, the checkpoint or
    export that ``data.processor`` names. Only a fit that starts anew may choose something else.

    Args:
        data: Asks; its ``processor`` names a backbone, an export or a checkpoint.
        kind: Of images or videos.
        given: Settings by name; ``None`` where they were left out.
        otherwise: What the backbone expects.
        predicting: Whether the data serve predictions alone.

    Raises:
        ValueError: A given setting contradicts the trained module.
    """
    trainer: Any = data.trainer
    module = getattr(trainer, "lightning_module", None)
    found = getattr(module, "input", None)
    trained = found if isinstance(found, kind) else trained_input(getattr(data, "processor", None) or "", kind)
    fits = module is None or (trainer.state.fn == TrainerFn.FITTING and trainer.ckpt_path is None)
    return agreed_input(given, trained, otherwise, training=fits and not predicting)
