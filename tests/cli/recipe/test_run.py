"""The command line: settings, early refusals, and a whole fit with its report, in this process."""

import logging
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from safetensors.torch import load_file

from slicefine_pl.callbacks import SliceFineCallback
from slicefine_pl.cli import run
from slicefine_pl.cli.recipe.preflight import check_checkpoint, check_output_folder
from slicefine_pl.data import TextDataModule
from slicefine_pl.modules import TextClassifier

NOUNS = ("film", "movie", "plot", "acting")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quiet")]


@pytest.mark.slow
def test_fit_tests_exports_and_reports_then_predicts_from_both(recipe, capsys):
    recipe("fit")
    output = capsys.readouterr().out
    for part in (
        "test/accuracy before",
        "test/accuracy after",
        "trained parameters",
        "from transformers import pipeline",
    ):
        assert part in output
    folder = Path("runs/t/version_0")
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert (saved["model"]["lr"], saved["trainer"]["max_epochs"]) == (0.01, 2)
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints", "config.yaml", "export", "hparams.yaml", "metrics.csv", "slices.safetensors",
    ]  # fmt: skip

    Path("lines.txt").write_text("good film\nbad film movie\n")
    answers = []
    best = folder / "checkpoints" / "best.ckpt"
    for model in (("--ckpt_path", str(best)), ("--model.backbone", str(folder / "export"))):
        recipe("predict", *model, "--data.predict_file", "lines.txt")
        answers.append(capsys.readouterr().out.splitlines())
    assert answers[0] == answers[1]
    shares = [line.split("\t") for line in answers[0]]
    assert [text for _, text in shares] == ["good film", "bad film movie"]
    words = shares[0][0].split()
    assert {words[0], words[2]} == {"True", "False"}
    assert float(words[1]) + float(words[3]) == pytest.approx(1, abs=1e-3)
    assert [path.name for path in Path("runs/t").iterdir()] == ["version_0"]  # predicting leaves no folder behind

    recipe("fit", "--trainer.max_epochs", "3", "--ckpt_path", str(folder / "checkpoints" / "last.ckpt"))
    assert Path("runs/t/version_1/export/model.safetensors").is_file()
    recipe("test", "--ckpt_path", str(best))
    assert not list(Path("runs/t").glob("version_2/config.yaml"))


