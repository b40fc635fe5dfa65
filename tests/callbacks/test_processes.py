"""Two real processes (gloo): both must visit the same slices, and prune the same weights."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from pathlib import Path

sys.path.insert(0, {tests!r})
import test_slicefine as t


class Note(t.Callback):
    def on_train_end(self, trainer, module):
        places = [module.trunk[i].slicefine.index.tolist() for i in (0, 2)]
        total = module.trunk[2].weight.double().sum().item()
        Path({folder!r}, f"rank{{trainer.global_rank}}").write_text(f"{{places}} {{total}}")


if __name__ == "__main__":
    t.torch.manual_seed(0)
    callback = t.SliceFineCallback(**t.SETTINGS, interval=3, order="importance")
    t.trainer(callback, Note(), strategy="ddp", devices=2).fit(t.Module(), t.loader(16))
"""


PRUNED = """
import sys
from pathlib import Path

sys.path.insert(0, {tests!r})
import test_sparsity as t


class Note(t.Callback):
    def on_train_end(self, trainer, module):
        masks = {{name: trainer.callbacks[0].masks[name].int().tolist() for name in t.WEIGHTS}}
        total = module.trunk[2].weight.double().sum().item()
        Path({folder!r}, f"rank{{trainer.global_rank}}").write_text(f"{{masks}} {{total}}")


if __name__ == "__main__":
    t.torch.manual_seed(0)
    callback = t.SparsityCallback(0.6, criterion="wanda", **t.SETTINGS)
    t.trainer(callback, Note(), strategy="ddp", devices=2).fit(t.Module(), t.loader(16))
"""


@pytest.mark.parametrize("script_text", [SCRIPT, PRUNED], ids=["slices", "masks"])
def test_processes_that_see_other_data_agree_on_what_is_important(tmp_path, request, script_text):
    script = tmp_path / "run.py"
    script.write_text(script_text.format(tests=str(request.path.parent), folder=str(tmp_path)))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "rank0").read_text() == (tmp_path / "rank1").read_text()
