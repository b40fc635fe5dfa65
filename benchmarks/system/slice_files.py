"""How large is a slice file, and how long does switching between tasks take?

python -m benchmarks.system.slice_files --out FILE

Sizes are computed from the shapes of all linear maps, in the type in which such a model is used, for slices that stay;
heads are left out, because every method stores them. For MiniLM a file is written as well. Switching is timed in one
run, interleaved: a task of ``SliceTasks``, ``set_adapter`` of peft, loading the whole model from files that are in
memory already (it is mapped, and read in the first forward pass), and a forward pass without and with an adapter.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModel, LlamaConfig, ViTConfig

from benchmarks.harness.machine import machine
from benchmarks.harness.networks import MINILM
from benchmarks.harness.results import argument_parser, markdown_table, result_path, write_result
from slicefine_pl.pretrained import locate
from slicefine_pl.slicing import SliceTasks, slice_model

LLAMA_1B: dict[str, Any] = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA_8B = LLAMA_1B | {
    "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "tie_word_embeddings": False,
}  # fmt: skip
SHAPES: dict[str, tuple[Any, int]] = {  # configuration, and bytes of a number
    "MiniLM, float32": (None, 4),
    "ViT-B, float32": (ViTConfig(), 4),
    "Llama 1B, bfloat16": (LlamaConfig(**LLAMA_1B), 2),
    "Llama 8B, bfloat16": (LlamaConfig(**LLAMA_8B), 2),
}
RANKS = (8, 32)
ROUNDS = 7


def sizes() -> dict[str, dict[str, float]]:
    """Megabytes of each file."""
    result: dict[str, dict[str, float]] = {}
    for name, (config, width) in SHAPES.items():
        with torch.device("meta"):
            net = AutoModel.from_config(config or AutoConfig.from_pretrained(locate(MINILM)))  # type: ignore[no-untyped-call]
        maps = [module for module in net.modules() if isinstance(module, nn.Linear)]
        row = {"whole model": width * sum(parameter.numel() for parameter in net.parameters()) / 1e6}
        for rank in RANKS:
            row[f"slice file, R = {rank}"] = sum(rank * (width * each.out_features + 8) for each in maps) / 1e6
            both = sum(each.in_features + each.out_features for each in maps)
            row[f"LoRA, r = {rank // 2}"] = width * rank // 2 * both / 1e6
        result[name] = row
    return result


def trained_files(net: nn.Module, folder: Path, rank: int) -> dict[str, Path]:
    """Two slice files of a network that was never trained: their lines have the base's values."""
    files = {}
    for name, seed in (("one", 1), ("two", 2)):
        handle = slice_model(net, rank, also_train=[], targets=None, seed=seed)
        handle.write()
        handle.save(folder / f"{name}.safetensors")
        handle.close()
        files[name] = folder / f"{name}.safetensors"
    return files


def timed(actions: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The median time of each action in milliseconds; the actions take turns."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(ROUNDS):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: round(statistics.median(values), 2) for name, values in times.items()}


def switching(build: Callable[[], Any], inputs: dict[str, Any], rank: int) -> dict[str, float]:
    """Times of switching, loading and computing."""
    net = build().eval()
    with tempfile.TemporaryDirectory() as scratch:
        tasks = SliceTasks(net, trained_files(net, Path(scratch), rank))
        adapted: Any = get_peft_model(build().eval(), LoraConfig(r=rank // 2, target_modules="all-linear"), "one")
        adapted.add_adapter("two", LoraConfig(r=rank // 2, target_modules="all-linear"))
        slices, adapters = _turns(), _turns()
        with torch.inference_mode(False), torch.no_grad():
            return timed({
                "switch, SliceTasks": lambda: tasks.use(next(slices)),
                "switch, peft": lambda: adapted.set_adapter(next(adapters)),
                "load the model, and a forward": lambda: build().eval()(**inputs),
                "forward, slices": lambda: net(**inputs),
                "forward, adapter": lambda: adapted(**inputs),
            })  # fmt: skip


def _turns() -> Iterator[str]:
    while True:
        yield from ("one", "two")


def minilm() -> Any:
    return AutoModel.from_pretrained(locate(MINILM))


def llama(folder: Path) -> Any:
    return AutoModel.from_pretrained(folder, dtype=torch.bfloat16)


def main() -> None:
    """Compute, time, and print tables."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--out", type=result_path)
    arguments = parser.parse_args()
    computed = sizes()
    headings = ["MB", *next(iter(computed.values()))]
    print(
        markdown_table(
            headings, [[name, *(f"{value:,.2f}" for value in row.values())] for name, row in computed.items()]
        )
    )
    tokens = {"input_ids": torch.randint(1000, (1, 32), generator=torch.Generator().manual_seed(0))}
    times = {"MiniLM": switching(minilm, tokens, arguments.rank)}
    with tempfile.TemporaryDirectory() as scratch:
        with torch.device("meta"):
            net = AutoModel.from_config(LlamaConfig(**LLAMA_1B), dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
        net = net.to_empty(device="cpu")
        for parameter in net.parameters():
            torch.nn.init.constant_(parameter, 0.01)
        net.save_pretrained(scratch)
        del net
        times["Llama 1B, bfloat16"] = switching(lambda: llama(Path(scratch)), tokens, arguments.rank)
    headings = ["ms", *next(iter(times.values()))]
    print(
        markdown_table(headings, [[name, *(f"{value:,.1f}" for value in row.values())] for name, row in times.items()])
    )
    write_result(arguments.out, {"machine": machine("cpu"), "rank": arguments.rank, "megabytes": computed, "ms": times})


if __name__ == "__main__":
    main()
