"""The answers printed in docs/scaling-law/advise.md are what ``slicefine advise`` says.

SLICEFINE_WRITE_DOCS=1 uv run pytest -n 0 tests/docs/test_advise.py    # writes them again
"""

import os
import re
import shlex
from pathlib import Path

import pytest

from slicefine_pl.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "scaling-law" / "advise.md"
EXAMPLE = re.compile(r"```bash\nslicefine (.*?)```\n\n```text\n(.*?)```\n", re.DOTALL)
EXAMPLES = EXAMPLE.findall(PAGE.read_text("utf-8"))


@pytest.mark.parametrize(("command", "answer"), EXAMPLES, ids=[command.split("--")[2] for command, _ in EXAMPLES])
def test_the_page_shows_what_the_command_prints(command, answer, capsys, tmp_path):
    words = shlex.split(command.replace("\\\n", " "))
    if "--plot" in words:
        words[words.index("--plot") + 1] = str(tmp_path / "advise.png")
    assert main(words) == 0
    printed = capsys.readouterr().out.replace(f"{tmp_path}/advise.png", "docs/images/advise.png")
    if os.environ.get("SLICEFINE_WRITE_DOCS"):
        PAGE.write_text(PAGE.read_text("utf-8").replace(answer, printed))
    assert printed in PAGE.read_text("utf-8"), "run with SLICEFINE_WRITE_DOCS=1 to write the answers again"


def test_examples_were_found():
    assert len(EXAMPLES) == 3
