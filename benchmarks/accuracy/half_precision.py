"""Do slices along directions learn as much in half precision as in float32?

python -m benchmarks.accuracy.half_precision --steps 500 --out half_precision.json

The first layers of SmolLM2-135M are trained on sentences of film reviews, from the same weights, on the same batches,
with weights and slices of several types. "float32 rounded" trains in float32, but rounds the weights to bfloat16 after
each step: what adding every step to a bfloat16 weight would do. The loss is that of the last 50 steps and, on other
sentences, of the trained network in float32.
"""

import copy
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from benchmarks.accuracy.tasks import SMOLLM
from benchmarks.harness.machine import machine
from benchmarks.harness.results import argument_parser, markdown_table, result_path, write_result
from slicefine_pl.data.text.demo import load_demo
from slicefine_pl.modules import CausalLanguageModel
from slicefine_pl.pretrained import locate, split_gguf
from slicefine_pl.slicing import slice_model

BATCH, LENGTH, HELD_OUT = 4, 64, 48
RUNS: dict[str, tuple[torch.dtype, torch.dtype | None]] = {  # types of weights and slices
    "float32": (torch.float32, None),
    "float32 rounded": (torch.float32, None),
    "bfloat16, slices in float32": (torch.bfloat16, torch.float32),
    "bfloat16": (torch.bfloat16, None),
}


def load(layers: int) -> tuple[Any, Tensor]:
    """The network with its first layers, and rows of tokens, shape ``(N, LENGTH)``."""
    folder, gguf = split_gguf(locate(SMOLLM))
    net: Any = CausalLanguageModel(SMOLLM, samples=0).model
    net.model.layers = net.model.layers[:layers]
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=gguf)
    [texts] = load_demo("reviews", ratings=True).columns
    tokens = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    return net, torch.tensor(tokens[: len(tokens) // LENGTH * LENGTH]).view(-1, LENGTH)


def train(net: nn.Module, rows: Tensor, name: str, arguments: Any) -> dict[str, float]:
    """Train a copy; returns its losses."""
    weights, slices = RUNS[name]
    twin: Any = copy.deepcopy(net).to(weights)
    handle = slice_model(twin, 8, basis="random", also_train=[], slice_dtype=slices)
    optimizer = torch.optim.AdamW([p for p in twin.parameters() if p.requires_grad], arguments.lr, weight_decay=0.0)
    losses = []
    for step in range(arguments.steps):
        batch = rows[HELD_OUT + step * BATCH :][:BATCH]
        loss = twin(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if name == "float32 rounded":
            handle.write()
            with torch.no_grad():
                for view in handle:
                    view.stored.copy_(view.stored.bfloat16())
    handle.close()
    twin.float()
    with torch.no_grad():
        held_out = statistics.fmean(twin(input_ids=rows[[n]], labels=rows[[n]]).loss.item() for n in range(HELD_OUT))
    return {"last 50 steps": statistics.fmean(losses[-50:]), "held out": held_out}


def main() -> None:
    """Train all, and print a table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--out", type=result_path)
    arguments = parser.parse_args()
    net, rows = load(arguments.layers)
    results = {}
    for name in RUNS:
        results[name] = train(net, rows, name, arguments)
        print(name, results[name], flush=True)
    lines = [[name, *(f"{value:.3f}" for value in found.values())] for name, found in results.items()]
    print(markdown_table(["weights", "last 50 steps", "held out"], lines))
    settings = {key: value for key, value in vars(arguments).items() if key != "out"}
    out: Path | None = arguments.out
    write_result(out, {"machine": machine("cpu"), "settings": settings, "losses": results})


if __name__ == "__main__":
    main()
