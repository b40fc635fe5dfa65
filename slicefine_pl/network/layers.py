"""Recognize layer types, and parameters that several modules share.

Types of libraries that this package does not import are recognized by module and class name.
"""

from collections import Counter

from torch import nn

CONV1D = ("transformers.pytorch_utils", "Conv1D")


def transformers_conv1d(module: nn.Module) -> type[nn.Module] | None:
    """The class ``transformers.pytorch_utils.Conv1D``, if ``module`` is an instance of it or of a subclass.

    It is a linear map that stores its weight as ``(I, O)``, as in GPT-2. Classes named ``Conv1D`` from other modules
    are something else.
    """
    return next((base for base in type(module).__mro__ if (base.__module__, base.__name__) == CONV1D), None)


def tied_parameters(net: nn.Module) -> set[int]:
    """Ids of the parameters that more than one module of ``net`` owns, such as an embedding tied to the output head."""
    owned = (parameter for module in net.modules() for parameter in module._parameters.values())
    owners = Counter(id(parameter) for parameter in owned if parameter is not None)
    return {parameter for parameter, count in owners.items() if count > 1}
