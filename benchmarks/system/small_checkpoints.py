"""How large is a checkpoint of slices, and how long do saving and loading take, compared with the whole model?

python -m benchmarks.system.small_checkpoints --out FILE

One optimizer step is made, and the checkpoint contains AdamW's state of the slices in both cases. Saving is a call of
``Trainer.save_checkpoint``: it writes to a local disk, waits until the data are there, and checks that the frozen
weights are unchanged. Loading reads the file and, for slices, checks the base and completes the weights; it does not
copy them into the module. The page cache holds the file. Whole checkpoints and slices take turns.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModel, LlamaConfig

from benchmarks.harness.lightning import QUIET
from benchmarks.harness.machine import machine
from benchmarks.harness.networks import MINILM
from benchmarks.harness.results import Row, argument_parser, markdown_table, result_path, write_result
from benchmarks.system.slice_files import LLAMA_1B
from slicefine_pl import SliceFineCallback, complete_checkpoint
from slicefine_pl.pretrained import locate

MODES = ("model", "slices")
ROUNDS = 3


class Module(LightningModule):
    """Train a network on one batch of tokens, at a learning rate of zero."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        hidden: Tensor = self.net(input_ids=batch).last_hidden_state
        return hidden.float().square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW((each for each in self.parameters() if each.requires_grad), lr=0.0)


def minilm() -> nn.Module:
    """The pretrained text encoder, in float32."""
    net: nn.Module = AutoModel.from_pretrained(locate(MINILM), add_pooling_layer=False)
    return net


def llama() -> nn.Module:
    """A Llama of 1.2 billion parameters in bfloat16, with random weights."""
    with torch.device("meta"):
        net = AutoModel.from_config(LlamaConfig(**LLAMA_1B), dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    net = net.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.uniform_(-0.02, 0.02)
    return net  # type: ignore[no-any-return]


def timed(action: Callable[..., object], *arguments: object) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - start


def measure(net: nn.Module, rank: int) -> dict[str, Row]:
    """Size and times for each kind of checkpoint."""
    module = Module(net)
    trainers = {}
    for mode in MODES:
        callback = SliceFineCallback(rank, also_train=[], interval=None, checkpoint=mode)  # type: ignore[arg-type]
        trainers[mode] = Trainer(**QUIET, callbacks=[callback], max_steps=1)
        trainers[mode].fit(module, DataLoader([torch.arange(16).view(1, 16)], batch_size=None))  # type: ignore[arg-type]
    times: dict[str, dict[str, list[float]]] = {mode: {"save": [], "load": []} for mode in MODES}
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(ROUNDS):
            for mode in MODES:
                path = Path(scratch) / f"{mode}.ckpt"
                times[mode]["save"].append(timed(trainers[mode].save_checkpoint, path))
                times[mode]["load"].append(timed(load, path, module))
        sizes = {mode: (Path(scratch) / f"{mode}.ckpt").stat().st_size / 1e6 for mode in MODES}
    return {
        mode: {"MB": sizes[mode]} | {f"{name}, s": statistics.median(each) for name, each in times[mode].items()}
        for mode in MODES
    }


def load(path: Path, module: LightningModule) -> Any:
    """Read a checkpoint, and complete it."""
    checkpoint = torch.load(path, weights_only=True)
    complete_checkpoint(checkpoint, module)
    return checkpoint


def main() -> None:
    """Measure, and print a table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--out", type=result_path)
    arguments = parser.parse_args()
    rows: dict[str, Row] = {}
    for name, build in {"MiniLM, float32": minilm, "Llama 1B, bfloat16": llama}.items():
        rows |= {f"{name}: {mode}": row for mode, row in measure(build(), arguments.rank).items()}
    headings = ["network and checkpoint", *next(iter(rows.values()))]
    print(markdown_table(headings, [[name, *(f"{each:,.2f}" for each in row.values())] for name, row in rows.items()]))
    write_result(arguments.out, {"machine": machine("cpu"), "rank": arguments.rank, "rounds": ROUNDS, "rows": rows})


if __name__ == "__main__":
    main()
