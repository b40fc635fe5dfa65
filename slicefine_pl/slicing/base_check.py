"""Check that a network is the base of a slice file, before anything is changed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slicefine_pl.slicing.fingerprint import Fingerprint
from slicefine_pl.slicing.named_tensors import Tensors, named_part, stored_tensors, tensor_name
from slicefine_pl.slicing.saved_matrix import SavedMatrix


@dataclass(frozen=True)
class BaseCheck:
    """Compares networks with the base of a slice file.

    Attributes:
        matrices: What was trained of each matrix.
        whole: What was trained whole, by name.
        base: Fingerprints of the base.
        tied: For each further name of a parameter that has several, the first.
        base_model: Name of the base model, for messages; may be empty.
    """

    matrices: Sequence[SavedMatrix]
    whole: Mapping[str, Tensor]
    base: Mapping[str, Fingerprint]
    tied: Mapping[str, str]
    base_model: str

    def network(self, net: Tensors) -> None:
        """Check that a network is the base.

        Raises:
            ValueError: Something is missing, has another shape or type, or has other values.
        """
        tensors = self.shapes(net)
        for name, values in self.whole.items():
            if values.dtype != tensors[name].dtype:
                raise ValueError(f"{_wrong_type(name, tensors[name].dtype, values.dtype)}{self._named_base()}.")
        self.values(tensors)

    def values(self, tensors: Mapping[str, Tensor]) -> None:
        """Check that tensors have the base's values, apart from those that were trained whole.

        Raises:
            ValueError: Something is missing, has another shape or type, or has other values.
        """
        self._check_tied(tensors)
        stored = {name: tensor_name(name) for name in self.base}
        self._check_names(tensors, stored.values())
        matrices = {each.name: each for each in self.matrices}
        places = {name: place for place, name in enumerate(tensors)}
        for name, expected in sorted(self.base.items(), key=lambda item: places[stored[item[0]]]):
            part = matrices[name].matrix(tensors[stored[name]]) if name in matrices else named_part(tensors, name)
            if not expected.fits(part):
                raise ValueError(f"{_difference(name, Fingerprint.of(part), expected)}{self._named_base()}.")

    def shapes(self, net: Tensors) -> Mapping[str, Tensor]:
        """Check that a network has the trained matrices; returns its tensors by name.

        Raises:
            ValueError: Something is missing or has another shape.
        """
        tensors = stored_tensors(net)
        trained = (*self.whole, *(each.parameter for each in self.matrices))
        self._check_names(tensors, [*trained, *map(tensor_name, self.base)])
        for each in self.matrices:
            try:
                each.check_shape(tensors[each.parameter])
            except ValueError as error:
                raise ValueError(f"{error}{self._named_base()}.") from None
        return tensors

    def _check_tied(self, tensors: Mapping[str, Tensor]) -> None:
        trained = {*self.whole, *(each.parameter for each in self.matrices)}
        for name, first in self.tied.items():
            own, shared = tensors.get(name), tensors.get(first)
            if own is None or shared is None or own is shared:
                continue
            if first in trained or not torch.equal(own, shared):
                raise ValueError(
                    f"{name} is not tied to {first} here, and was in training; tie them first{self._named_base()}."
                )

    def _check_names(self, tensors: Mapping[str, Tensor], names: Iterable[str]) -> None:
        if missing := [name for name in names if name not in tensors]:
            raise ValueError(f"The network lacks {missing[0]!r}; use the base model of the file{self._named_base()}.")

    def _named_base(self) -> str:
        return f" ({self.base_model})" if self.base_model else ""


def _difference(name: str, found: Fingerprint, expected: Fingerprint) -> str:
    if found.dtype != expected.dtype:
        return _wrong_type(name, found.dtype, expected.dtype)
    if found.shape != expected.shape:
        return f"{name} has the shape {found.shape} here, and had {expected.shape} in training"
    return (
        f"{name} has other values than the base model of the file (norm {found.norm:.6g} here,"
        f" {expected.norm:.6g} there). Use that base model; take another slice file out of it first"
    )


def _wrong_type(name: str, found: torch.dtype | str, expected: torch.dtype | str) -> str:
    here, there = (str(each).removeprefix("torch.") for each in (found, expected))
    return f"{name} is {here} here, and was {there} in training; load the base model in that type"
