"""A wrong setting is reported in one sentence that names it, its value, and what is allowed."""

from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quiet")]
PRUNE = ("--sparsity", "SparsityCallback")


@pytest.fixture
def error(recipe, capsys):
    """A function that runs a command which must be refused in one line, and returns this line."""

    def command(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            recipe(*arguments)
        assert stopped.value.code == 2
        [line] = [line for line in capsys.readouterr().err.splitlines() if line != "Seed set to 0"]
        assert not Path("runs").exists()
        return line.removeprefix("error: ")

    return command


@pytest.mark.parametrize(
    ("flags", "name", "remedy"),
    [
        (["--slicefine.rnk", "3"], "--slicefine.rnk", "did you mean --slicefine.rank?"),
        (["--slicefine.init_args.rnk=3"], "--slicefine.rnk", "did you mean --slicefine.rank?"),
        ([*PRUNE, "--sparsity.patern", "2:4"], "--sparsity.patern", "did you mean --sparsity.pattern?"),
        (["--model.lrr", "3"], "--model.lrr", "did you mean --model.lr?"),
        (["--modle.lr", "3"], "--modle.lr", "did you mean --model.lr?"),
        (["--lr", "3"], "--lr", "did you mean --model.lr?"),
        (["--data.batchsize=3"], "--data.batchsize", "did you mean --data.batch_size?"),
        (["--trainer.max_step", "3"], "--trainer.max_step", "did you mean --trainer.max_steps or"),  # no abbreviation
        (["--trainer.logger.foo", "3"], "--trainer.logger.foo", "choose from flush_logs_every_n_steps, name, prefix,"),
        (["--xyzzy", "3"], "--xyzzy", "recipe fit --help lists all settings."),
    ],
)
def test_an_unknown_setting_is_named_with_similar_ones(error, flags, name, remedy):
    assert error("fit", *flags).startswith(f"{name} is not a setting; {remedy}")


@pytest.mark.parametrize(
    ("flag", "value", "allowed"),
    [
        ("slicefine.rank", "abc", "an integer."),
        ("slicefine.axis", "diagonal", "one of column, row, alternate."),
        ("sparsity.sparsity", "x", "a number or null."),
        ("model.lr", "x", "a number."),
        ("model.decay", "x", "one of linear, cosine, constant."),
        ("data.label_names", "3", "a list, such as [a, b] or null."),
        ("trainer.max_steps", "x", "an integer."),
        ("trainer.precision", "13", "one of 64, 32, 16, transformer-engine,"),
    ],
)
def test_a_value_of_the_wrong_type_is_shown_with_what_is_allowed(error, flag, value, allowed):
    line = error("fit", *(PRUNE if flag.startswith("sparsity") else ()), f"--{flag}", value)
    assert line.startswith(f"--{flag}={value} is not allowed; give {allowed}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": {"lrr": 3}}, "--model.lrr is not a setting; did you mean --model.lr?"),
        ({"model": {"lr": "abc"}}, "--model.lr=abc is not allowed; give a number."),
        ({"slicefin": None}, "--slicefin is not a setting; did you mean --slicefine?"),
        (
            {"trainer": {"callbacks": [{"class_path": "slicefine_pl.callbacks.LinearProbe", "init_args": {"x": 3}}]}},
            "--trainer.callbacks.x is not a setting; choose from ",
        ),
        (
            {"trainer": {"callbacks": [{"class_path": "slicefine_pl.callbacks.LinearPrope"}]}},
            "--trainer.callbacks: 'slicefine_pl.callbacks.LinearPrope' cannot be used",
        ),
    ],
)
def test_settings_of_a_file_are_reported_like_flags(error, settings, message):
    Path("more.yaml").write_text(yaml.safe_dump(settings))
    assert error("fit", "--config", "more.yaml").startswith(message)


def test_other_mistakes_are_one_line_as_well(error):
    assert error("fit", "--data.source", "good", "film").startswith("'film' is not the value of a setting; quote a")
    assert error("fit", "--slicefine", "SliceFin").startswith("--slicefine=SliceFin is not the import path of a class")
    assert error("fit", "--model.lr") == "argument --model.lr: expected one argument"
    assert error("fit", "--config", "gone.yaml").startswith("--config: File does not exist")
    assert error("fit", "--trainer.devices", "x").startswith("`devices` selected with `CPUAccelerator`")
    assert "invalid choice: 'fot'" in error("fot")
    assert "fit,validate,test,predict" in error()


def test_debugging_shows_what_jsonargparse_says(recipe, capsys, monkeypatch):
    monkeypatch.setenv("SLICEFINE_DEBUG", "1")
    with pytest.raises(SystemExit):
        recipe("fit", "--slicefine.rnk", "3")
    assert "Does not validate against any of the Union subtypes" in capsys.readouterr().err
