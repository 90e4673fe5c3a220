"""Laws of model hubs: an export is uploaded and loaded by owner/name, and its card says what it holds."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

import vqvae
from vqvae.errors import UserError
from vqvae.export.card import in_digits, safe
from vqvae.export.hub import check_hub_name, is_hub_name
from vqvae.export.write import export_run
from vqvae.run.folder import RunFolder
from vqvae.run.run import Run
from vqvae.shipped.runs import SHIPPED

has_hub = importlib.util.find_spec("huggingface_hub") is not None
needs_hub = pytest.mark.skipif(not has_hub, reason="huggingface_hub is optional")
COMMIT = "1" * 40


class StandIn(BaseHTTPRequestHandler):
    """A hub with one repository, me/thing, which holds `files`."""

    files: dict[str, bytes]

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        path, here = self.path.split("?")[0], f"http://{self.headers['host']}"
        given = json.loads(body) if body.startswith(b"{") and "/commit/" not in path else {}
        found = re.fullmatch(r"/me/thing/resolve/\w+/(.*)", path)
        if path == "/api/repos/create":
            self.say({"url": f"{here}/me/thing"})
        elif path == "/api/validate-yaml":
            self.say({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            modes = [{"path": one["path"], "uploadMode": mode_of(one["path"])} for one in given["files"]]
            self.say({"files": [{**one, "shouldIgnore": False, "oid": None} for one in modes]})
        elif path.endswith("/info/lfs/objects/batch"):
            upload = [{**one, "actions": {"upload": {"href": f"{here}/put/{one['oid']}"}}} for one in given["objects"]]
            self.say({"transfer": "basic", "objects": upload}, {"content-type": "application/vnd.git-lfs+json"})
        elif path.startswith("/put/"):
            self.files[path.removeprefix("/put/")] = body
            self.say({})
        elif "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[value["path"]] = self.files.pop(value["oid"])
            self.say({"commitUrl": f"{here}/me/thing/commit/1", "commitOid": COMMIT})
        elif path == "/api/models/me/thing/revision/main":
            self.say({"id": "me/thing", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]})
        elif path.startswith("/api/models/me/thing/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in self.files.items()
            ]
            self.say(entries)
        elif found and found[1] in self.files:
            data = self.files[found[1]]
            self.send(data, 200, {"etag": f'"{hashlib.sha256(data).hexdigest()}"', "x-repo-commit": COMMIT})
        else:
            self.send(b"", 404, {"x-error-code": "RepoNotFound"})

    do_GET = do_POST = do_PUT = do_HEAD = answer

    def say(self, value: Any, headers: dict[str, str] | None = None) -> None:
        self.send(json.dumps(value).encode(), 200, headers or {})

    def send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def mode_of(name: str) -> str:
    return "lfs" if name.endswith(".safetensors") else "regular"


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, bytes]]]:
    """The address of a stand-in hub on this machine, and the files of its repository."""
    files: dict[str, bytes] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (StandIn,), {"files": files}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", files
    server.shutdown()


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """An export of the shipped run."""
    export_run(Run(RunFolder.load(SHIPPED / "shapes", [])), tmp_path / "export", "me/thing", "cc0-1.0")
    return tmp_path / "export"


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch, vqvae
from vqvae.export.hub import push
print(push(Path(sys.argv[2]), "me/thing", False))
model = vqvae.load("me/thing")
torch.save(model.sample(seeds=[3], labels=["star"]), "sample.pt")
for name in ("me/other", "me/thing@older"):
    try:
        vqvae.load(name)
    except vqvae.UserError as error:
        print(error)
"""


@needs_hub
def test_an_export_is_uploaded_and_loaded_by_its_name(
    hub: tuple[str, dict[str, bytes]], export: Path, tmp_path: Path
) -> None:
    address, files = hub
    own = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_none", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", PROGRAM, str(ROOT), str(export)]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **own}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {name: (export / name).read_bytes() for name in files if name in os.listdir(export)} == {
        file.name: file.read_bytes() for file in export.iterdir()
    }
    said = done.stdout.splitlines()
    assert said[0].endswith("/me/thing")
    assert said[1].startswith("me/other is no folder here, and the Hugging Face Hub does not give it: ")
    assert said[2].startswith("me/thing@older is no folder here, and the Hugging Face Hub does not give it: ")
    drawn = torch.load(tmp_path / "sample.pt")
    assert torch.equal(drawn, vqvae.load(export).sample(seeds=[3], labels=["star"]))


def test_a_card_has_metadata_figures_with_protocols_and_how_to_load_it(export: Path) -> None:
    card = (export / "README.md").read_text()
    head = card.split("---")[1]
    assert 'license: "cc0-1.0"' in head
    assert "library_name: vqvae" in head
    assert 'vqvae.load("me/thing")' in card
    assert re.search(r"\| autoencoder/psnr_db \| 29\.\d+ \| PSNR of the mean squared error over the split \|", card)
    assert "disc, ring, square" in card


def test_whole_numbers_in_a_card_have_all_their_digits() -> None:
    values = {
        783472: "783472",
        62.0: "62",
        16.6834: "16.68",
        0.00012346: "0.0001235",
        float("inf"): "inf",
        1e20: "1e+20",
    }
    assert [in_digits(value) for value in values] == [*values.values()]


def test_what_a_stranger_wrote_is_text_in_a_card() -> None:
    assert safe("<script>x</script>|[a](b)\n# c `d`") == "&lt;script&gt;x&lt;/script&gt;\\|\\[a\\](b) # c \\`d\\`"


def test_names_of_the_hub_are_told_from_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("me/thing", "me/thing@v1.0", "a-b/c_d.e"):
        assert is_hub_name(name)
    for name in ("runs/missing", "thing", "/me/thing", "me/thing/deep", "../thing", "me/../thing", "me/thing@a b"):
        assert not is_hub_name(name)
    for name in ("thing", "me/thing@main", "me/thing/deep"):
        with pytest.raises(UserError, match="is not of the form owner/name"):
            check_hub_name(name)


def test_without_the_package_one_sentence_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="needs huggingface_hub: pip install huggingface_hub"):
        vqvae.load("me/thing")
