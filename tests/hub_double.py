# SPDX-License-Identifier: Apache-2.0
"""A Hub on this machine: the documented endpoints that downloading a model needs, served from folders. The stock huggingface_hub client talks to it."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import urllib.parse
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34


def _handler(repos: dict[str, Path], log: list[str]):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def reply(self, status, body=b"", **headers):
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **{k.replace("_", "-"): v for k, v in headers.items()}}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def error(self, status, code):
            self.reply(status, json.dumps({"error": code}).encode(), X_Error_Code=code, X_Error_Message=code)

        def do_GET(self):
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            log.append(f"{self.command} {path}")
            api = re.fullmatch(r"/api/models/(.+?)(?:/(revision|tree)/([^/]+)(?:/.*)?)?", path)
            file = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path)
            if not api and not file:
                return self.error(501, "NotImplemented")
            folder = repos.get((api or file)[1])
            if folder is None:
                return self.error(404 if self.headers.get("Authorization") else 401, "RepoNotFound")
            revision = api[3] if api else file[2]
            if revision not in (None, "main", COMMIT):
                return self.error(404, "RevisionNotFound")
            files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
            if api:
                entries = [
                    {"type": "file", "path": name, "size": p.stat().st_size, "oid": hashlib.sha1(p.read_bytes()).hexdigest()} for name, p in files.items()
                ]
                if api[2] == "tree":
                    return self.reply(200, json.dumps(entries).encode(), Content_Type="application/json")
                info = {
                    "id": api[1], "modelId": api[1], "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0,
                    "siblings": [{"rfilename": e["path"], "size": e["size"], "blobId": e["oid"]} for e in entries],
                }  # fmt: skip
                return self.reply(200, json.dumps(info).encode(), Content_Type="application/json")
            if file[3] not in files:
                return self.error(404, "EntryNotFound")
            data = files[file[3]].read_bytes()
            headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if wanted and self.command == "GET":
                begin, end = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
                return self.reply(206, data[begin : end + 1], Content_Range=f"bytes {begin}-{end}/{len(data)}", **headers)
            return self.reply(200, data, **headers)

        do_HEAD = do_GET

    return Handler


@contextmanager
def serve(repos: dict[str, Path]):
    """Serve folders as repos; yields (URL, log of requests)."""
    log: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(repos, log))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", log
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
