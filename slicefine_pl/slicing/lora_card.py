"""The model card of a LoRA adapter."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence

LOADING = """## How to load it

```python
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, {folder})  # base_model: {base}
```

`model.merge_and_unload()` returns a plain model with the trained weights."""


def model_card(
    base_model: str,
    folder: str,
    ranks: Mapping[str, int],
    saved: Sequence[str],
    left_out: Mapping[str, str],
    total_lost: float,
) -> str:
    """Front matter for a hub, what the adapter is, its ranks, what it lacks, and how to load it.

    Args:
        base_model: Name of the base model; may be empty.
        folder: Name of the folder or repository, for the example.
        ranks: Rank by module.
        saved: Modules that the adapter contains whole.
        left_out: For each tensor that it lacks, why.
        total_lost: Relative error of all changes together.
    """
    front = [f"base_model: {json.dumps(base_model, ensure_ascii=False)}"] if base_model else []
    base = f"`{base_model}`" if base_model else "its base model"
    parts = [
        "\n".join(["---", *front, "library_name: peft", "tags:", "- lora", "- slicefine", "---"]),
        "# LoRA adapter",
        f"A LoRA adapter for {base}. It was converted from a slice file of `slicefine_pl`.",
        "With it the base model computes what the trained model computes, up to rounding."
        if not left_out and not total_lost
        else "It does not contain all of the training.",
    ]
    if total_lost:
        parts.append(
            f"The changes were cut to a smaller rank: together they have a relative error of {total_lost:.2g}."
        )
    if left_out:
        parts.append("Left out:\n\n" + "\n".join(f"- `{name}`: {reason}" for name, reason in left_out.items()))
    parts += ["## Ranks", _rank_table(ranks)]
    if saved:
        parts.append(f"Stored whole: {', '.join(f'`{name}`' for name in saved)}.")
    parts.append(LOADING.format(folder=json.dumps(folder), base=base_model or "the base model"))
    return "\n\n".join(parts) + "\n"


def _rank_table(ranks: Mapping[str, int]) -> str:
    """Modules by the last part of their names, which says their place in a block."""
    groups = defaultdict[str, list[int]](list)
    for name, rank in ranks.items():
        groups[name.rpartition(".")[2]].append(rank)
    rows = [f"| `{name}` | {len(found)} | {_range(found)} |" for name, found in groups.items()]
    return "\n".join(["| module | number | rank |", "|---|---|---|", *rows])


def _range(ranks: Sequence[int]) -> str:
    return str(ranks[0]) if len(set(ranks)) == 1 else f"{min(ranks)} to {max(ranks)}"
