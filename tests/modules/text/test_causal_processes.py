"""Two processes (gloo) with different numbers of tokens: gradient and loss equal those of one process."""

import pytest
import torch
from helpers import processes
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from slicefine_pl.data.text.completions import IGNORED, CausalLMCollator
from slicefine_pl.modules import CausalLanguageModel

ITEMS = [([2, 7, 8, 9], 3), ([2, 6, 7, 8, 9, 10, 11, 12], 1), ([2, 9, 3], 2), ([2, 10, 11, 12, 13, 14, 3], 1)]


def loader(size):
    """With two processes, one gets items 0 and 2 with two labels, the other 1 and 3 with thirteen."""
    items = [{"input_ids": tokens, "labels": [IGNORED] * start + tokens[start:]} for tokens, start in ITEMS]
    return DataLoader(items, batch_size=size, collate_fn=CausalLMCollator(0), shuffle=False)


class Spy(CausalLanguageModel):
    """Keeps the gradients of its step."""

    def on_before_optimizer_step(self, optimizer):
        self.gradients = {name: parameter.grad.numpy() for name, parameter in self.named_parameters()}


def spied(folder, model):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = Trainer(default_root_dir=folder, accelerator="cpu", strategy="ddp", devices=2, max_epochs=1, **quiet)
    [scores] = trainer.validate(Spy(model, samples=1), loader(2), verbose=False)
    module = Spy(model, samples=0)
    trainer.fit(module, loader(2))
    return module.gradients, scores


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore")
def test_every_token_counts_the_same_on_whichever_process(tiny_llama, tmp_path):
    module = CausalLanguageModel(str(tiny_llama))
    [batch] = loader(4)
    total, count = module.token_loss(batch)
    (total / count).backward()
    for gradients, scores in processes.run(spied, 2, tmp_path, str(tiny_llama)):
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(torch.tensor(gradients[name]), parameter.grad, rtol=1e-4, atol=1e-6)
        assert scores["val/loss"] == pytest.approx((total / count).item(), rel=1e-5)
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 1
