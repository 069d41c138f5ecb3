# SPDX-License-Identifier: Apache-2.0
"""The endpoints of a Hub from which models are read, answered out of a store: whoever sets HF_ENDPOINT loads models as from the Hub.

Nothing is written, and no path is looked for on any disk: what a request names is a file of a manifest, or nothing. Everybody who reaches
the address can read every model.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from weightpack.errors import OptionError, WeightpackError
from weightpack.format.store import ModelFile, StoreManifest
from weightpack.options import Limits
from weightpack.store.models import newest_generation, parsed_manifest
from weightpack.store.restore import file_pieces
from weightpack.store.storage import Storage

_PART = r"[\w][\w.-]*"
_ACTIONS = r"(?:revision|tree|paths-info|refs)"
_API = re.compile(rf"/api/models/({_PART}(?:/(?!{_ACTIONS}(?:/|$)){_PART})?)(?:/({_ACTIONS})(?:/([^/]+)(?:/(.*))?)?)?", re.ASCII | re.S)
_FILE = re.compile(rf"/({_PART}(?:/{_PART})?)/resolve/([^/]+)/(.+)", re.ASCII | re.S)
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_MOST_BODY = 1 << 20
_IDLE_SECONDS = 60


class _Refused(Exception):
    """A request that gets no file: its status, and the code by which the Hub's client knows why."""

    def __init__(self, status: int, code: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.code, self.reason = status, code, reason


@contextmanager
def served(storage: Storage, host: str, port: int, limits: Limits, report: Callable[[str], None]) -> Iterator[ThreadingHTTPServer]:
    """Give a server for a store, whose `serve_forever` the caller calls. See `Store.serve`."""

    @lru_cache(maxsize=16)
    def parsed(name: str, generation: int) -> StoreManifest:
        return parsed_manifest(storage, name, generation, limits)

    class Handler(_Handler):
        store = storage
        manifest = staticmethod(lambda name: parsed(name, newest_generation(storage, name)))
        told = staticmethod(report)

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    try:
        yield server
    finally:
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "weightpack"
    timeout = _IDLE_SECONDS
    store: Storage
    manifest: Callable[[str], StoreManifest]
    told: Callable[[str], None]

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of requests that went well."""

    def do_GET(self) -> None:
        self._answered()

    do_HEAD = do_POST = do_GET

    def _answered(self) -> None:
        path = urllib.parse.urlsplit(self.path).path
        try:
            body = self._body()
            self._refuse_strangers()
            api, file = _API.fullmatch(urllib.parse.unquote(path)), _FILE.fullmatch(urllib.parse.unquote(path))
            if self.command == "POST" and not (api and api[2] == "paths-info"):
                raise _Refused(405, "", "this store is only read from here")
            if api:
                self._api(api[1], api[2], api[3], api[4], body)
            elif file:
                self._file(file[1], file[2], file[3])
            else:
                raise _Refused(404, "", "there is nothing of that name here")
        except _Refused as refused:
            self._reply(refused.status, {"error": refused.reason}, {"X-Error-Code": refused.code, "X-Error-Message": refused.reason})
        except (BrokenPipeError, ConnectionError, TimeoutError):
            self.close_connection = True
        except (WeightpackError, OSError, MemoryError) as error:
            self.told(f"{path}: {error}")
            self.close_connection = True  # in the middle of a file: who reads it sees that it is short

    def _refuse_strangers(self) -> None:
        """Of a server for this machine alone: refuse requests for another host's name, by which a page in a browser could reach it."""
        try:
            host = urllib.parse.urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            host = ""
        if ipaddress.ip_address(self.request.getsockname()[0]).is_loopback and host not in (None, "localhost", "127.0.0.1", "::1"):
            raise _Refused(403, "", "this is not that host")

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length") or "0"
        if not length.isdecimal() or int(length) > _MOST_BODY:
            self.close_connection = True
            raise _Refused(413, "", "the request is too long")
        return self.rfile.read(int(length))

    def _reply(self, status: int, answer: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(answer).encode()
        self._head(status, {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _model(self, name: str, revision: str | None) -> StoreManifest:
        try:
            manifest = type(self).manifest(name)
        except OptionError:
            raise _Refused(404, "RepoNotFound", "the store has no such model") from None
        except WeightpackError as error:
            self.told(str(error))
            raise _Refused(500, "", "the model's manifest is damaged") from None
        if revision not in (None, "main", manifest.commit):
            raise _Refused(404, "RevisionNotFound", "a model of a store has the revision main, and the commit that this is")
        return manifest

    def _api(self, name: str, action: str | None, revision: str | None, path: str | None, body: bytes) -> None:
        manifest = self._model(name, revision if action != "refs" else None)
        files = {file.path: file for file in manifest.files}
        if action in (None, "revision"):
            siblings = [{"rfilename": path, "size": file.n_bytes} for path, file in sorted(files.items())]
            known: dict[str, object] = {"id": name, "modelId": name, "sha": manifest.commit, "siblings": siblings}
            self._reply(200, {**known, "private": False, "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0})
        elif action == "refs":
            self._reply(200, {"branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": manifest.commit}], "tags": [], "converts": []})
        elif action == "tree":
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            self._reply(200, _tree(files, (path or "").strip("/"), recursive=query.get("recursive", [""])[0].lower() in ("true", "1")))
        else:
            self._reply(200, [described for path in self._wanted_paths(body) for described in _described(files, path.strip("/"))])

    def _wanted_paths(self, body: bytes) -> list[str]:
        try:
            text = body.decode()
            paths = json.loads(text)["paths"] if "json" in self.headers.get("Content-Type", "") else urllib.parse.parse_qs(text)["paths"]
        except (ValueError, KeyError, TypeError, RecursionError):
            paths = None
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise _Refused(400, "", "the request names no paths")
        return paths

    def _file(self, name: str, revision: str, path: str) -> None:
        manifest = self._model(name, revision)
        file = next((file for file in manifest.files if file.path == path), None)
        if file is None:
            raise _Refused(404, "EntryNotFound", "the model has no such file")
        etag = f'"{file.sha256}"'
        headers = {
            "ETag": etag, "X-Repo-Commit": manifest.commit, "X-Linked-Etag": etag, "X-Linked-Size": str(file.n_bytes), "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }  # fmt: skip
        begin, end = 0, file.n_bytes
        wanted = _RANGE.fullmatch(self.headers.get("Range") or "")
        if wanted and wanted[1] + wanted[2] and self.headers.get("If-Range", etag) == etag:
            begin, end = _bounds(wanted[1], wanted[2], file.n_bytes)
            if begin >= end:
                self._head(416, {"Content-Range": f"bytes */{file.n_bytes}", "Content-Length": "0"})
                return
            self._head(206, {**headers, "Content-Range": f"bytes {begin}-{end - 1}/{file.n_bytes}", "Content-Length": str(end - begin)})
        else:
            self._head(200, {**headers, "Content-Length": str(end)})
        if self.command != "HEAD":
            for _, piece in file_pieces(self.store, manifest, file, 1, begin, end):
                self.wfile.write(piece)


def _bounds(first: str, last: str, n_bytes: int) -> tuple[int, int]:
    """Return what a range asks for, as [begin, end): from a byte to another, from a byte on, or so many at the end."""
    if not first:
        return max(n_bytes - int(last), 0), n_bytes
    return int(first), min(int(last) + 1, n_bytes) if last else n_bytes


def _entry(file: ModelFile) -> dict[str, object]:
    """Say of a file what the Hub says of one in LFS."""
    oid = hashlib.sha1(file.sha256.encode(), usedforsecurity=False).hexdigest()
    return {"type": "file", "path": file.path, "size": file.n_bytes, "oid": oid, "lfs": {"oid": file.sha256, "size": file.n_bytes, "pointerSize": 134}}


def _folder(path: str) -> dict[str, object]:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode(), usedforsecurity=False).hexdigest()}


def _described(files: dict[str, ModelFile], path: str) -> list[dict[str, object]]:
    if path in files:
        return [_entry(files[path])]
    return [_folder(path)] if any(name.startswith(f"{path}/") for name in files) else []


def _tree(files: dict[str, ModelFile], folder: str, *, recursive: bool) -> list[dict[str, object]]:
    """Return what is in a folder of a model, and with `recursive` below it; the top is ""."""
    prefix = f"{folder}/" if folder else ""
    inside = {path: file for path, file in sorted(files.items()) if path.startswith(prefix)}
    if prefix and not inside:
        raise _Refused(404, "EntryNotFound", "the model has no such folder")
    cuts = {path: [i for i, sign in enumerate(path) if sign == "/" and i >= len(prefix)] for path in inside}
    folders = {path[:cut] for path, found in cuts.items() for cut in (found if recursive else found[:1])}
    return [*map(_folder, sorted(folders)), *(_entry(file) for path, file in inside.items() if recursive or not cuts[path])]
