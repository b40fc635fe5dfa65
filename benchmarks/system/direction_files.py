"""How close does the slice file of slices along directions come to the trained network, and what does it cost?

python -m benchmarks.system.direction_files --out FILE

MiniLM is trained along random directions, or those of the gradient, R = 8, with AdamW at 5e-5, on random tokens: it
tells in which half of the vocabulary the second one is. Then the file is applied to the base. Compared are all trained
matrices: the norm of the difference, relative to the norm of the weights and to that of what training changed, and the
share of entries that are equal; and the outputs for other tokens. Times are single measurements.
"""

import copy
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from benchmarks.harness.machine import machine
from benchmarks.harness.networks import MINILM
from benchmarks.harness.results import argument_parser, markdown_table, result_path, write_result
from slicefine_pl.pretrained import locate
from slicefine_pl.slicing import SliceFile, SliceHandle, SliceTasks, apply_slices, slice_model
from slicefine_pl.slicing.directions import SKETCHED, Basis

RANK, FIRST_MOVE = 8, 10
RUNS: dict[str, tuple[torch.dtype, Basis, int, int | None]] = {  # type, basis, steps, interval
    "float32, 100 steps, 1 position": (torch.float32, "random", 100, None),
    "float32, 100 steps, 2 positions": (torch.float32, "gradient", 100, None),
    "float32, 400 steps, 2 positions": (torch.float32, "gradient", 400, None),
    "float32, 100 steps, 5 positions": (torch.float32, "gradient", 100, 25),
    "bfloat16, 100 steps, 1 position": (torch.bfloat16, "random", 100, None),
    "bfloat16, 100 steps, 2 positions": (torch.bfloat16, "gradient", 100, None),
    "bfloat16, 100 steps, 5 positions": (torch.bfloat16, "gradient", 100, 25),
    "float16, 100 steps, 1 position": (torch.float16, "random", 100, None),
    "float16, 100 steps, 2 positions": (torch.float16, "gradient", 100, None),
}


def tokens(count: int, seed: int) -> Tensor:
    """Random tokens, shape ``(count, 32)``."""
    return torch.randint(1000, 20_000, (count, 32), generator=torch.Generator().manual_seed(seed))


def train(net: nn.Module, basis: Basis, steps: int, interval: int | None) -> SliceHandle:
    """Train slices along directions; they stay open."""
    handle = slice_model(net, RANK, also_train=[], exclude="pooler", basis=basis, slice_dtype="float32")
    optimizer = torch.optim.AdamW([each for each in net.parameters() if each.requires_grad], 5e-5)
    head = torch.randn(384, 2, generator=torch.Generator().manual_seed(0))
    for step in range(1, steps + 1):
        words = tokens(4, step)
        optimizer.zero_grad()
        logits = net(words).last_hidden_state[:, 0].float() @ head
        loss = nn.functional.cross_entropy(logits, (words[:, 1] > 10_000).long())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if (step == FIRST_MOVE and basis in SKETCHED) or (interval and step % interval == 0 and step < steps):
            for moved in handle.move():
                optimizer.state.pop(moved.parameter, None)
    return handle


def distances(net: nn.Module, applied: nn.Module, base: nn.Module, file: SliceFile) -> dict[str, float]:
    """How far the base with the file is from the trained network."""
    error = change = size = equal = count = 0.0
    for each in file.directions:
        trained, ours, before = (own.get_parameter(each.parameter).detach() for own in (net, applied, base))
        error += float((ours.double() - trained.double()).square().sum())
        change += float((trained.double() - before.double()).square().sum())
        size += float(trained.double().square().sum())
        equal, count = equal + int((ours == trained).sum()), count + ours.numel()
    with torch.no_grad():
        expected, found = (own.eval()(tokens(8, 0)).last_hidden_state.double() for own in (net, applied))
    return {
        "change / weights": (change / size) ** 0.5,
        "error / weights": (error / size) ** 0.5,
        "error / change": (error / change) ** 0.5,
        "equal entries": equal / count,
        "error of outputs": float((found - expected).norm() / expected.norm()),
    }


def timed(action: Callable[[], Any]) -> tuple[Any, float]:
    """What an action returns, and its time in milliseconds."""
    start = time.perf_counter()
    result = action()
    return result, round(1e3 * (time.perf_counter() - start), 1)


def measure(start: nn.Module, dtype: torch.dtype, basis: Basis, steps: int, interval: int | None) -> dict[str, float]:
    """Train, save, apply and compare."""
    base = copy.deepcopy(start).to(dtype)
    net = copy.deepcopy(base)
    handle = train(net, basis, steps, interval)
    record = sum(_bytes(state["visited_directions"]) for state in handle.state_dict()["slices"].values())
    handle.close()
    with tempfile.TemporaryDirectory() as scratch:
        plain, with_base = Path(scratch) / "plain", Path(scratch) / "with_base"
        file, save_ms = timed(lambda: handle.save(plain))
        handle.save(with_base, base=base)
        applied, twin = copy.deepcopy(base), copy.deepcopy(base)
        _, apply_ms = timed(lambda: apply_slices(applied, plain))
        tasks = SliceTasks(twin, {"task": file})
        _, there_ms = timed(lambda: tasks.use("task"))
        _, back_ms = timed(lambda: tasks.use(None))
        costs = {
            "MB": plain.stat().st_size / 1e6, "MB with base": with_base.stat().st_size / 1e6,
            "MB of state": record / 1e6, "ms save": save_ms, "ms apply": apply_ms, "ms to the task": there_ms,
            "ms to the base": back_ms,
        }  # fmt: skip
    return {**distances(net, applied, base, file), **costs}


def _bytes(state: Mapping[str, Any]) -> int:
    return sum(each.nbytes for each in state.values() if torch.is_tensor(each))


def main() -> None:
    """Measure all runs and print a table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--out", type=result_path)
    arguments = parser.parse_args()
    start: Any = AutoModel.from_pretrained(locate(MINILM))
    found = {name: measure(start, *settings) for name, settings in RUNS.items()}
    headings = ["", *next(iter(found.values()))]
    print(markdown_table(headings, [[name, *(f"{each:.3g}" for each in row.values())] for name, row in found.items()]))
    write_result(arguments.out, {"machine": machine("cpu"), "rank": RANK, "runs": found})


if __name__ == "__main__":
    main()
