"""Two real processes (gloo) with unequal numbers of tokens: gradient and loss are those of one process with all."""

import json
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader

from slicefine_pl.data.text.completions import IGNORED, PadExamples
from slicefine_pl.modules import CausalLanguageModel

SCRIPT = """
import sys

sys.path.insert(0, {tests!r})
import test_causal_processes as t
from lightning.pytorch import Trainer


class Spy(t.CausalLanguageModel):
    def on_before_optimizer_step(self, optimizer):
        gradients = {{name: parameter.grad for name, parameter in self.named_parameters()}}
        t.torch.save(gradients, f"{folder}/rank{{self.global_rank}}.pt")

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        scores = {{name: float(value) for name, value in self.trainer.callback_metrics.items()}}
        open(f"{folder}/rank{{self.global_rank}}.json", "w").write(t.json.dumps(scores))


if __name__ == "__main__":
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = Trainer(default_root_dir={folder!r}, accelerator="cpu", strategy="ddp", devices=2, max_epochs=1, **quiet)
    trainer.validate(Spy({model!r}, samples=1), t.loader(2), verbose=False)
    trainer.fit(Spy({model!r}, samples=0), t.loader(2))
"""
ITEMS = [([2, 7, 8, 9], 3), ([2, 6, 7, 8, 9, 10, 11, 12], 1), ([2, 9, 3], 2), ([2, 10, 11, 12, 13, 14, 3], 1)]


def loader(size):
    """With two processes, one gets items 0 and 2 with two labels, the other 1 and 3 with thirteen."""
    items = [{"input_ids": tokens, "labels": [IGNORED] * start + tokens[start:]} for tokens, start in ITEMS]
    return DataLoader(items, batch_size=size, collate_fn=PadExamples(0), shuffle=False)


@pytest.mark.filterwarnings("ignore")
def test_every_token_counts_the_same_on_whichever_process(tiny_llama, tmp_path, request):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(tests=str(request.path.parent), folder=str(tmp_path), model=str(tiny_llama)))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    module = CausalLanguageModel(str(tiny_llama))
    [batch] = loader(4)
    total, count = module.token_loss(batch)
    (total / count).backward()
    for rank in (0, 1):
        gradients = torch.load(tmp_path / f"rank{rank}.pt")
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)
        scores = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert scores["val/loss"] == pytest.approx((total / count).item(), rel=1e-5)
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 1
