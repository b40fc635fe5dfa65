"""Two real processes (gloo): both must visit the same slices."""

import subprocess
import sys

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


def test_processes_that_see_other_data_agree_on_what_is_important(tmp_path, request):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(tests=str(request.path.parent), folder=str(tmp_path)))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "rank0").read_text() == (tmp_path / "rank1").read_text()
