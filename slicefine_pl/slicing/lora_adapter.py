"""The content of a LoRA adapter: tensors by the names that peft gives them, and peft's configuration.

Shapes:  r rank
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slicefine_pl.network.layers import transformers_conv1d
from slicefine_pl.slicing.lora_layers import PREFIX, LoraPlace
from slicefine_pl.slicing.low_rank import LineChanges, LowRank, change_along
from slicefine_pl.slicing.named_tensors import stored_tensors
from slicefine_pl.slicing.saved_matrix import SavedMatrix
from slicefine_pl.slicing.slice_file import SliceFile


class LoraAdapter:
    """An adapter that is being collected.

    Args:
        file: What was trained.
        base: The base model.
        max_rank: Largest rank of a module; ``None`` is all that is needed.

    Attributes:
        tensors: The adapter's tensors, by name.
        ranks: Rank of each adapted module.
        saved: Modules that the adapter contains whole.
        lost: Relative error of the change of each weight that was cut.
    """

    def __init__(self, file: SliceFile, base: nn.Module, max_rank: int | None) -> None:
        self._file, self._base, self._max_rank = file, base, max_rank
        self._stored = stored_tensors(base)
        self._energy = self._missing = 0.0
        self.tensors = dict[str, Tensor]()
        self.ranks = dict[str, int]()
        self.saved = list[str]()
        self.lost = dict[str, float]()

    @property
    def total_lost(self) -> float:
        """Relative error of all changes together, in the Frobenius norm."""
        return (self._missing / self._energy) ** 0.5 if self._energy else 0.0

    def add(self, name: str, place: LoraPlace) -> None:
        """Add the change of a weight.

        Args:
            name: Name of the weight.
            place: Where it goes.

        Raises:
            ValueError: ``max_rank`` is too small for a convolution with groups.
        """
        stored = self._stored[name].detach()
        blocks = self._blocks(name, stored, place.groups)
        if self._max_rank is not None:
            blocks = self._cut(name, place, blocks, self._max_rank)
        rank = max(1, *(each.rank for each in blocks))
        self.tensors |= place.tensors([each.padded(rank) for each in blocks], stored.shape, self._type(name, stored))
        self.ranks[place.module] = rank * place.groups

    def _cut(self, name: str, place: LoraPlace, blocks: Sequence[LowRank], max_rank: int) -> list[LowRank]:
        """The best blocks of the largest rank; counts what they lack."""
        if max_rank < place.groups:
            raise ValueError(
                f"max_rank={max_rank} is too small for {place.module}: its {place.groups} groups need a rank of"
                f" at least {place.groups}."
            )
        best = [each.truncated(max_rank // place.groups) for each in blocks]
        energy, missing = sum(each.energy for each in blocks), sum(lost for _, lost in best)
        self._energy += energy
        self._missing += missing
        if missing:
            self.lost[name] = (missing / energy) ** 0.5
        return [each for each, _ in best]

    def _blocks(self, name: str, stored: Tensor, groups: int) -> list[LowRank]:
        """The change of a weight in each group of a convolution; other weights are one group."""
        lines = LineChanges.of(stored, [each for each in self._file.lines if each.parameter == name])
        size = len(stored) // groups
        blocks = [lines.block(group * size, size) for group in range(groups)]
        for each in self._file.directions:
            if each.parameter == name:
                change = change_along(stored, each)
                blocks = [block + change.rows(group * size, size) for group, block in enumerate(blocks)]
        return [each.at_most_full() for each in blocks]

    def _type(self, name: str, stored: Tensor) -> torch.dtype:
        """The type of the factors in the file; that of lines is the weight's."""
        return next((each.change.dtype for each in self._file.directions if each.parameter == name), stored.dtype)

    def _trained(self, name: str) -> list[SavedMatrix]:
        return [each for each in self._file.matrices if each.parameter == name]

    def save_modules(self, modules: Sequence[str]) -> None:
        """Add modules whole: what was trained, and the rest as it is in the base."""
        self.saved = [*modules]
        trained = {id(self._stored[name]): values for name, values in self._file.whole.items()}
        sliced = {id(self._stored[each.parameter]): each.parameter for each in self._file.matrices}
        for module in modules:
            for key in self._base.get_submodule(module).state_dict():
                stored = self._stored[f"{module}.{key}"]
                values = trained.get(id(stored), stored).detach().cpu().clone(memory_format=torch.contiguous_format)
                for each in self._trained(sliced.get(id(stored), "")):
                    each.write(values, each.trained(values))
                self.tensors[f"{PREFIX}{module}.{key}"] = values

    def config(self) -> dict[str, Any]:
        """The content of ``adapter_config.json``."""
        rank = max(self.ranks.values())
        pattern = {f"^{re.escape(name)}": each for name, each in self.ranks.items() if each != rank}
        model = type(self._base)
        return {
            "peft_type": "LORA",
            "task_type": None,
            "auto_mapping": {"base_model_class": model.__name__, "parent_library": model.__module__},
            "base_model_name_or_path": self._file.base_model or None,
            "inference_mode": True,
            "r": rank,
            "lora_alpha": rank,
            "rank_pattern": pattern,
            "alpha_pattern": pattern,
            "target_modules": sorted(self.ranks),
            "exclude_modules": self._excluded(),
            "modules_to_save": self.saved or None,
            "fan_in_fan_out": any(transformers_conv1d(self._base.get_submodule(name)) for name in self.ranks),
            "bias": "none",
            "lora_dropout": 0.0,
        }

    def _excluded(self) -> str | None:
        """A pattern of the modules that peft would adapt as well, because it compares the ends of names."""
        endings = tuple(f".{name}" for name in self.ranks)
        names = [name for name, _ in self._base.named_modules() if name.endswith(endings) and name not in self.ranks]
        return "|".join(map(re.escape, names)) or None
