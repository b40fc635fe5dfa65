"""``slicefine file``, ``apply`` and ``remove`` on folders that transformers wrote, against the trained network."""

import copy
import json
import re

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from peft import PeftModel
from torch import optim
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification, BertModel

from slicefine_pl import SliceFineCallback
from slicefine_pl.cli.main import main
from slicefine_pl.slicing import slice_model

SIZE = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "vocab_size": 30,
    "max_position_embeddings": 16,
}


@pytest.fixture
def folders(tmp_path):
    """A base without a head, the trained network with a new head, and two slice files."""
    return tmp_path, trained(tmp_path)


def trained(tmp_path, moves=4, **settings):
    torch.manual_seed(0)
    bert = BertModel(BertConfig(**SIZE))
    bert.save_pretrained(tmp_path / "base")
    net = BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    base = copy.deepcopy(net)
    handle = slice_model(net, 2, targets="query|dense", also_train="classifier", **settings)
    optimizer = optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for step in range(4):
        tokens = torch.randint(30, (4, 6))
        net(tokens, labels=torch.randint(3, (4,))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step < moves:
            handle.move()
    handle.save(tmp_path / "a.safetensors", "some/bert")
    handle.save(tmp_path / "b.safetensors", base=base)
    handle.close()
    return net


def load(folder):
    return BertForSequenceClassification.from_pretrained(folder, num_labels=3)


def test_a_folder_is_turned_into_the_trained_network_and_back(folders, capsys):
    root, net = folders
    assert main(["apply", str(root / "base"), str(root / "a.safetensors"), str(root / "trained")]) == 0
    for name, value in load(root / "trained").state_dict().items():
        assert torch.equal(value, net.state_dict()[name]), name
    assert main(["remove", str(root / "trained"), str(root / "b.safetensors"), str(root / "back")]) == 0
    back = BertModel.from_pretrained(root / "back").state_dict()
    assert all(
        torch.equal(value, back[name]) for name, value in BertModel.from_pretrained(root / "base").state_dict().items()
    )
    assert "matrices contain what slices trained" in capsys.readouterr().out


def test_a_single_file_and_parts(folders):
    root, net = folders
    whole = root / "base" / "model.safetensors"
    assert main(["apply", str(whole), str(root / "a.safetensors"), str(root / "trained.safetensors")]) == 0
    BertModel.from_pretrained(root / "base").save_pretrained(root / "parts", max_shard_size="2KB")
    assert len(list((root / "parts").glob("*.safetensors"))) > 1
    assert main(["apply", str(root / "parts"), str(root / "a.safetensors"), str(root / "trained")]) == 0
    assert (root / "trained" / "model.safetensors").read_bytes() == (root / "trained.safetensors").read_bytes()
    assert torch.equal(load(root / "trained").classifier.weight, net.classifier.weight)


def test_of_the_other_files_only_those_of_the_trained_model_are_copied(folders):
    root, _ = folders
    for name in ("tokenizer.json", "2_Dense/model.safetensors", "onnx/model.onnx", "tf_model.h5", "pytorch_model.bin"):
        (root / "base" / name).parent.mkdir(exist_ok=True)
        (root / "base" / name).write_text("other")
    assert main(["apply", str(root / "base"), str(root / "a.safetensors"), str(root / "trained")]) == 0
    files = {str(each.relative_to(root / "trained")) for each in (root / "trained").rglob("*") if each.is_file()}
    assert files == {"config.json", "model.safetensors", "tokenizer.json", "2_Dense/model.safetensors"}


def test_what_is_in_a_file(folders, capsys):
    root, _ = folders
    assert main(["file", str(root / "a.safetensors")]) == 0
    text = capsys.readouterr().out
    assert "Base model: some/bert" in text
    assert "rank=2" in text
    assert "does not contain the values of the base" in text
    assert main(["file", str(root / "b.safetensors"), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["lines"][0]["matrix"] == "bert.encoder.layer.0.attention.self.query.weight"
    assert content["lines"][0]["base"]
    assert content["whole"]["classifier.weight"] == [3, 8]


def test_a_small_checkpoint_is_completed(folders, tmp_path):
    """As a run of SliceFineCallback(checkpoint="slices") leaves it."""
    root, _ = folders

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.model = load(root / "base")

        def training_step(self, batch, batch_idx):
            return self.model(batch[0], labels=batch[1]).loss

        def configure_optimizers(self):
            return optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)

    torch.manual_seed(4)
    module = Module()
    data = DataLoader(TensorDataset(torch.randint(30, (8, 6)), torch.randint(3, (8,))), batch_size=4)
    slices = SliceFineCallback(rank=2, interval=1, also_train="classifier", checkpoint="slices")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(callbacks=[slices], max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "small.ckpt")
    arguments = [str(root / "base"), str(tmp_path / "small.ckpt"), str(tmp_path / "merged")]
    assert main(["merge", *arguments]) == 0
    for name, value in load(tmp_path / "merged").state_dict().items():
        assert torch.equal(value, module.model.state_dict()[name]), name


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_computes_what_was_trained(folders, capsys):
    root, net = folders
    name = ["--class", "BertForSequenceClassification", "--labels", "3"]
    where = [str(root / "a.safetensors"), str(root / "lora"), "--base", str(root / "base")]
    assert main(["to-lora", *where, *name]) == 0
    assert re.search(r"modules, rank 8, 0\.0\d MB", capsys.readouterr().out)
    adapted = PeftModel.from_pretrained(load(root / "base"), root / "lora").eval()
    tokens = torch.randint(30, (4, 6))
    torch.testing.assert_close(adapted(tokens).logits, net.eval()(tokens).logits, rtol=1e-5, atol=1e-6)
    assert main(["to-lora", *where, *name, "--max-rank", "2"]) == 0
    assert "of the change is lost" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_directions(tmp_path, capsys):
    """apply, remove, merge into an adapter, and the content; the trained network itself cannot be turned back."""
    net = trained(tmp_path, moves=1, basis="random")
    root = str(tmp_path)
    assert main(["apply", f"{root}/base", f"{root}/b.safetensors", f"{root}/trained"]) == 0
    assert "matrices contain what slices trained" in capsys.readouterr().out
    for name, value in load(tmp_path / "trained").state_dict().items():
        torch.testing.assert_close(value, net.state_dict()[name], rtol=1e-5, atol=1e-6, msg=name)
    assert main(["remove", f"{root}/trained", f"{root}/b.safetensors", f"{root}/back"]) == 0
    back = BertModel.from_pretrained(tmp_path / "back").state_dict()
    for name, value in BertModel.from_pretrained(tmp_path / "base").state_dict().items():
        assert torch.equal(value, back[name]), name
    net.save_pretrained(tmp_path / "own")
    for file, message in (("b", "differs by rounding from the one"), ("a", "use the base model, or save with base=")):
        assert main(["remove", f"{root}/own", f"{root}/{file}.safetensors", f"{root}/out"]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["file", f"{root}/a.safetensors"]) == 0
    assert re.search(r"query\.weight +.? *4 directions +.? *\[8, 8\]", capsys.readouterr().out)
    assert main(["file", f"{root}/b.safetensors", "--json"]) == 0
    [first, *_] = json.loads(capsys.readouterr().out)["directions"]
    assert first["directions"] == 4
    assert first["base"]
    where = ["--base", f"{root}/base", "--class", "BertForSequenceClassification", "--labels", "3"]
    assert main(["to-lora", f"{root}/a.safetensors", f"{root}/lora", *where]) == 0
    assert "modules, rank 4" in capsys.readouterr().out
    adapted = PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "lora").eval()
    tokens = torch.randint(30, (4, 6))
    torch.testing.assert_close(adapted(tokens).logits, net.eval()(tokens).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["file", "none"], "slice file '.*none' does not exist"),
        (["file", "base/model.safetensors"], "is a safetensors file, but not a slice file"),
        (["apply", "none", "a.safetensors", "out"], "none' is not a"),
        (["apply", "empty", "a.safetensors", "out"], "contains neither model.safetensors nor"),
        (["apply", "other", "a.safetensors", "out"], "has other values than the base model of the file"),
        (["apply", "base", "a.safetensors", "base"], "base' exists; give a new name"),
        (["apply", "base", "a.safetensors", "base/out"], "base/out' lies inside of '.*base', which is copied"),
        (["apply", "index", "a.safetensors", "out"], "index.json' is damaged .KeyError: 'weight_map'"),
        (["to-lora", "b.safetensors", "out"], "does not name its base model; give --base"),
        (["remove", "base", "a.safetensors", "out"], "does not contain the base's values"),
        (["remove", "other", "b.safetensors", "out"], "lacks 'classifier"),
    ],
)
def test_errors_are_one_sentence_and_leave_nothing(folders, arguments, message, capsys):
    root, _ = folders
    (root / "empty").mkdir()
    (root / "index").mkdir()
    (root / "index" / "model.safetensors.index.json").write_text("{}")
    torch.manual_seed(1)
    BertModel(BertConfig(**SIZE)).save_pretrained(root / "other")
    before = sorted(root.rglob("*"))
    capsys.readouterr()
    assert main([arguments[0], *(str(root / each) for each in arguments[1:])]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1
    assert sorted(root.rglob("*")) == before
