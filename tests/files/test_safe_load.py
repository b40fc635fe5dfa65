"""Untrusted files run no code, and no message advises to allow it."""

import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from slicefine_pl.files.safe_load import check_sharded_checkpoint, load_plain
from slicefine_pl.inputs import stored_record
from slicefine_pl.modules.weights import weights_in


class Harm:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def harm(tmp_path):
    yield Harm(tmp_path / "harm")
    assert not (tmp_path / "harm").exists()


@pytest.fixture
def shares(tmp_path):
    """A distributed checkpoint as torch and Lightning write it, of several dtypes and other values."""
    state = {"weight": torch.ones(2, 3), "half": torch.ones(4, dtype=torch.bfloat16), "rate": 0.1, "name": "x"}
    with pytest.warns(UserWarning, match="single process"):
        dcp.save({"state": state}, checkpoint_id=tmp_path / "shares", no_dist=True)
    torch.save({"global_step": 3}, tmp_path / "shares" / "meta.pt")
    return tmp_path / "shares"


READERS = {
    "checkpoint": lambda path: load_plain(path, "ckpt_path"),
    "input of a checkpoint": lambda path: stored_record(str(path)),
    "weights": lambda path: weights_in(str(path)),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_a_file_with_code_is_refused_without_advice_to_run_it(tmp_path, harm, reader):
    torch.save({"state_dict": {"weight": torch.zeros(1)}, "more": harm}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt' contains \S+, which could run code") as refused:
        reader(tmp_path / "a.ckpt")
    assert "weights_only" not in str(refused.value)
    assert refused.value.__suppress_context__


def test_a_distributed_checkpoint_is_let_pass(shares):
    check_sharded_checkpoint(shares, "ckpt_path")


@pytest.mark.parametrize("file", [".metadata", "meta.pt"])
def test_a_distributed_checkpoint_with_code_is_refused(shares, harm, file):
    if file == "meta.pt":
        torch.save({"more": harm}, shares / file)
    else:
        description = pickle.loads((shares / file).read_bytes())
        description.planner_data = harm
        (shares / file).write_bytes(pickle.dumps(description))
    with pytest.raises(ValueError, match=rf"{file}' contains \S+, which could run code"):
        check_sharded_checkpoint(shares, "ckpt_path")


@pytest.mark.parametrize("name", ["os.system", "mmap.mmap", "Metadata.__init__"])
def test_a_module_that_is_allowed_opens_no_door_to_others(shares, name):
    """Names with dots reach what a module has imported."""
    call = f"ctorch.distributed.checkpoint.filesystem\n{name}\n."
    (shares / ".metadata").write_bytes(b"\x80\x04" + call.encode())
    with pytest.raises(ValueError, match="which could run code"):
        check_sharded_checkpoint(shares, "ckpt_path")
