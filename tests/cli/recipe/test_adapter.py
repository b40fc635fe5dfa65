"""``fit --export lora``: peft with the adapter computes what the trained network computes."""

from pathlib import Path

import pytest
import torch

from slicefine_pl.callbacks import SliceFineCallback
from slicefine_pl.cli.recipe.adapter import check_adapter
from slicefine_pl.modules import ImageClassifier, TextClassifier

SLICES = ("--slicefine", "SliceFineCallback", "--slicefine.rank", "2")
FOLDER = Path("runs/t/version_0")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quiet")]


@pytest.mark.parametrize("basis", ["standard", "random"])
def test_fit_writes_an_adapter_instead_of_the_model_and_prints_code_that_loads_it(recipe, capsys, basis):
    recipe("fit", *SLICES, "--slicefine.basis", basis, "--slicefine.interval", "6", "--export", "lora")
    output = capsys.readouterr().out
    assert "LoRA adapter" in output
    assert "modules, rank" in output
    assert sorted(path.name for path in FOLDER.iterdir() if path.is_dir()) == ["checkpoints", "lora"]
    code, names = output.partition("Use it with peft:\n\n")[2], {}
    exec(code, names)
    trained = TextClassifier.load_from_checkpoint(FOLDER / "checkpoints" / "best.ckpt").eval().model
    tokens = {"input_ids": torch.randint(5, 20, (4, 6)), "attention_mask": torch.ones(4, 6, dtype=torch.int64)}
    with torch.no_grad():
        ours, peft = trained(**tokens).logits, names["model"](**tokens).logits
    assert (ours - peft).norm() / ours.norm() < 1e-5
    assert not torch.equal(ours[0], ours[1])  # else the comparison would say little


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--slicefine", "null"), "this run trains all weights"),
        ((*SLICES, "--sparsity.pattern", "2:4"), "this run prunes"),
    ],
)
def test_a_run_that_cannot_end_in_an_adapter_is_refused_before_it_trains(refused, flags, reason):
    message = refused("fit", *flags, "--export", "lora")
    assert reason in message
    assert "leave it out" in message
    assert not FOLDER.exists()


def test_what_peft_cannot_express_is_one_sentence_and_the_slice_file_is_there(refused):
    """A bias that is trained beside its sliced weight."""
    message = refused("fit", *SLICES, "--slicefine.also_train", "classifier|query.bias", "--export", "lora")
    assert "query.bias" in message
    assert "slicefine to-lora" in message
    assert (FOLDER / "slices.safetensors").is_file()
    assert not (FOLDER / "lora").exists()


def test_training_on_top_of_a_slice_file_is_refused_before_it_trains(recipe, refused):
    """The adapter would be one of the base, without what the first file contains."""
    recipe("fit", *SLICES)
    message = refused("fit", "--model.slices", str(FOLDER / "slices.safetensors"), *SLICES, "--export", "lora")
    assert "the base is that of --model.slices" in message
    assert not FOLDER.with_name("version_1").exists()


def test_without_a_slice_file_there_is_an_error(refused, monkeypatch):
    def save(*_):
        raise ValueError("a frozen weight has changed")

    monkeypatch.setattr(SliceFineCallback, "save", save)
    message = refused("fit", *SLICES, "--export", "lora")
    assert "There is no slice file to make an adapter from" in message
    assert (FOLDER / "checkpoints" / "best.ckpt").is_file()


def test_an_image_network_with_random_weights_is_refused():
    module = ImageClassifier("timm/test_vit@random", num_classes=3)
    with pytest.raises(ValueError, match="the base has random weights"):
        check_adapter(module, SliceFineCallback(), pruned=False, sharded=False, other_base=False)
