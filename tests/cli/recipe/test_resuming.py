"""A resumed fit in a new folder ends like one that never stopped: table, best checkpoint, export."""

import logging
import re
import signal
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from slicefine_pl.modules import TextClassifier
from slicefine_pl.slicing import SliceFile

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quiet")]


@pytest.fixture
def falling(monkeypatch):
    """The score that chooses the best checkpoint falls from epoch to epoch, so that the first stays the best."""
    Path("recipe.yaml").write_text(Path("recipe.yaml").read_text().replace("val/accuracy", "val/chosen"))
    log = lambda self: self.log("val/chosen", 1.0 - self.current_epoch / 10)
    monkeypatch.setattr(TextClassifier, "on_validation_epoch_end", log)


@pytest.fixture
def interruptible():
    """Lightning ignores every Ctrl-C after the first one; later tests must not."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def table(output):
    """Rows of the closing table, without seconds and paths."""
    rows = output.partition("\nResult")[2].split("\n\n")[0].splitlines()[2:]
    pairs = (re.split(r" {2,}", row, maxsplit=1) for row in rows)
    return {name: re.sub(r"\d+ s\b", "", value).strip() for name, value in pairs
            if not re.search("checkpoint|exported|file", name)}  # fmt: skip


def test_the_best_of_the_first_part_is_tested_exported_and_reported(recipe, capsys, falling, monkeypatch):
    monkeypatch.setattr(TextClassifier, "_check_head", lambda *_: None)  # a score of a random head will do here
    flags = ["--model.decay", "constant", "--model.warmup", "0", "--score_before", "true"]

    def fit(version, *more):
        capsys.readouterr()
        recipe("fit", "--trainer.logger.init_args.version", version, *flags, *more)
        return table(capsys.readouterr().out)

    whole = fit("whole")
    assert "test/accuracy before" in whole
    assert "12 steps" in whole["training"]
    fit("first", "--trainer.max_epochs", "1")
    last = ["--ckpt_path", "runs/t/first/checkpoints/last.ckpt"]
    assert fit("rest", *last, "--trainer.max_epochs", "2") == whole
    capsys.readouterr()
    recipe(
        "fit",
        "--trainer.logger.init_args.version",
        "again",
        *flags,
        "--ckpt_path",
        "runs/t/whole/checkpoints/last.ckpt",
    )
    output = capsys.readouterr().out
    assert "Nothing is left to train: max_epochs=2 is reached; to train on, add --trainer.max_epochs 3." in output
    assert table(output) == whole
    one, other = (Path("runs/t") / version for version in ("whole", "rest"))
    exports = [load_file(folder / "export" / "model.safetensors") for folder in (one, other)]
    saved = [torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True) for folder in (one, other)]
    assert saved[0]["global_step"] == saved[1]["global_step"] == 6
    files = [SliceFile.read(folder / "slices.safetensors") for folder in (one, other)]
    assert [each.name for each in files[0].lines] == [each.name for each in files[1].lines]
    for ours, theirs in zip(files[0].lines, files[1].lines, strict=True):
        assert torch.equal(ours.index, theirs.index)
        assert torch.equal(ours.values, theirs.values)
    for pair in (exports, [each["state_dict"] for each in saved]):
        assert all(torch.equal(pair[0][name], pair[1][name]) for name in pair[0])


def test_going_on_repeats_no_flags(recipe, caplog):
    """Data, slices and module are those of the run that is resumed; a given flag or file overrides them."""
    Path("data.csv").rename("own.csv")
    own = ["--data.source", "own.csv", "--data.batch_size", "8", "--slicefine.rank", "3", "--slicefine.axis", "row"]
    recipe("fit", *own, "--trainer.max_epochs", "1", "--data.seed", "3")
    caplog.set_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero")
    Path("more.yaml").write_text("data: {seed: 4, batch_size: 4}")
    flags = ["--trainer.max_epochs", "2", "--data.batch_size", "16", "--config", "more.yaml"]
    recipe("fit", "--ckpt_path=runs/t/version_0/checkpoints/last.ckpt", *flags)
    assert "Continuing with the settings of" in caplog.text
    assert "runs/t/version_0/config.yaml; the command line overrides them." in caplog.text
    settings = yaml.safe_load(Path("runs/t/version_1/config.yaml").read_text())
    assert (settings["data"]["source"], settings["data"]["batch_size"], settings["data"]["seed"]) == ("own.csv", 16, 4)
    assert settings["slicefine"]["init_args"]["axis"] == "row"
    assert settings["trainer"]["max_epochs"] == 2


def test_a_flag_wins_over_the_settings_of_a_checkpoint(recipe):
    """Lightning would take the whole module from the checkpoint, and silently ignore the flag."""
    recipe("fit", "--model.lr", "0.02", "--model.weight_decay", "0.3", "--trainer.max_epochs", "1")
    checkpoint = "runs/t/version_0/checkpoints/last.ckpt"
    for flags in (["--model.lr", "0.005"], ["--model.lr=0.005"]):
        recipe("fit", "--ckpt_path", checkpoint, "--trainer.max_epochs", "2", *flags)
    for version in (1, 2):
        settings = yaml.safe_load(Path(f"runs/t/version_{version}/config.yaml").read_text())["model"]
        assert (settings["lr"], settings["weight_decay"]) == (0.005, 0.3)


@pytest.mark.slow
def test_evaluation_repeats_no_flags_and_replaces_no_file_of_the_run(recipe, capsys, caplog):
    """Pairs from columns of other names, and a run whose folder has a name."""
    lines = Path("data.csv").read_text().splitlines()[1:]
    pairs = [f"{line.split(',')[0]},{line}" for line in lines]
    Path("own.csv").write_text("\n".join(["first,second,same", *pairs]))
    own = ["--data.source", "own.csv", "--data.text_columns", "[first, second]", "--data.label_column", "same"]
    run = Path("runs/t/mine")
    recipe("fit", *own, "--trainer.max_epochs", "1", "--trainer.logger.init_args.version", "mine")
    metrics = (run / "metrics.csv").read_text()
    caplog.set_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero")
    last = ["--ckpt_path", str(run / "checkpoints" / "last.ckpt")]
    for command, score in (("test", "test/accuracy"), ("validate", "val/accuracy")):
        capsys.readouterr()
        recipe(command, *last)
        assert score in capsys.readouterr().out
        assert "Using the settings of" in caplog.text
    recipe("fit", *last, "--trainer.max_epochs", "2")
    assert (run / "metrics.csv").read_text() == metrics
    assert Path("runs/t/version_0/metrics.csv").is_file()
    recipe("test", *last, "--trainer.logger.init_args.version", "tested")
    assert Path("runs/t/tested/metrics.csv").is_file()


def test_a_config_file_of_something_else_is_not_taken(recipe):
    recipe("fit", "--trainer.max_epochs", "1")
    Path("runs/t/version_0/config.yaml").write_text("data: {source: gone.csv}\n")
    recipe("fit", "--ckpt_path", "runs/t/version_0/checkpoints/last.ckpt")
    assert yaml.safe_load(Path("runs/t/version_1/config.yaml").read_text())["data"]["source"] == "data.csv"


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_stopped_run_tells_the_command_that_goes_on_and_the_command_does(recipe, monkeypatch, capsys, error):
    def stop(self, batch, batch_idx):
        if self.global_step == 8:
            raise error
        return original(self, batch, batch_idx)

    original = TextClassifier.training_step
    with monkeypatch.context() as patch:
        patch.setattr(TextClassifier, "training_step", stop)
        with pytest.raises((SystemExit, RuntimeError)):
            recipe("fit", "--slicefine.rank", "3")
    last = "runs/t/version_0/checkpoints/last.ckpt"
    output = capsys.readouterr().err
    assert (
        f"Stopped after 8 steps. Last checkpoint: {last}\nTo resume:  python recipe fit --ckpt_path {last}\n" in output
    )
    recipe(*output[output.index("python recipe ") :].splitlines()[0].split()[2:])
    assert torch.load("runs/t/version_1/checkpoints/last.ckpt", weights_only=True)["global_step"] == 12


@pytest.mark.usefixtures("interruptible")
def test_before_the_first_step_or_checkpoint_there_is_nothing_to_go_on_from(recipe, monkeypatch, capsys):
    def stop(self, batch, batch_idx):
        if self.global_step == self.stopped:
            raise KeyboardInterrupt
        return original(self, batch, batch_idx)

    original = TextClassifier.training_step
    monkeypatch.setattr(TextClassifier, "training_step", stop)
    for step, output in ((0, ""), (2, "Stopped after 2 steps. No checkpoint was written.")):
        monkeypatch.setattr(TextClassifier, "stopped", step, raising=False)
        with pytest.raises(SystemExit):
            recipe("fit")
        err = capsys.readouterr().err
        assert output in err
        assert bool(output) == ("Stopped" in err) == Path("runs").exists()
