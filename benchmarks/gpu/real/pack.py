"""Write what the section ``real`` needs on a machine without a network: weights, texts, and accuracies on a CPU.

python -m benchmarks.gpu.real.pack

Makes ``benchmarks/gpu/real/packed``: MiniLM in half precision (45 MB) without dropout, whose random numbers differ
between devices; film reviews; and the test accuracies of the same training on this machine's CPU. Git ignores the
folder. Copy it along with the checkout. Needs the packages of the text recipe, and minutes on two CPU cores.
"""

import csv
import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from benchmarks.gpu.real.reviews import PACKED, REFERENCE, SEEDS, STEPS, TEXTS, train
from benchmarks.harness.machine import machine
from benchmarks.harness.networks import MINILM
from benchmarks.harness.results import argument_parser, write_result
from slicefine_pl.data.text.demo import load_demo
from slicefine_pl.files.atomic import atomic_folder
from slicefine_pl.pretrained import locate

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def pack(folder: Path) -> None:
    """Write weights, tokenizer and texts to a folder that does not exist yet."""
    source = Path(locate(MINILM))
    folder.mkdir()
    weights = load_file(source / "model.safetensors")
    halved = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    save_file(halved, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    for name in TOKENIZER:
        shutil.copy(source / name, folder / name)
    table = load_demo("reviews", ratings=False)
    with (folder / TEXTS).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(zip(table.columns[0], table.labels, strict=True))


def main() -> None:
    argument_parser(__doc__).parse_args()
    with atomic_folder(PACKED) as folder:
        pack(folder)
    accuracies = [train(seed, "cpu", STEPS["cuda"]) for seed in SEEDS]
    write_result(PACKED / REFERENCE, {"machine": machine("cpu"), "accuracy": accuracies})
    size = sum(path.stat().st_size for path in PACKED.iterdir())
    print(f"{PACKED}: {size / 1e6:.1f} MB; accuracies on this CPU {accuracies}")


if __name__ == "__main__":
    main()
