"""Does the learning rate of full fine-tuning suit slices of every rank?

python -m benchmarks.accuracy.rates --tasks tweets digits --chosen FILE --out rates.jsonl

``--chosen`` is a file of ``benchmarks.accuracy.run``, in which the rate of full fine-tuning was searched. The methods
of the study ``one rate`` train at that rate, without a search of their own: five seeds, and two seeds at half and at
double the rate, which show how much the choice matters.
"""

import argparse
from functools import partial
from pathlib import Path

from benchmarks.accuracy.preparation import NotApplicableError
from benchmarks.accuracy.run import SEEDS, TUNING_SEEDS, train
from benchmarks.accuracy.scores import read_scores
from benchmarks.accuracy.studies import studies
from benchmarks.accuracy.tasks import TASKS
from benchmarks.harness.results import RunLog, argument_parser, result_path

STUDY = "one rate"
FACTORS = {1.0: SEEDS, 0.5: TUNING_SEEDS, 2.0: TUNING_SEEDS}  # of the rate of full fine-tuning; the seeds of each


def chosen_rates(path: Path, tasks: list[str]) -> dict[str, float]:
    """The learning rate of full fine-tuning that validation chose for each task.

    Raises:
        ValueError: The file lacks a finished search.
    """
    scores = read_scores(path)
    if missing := [task for task in tasks if (task, "full") not in scores]:
        raise ValueError(
            f"{path} lacks full fine-tuning of {missing[0]!r}; add it with"
            f" python -m benchmarks.accuracy.run --tasks {missing[0]!r} --methods full --out {path}"
        )
    return {task: scores[task, "full"].rate for task in tasks}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argument_parser(__doc__)
    result.add_argument("--tasks", nargs="+", choices=TASKS, required=True)
    result.add_argument("--methods", nargs="+", choices=studies().methods, default=studies().studies[STUDY])
    result.add_argument("--factors", nargs="+", type=float, choices=FACTORS, default=list(FACTORS))
    result.add_argument("--seeds", type=int, choices=range(1, 6), default=5, help="largest number of seeds")
    rate = result.add_mutually_exclusive_group(required=True)
    rate.add_argument("--chosen", type=Path, help="file with the searched rates of full fine-tuning")
    rate.add_argument("--rate", type=float, help="learning rate, for tasks without such a search")
    result.add_argument("--out", type=result_path, required=True)
    return result


def main() -> None:
    """Make the runs that the file lacks; those at the rate of full fine-tuning first."""
    arguments = parser().parse_args()
    tasks, rate = arguments.tasks, arguments.rate
    rates = chosen_rates(arguments.chosen, tasks) if rate is None else dict.fromkeys(tasks, rate)
    log = RunLog(arguments.out)
    runs = [
        (task, name, float(f"{rates[task] * factor:.3g}"), seed)
        for factor in arguments.factors
        for seed in FACTORS[factor][: arguments.seeds]
        for task in tasks
        for name in arguments.methods
    ]
    for task, name, rate, seed in runs:
        key = {"task": task, "method": name, "lr": rate, "seed": seed}
        try:
            log.get(key, partial(train, TASKS[task], studies().methods[name], rate, seed))
        except NotApplicableError as reason:
            print(f"{task}, {name}: left out. {reason}", flush=True)


if __name__ == "__main__":
    main()
