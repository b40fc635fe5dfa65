"""The command line of fit-law: what it reads, writes, prints and refuses."""

import json

import numpy as np
import pandas as pd
import pytest

from slicefine_pl.cli.main import main
from slicefine_pl.scaling import T5_C4, VIT_JFT4B
from slicefine_pl.scaling.files import read_law

FEW = ["--starts", "4", "--replicates", "3"]


@pytest.fixture
def table():
    """Runs of the ViT law as a user may keep them: millions of all parameters, thousands of images."""
    grid = [(s, n, d) for s in (0.0, 0.5, 0.75) for n in (2e6, 8e6, 32e6) for d in (1e7, 1e8, 1e9)]
    S, N, D = np.array(grid).T
    return pd.DataFrame({"zeros": S, "millions": N / (1 - S) / 1e6, "kilo": D / 1e3, "val": VIT_JFT4B.loss(S, N, D)})


FLAGS = [
    "--sparsity-column",
    "zeros",
    "--parameters-column",
    "millions",
    "--parameters-factor",
    "1M",
    "--dense-parameters",
    "--data-column",
    "kilo",
    "--data-factor",
    "1K",
    "--data-unit",
    "images",
    "--loss-column",
    "val",
]


@pytest.fixture
def runs(table, tmp_path):
    path = tmp_path / "runs.csv"
    table.to_csv(path, index=False)
    return str(path)


def test_coefficients_come_back_in_single_units(runs, tmp_path, capsys):
    law, plot = tmp_path / "law.json", tmp_path / "law.png"
    assert main(["fit-law", runs, *FLAGS, *FEW, "--json", str(law), "--plot", str(plot)]) == 0
    known = read_law(str(law))
    for name, value in VIT_JFT4B.coefficients.items():
        assert known.law.coefficients[name] == pytest.approx(value, rel=1e-3), name
    assert known.law.data_unit == "images"
    assert known.ranges.nonzero_params == pytest.approx((2e6, 32e6))
    assert len(known.replicates) == 3
    assert known.replicates[0].b_N == pytest.approx(VIT_JFT4B.b_N, rel=1e-3)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert {"objective", "hold_outs", "intervals", "undetermined"} <= set(json.loads(law.read_text()))
    output = " ".join(capsys.readouterr().out.split())
    assert "4 of 4 starts agree" in output
    assert "The runs determine all seven coefficients." in output


def test_advise_reads_what_fit_law_wrote(runs, tmp_path, capsys):
    law, advice = tmp_path / "law.json", tmp_path / "advice.json"
    assert main(["fit-law", runs, *FLAGS, *FEW, "--json", str(law)]) == 0
    flags = ["--parameters", "20M", "--compute", "1e21", "--json", str(advice)]
    assert main(["advise", "--law", str(law), *flags]) == 0
    found = json.loads(advice.read_text())["best"][0]
    by_law = float(VIT_JFT4B.optimal_sparsity(20e6, 1e21 / 196, at_most=0.75))
    assert found["sparsity"] == pytest.approx(by_law, abs=1e-3)
    assert found["interval"][0] <= found["sparsity"] <= found["interval"][1]
    assert "runs.csv, 27 runs" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "law"), [("vit", VIT_JFT4B), ("t5", T5_C4)])
def test_published_files_hold_the_published_coefficients(name, law):
    known = read_law(name)
    assert known.law == law
    assert len(known.replicates) == 60
    assert ("do not determine" in known.statement) == (name == "t5")


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        (lambda t: t.drop(columns="val"), FLAGS, "column 'val' (loss) is not among 'zeros', 'millions', 'kilo'"),
        (lambda t: t, FLAGS[2:], "column 'sparsity' (sparsity) is not among"),
        (lambda t: t.assign(val=-t.val), FLAGS, "loss=-"),
        (lambda t: t.assign(zeros=100 * t.zeros), FLAGS, "sparsity=50 is not in [0, 1)"),
        (lambda t: t.assign(millions=t.millions / 1e6), FLAGS, "nonzero_params=2 is too small"),
        (lambda t: t.assign(val=["diverged", *t.val[1:]]), FLAGS, "column 'val', run 0 contains 'diverged'"),
        (lambda t: t.assign(val=True), FLAGS, "column 'val', run 0 contains 'True'"),
        (lambda t: t[t.zeros == 0], FLAGS, "sparsity takes 1 value(s), 0, but"),
        (lambda t: t[:5], FLAGS, "5 runs are too few"),
        (lambda t: t, [*FLAGS, "--starts", "0"], "starts=0"),
    ],
)
def test_bad_runs_are_one_sentence_and_code_2(table, tmp_path, capsys, change, flags, message):
    path = tmp_path / "bad.csv"
    change(table).to_csv(path, index=False)
    assert main(["fit-law", str(path), *flags]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("content", [None, "", "\x00\xff"])
def test_files_that_are_no_tables_are_refused(tmp_path, capsys, content):
    path = tmp_path / "none.csv"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    assert main(["fit-law", str(path)]) == 2
    assert "none.csv" in capsys.readouterr().err


def test_a_file_that_does_not_exist_is_named(capsys):
    assert main(["fit-law", "nope.csv"]) == 2
    assert "file 'nope.csv' does not exist; give a CSV file" in capsys.readouterr().err
