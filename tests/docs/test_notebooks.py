"""The notebooks of docs/notebooks run from start to end, at a size for tests."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "docs" / "notebooks"
PARAMETERS = {  # replaces the cell of each notebook that is tagged "parameters"
    "slice_map.ipynb": """
        source = "recipes/configs/smoke/reviews.csv"
        backbone = "recipes/configs/smoke/tiny_bert"
        max_epochs, lr, interval = 2, 0.03, 2
    """,
    "prune_cost_report.ipynb": """
        backbone = "recipes/configs/sparse/vit_64"
        max_epochs, limit_train_batches = 1, 4
    """,
}


def test_every_notebook_has_parameters_for_its_test():
    assert {path.name for path in NOTEBOOKS.glob("*.ipynb")} == PARAMETERS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_a_notebook_runs(name):
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    [cell] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    cell.source = "\n".join(line.strip() for line in PARAMETERS[name].splitlines())
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    kinds = {kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert "image/png" in kinds


@pytest.mark.parametrize("name", PARAMETERS)
def test_committed_outputs_contain_pictures_and_no_local_paths(name):
    """The site shows the outputs of the full run."""
    text = (NOTEBOOKS / name).read_text()
    assert '"image/png"' in text
    assert "site-packages" not in text
    assert "/home/" not in text
