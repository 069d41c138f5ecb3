# SPDX-License-Identifier: Apache-2.0
"""Files behind URLs: a server that fails is not a file that is missing."""

from __future__ import annotations

import http.server
import threading

import pytest

pytest.importorskip("fsspec", reason="URLs need it")
pytest.importorskip("aiohttp", reason="fsspec needs it for https://; scripts/test-ecosystem installs it")

from weightpack.errors import OptionError
from weightpack.io.remote import RemoteFile

DATA = bytes(range(256)) * 1000


class Server(http.server.BaseHTTPRequestHandler):
    """Answers with the status that the path begins with; `/200` has the data, by range."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        status = int(self.path[1:4])
        data, span = b"", self.headers.get("Range")
        if status == 200:
            data = DATA
            if span:
                begin, end = span.removeprefix("bytes=").split("-")
                status, data = 206, DATA[int(begin) : int(end) + 1]
        self.send_response(status)
        self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{end}/{len(DATA)}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as listener:
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listener.server_port}"
        listener.shutdown()
        thread.join()


def test_ranges(server):
    file = RemoteFile(f"{server}/200/model.safetensors")
    assert file.size == len(DATA)
    for offset, n in ((0, 8), (100, 70_000), (len(DATA) - 5, 5)):
        buffer = bytearray(n)
        file.read_into(offset, memoryview(buffer))
        assert buffer == DATA[offset : offset + n]


@pytest.mark.parametrize("status", [404, 410])
def test_no_such_file(server, status):
    with pytest.raises(OptionError, match="no such file"):
        RemoteFile(f"{server}/{status}/model.safetensors")


@pytest.mark.parametrize("status", [401, 403])
def test_not_to_be_read(server, status):
    with pytest.raises(OptionError, match=f"may not be read.*{status}"):
        RemoteFile(f"{server}/{status}/model.safetensors")


@pytest.mark.parametrize("status", [400, 429, 500, 502, 503])
def test_a_server_that_fails(server, status):
    with pytest.raises(OSError, match=f"answers {status}"):
        RemoteFile(f"{server}/{status}/model.safetensors")


def test_no_server():
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9") as error:
        RemoteFile("http://127.0.0.1:9/model.safetensors")
    assert "no such file" not in str(error.value)
