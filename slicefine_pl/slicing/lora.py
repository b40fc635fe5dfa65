"""Export a slice file as a LoRA adapter that peft loads.

The change of trained columns is ``B @ A`` with ``A`` rows that pick the columns and ``B`` the change of each; that of
trained rows has it the other way round. No decomposition is needed, and the adapter computes what was trained.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from slicefine_pl.arguments import check_count
from slicefine_pl.files.atomic import atomic_folder
from slicefine_pl.slicing.hub import check_repository, upload
from slicefine_pl.slicing.lora_adapter import LoraAdapter
from slicefine_pl.slicing.lora_card import model_card
from slicefine_pl.slicing.lora_plan import lora_plan
from slicefine_pl.slicing.named_tensors import stored_tensors
from slicefine_pl.slicing.slice_file import SliceFile


@dataclass(frozen=True)
class LoraExport:
    """What :func:`export_lora` wrote.

    Attributes:
        folder: The folder.
        ranks: Rank of the adapter of each module.
        saved: Modules that the adapter contains whole.
        left_out: For each trained tensor that is not in the adapter, why.
        lost: With ``max_rank``, the relative error of the change of each weight that was cut, in the Frobenius norm.
        total_lost: The relative error of all changes together.
        num_bytes: Size of the adapter's tensors.
        url: Address of the commit, if the folder was pushed.
    """

    folder: Path
    ranks: dict[str, int]
    saved: list[str]
    left_out: dict[str, str]
    lost: dict[str, float]
    total_lost: float
    num_bytes: int
    url: str | None = None

    def __str__(self) -> str:
        ranks = sorted(set(self.ranks.values()))
        rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        return f"{len(self.ranks)} modules, {rank}, {self.num_bytes / 1e6:.2f} MB"


def export_lora(
    path: str | Path | SliceFile,
    base: nn.Module,
    out: str | Path,
    *,
    max_rank: int | None = None,
    store_whole: bool = False,
    leave_out: bool = False,
    push: str | None = None,
) -> LoraExport:
    """Write what slices trained as a LoRA adapter, for ``peft.PeftModel.from_pretrained(base, out)``.

    With the adapter the base computes what the trained network computes, up to rounding. Its rank is that of a slice
    that stayed, and the number of visited lines of one that moved. Each column of a convolution counts as often as the
    kernel has entries. Heads, and other modules that were trained whole, are in the adapter as they are. Values have
    the type of the slice file.

    Args:
        path: A slice file, from :meth:`SliceHandle.save`.
        base: The base model. It does not change.
        out: Folder to write; an existing one is replaced. It also receives a model card, ``README.md``.
        max_rank: Largest rank; each weight then gets the best adapter of that rank. ``None`` keeps all of the change.
        store_whole: Store modules whole that LoRA cannot express. The result is exact, and may be large.
        leave_out: Leave out what peft cannot express, instead of refusing.
        push: Repository on the Hugging Face Hub, ``"owner/name"``, to which the folder is then uploaded. One that does
            not exist yet is created, and is private. Needs ``huggingface_hub``, and its login.

    Returns:
        Ranks, size, and what is not in the adapter.

    Raises:
        FileNotFoundError: The slice file does not exist.
        MissingExtraError: ``push`` is set, and ``huggingface_hub`` is not installed.
        OSError: The folder cannot be written, or not be uploaded. It is complete in the second case.
        ValueError: The network is not the base of the file, or peft cannot express what was trained. Nothing is
            written then.
    """
    check_count("max_rank", max_rank, "ranks", optional=True)
    if push is not None:
        check_repository(push)
    file = path if isinstance(path, SliceFile) else SliceFile.read(path)
    file.check_base(base)
    _check_shapes(file, base)
    sliced = list(dict.fromkeys(each.parameter for each in file.matrices))
    plan = lora_plan(base, sliced, list(file.whole), store_whole)
    if plan.left_out and not leave_out:
        raise ValueError(_refusal(plan.left_out, store_whole))
    if not plan.places:
        raise ValueError("LoRA adapts none of the trained weights, so there is no adapter; use the slice file itself.")
    adapter = LoraAdapter(file, base, max_rank)
    for name, place in plan.places.items():
        adapter.add(name, place)
    adapter.save_modules(plan.saved)
    _write(adapter, Path(out), file.base_model, plan.left_out, push)
    url = None if push is None else upload(out, push)
    num_bytes = sum(each.nbytes for each in adapter.tensors.values())
    return LoraExport(
        Path(out), adapter.ranks, adapter.saved, plan.left_out, adapter.lost, adapter.total_lost, num_bytes, url
    )


def _write(adapter: LoraAdapter, out: Path, base_model: str, left_out: Mapping[str, str], push: str | None) -> None:
    card = model_card(base_model, push or out.name, adapter.ranks, adapter.saved, left_out, adapter.total_lost)
    with atomic_folder(out) as folder:
        folder.mkdir()
        save_file(adapter.tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(adapter.config(), indent=2) + "\n", "utf-8")
        (folder / "README.md").write_text(card, "utf-8")


def _check_shapes(file: SliceFile, base: nn.Module) -> None:
    tensors = stored_tensors(base)
    for name, values in file.whole.items():
        if values.shape != tensors[name].shape:
            raise ValueError(
                f"{name} has the shape {tuple(tensors[name].shape)} in the base and {tuple(values.shape)} in the file;"
                " build the base with an output of that size."
            )


def _refusal(reasons: Mapping[str, str], store_whole: bool, shown: int = 4) -> str:
    listed = "; ".join(f"{name} ({reason})" for name, reason in list(reasons.items())[:shown])
    more = f"; and {len(reasons) - shown} more" if len(reasons) > shown else ""
    other = "" if store_whole else "store_whole=True to store such modules whole, or "
    return f"peft's LoRA cannot express {listed}{more}. Pass {other}leave_out=True to export the rest."
