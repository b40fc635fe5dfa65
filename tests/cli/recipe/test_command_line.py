"""Flags override files wherever they are, and YAML that expands to too many values is refused."""

import time
from pathlib import Path

import pytest
import yaml

from slicefine_pl.cli.grid.plan import read_grid
from slicefine_pl.cli.recipe.command_line import move_configs_first
from slicefine_pl.cli.recipe.yaml_limits import check_yaml

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quiet")]
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefghij", "bcdefghijk", strict=True)
)


@pytest.mark.parametrize(
    ("given", "ordered"),
    [
        (["fit", "--x", "1", "--config", "a.yaml", "--y=2"], ["fit", "--config", "a.yaml", "--x", "1", "--y=2"]),
        (["fit", "-c", "a", "--x", "1", "--config=b", "-c=c"], ["fit", "-c", "a", "--config=b", "-c=c", "--x", "1"]),
        (["fit", "--x", "1", "--config"], ["fit", "--config", "--x", "1"]),  # the parser says what is missing
        (["-c", "a", "fit", "--x", "1", "-c", "b"], ["-c", "a", "fit", "--x", "1", "-c", "b"]),
        ([], []),
    ],
)
def test_files_come_first_and_keep_their_order(given, ordered):
    assert move_configs_first(given) == ordered


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_flag_wins_in_either_order(recipe, capsys, command):
    Path("more.yaml").write_text("model: {lr: 0.5}\ndata: {batch_size: 7}\nslicefine: {init_args: {rank: 2}}\n")
    flags = ["--slicefine.rank", "3", "--model.lr", "0.25"]
    file = ["--config", "more.yaml"]
    for order in ([*flags, *file], [*file, *flags]):
        with pytest.raises(SystemExit) as stopped:
            recipe(command, *order, "--print_config")
        assert stopped.value.code == 0
        output = yaml.safe_load(capsys.readouterr().out)
        assert (output["slicefine"]["init_args"]["rank"], output["model"]["lr"]) == (3, 0.25)
        assert output["data"]["batch_size"] == 7


def test_the_help_says_who_wins(recipe, capsys):
    with pytest.raises(SystemExit):
        recipe("fit", "--help")
    assert "Flags override files, wherever they are" in " ".join(capsys.readouterr().out.split())


def test_aliases_are_counted_as_written_out():
    check_yaml("a: &a [1, 2]\nb: {c: *a, d: [*a, *a]}\n")
    check_yaml("AT&T * 2")  # a flag's value need not be YAML
    check_yaml("one: &x {k: [1, 2]}\n" + "".join(f"n{number}: *x\n" for number in range(20_000)))
    with pytest.raises(ValueError, match="more than 100,000 values"):
        check_yaml("one: &x {k: [1, 2]}\n" + "".join(f"n{number}: *x\n" for number in range(30_000)))
    with pytest.raises(ValueError, match="more than 100,000 values"):
        check_yaml("a: &a [1, *a]\n")  # contains itself
    with pytest.raises(ValueError, match="more than 100,000 values"):
        check_yaml(f"[{'x, ' * 100_001}]")  # without any alias
    with pytest.raises(ValueError, match="more than 50 levels deep"):
        check_yaml("[" * 100_000 + "]" * 100_000)  # would exhaust the stack


@pytest.mark.parametrize("flag", ["--config", "--model", "--data", "--trainer.callbacks", "--data.label_names"])
def test_a_bomb_of_aliases_is_refused_at_once(recipe, capsys, flag):
    """Reading it would copy its values for hours."""
    Path("bomb.yaml").write_text(BOMB)
    began = time.perf_counter()
    with pytest.raises(SystemExit) as stopped:
        recipe("fit", flag, BOMB if flag == "--data.label_names" else "bomb.yaml")
    assert stopped.value.code == 2
    assert "begins with 'a: &a [x, x" in capsys.readouterr().err
    assert time.perf_counter() - began < 20


def test_so_is_one_in_the_file_of_a_grid(tmp_path):
    (tmp_path / "grid.yaml").write_text(BOMB)
    with pytest.raises(ValueError, match=r"grid .*grid\.yaml' cannot be read .*100,000 values"):
        read_grid(tmp_path / "grid.yaml")
