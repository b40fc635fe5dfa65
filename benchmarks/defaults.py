"""Which defaults should SliceFineCallback have?  Film reviews, MiniLM, one epoch, beside LoRA and full fine-tuning.

python benchmarks/defaults.py --out benchmarks/results/defaults.jsonl "column r=8 every=20 lr=3e-3" "lora r=4 lr=1e-3"

Every argument is one configuration: a method (column, row, alternate, lora, full), then ``key=value`` pairs among r,
every (``never`` for a static slice), lr, order, state.  Each is trained with every seed; a line of JSON a run is added
to the file, and a run that stands there already is not repeated.  Choose by ``val``, report ``test``.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, cast

import peft
from lightning.pytorch import Callback, seed_everything
from tasks import MINILM, quiet_trainer
from torch import nn
from transformers import PreTrainedModel

from slicefine_pl import SliceFineCallback
from slicefine_pl.data import TextDataModule
from slicefine_pl.modules import TextClassifier


def parse(configuration: str) -> dict[str, Any]:
    """Turn ``"column r=8 every=20 lr=3e-3"`` into settings."""
    method, *pairs = configuration.split()
    return {"method": method, **dict(pair.split("=", 1) for pair in pairs)}


def slicefine(settings: dict[str, Any], seed: int) -> SliceFineCallback:
    """Build the callback for a configuration of ours."""
    every = settings.get("every", "100")
    return SliceFineCallback(
        rank=int(settings["r"]),
        axis=settings["method"],
        interval=None if every == "never" else int(every),
        order=settings.get("order", "sweep"),
        optimizer_state=settings.get("state", "reset"),
        seed=seed,
    )


def add_lora(module: TextClassifier, rank: int) -> None:
    """Put LoRA beside every linear map of the encoder; the head is trained whole."""
    linears = [
        name for name, part in module.model.named_modules() if isinstance(part, nn.Linear) and name != "classifier"
    ]
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=linears, modules_to_save=["classifier"], task_type="SEQ_CLS"
    )
    module.model = cast("PreTrainedModel", peft.get_peft_model(module.model, config))


def train(settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """One run; returns its scores, trained parameters and training time."""
    seed_everything(seed, verbose=False)
    data = TextDataModule(source="reviews", tokenizer=MINILM, batch_size=32, seed=seed)
    module = TextClassifier(MINILM, label_names=["negative", "positive"], lr=float(settings["lr"]))
    callbacks: list[Callback] = []
    if settings["method"] == "lora":
        add_lora(module, int(settings["r"]))
    elif settings["method"] != "full":
        callbacks.append(slicefine(settings, seed))
    trainer = quiet_trainer(1, callbacks)
    start = time.perf_counter()
    trainer.fit(module, data)
    seconds = time.perf_counter() - start
    trained = sum(
        value.numel()
        for group in trainer.optimizers[0].param_groups
        for value in group["params"]
        if value.requires_grad
    )
    [val] = trainer.validate(module, data, verbose=False)
    [test] = trainer.test(module, data, verbose=False)
    return {
        "val": val["val/accuracy"],
        "val_loss": val["val/loss"],
        "test": test["test/accuracy"],
        "seconds": round(seconds, 1),
        "trained": trained,
    }


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configurations", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    done = {(row["configuration"], row["seed"]) for row in map(json.loads, lines)}
    for seed in arguments.seeds:
        for configuration in arguments.configurations:
            if (configuration, seed) in done:
                continue
            row = {"configuration": configuration, "seed": seed, **train(parse(configuration), seed)}
            print(row, flush=True)
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