def test_classes_without_arguments_have_a_command_line(tmp_path, monkeypatch, capsys):
    """Their sections are missing from the settings."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(
        "trainer: {max_steps: 2, accelerator: cpu, logger: false, enable_progress_bar: false}"
    )
    for words in (["fit"], ["predict", "--ckpt_path", "checkpoints/epoch=0-step=2.ckpt"]):
        monkeypatch.setattr("sys.argv", ["recipe", *words])
        run(BoringModel, BoringDataModule, Path("recipe.yaml"))
    predicted = [line for line in capsys.readouterr().out.splitlines() if "\t" in line]
    assert [line.partition("\t")[2] for line in predicted] == [str(number) for number in range(64)]


@pytest.mark.parametrize("text", ["great #film", "null", "~", "007", "[a, b]", "--config"])
def test_a_text_to_predict_is_text(recipe, tiny_bert, capsys, text):
    TextClassifier(str(tiny_bert), label_names=["no", "1"]).export("export")
    recipe("predict", "--model.backbone", "export", "--data.predict_text", text)
    shares, shown = capsys.readouterr().out.rstrip("\n").split("\t")
    assert shown == text
    assert {*shares.split()[::2]} == {"no", "1"}


def test_a_text_that_is_none_is_refused(refused):
    assert "nothing to predict; give predict_text" in refused("predict", "--data.predict_text", "")
    assert "predict_text=' ' is blank; give a text" in refused("predict", "--data.predict_text", " ")
    output = refused("predict", "--data.predict_text", "caf\udce9")
    assert r"predict_text is the text 'caf\udce9', where character 4 is not Unicode" in output


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--slicefine.rank", "0"], "rank=0 is not a number of rows or columns; choose an integer of at least 1."),
        (
            ["--sparsity", "SparsityCallback", "--sparsity.sparsity", "1.5"],
            "sparsity=1.5 is out of range; choose a number",
        ),
    ],
)
def test_a_wrong_setting_of_a_callback_is_one_sentence(recipe, capsys, flags, reason):
    """jsonargparse puts the sentence into a list of what each type of a union refused."""
    with pytest.raises(SystemExit):
        recipe("fit", *flags)
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert line.startswith(f"error: {reason}")


def test_label_names_are_texts(recipe, tiny_bert):
    """In the settings that are saved, and so in the next run, too."""
    rows = [f"{word} {a} {b},{int(word == 'good')}" for word in ("good", "bad") for a in NOUNS for b in NOUNS]
    Path("data.csv").write_text("\n".join(["text,label", *rows]))
    short = ("--trainer.max_steps", "1", "--trainer.callbacks", "null", "--trainer.logger.init_args.version")
    recipe("fit", *short, "flag", "--data.label_names", "[no, yes]")
    recipe("fit", "--config", "runs/t/flag/config.yaml", *short, "file")
    for version in ("flag", "file"):
        assert TextClassifier(f"runs/t/{version}/export").label_names == ["no", "yes"]


@pytest.mark.slow
def test_a_model_of_pairs_predicts_pairs(recipe, refused, capsys):
    words = [(one, two) for one in ("good", "bad") for two in ("good", "bad")]
    both = [f"{one} {a},{two} {b},{one == two}" for one, two in words for a in NOUNS for b in NOUNS]
    Path("data.csv").write_text("\n".join(["title,body,label", *both]))
    recipe("fit", "--data.text_columns", "[title, body]", "--trainer.max_epochs", "1", "--trainer.callbacks", "null")
    assert 'print(classify({"text": "what' in capsys.readouterr().out
    folder = Path("runs/t/version_0")
    Path("pairs.csv").write_text("title,body\ngood,bad plot\n")
    [checkpoint] = folder.glob("checkpoints/*.ckpt")
    for model in (("--ckpt_path", str(checkpoint)), ("--model.backbone", str(folder / "export"))):
        recipe("predict", *model, "--data.predict_text", "good", "--data.predict_text_pair", "bad plot")
        recipe("predict", *model, "--data.predict_file", "pairs.csv")
        one, other = capsys.readouterr().out.splitlines()
        assert one == other
        assert one.endswith("\tgood\tbad plot")
        output = refused("predict", *model, "--data.predict_text", "good")
        assert (
            "trained on pairs of texts (title, body), and these are single texts; give a pair as predict_text" in output
        )


@pytest.mark.slow
def test_a_random_start_is_said_only_where_no_weights_are_loaded(recipe, tiny_bert, recwarn):
    blank = shutil.copytree(tiny_bert, "blank", ignore=shutil.ignore_patterns("*.safetensors"))
    model, last = ("--model.backbone", str(blank)), ("--ckpt_path", "runs/t/version_0/checkpoints/last.ckpt")

    def said(*arguments):
        recwarn.clear()
        recipe(*arguments)
        return [warning for warning in recwarn if "they are random" in str(warning.message)]

    assert len(said("fit", *model, "--trainer.max_epochs", "1")) == 1
    assert not said("test", *model, *last)
    assert not said("predict", *model, *last, "--data.predict_text", "good film")
    assert not said("fit", *last)
    assert said("fit", *model)


def test_an_export_is_scored_before_on_what_the_new_fit_shows(recipe, capsys):
    recipe("fit")
    capsys.readouterr()
    recipe("fit", "--model.backbone", "runs/t/version_0/export", "--data.max_length", "8", "--score_before", "true")
    assert "(pretrained network)" in capsys.readouterr().out


def test_without_a_test_split_the_table_shows_validation_under_its_own_name(recipe, refused, capsys, monkeypatch):
    def absent(self):
        raise ValueError("data.root='d' has no test split")

    monkeypatch.setattr(TextDataModule, "has_test", False, raising=False)
    monkeypatch.setattr(TextDataModule, "test_dataloader", absent)
    recipe("fit")
    output = capsys.readouterr().out
    assert "val/accuracy after" in output
    assert "test/" not in output
    assert Path("runs/t/version_0/export/model.safetensors").is_file()
    assert refused("test", "--ckpt_path", "runs/t/version_0/checkpoints/best.ckpt").endswith("'d' has no test split")


def test_slices_along_directions_have_a_slice_file(recipe):
    """It gives the network of the best checkpoint, which is that of an earlier step."""
    settings = ("rank", "2"), ("basis", "random"), ("interval", "6")
    flags = [each for name, value in settings for each in (f"--slicefine.{name}", value)]
    recipe("fit", "--slicefine", "SliceFineCallback", *flags)
    folder = Path("runs/t/version_0")
    ours = TextClassifier.from_slices(folder / "slices.safetensors").state_dict()
    best = TextClassifier.load_from_checkpoint(folder / "checkpoints" / "best.ckpt").state_dict()
    for name, value in best.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("changed", [False, True])
def test_a_slice_file_lies_beside_the_export_if_slices_explain_the_network(recipe, recwarn, monkeypatch, changed):
    """Some callbacks change frozen weights: the fit succeeds without a slice file."""

    def change(self, outputs, batch, batch_idx):
        next(self.parameters()).data.mul_(0.5 if changed else 1)

    monkeypatch.setattr(TextClassifier, "on_train_batch_end", change)
    recipe("fit", "--slicefine", "SliceFineCallback", "--slicefine.rank", "2")
    folder = Path("runs/t/version_0")
    assert (folder / "slices.safetensors").is_file() != changed
    assert (folder / "export" / "model.safetensors").is_file()
    assert any("slices.safetensors was not written" in str(each.message) for each in recwarn) == changed


def test_a_fixed_version_can_be_run_twice(recipe):
    for rate in ("0.01", "0.02"):
        recipe("fit", "--trainer.logger.init_args.version", "same", "--trainer.max_epochs", "1", "--model.lr", rate)
    assert yaml.safe_load(Path("runs/t/same/config.yaml").read_text())["model"]["lr"] == 0.02


@pytest.mark.parametrize("step", [3, 6, 8])  # six batches an epoch: inside one, at its end, inside the next
def test_resumed_fit_ends_with_the_weights_of_an_uninterrupted_one(recipe, step):
    settings = yaml.safe_load(Path("recipe.yaml").read_text())
    every_step = {"every_n_train_steps": 1, "save_top_k": -1, "filename": "{step}"}
    settings["trainer"]["callbacks"][-1]["init_args"] = every_step
    Path("recipe.yaml").write_text(yaml.safe_dump(settings))
    recipe("fit", "--trainer.logger.init_args.version", "whole")
    folder = Path("runs/t/whole/checkpoints")
    recipe("fit", "--trainer.logger.init_args.version", "rest", "--ckpt_path", str(folder / f"step={step}.ckpt"))
    states = [torch.load(f"runs/t/{version}/checkpoints/step=12.ckpt") for version in ("whole", "rest")]
    for name, tensor in states[0]["state_dict"].items():
        assert torch.equal(tensor, states[1]["state_dict"][name]), name


def test_a_checkpoint_that_was_moved_resumes_tests_and_exports(recipe):
    """It remembers the path of the best checkpoint, and that file was deleted."""
    recipe("fit")
    Path("runs").rename("elsewhere")
    recipe("fit", "--trainer.max_epochs", "3", "--ckpt_path", "elsewhere/t/version_0/checkpoints/last.ckpt")
    assert Path("runs/t/version_0/export/model.safetensors").is_file()


def test_last_is_the_last_state_and_best_is_the_best(recipe, monkeypatch):
    """The metric falls from epoch to epoch, so that the first stays the best."""
    Path("recipe.yaml").write_text(Path("recipe.yaml").read_text().replace("val/accuracy", "val/chosen"))
    falling = lambda self: self.log("val/chosen", 1.0 - self.current_epoch / 10)
    monkeypatch.setattr(TextClassifier, "on_validation_epoch_end", falling)
    for _ in range(2):  # in the same folder: the names stay
        recipe("fit", "--trainer.logger", "false", "--trainer.max_epochs", "3")
        assert sorted(path.name for path in Path("checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
        steps = [torch.load(f"checkpoints/{name}.ckpt")["global_step"] for name in ("best", "last")]
        assert steps[1] == 3 * steps[0] > 0
    exported = load_file("export/model.safetensors")
    best = torch.load("checkpoints/best.ckpt")["state_dict"]
    last = torch.load("checkpoints/last.ckpt")["state_dict"]
    assert torch.equal(exported["classifier.weight"], best["model.classifier.weight"])
    assert not torch.equal(exported["classifier.weight"], last["model.classifier.weight"])


def test_within_an_epoch_last_is_written_by_the_clock(recipe, monkeypatch):
    """As after a crash: the run ends at its fifth step, inside the first epoch."""

    def crash(self, batch, batch_idx):
        if batch_idx == 4:
            raise RuntimeError("power cut")
        return original(self, batch, batch_idx)

    original = TextClassifier.training_step
    monkeypatch.setattr(TextClassifier, "training_step", crash)
    Path("recipe.yaml").write_text(Path("recipe.yaml").read_text().replace("0:02:00", "0:00:00"))
    with pytest.raises(RuntimeError, match="power cut"):
        recipe("fit")
    assert torch.load("runs/t/version_0/checkpoints/last.ckpt")["global_step"] == 4


@pytest.mark.parametrize("off", [False, True])
def test_slicefine_is_a_flag_and_comes_first(recipe, monkeypatch, off):
    seen = {}

    def look(self):
        seen["callbacks"] = list(self.trainer.callbacks)
        seen["shapes"] = {tuple(p.shape) for p in self.parameters() if p.requires_grad}
        seen["all"] = all(p.requires_grad for p in self.parameters())

    monkeypatch.setattr(TextClassifier, "on_train_start", look)
    settings = yaml.safe_load(Path("recipe.yaml").read_text())
    settings["trainer"]["callbacks"].append({"class_path": "slicefine_pl.callbacks.SliceMap"})
    Path("recipe.yaml").write_text(yaml.safe_dump(settings))
    flags = ["--slicefine.rank", "3", "--slicefine.interval", "50", "--slicefine.axis", "row"]
    recipe("fit", "--trainer.max_steps", "1", *(["--slicefine", "null"] if off else flags))
    sliced = [isinstance(callback, SliceFineCallback) for callback in seen["callbacks"]]
    assert (sum(sliced), sliced[0]) == ((0, False) if off else (1, True))
    assert seen["all"] == off
    assert Path("runs/t/version_0/slices.png").exists() != off  # without slices there is nothing to draw
    assert ((3, 16) in seen["shapes"]) != off  # three rows of a 16 x 16 weight


def test_pruning_is_a_flag_and_the_export_has_the_zeros(recipe):
    """From random weights, all of them trained; the plain folder holds a network with 2:4 zeros."""
    prune = ["--sparsity", "SparsityCallback", "--sparsity.pattern", "2:4", "--sparsity.targets", "encoder"]
    recipe("fit", "--slicefine", "null", *prune, "--sparsity.interval", "1")
    exported = load_file("runs/t/version_0/export/model.safetensors")
    pruned = [name for name in exported if "encoder" in name and exported[name].ndim == 2]
    assert pruned
    for name in pruned:
        assert ((exported[name].reshape(-1, 4) != 0).sum(1) == 2).all(), name
    assert Path("runs/t/version_0/sparsity.png").is_file()


def test_no_step_no_export(recipe, capsys):
    recipe("fit", "--trainer.max_epochs", "0")
    assert "nothing is tested or exported" in capsys.readouterr().out
    assert not list(Path().rglob("*.safetensors"))


def test_fast_dev_run_exports_nothing(recipe):
    recipe("fit", "--trainer.fast_dev_run", "true")
    assert not list(Path().rglob("*.safetensors"))


def test_missing_and_truncated_checkpoints(refused):
    assert "ckpt_path='gone.ckpt' does not exist; give a .ckpt file" in refused("fit", "--ckpt_path", "gone.ckpt")
    whole = {"state_dict": {"weight": torch.zeros(1000)}, "pytorch-lightning_version": "2.6.6"}
    torch.save(whole, "whole.ckpt")
    Path("cut.ckpt").write_bytes(Path("whole.ckpt").read_bytes()[:-100])
    for command in ("fit", "validate", "test", "predict"):
        assert "ckpt_path='cut.ckpt' is truncated or not a checkpoint" in refused(command, "--ckpt_path", "cut.ckpt")
    check_checkpoint(Path("whole.ckpt"))
    flipped = bytearray(Path("whole.ckpt").read_bytes())
    flipped[flipped.index(b"\0" * 2000) + 1000] ^= 1  # one bit of the weights
    Path("flipped.ckpt").write_bytes(flipped)
    assert "checksum of its entry 'whole/data/0' is wrong" in refused("test", "--ckpt_path", "flipped.ckpt")
    assert "ckpt_path='.' is a folder; give a .ckpt file in it" in refused("fit", "--ckpt_path", ".")
    torch.save({"weight": torch.zeros(3)}, "weights.pt")
    np.savez("arrays.npz", weight=np.zeros(3))
    for name in ("weights.pt", "arrays.npz"):
        assert f"ckpt_path='{name}' is not a checkpoint of Lightning" in refused("fit", "--ckpt_path", name)
    assert not Path("runs").exists()


class Runs:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("harm"),)


@pytest.mark.parametrize("command", ["test", "predict"])
def test_a_distributed_checkpoint_says_who_can_read_it(refused, command):
    Path("shares").mkdir()
    torch.save({}, "shares/meta.pt")
    output = refused(command, "--ckpt_path", "shares")
    assert "ckpt_path='shares' is a distributed checkpoint, which only fit, validate and test can read" in output


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("harm", [Runs(), Path("a"), np.float64(1)])
def test_a_checkpoint_that_could_run_code_is_refused_without_advice_to_trust_it(refused, command, harm):
    """An object of any class could, and torch advises to load it with weights_only=False."""
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6", "hyper_parameters": harm}, "strange.ckpt")
    output = refused(command, "--ckpt_path", "strange.ckpt")
    assert "which could run code of its author, and was not loaded" in output
    assert "weights_only" not in output
    assert not Path("harm").exists()


def test_bad_data_and_settings_are_reported_in_one_sentence(refused):
    Path("data.csv").write_text("body,label\nx,1\n")
    output = refused("fit")
    assert "'data.csv' has no column 'text'; it has ['body', 'label']." in output
    assert "--data.text_columns" in output
    assert "'data.csv' has no column 'review'" in refused("fit", "--data.text_columns", "review")
    assert not Path("runs").exists()


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_checkpoint_of_another_model_is_reported_in_one_sentence(refused, tiny_bert, command):
    whole = {"state_dict": {"model.classifier.bias": torch.zeros(7)}, "pytorch-lightning_version": "2.6.6"}
    whole |= {"callbacks": {}, "loops": {}, "epoch": 0, "global_step": 0}
    torch.save(whole, "other.ckpt")
    output = refused(command, "--ckpt_path", "other.ckpt")
    assert "ckpt_path='other.ckpt' does not fit this module" in output


@pytest.mark.parametrize("command", ["fit", "predict"])
def test_a_checkpoint_of_another_recipe_is_reported_by_name(recipe, refused, command):
    recipe("fit", "--trainer.max_epochs", "1")
    saved = torch.load("runs/t/version_0/checkpoints/last.ckpt", weights_only=True)
    torch.save(saved | {"module": "ImageClassifier"}, "images.ckpt")
    output = refused(command, "--ckpt_path", "images.ckpt")
    assert "ckpt_path='images.ckpt' was written by ImageClassifier, and this recipe trains TextClassifier" in output
    del saved["module"]  # as modules of other packages
    torch.save(saved | {"hyper_parameters": {"dropout": 0.1, "lr": 1.0, "_instantiator": "x"}}, "other.ckpt")
    output = refused(command, "--ckpt_path", "other.ckpt")
    assert "ckpt_path='other.ckpt' was written by another module class, with the setting 'dropout'" in output
    assert output.count("\n") <= 1


def test_two_slicefine_callbacks_are_reported_in_one_sentence(refused):
    settings = yaml.safe_load(Path("recipe.yaml").read_text())
    settings["trainer"]["callbacks"].append(settings["slicefine"])
    Path("recipe.yaml").write_text(yaml.safe_dump(settings))
    assert "2 callbacks of the kind SliceFineCallback" in refused("fit")


def test_a_runtime_error_of_the_first_step_keeps_its_trace(recipe, monkeypatch):
    def broken(self, batch, batch_idx):
        raise RuntimeError("a bug")

    monkeypatch.setattr(TextClassifier, "training_step", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        recipe("fit")


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_random_head_is_refused(refused, command):
    assert "has no trained head" in refused(command, *(["--data.predict_text", "good"] * (command == "predict")))


@pytest.mark.parametrize(
    "setting", ["data.batch_size=0", "model.lr=-0.1", "model.head_lr=.inf", "model.weight_decay=-1"]
)
def test_refused_settings_leave_no_folder(refused, setting):
    name, value = setting.split("=")
    output = refused("fit", f"--{name}", value)
    assert output.startswith(f"error: {name.split('.')[1]}={value.strip('.')}")
    assert "choose" in output
    assert not Path("runs").exists()


def test_sigterm_is_no_success(recipe, monkeypatch, caplog):
    """With exit code 0, a scheduler would regard the run as finished and not restart it."""

    def terminated(self, batch, batch_idx):
        if self.global_step == 2:
            signal.raise_signal(signal.SIGTERM)
        return original(self, batch, batch_idx)

    original = TextClassifier.training_step
    monkeypatch.setattr(TextClassifier, "training_step", terminated)
    caplog.set_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero")
    with pytest.raises(SystemExit) as stopped:
        recipe("fit")
    assert stopped.value.code == 143
    assert torch.load("runs/t/version_0/checkpoints/preempted.ckpt", weights_only=True)["global_step"] == 3
    assert "Stopped by SIGTERM after 3 steps; resume with ckpt_path='runs/t/version_0/checkpoints" in caplog.text


def test_output_folder_that_cannot_be_written(refused, tmp_path):
    Path("runs").touch()  # a file where the folder should be
    output = refused("fit")
    assert "output folder 'runs/t/version_0' cannot be written" in output
    assert "set --trainer.logger.save_dir, or --trainer.default_root_dir if there is no logger," in output


def test_nearly_full_disk(tmp_path, monkeypatch):
    check_output_folder(tmp_path / "new" / "run", 1000, "--folder")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**9, 10**9, 5_000_000))
    with pytest.raises(OSError, match=r"run' has 5 MB free, and the run needs about 92 MB; free some space"):
        check_output_folder(tmp_path / "new" / "run", 92_000_000, "--folder")


def test_errors_inside_training_keep_their_trace(recipe, monkeypatch):
    """Only errors before the first step are the user's."""

    def broken(self, batch, batch_idx):
        if self.global_step == 1:
            raise ValueError("a bug")
        return original(self, batch, batch_idx)

    original = TextClassifier.training_step
    monkeypatch.setattr(TextClassifier, "training_step", broken)
    with pytest.raises(ValueError, match="a bug"):
        recipe("fit")
