"""Pushing an adapter to a hub, against a stand-in server on this machine."""

import copy
import json
import sys
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from huggingface_hub import constants
from torch import nn

from slicefine_pl.optional import MissingExtraError
from slicefine_pl.slicing import export_lora, slice_model


class Hub(BaseHTTPRequestHandler):
    """A stand-in for the Hugging Face Hub on this machine: it creates repositories and receives commits."""

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.server.requests.append((self.path, body))
        if self.server.refuses:
            return self.answer({"error": "You may not write here"}, 403)
        if self.path == "/api/repos/create":
            return self.answer({"url": f"{self.server.address}/me/adapter", "id": "me/adapter"})
        if self.path.startswith("/api/models/me/adapter/preupload/"):
            names = [each["path"] for each in json.loads(body)["files"]]
            return self.answer({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        if self.path.startswith("/api/models/me/adapter/commit/"):
            return self.answer(
                {"commitUrl": f"{self.server.address}/me/adapter/commit/1", "commitOid": "1", "success": True}
            )
        return self.answer({}, 200)

    def do_GET(self):
        self.server.requests.append((self.path, b""))
        self.answer({"error": "nothing here"}, 404)

    def answer(self, content, status=200):
        sent = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    """A running stand-in, to which ``huggingface_hub`` connects."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.requests, server.refuses = [], False
        server.address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def tiny(tmp_path):
    """A base and its slice file."""
    base = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net = copy.deepcopy(base)
    handle = slice_model(net, 2, targets="0", also_train=[])
    handle.save(tmp_path / "a.safetensors", "some/base")
    return base, tmp_path


def test_a_folder_is_pushed(hub, tiny):
    base, folder = tiny
    export = export_lora(folder / "a.safetensors", base, folder / "adapter", push="me/adapter")
    assert export.url == f"{hub.address}/me/adapter/commit/1"
    created = next(json.loads(body) for path, body in hub.requests if path == "/api/repos/create")
    assert created["name"] == "adapter"
    assert created["organization"] == "me"
    assert created.get("visibility") == "private" or created.get("private") is True  # the older form
    [commit] = [body for path, body in hub.requests if "/commit/" in path]
    sent = [json.loads(line)["value"] for line in commit.splitlines()]
    files = {each["path"]: b64decode(each["content"]) for each in sent if "path" in each}
    assert files == {path.name: path.read_bytes() for path in (folder / "adapter").iterdir()}
    assert 'from_pretrained(base_model, "me/adapter")' in files["README.md"].decode()


def test_a_refused_push_leaves_the_folder(hub, tiny):
    base, folder = tiny
    hub.refuses = True
    with pytest.raises(
        OSError, match=r"adapter' was not uploaded to me/adapter \(.*You may not.*\)\. The folder is complete\."
    ):
        export_lora(folder / "a.safetensors", base, folder / "adapter", push="me/adapter")
    assert (folder / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("name", ["adapter", "me/", "me/a/b", "me/ä"])
def test_a_name_that_is_not_of_a_repository_is_refused(name, tiny):
    base, folder = tiny
    with pytest.raises(ValueError, match=r'push=.* is not the name of a repository; it has the form "owner/name"'):
        export_lora(folder / "a.safetensors", base, folder / "adapter", push=name)
    assert not (folder / "adapter").exists()


def test_pushing_needs_huggingface_hub(tiny, monkeypatch):
    base, folder = tiny
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"'huggingface_hub' is not installed; run: pip install .*\[text\]"):
        export_lora(folder / "a.safetensors", base, folder / "adapter", push="me/adapter")
    assert not (folder / "adapter").exists()
