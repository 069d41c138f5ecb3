# SPDX-License-Identifier: Apache-2.0
"""A Hub on this machine: the documented endpoints that a model's way there and back needs. The stock huggingface_hub client talks to it.

Repos, commits and blobs live in memory. Plain files go with the commit, *.safetensors and files over 10 MB as LFS objects, as on the real Hub. There is no
Xet: set HF_HUB_DISABLE_XET=1 before the client is imported.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import urllib.parse
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN, READ_TOKEN = "hf_writes", "hf_reads"


@dataclass
class Entry:
    """A file of a commit: its blob's id (SHA-256 for LFS, git's SHA-1 else)."""

    oid: str
    size: int
    lfs: bool


@dataclass
class Repo:
    private: bool = False
    commits: dict[str, dict[str, Entry]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit_of(self, revision):
        revision = revision or "main"
        return revision if revision in self.commits else self.branches.get(revision) or self.tags.get(revision)


@dataclass
class Request:
    method: str
    path: str
    n_sent: int = 0
    n_received: int = 0


class Hub:
    """State of the server. `drop_uploads`: that many LFS uploads are cut off before one is answered; `refuse_commits`: the status that commits get."""

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.old_names: dict[str, str] = {}  # names without an owner, as the first models of the real Hub have
        self.blobs: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.drop_uploads = 0
        self.refuse_commits = 0
        self.lock = threading.Lock()
        self.url = ""

    def log(self):
        return [f"{request.method} {request.path}" for request in self.requests]

    def put(self, data: bytes, lfs: bool) -> Entry:
        oid = hashlib.sha256(data).hexdigest() if lfs else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        self.blobs[oid] = data
        return Entry(oid, len(data), lfs)

    def add(self, repo_id: str, folder: Path, *, private: bool = False, revision: str = "main") -> str:
        """Make a repo (or a branch) of a folder's files; return the commit."""
        tree = {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            data = path.read_bytes()
            tree[path.relative_to(folder).as_posix()] = self.put(data, is_lfs(path.name, len(data)))
        return self.commit(self.repos.setdefault(repo_id, Repo(private)), tree, revision)

    def commit(self, repo: Repo, tree: dict[str, Entry], revision: str) -> str:
        sha = hashlib.sha1(repr((sorted((k, v.oid) for k, v in tree.items()), len(repo.commits))).encode()).hexdigest()
        repo.commits[sha] = tree
        repo.branches[revision] = sha
        return sha

    def file(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        repo = self.repos[repo_id]
        return self.blobs[repo.commits[repo.commit_of(revision)][path].oid]

    def paths(self, repo_id: str, revision: str = "main") -> set[str]:
        repo = self.repos[repo_id]
        return set(repo.commits[repo.commit_of(revision)])


def is_lfs(name: str, size: int) -> bool:
    return name.endswith((".safetensors", ".bin")) or size > 10_000_000


def _described(path: str, entry: Entry) -> dict:
    described = {"type": "file", "path": path, "size": entry.size, "oid": entry.oid}
    if entry.lfs:
        described |= {"oid": hashlib.sha1(entry.oid.encode()).hexdigest(), "lfs": {"oid": entry.oid, "size": entry.size, "pointerSize": 134}}
    return described


def _handler(hub: Hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        # ---- in and out

        def body(self) -> bytes:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                parts = []
                while n := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(n))
                    self.rfile.readline()
                self.rfile.readline()
                data = b"".join(parts)
            else:
                data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.request_log.n_received += len(data)
            return data

        def reply(self, status, body=b"", **headers):
            if not isinstance(body, bytes):
                body, headers = json.dumps(body).encode(), {"Content_Type": "application/json", **headers}
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **{k.replace("_", "-"): v for k, v in headers.items()}}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
                self.request_log.n_sent += len(body)

        def error(self, status, code, message=None):
            self.reply(status, {"error": message or code}, X_Error_Code=code, X_Error_Message=message or code)

        # ---- the road of a request

        def handle_any(self):
            split = urllib.parse.urlsplit(self.path)
            path, query = urllib.parse.unquote(split.path), urllib.parse.parse_qs(split.query)
            self.request_log = Request(self.command, path)
            with hub.lock:
                hub.requests.append(self.request_log)
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            body = self.body()
            if lfs := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
                return self.lfs_upload(lfs[1], body)
            if path == "/api/validate-yaml":
                return self.reply(200, {"errors": [], "warnings": []})
            if token and token not in (TOKEN, READ_TOKEN):
                return self.error(401, "", "Invalid username or password.")
            if path == "/api/whoami-v2":
                return self.reply(200, {"name": "me", "type": "user", "orgs": []}) if token else self.error(401, "", "Invalid username or password.")
            if path == "/api/repos/create":
                return self.create(json.loads(body), token)
            batch = re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path)
            api = re.fullmatch(r"/api/models/([^/]+(?:/[^/]+)?)(?:/(preupload|commit|revision|tree|paths-info|refs|branch)(?:/([^/]+)(?:/(.*))?)?)?", path)
            file = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path)
            found = batch or api or file
            if not found:
                return self.error(501, "NotImplemented", f"not in the double: {self.command} {path}")
            repo_id = hub.old_names.get(found[1], found[1])
            repo = hub.repos.get(repo_id)
            if repo is None or (repo.private and not token):
                return self.error(404 if token else 401, "RepoNotFound", "Repository not found")
            if (batch or (api and api[2] in ("preupload", "commit", "branch"))) and token != TOKEN:
                return self.error(403 if token else 401, "", "You don't have the rights to write here")
            if batch:
                return self.lfs_batch(json.loads(body))
            if file:
                return self.resolve(repo, *file.groups()[1:])
            return self.api(repo, repo_id, api, query, body)

        do_GET = do_HEAD = do_POST = do_PUT = handle_any

        def create(self, wanted, token):
            repo_id = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            if token != TOKEN:
                return self.error(403 if token else 401, "", "You don't have the rights to create a model here")
            if repo_id in hub.repos:
                return self.reply(409, {"error": "You already created this model repo", "url": f"{hub.url}/{repo_id}"})
            repo = hub.repos[repo_id] = Repo(bool(wanted.get("private") or wanted.get("visibility") == "private"))
            hub.commit(repo, {".gitattributes": hub.put(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", False)}, "main")
            return self.reply(200, {"url": f"{hub.url}/{repo_id}", "id": repo_id, "name": repo_id})

        def lfs_batch(self, wanted):
            objects = []
            for o in wanted["objects"]:
                actions = {} if o["oid"] in hub.blobs else {"actions": {"upload": {"href": f"{hub.url}/lfs/{o['oid']}"}}}
                objects.append({"oid": o["oid"], "size": o["size"], **actions})
            return self.reply(200, {"transfer": "basic", "objects": objects})

        def lfs_upload(self, oid, data):
            if hub.drop_uploads:
                hub.drop_uploads -= 1
                self.close_connection = True
                return self.connection.close()
            if hashlib.sha256(data).hexdigest() != oid:
                return self.error(422, "", "the object's SHA-256 is another")
            hub.blobs[oid] = data
            return self.reply(200, ETag=f'"{oid}"')

        def api(self, repo, repo_id, match, query, body):
            _, action, revision, rest = match.groups()
            if action == "branch":
                if revision in repo.branches:
                    return self.error(409, "", "Reference already exists")
                repo.branches[revision] = repo.commit_of("main")
                return self.reply(200, {})
            sha = repo.commit_of(revision)
            if action == "refs":
                branches = [{"name": k, "ref": f"refs/heads/{k}", "targetCommit": v} for k, v in repo.branches.items()]
                return self.reply(200, {"branches": branches, "tags": [], "converts": []})
            if sha is None:
                return self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            tree = repo.commits[sha]
            if action in (None, "revision"):
                files = [_described(path, entry) for path, entry in sorted(tree.items())]
                siblings = [{"rfilename": f["path"], "size": f["size"], "blobId": f["oid"]} for f in files]
                return self.reply(
                    200, {"id": repo_id, "modelId": repo_id, "sha": sha, "private": repo.private, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}
                )
            if action == "preupload":
                files = [
                    {
                        "path": f["path"], "uploadMode": "lfs" if is_lfs(f["path"], f["size"]) else "regular", "shouldIgnore": False,
                        "oid": tree[f["path"]].oid if f["path"] in tree else None,
                    }
                    for f in json.loads(body)["files"]
                ]  # fmt: skip
                return self.reply(200, {"files": files})
            if action == "commit":
                return self.commit(repo, repo_id, revision, sha, body, query)
            if action == "tree":
                prefix = f"{rest.strip('/')}/" if rest and rest.strip("/") else ""
                inside = {path: entry for path, entry in sorted(tree.items()) if path.startswith(prefix)}
                if prefix and not inside:
                    return self.error(404, "EntryNotFound", f"{rest} does not exist")
                recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
                folders = {path[: i + len(prefix)] for path in inside for i in [path[len(prefix) :].find("/")] if i >= 0}
                files = [_described(path, entry) for path, entry in inside.items() if recursive or "/" not in path[len(prefix) :]]
                return self.reply(200, [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)] + files)
            paths = json.loads(body)["paths"] if "json" in self.headers["Content-Type"] else urllib.parse.parse_qs(body.decode())["paths"]
            described = [_described(path, tree[path]) for path in paths if path in tree]
            folders = [path for path in paths if path not in tree and any(name.startswith(f"{path.rstrip('/')}/") for name in tree)]
            return self.reply(200, described + [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders])

        def commit(self, repo, repo_id, revision, sha, body, query):
            if hub.refuse_commits:
                return self.error(hub.refuse_commits, "", "not now")
            tree = dict(repo.commits[sha])
            for line in body.splitlines():
                item = json.loads(line)
                key, value = item["key"], item["value"]
                if key == "header" and value.get("parentCommit") not in (None, sha):
                    return self.error(412, "", "A commit has happened since")
                if key == "file":
                    tree[value["path"]] = hub.put(base64.b64decode(value["content"]), False)
                elif key == "lfsFile":
                    if value["oid"] not in hub.blobs:
                        return self.error(400, "", f"the object {value['oid']} was never uploaded")
                    tree[value["path"]] = Entry(value["oid"], len(hub.blobs[value["oid"]]), True)
                elif key == "deletedFile":
                    tree.pop(value["path"], None)
            extra = {}
            if query.get("create_pr", ["0"])[0] == "1":
                revision, extra = "refs/pr/1", {"pullRequestUrl": f"{hub.url}/{repo_id}/discussions/1"}
            new = hub.commit(repo, tree, revision)
            return self.reply(200, {"success": True, "commitOid": new, "commitUrl": f"{hub.url}/{repo_id}/commit/{new}", "hookOutput": "", **extra})

        def resolve(self, repo, revision, path):
            sha = repo.commit_of(revision)
            if sha is None:
                return self.error(404, "RevisionNotFound")
            entry = repo.commits[sha].get(path)
            if entry is None:
                return self.reply(404, {"error": "EntryNotFound"}, X_Error_Code="EntryNotFound", X_Error_Message="EntryNotFound", X_Repo_Commit=sha)
            data = hub.blobs[entry.oid]
            headers = {"ETag": f'"{entry.oid}"', "X_Repo_Commit": sha, "Accept_Ranges": "bytes"}
            if entry.lfs:
                headers |= {"X_Linked_Etag": f'"{entry.oid}"', "X_Linked_Size": str(entry.size)}
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if wanted and self.command == "GET":
                begin, end = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
                if begin >= len(data):
                    return self.reply(416, Content_Range=f"bytes */{len(data)}")
                return self.reply(206, data[begin : end + 1], Content_Range=f"bytes {begin}-{end}/{len(data)}", **headers)
            return self.reply(200, data, **headers)

    return Handler


@contextmanager
def serve(repos: dict[str, Path] | None = None):
    """Run a Hub with these folders as repos; yields the `Hub`, whose `url` is the client's HF_ENDPOINT."""
    hub = Hub()
    for repo_id, folder in (repos or {}).items():
        hub.add(repo_id, folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Client:
    """Runs commands against a Hub, each with an empty cache unless it is told to keep it."""

    def __init__(self, hub, folder):
        self.hub, self.folder = hub, folder
        self.token = TOKEN

    @property
    def env(self):
        return {
            **os.environ, "HF_ENDPOINT": self.hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(self.folder / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": self.token,
        }  # fmt: skip

    def command(self, *arguments):
        return [sys.executable, "-m", "weightpack", *map(str, arguments)]

    def __call__(self, *arguments):
        done = subprocess.run(self.command(*arguments), cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=300)
        assert "Traceback" not in done.stderr, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        return done

    def python(self, code, *arguments):
        done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ok(self, *arguments):
        done = self(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout
