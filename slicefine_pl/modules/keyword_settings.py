"""Settings that modules pass on to their base classes, and the signature that shows them.

``**optimizer: Unpack[OptimizerSettings]`` tells editors and type checkers which keywords a module takes.
:func:`explicit_signature` tells ``help()``, with their defaults. Command lines find them in the base classes.
"""

import inspect
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, get_args, get_type_hints

from slicefine_pl.modules.lr_schedule import LRDecay

if TYPE_CHECKING:
    from typing import Unpack as Unpack
else:

    class Unpack:
        """``typing.Unpack`` for type checkers; at runtime an annotation that jsonargparse does not interpret.

        jsonargparse (4.53) takes the names of an unpacked ``TypedDict``, which has no defaults. Without them it finds
        names, defaults and descriptions in the base class that takes the settings.
        """

        def __class_getitem__(cls, settings: type) -> Any:
            return Annotated[Any, settings]


class LRSettings(TypedDict, total=False):
    """Learning rate and its schedule."""

    lr: float
    warmup: float
    decay: LRDecay


class OptimizerSettings(LRSettings, total=False):
    """Optimizer settings of a network with a head."""

    head_lr: float | None
    weight_decay: float


class VisionSettings(OptimizerSettings, total=False):
    """Optimizer settings, and label smoothing of the training loss."""

    label_smoothing: float


def explicit_signature(module_class: type) -> inspect.Signature:
    """Return the signature of a class, with each setting of its unpacked keywords and its default.

    Args:
        module_class: Class whose ``__init__`` may pass keywords on to its base classes.
    """
    _, *parameters = inspect.signature(module_class.__init__).parameters.values()  # type: ignore[misc]
    if parameters and (settings := get_args(parameters[-1].annotation)[1:]):
        parameters[-1:] = [_inherited(module_class, name) for name in get_type_hints(settings[0])]
    return inspect.Signature(parameters)


def _inherited(module_class: type, name: str) -> inspect.Parameter:
    """The parameter as the nearest base class has it."""
    signatures = (inspect.signature(base.__init__) for base in module_class.__mro__ if "__init__" in vars(base))  # type: ignore[misc]
    return next(each.parameters[name] for each in signatures if name in each.parameters)
