"""The site builds without a warning, and a browser shows its pages and the report of ``slicefine diagnose``.

REQUIRE_DOCS=1 uv run --group docs pytest tests/docs    # fails where MkDocs or Chromium is missing, instead of skipping
SCREENSHOTS=DIR ... pytest tests/docs                   # keeps the pictures in DIR

Chromium is Debian's package (apt-get install chromium), started once for each page.
"""

import importlib
import importlib.util
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import warnings
import zlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import WORDS
from matplotlib.image import imread

from slicefine_pl.cli.main import main

ROOT = Path(__file__).parents[2]
REQUIRED = os.environ.get("REQUIRE_DOCS") == "1"
MKDOCS = importlib.util.find_spec("mkdocs") and importlib.util.find_spec("mkdocstrings")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_mkdocs = pytest.mark.skipif(
    not (MKDOCS or REQUIRED), reason="needs MkDocs: uv run --group docs pytest tests/docs"
)
needs_chromium = pytest.mark.skipif(not (CHROMIUM or REQUIRED), reason="needs Chromium, such as Debian's package")
pytestmark = pytest.mark.slow
CONSOLE = re.compile(r':CONSOLE[:(]\d+\)?\] (".*)')  # what a page prints, or fails to load
FLAGS = "--rank 3 --groups 4 --candidates 5 --kernel-samples 3 --examples 64".split()  # noqa: SIM905


class Server(ThreadingHTTPServer):
    """Serves a folder to this machine, and keeps the requests that fail."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.folder, self.failed = folder, []


class Handler(SimpleHTTPRequestHandler):
    """Tells the browser to load from nowhere else: what a page asks of other hosts appears in its console."""

    def end_headers(self):
        self.send_header("Content-Security-Policy", "default-src 'self' 'unsafe-inline' data: blob:")
        super().end_headers()

    def send_error(self, code, *_):
        if self.path != "/favicon.ico":  # which the browser requests automatically
            self.server.failed.append(f"{self.path}: {code}")
        super().send_error(code)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("served")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def screenshots(tmp_path):
    return Path(os.environ.get("SCREENSHOTS", tmp_path))


@pytest.fixture(scope="module")
def site(server):
    """The built site; every warning is an error, and nothing outside this machine is reached."""
    no_network = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(server.folder / "site")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **no_network}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return server.folder / "site"


@pytest.fixture(scope="module")
def report(server, tiny_bert):
    """The report of ``slicefine diagnose`` on a tiny network and 400 texts."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=8)) for _ in range(400)]
    table = "".join(f"{text},{'pos' if text.count('good') > text.count('bad') else 'neg'}\n" for text in texts)
    (server.folder / "reviews.csv").write_text("text,label\n" + table)
    data = ["--data", str(server.folder / "reviews.csv"), "--folder", str(server.folder / "diagnosis")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # texts that occur twice
        assert main(["diagnose", "--model", str(tiny_bert), *data, *FLAGS]) == 0


def visit(server, page, picture, size="1400,1800"):
    """Take a picture of a page; return what its console says and which requests failed."""
    server.failed.clear()
    picture.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *(str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000"),
        *(f"--user-data-dir={picture.parent / 'profile'}", f"--window-size={size}", f"--screenshot={picture}"),
        f"http://127.0.0.1:{server.server_port}/{page}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert picture.is_file(), done.stderr
    return CONSOLE.findall(done.stderr) + server.failed


def colors(picture):
    """How many different colors a picture has: a blank page has one."""
    return len(np.unique((imread(picture)[::4, ::4, :3] * 255).astype(int).reshape(-1, 3), axis=0))


@needs_mkdocs
@pytest.mark.parametrize("package", ["slicing", "sparsity", "scaling", "callbacks", "modules", "data", "cli"])
def test_the_api_reference_contains_every_public_name(site, package):
    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    described = {line.split()[0] for line in inventory.splitlines()}
    public = importlib.import_module(f"slicefine_pl.{package}").__all__
    path = re.compile(rf"slicefine_pl\.{package}(\.\w+)*\.")
    assert [name for name in public if not any(path.fullmatch(each.removesuffix(name)) for each in described)] == []


@needs_mkdocs
def test_no_page_loads_anything_from_elsewhere(site):
    loaded = re.compile(r'(?:src="|<link[^>]*rel="(?:stylesheet|preconnect|preload)"[^>]*href=")(?:https?:)?//[^"]*')
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    assert {match for page in pages for match in loaded.findall(page.read_text("utf-8"))} == set()


@needs_mkdocs
@needs_chromium
@pytest.mark.parametrize(
    ("name", "page"),
    [("start", ""), ("api", "api/slicing/"), ("cost", "benchmarks/cost/"), ("notebook", "notebooks/slice_map/")],
)
def test_pages_render_without_errors(site, server, name, page, screenshots):
    assert visit(server, f"site/{page}", screenshots / f"{name}.png") == []
    assert colors(screenshots / f"{name}.png") > 20


@needs_chromium
def test_the_report_of_diagnose_renders_without_errors(report, server, screenshots):
    assert visit(server, "diagnosis/report.html", screenshots / "report.png", size="1200,3000") == []
    assert colors(screenshots / "report.png") > 20


@needs_chromium
def test_errors_of_a_page_are_noticed(server, tmp_path):
    """A missing file, another host, and an error of a script."""
    (server.folder / "broken.html").write_text(
        '<img src="missing.png"><script src="https://example.org/a.js"></script><script>undefinedFunction()</script>'
    )
    errors = " ".join(visit(server, "broken.html", tmp_path / "broken.png"))
    assert all(each in errors for each in ("/missing.png: 404", "https://example.org/a.js", "undefinedFunction")), (
        errors
    )
    assert colors(tmp_path / "broken.png") < 20
