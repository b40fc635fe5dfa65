"""How much of what slices learn is left in a LoRA adapter of a smaller rank?

python -m benchmarks.accuracy.adapters --tasks tweets --methods METHOD --chosen FILE --out FILE

Slices train at the rate of full fine-tuning. :func:`slicefine_pl.slicing.export_lora` then writes an adapter for each
value of ``--ranks``, and one with the whole change (rank ``null`` in the file). peft loads it onto the base, and this
network is scored. Each score is a line of the file.
"""

import argparse
import tempfile
from collections.abc import Callable
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from peft import PeftModel

from benchmarks.accuracy.preparation import slice_callback
from benchmarks.accuracy.rates import chosen_rates
from benchmarks.accuracy.run import SEEDS, fit, score
from benchmarks.accuracy.studies import SLICES, MethodConfig, studies
from benchmarks.accuracy.tasks import TASKS, Task
from benchmarks.harness.lightning import QUIET
from benchmarks.harness.results import Row, RunLog, argument_parser, result_path
from slicefine_pl.slicing import SliceFile, export_lora

Trained = tuple[Any, LightningDataModule, SliceFile, Any]  # module, data, what was trained, and the base


def train_slices(task: Task, method: MethodConfig, rate: float, seed: int) -> Trained:
    """Train slices; returns the module, its data, the slice file and the base."""
    seed_everything(seed, verbose=False)
    module, data = task.build(seed, rate, task.head_lr)
    base = deepcopy(module.model)
    slices = slice_callback(method, seed, None)
    fit(task, module, data, [slices])
    with tempfile.TemporaryDirectory() as folder:
        return module, data, slices.save(Path(folder) / "slices.safetensors"), base


def score_adapter(task: Task, trained: Callable[[], Trained], rank: int | None) -> Row:
    """Scores of the base with an adapter of a rank, its size, and the error of the change."""
    module, data, slices, base = trained()
    with tempfile.TemporaryDirectory() as folder:
        export = export_lora(slices, base, folder, max_rank=rank)
        module.model = PeftModel.from_pretrained(deepcopy(base), folder).merge_and_unload()
    return {
        **score(task, module, data, Trainer(**QUIET)),
        "adapter_bytes": export.num_bytes,
        "lost": export.total_lost,
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    methods = [name for name, method in studies().methods.items() if method.kind in SLICES]
    result = argument_parser(__doc__)
    result.add_argument("--tasks", nargs="+", choices=TASKS, required=True)
    result.add_argument("--methods", nargs="+", choices=methods, required=True)
    result.add_argument("--ranks", nargs="+", type=int, default=[16, 4, 1])
    result.add_argument("--seeds", type=int, choices=range(1, 6), default=5, help="number of seeds")
    result.add_argument("--chosen", type=Path, required=True, help="file with the searched rates of full fine-tuning")
    result.add_argument("--out", type=result_path, required=True)
    return result


def main() -> None:
    """Train what the file lacks, and score its adapters."""
    arguments = parser().parse_args()
    rates = chosen_rates(arguments.chosen, arguments.tasks)
    log = RunLog(arguments.out)
    for seed in SEEDS[: arguments.seeds]:
        for task in arguments.tasks:
            for name in arguments.methods:
                trained = cache(partial(train_slices, TASKS[task], studies().methods[name], rates[task], seed))
                for rank in (None, *arguments.ranks):
                    key = {"task": task, "method": name, "lr": rates[task], "seed": seed, "rank": rank}
                    log.get(key, partial(score_adapter, TASKS[task], trained, rank))


if __name__ == "__main__":
    main()
