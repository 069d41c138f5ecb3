# SPDX-License-Identifier: Apache-2.0
"""The stock client of the Hub reads models out of a store."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from folders import contents, write
from stores import model, some_weights

CLIENT = """
import json, sys
from huggingface_hub import HfApi, hf_hub_download, snapshot_download, HfFileSystem
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
folder, found = sys.argv[1], {}
api = HfApi()
info = api.model_info("me/any")
found["sha"], found["files"] = info.sha, sorted(each.rfilename for each in info.siblings)
found["snapshot"] = snapshot_download("me/any", cache_dir=folder)
found["again"] = snapshot_download("me/any", cache_dir=folder, revision=info.sha)
found["one"] = hf_hub_download("me/any", "sub/more.txt", cache_dir=folder)
found["tree"] = sorted(each.path for each in api.list_repo_tree("me/any", recursive=True))
found["folder"] = sorted(each.path for each in api.list_repo_tree("me/any", "sub"))
found["paths"] = [each.path for each in api.get_paths_info("me/any", ["config.json", "sub", "nothing"])]
found["refs"] = api.list_repo_refs("me/any").branches[0].target_commit
with HfFileSystem().open("me/any/model.safetensors", "rb") as file:
    file.seek(1000)
    found["range"] = file.read(5).hex()
for name, call in (
    ("no repo", lambda: api.model_info("me/other")), ("no file", lambda: hf_hub_download("me/any", "nothing", cache_dir=folder)),
    ("no revision", lambda: api.model_info("me/any", revision="v2")), ("no folder", lambda: list(api.list_repo_tree("me/any", "other"))),
):
    try:
        call()
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        found[name] = type(error).__name__
print(json.dumps(found))
"""


@pytest.fixture
def server(store, tmp_path):
    """A served store with one model; yields the server."""
    folder = model(tmp_path / "any", some_weights(), "F32")
    write(folder / "sub" / "more.txt", "x" * 1000)
    store.add(folder, "me/any")
    complaints: list[str] = []
    with store.serve(report=complaints.append) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        server.complaints = complaints
        yield server
        server.shutdown()
        thread.join()


def ask(server, method, path, body=None, **headers):
    connection = http.client.HTTPConnection(*server.server_address)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        reply = connection.getresponse()
        return reply.status, reply.read(), dict(reply.getheaders())
    finally:
        connection.close()


def test_the_stock_client(server, store, tmp_path):
    environment = {
        **os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", CLIENT, str(tmp_path / "hub")], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    commit, source = store.manifest("me/any").commit, tmp_path / "any"
    assert found["sha"] == found["refs"] == commit
    assert found["files"] == ["config.json", "model.safetensors", "sub/more.txt"]
    assert found["tree"] == [*found["files"][:2], "sub", "sub/more.txt"] and found["folder"] == ["sub/more.txt"]
    assert found["paths"] == ["config.json", "sub"]
    assert found["snapshot"] == found["again"] and Path(found["snapshot"]).name == commit
    assert contents(source) == contents(Path(found["snapshot"]))
    assert Path(found["one"]).read_bytes() == b"x" * 1000
    assert found["range"] == (source / "model.safetensors").read_bytes()[1000:1005].hex()
    assert found.keys() >= {"no repo", "no file", "no revision", "no folder"}
    assert server.complaints == []


def test_ranges(server, tmp_path):
    path, whole = "/me/any/resolve/main/model.safetensors", (tmp_path / "any" / "model.safetensors").read_bytes()
    for wanted, (begin, end) in {"0-0": (0, 1), "5-99999": (5, 100_000), "-7": (len(whole) - 7, len(whole)), f"{len(whole) - 3}-": (-3, None)}.items():
        status, body, headers = ask(server, "GET", path, Range=f"bytes={wanted}")
        assert status == 206 and body == whole[begin:end] and headers["Content-Length"] == str(len(body))
        assert headers["Content-Range"].endswith(f"/{len(whole)}")
    assert ask(server, "GET", path, Range=f"bytes={len(whole)}-")[0] == 416
    for wanted in ("bytes=-", "bytes=1-2,5-6", "lines=1-2"):  # no range, or none that we know: all of it
        assert ask(server, "GET", path, Range=wanted)[:2] == (200, whole)
    assert ask(server, "GET", path, Range="bytes=0-5", If_Range='"another"')[:2] == (200, whole)
    status, body, headers = ask(server, "HEAD", path)
    assert (status, body, headers["Content-Length"]) == (200, b"", str(len(whole)))


@pytest.mark.parametrize(
    "path",
    [
        "/", "/api/models", "/api/models/", "/weightpack-store.json", "/me/any/resolve/main/../../../weightpack-store.json",
        "/me/any/resolve/main/%2e%2e/%2e%2e/weightpack-store.json", "/me/any/resolve/main//etc/passwd", "/../any/resolve/main/config.json",
        "/me%2F..%2Fany/resolve/main/config.json", "/api/models/me/any/tree/main/..", "/objects/x", "/me/any/resolve/main/config.json%00",
        "/me/any/resolve/x/config.json", "/api/models/me/any/tree/main/%0a", "/api/models/%ff",
    ],
)  # fmt: skip
def test_what_was_not_added_is_not_there(server, path):
    status, body, _ = ask(server, "GET", path)
    assert status == 404 and b"error" in body


@pytest.mark.parametrize(("host", "status"), [("localhost:8500", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("models.example:8500", 403), ("[::", 403)])
def test_another_hosts_name(server, host, status):
    """A page whose name leads here all of a sudden (DNS rebinding) reads nothing."""
    assert ask(server, "GET", "/api/models/me/any", Host=host)[0] == status


def test_nothing_is_written(server, store):
    before = sorted(path for path in Path(store.url).rglob("*"))
    for path in ("/api/repos/create", "/api/models/me/any/commit/main", "/me/any/resolve/main/config.json"):
        assert ask(server, "POST", path, b"{}")[0] in (404, 405)
    assert ask(server, "PUT", "/me/any/resolve/main/config.json", b"x")[0] == 501
    assert ask(server, "POST", "/api/models/me/any/paths-info/main", b"[]", Content_Type="application/json")[0] == 400
    assert ask(server, "POST", "/api/models/me/any/paths-info/main", Content_Length=str(2 << 20))[0] == 413
    assert sorted(path for path in Path(store.url).rglob("*")) == before


def test_a_damaged_object_is_no_file(server, store):
    """What has begun can't be taken back: the connection ends before the file does, and a line says why."""
    (path,) = Path(store.url, "objects").rglob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(http.client.IncompleteRead):
        ask(server, "GET", "/me/any/resolve/main/model.safetensors")
    assert "model.safetensors" in server.complaints[0]


def test_a_model_that_is_added_later(server, store, tmp_path):
    assert ask(server, "GET", "/api/models/later")[0] == 404
    store.add(model(tmp_path / "later", some_weights(70)))
    assert json.loads(ask(server, "GET", "/api/models/later")[1])["sha"] == store.manifest("later").commit
    store.rm("later")
    assert ask(server, "GET", "/later/resolve/main/config.json")[0] == 404
