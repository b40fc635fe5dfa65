"""Our callbacks with those of others: they work together, or an error names the cause."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning, LambdaCallback, ModelPruning
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

from slicefine_pl import SliceFineCallback, SparsityCallback


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
        self.head = nn.Linear(5, 3)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Thaw(BaseFinetuning):
    """Freeze nothing before training, and unfreeze later."""

    def freeze_before_training(self, pl_module):
        pass

    def finetune_function(self, pl_module, epoch, optimizer):
        self.unfreeze_and_add_param_group(pl_module.backbone, optimizer)


class Narrow(SliceFineCallback):
    pass


class Sparse(SparsityCallback):
    pass


def sliced() -> SliceFineCallback:
    return SliceFineCallback(rank=2, targets="backbone", also_train="head", interval=3)


def pruned() -> SparsityCallback:
    return SparsityCallback(targets="backbone", start=1, end=4, interval=1)


def fit(*callbacks, module=None, **settings) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "max_epochs": 2}
    trainer = Trainer(callbacks=list(callbacks), **(quiet | settings))
    trainer.fit(module or Module(), loader())
    return trainer


def loader(batches=4) -> DataLoader:
    return DataLoader(TensorDataset(torch.randn(4 * batches, 6), torch.randint(3, (4 * batches,))), batch_size=4)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (
            sliced,
            lambda: ModelPruning("l1_unstructured", amount=0.5),
            "ModelPruning does not work with SliceFine.*Spars",
        ),
        (
            pruned,
            lambda: ModelPruning("l1_unstructured", amount=0.5),
            "ModelPruning does not work with SparsityCallback",
        ),
        (
            sliced,
            BackboneFinetuning,
            "BackboneFinetuning does not work with SliceFine.* which parameters require a grad",
        ),
        (sliced, Thaw, "Thaw does not work with SliceFineCallback: both set which parameters require a gradient"),
        (sliced, sliced, "2 callbacks of the kind SliceFineCallback .*Keep one; targets takes a list"),
        (sliced, lambda: Narrow(rank=2), "2 callbacks of the kind SliceFineCallback .*Keep one; targets takes a list"),
        (pruned, lambda: Sparse(targets="backbone"), "2 callbacks of the kind SparsityCallback"),
    ],
)
def test_conflicts_are_refused_before_the_first_step(ours, theirs, message, first):
    module, both = Module(), [ours(), theirs()]
    with pytest.raises(MisconfigurationException, match=message):
        fit(*(both if first else both[::-1]), module=module)
    assert type(module.backbone[0]) is nn.Linear


def test_a_callback_of_the_module_replaces_that_of_the_trainer():
    class Brings(Module):
        def configure_callbacks(self):
            return [sliced()]

    module = Brings()
    before = module.backbone[0].bias.clone()
    fit(sliced(), module=module)
    assert torch.equal(module.backbone[0].bias, before)  # frozen, so slices were trained


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        (sliced, "torch.nn.utils.prune cannot replace the weight of a layer while its slices are open"),
        (pruned, r"backbone\.0\.weight is no longer a parameter: other code has replaced it"),
    ],
)
@pytest.mark.parametrize("recorded", [True, False])
def test_pruning_by_torch_during_a_run_is_reported(ours, message, recorded):
    def cut(trainer, pl_module):
        with torch.set_grad_enabled(recorded):
            prune.l1_unstructured(pl_module.backbone[0], "weight", 0.5)

    with pytest.raises(RuntimeError, match=message):
        fit(ours(), LambdaCallback(on_train_epoch_start=cut))
