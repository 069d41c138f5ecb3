# SPDX-License-Identifier: Apache-2.0
"""A store in a bucket: moto's S3 server, through s3fs; also one that fails one request in ten."""

from __future__ import annotations

import http.client
import itertools
import secrets
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("moto", reason="scripts/test-ecosystem installs moto and s3fs and runs this")
s3fs = pytest.importorskip("s3fs", reason="scripts/test-ecosystem installs it")

from folders import contents  # noqa: E402
from stores import Counting, model, restored, some_weights, steps  # noqa: E402

from weightpack import Store  # noqa: E402
from weightpack.errors import LosslessError, OptionError  # noqa: E402
from weightpack.store import leases  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")


@contextmanager
def failing_proxy(host, port, one_in):
    """Pass requests on, but answer one in so many with 503 before it arrives."""
    numbers, failed = itertools.count(1), []

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if next(numbers) % one_in == 0:
                failed.append(self.command)
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            connection = http.client.HTTPConnection(host, port)
            connection.request(self.command, self.path, body, dict(self.headers))
            reply = connection.getresponse()
            data = reply.read()
            self.send_response(reply.status)
            for name, value in reply.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "date", "server", "content-length"):
                    self.send_header(name, value)
            self.send_header("Content-Length", reply.getheader("Content-Length") if self.command == "HEAD" else str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            connection.close()

        do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server.server_address, failed
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(params=["all answered", pytest.param("one in ten fails", marks=pytest.mark.long)])
def url(request, monkeypatch, tmp_path):
    from fsspec.config import conf
    from moto.server import ThreadedMotoServer

    monkeypatch.setenv("WEIGHTPACK_CACHE", str(tmp_path / "cache"))
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with failing_proxy(host, port, 10 if request.param == "one in ten fails" else 1 << 60) as ((host, port), failed):
        monkeypatch.setitem(conf, "s3", {"endpoint_url": f"http://{host}:{port}", "key": "k", "secret": "s"})
        name = f"zoo-{secrets.token_hex(4)}"  # moto keeps its buckets as long as the process lives
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir(name)
        yield f"s3://{name}/store"
        s3fs.S3FileSystem.clear_instance_cache()
    assert bool(failed) == (request.param == "one in ten fails")
    server.stop()


def test_from_the_first_model_to_the_last(url, tmp_path):
    store, base = Store(url, make=True), some_weights()
    with pytest.raises(OptionError, match="a store already"):
        Store(url, make=True)
    store.add(model(tmp_path / "base", base))
    ref = store.add(model(tmp_path / "tuned", steps(base, 10)), "me/tuned")
    assert sum(placed.base is not None for placed in store.manifest(ref).own_items.values()) == 3
    assert store.add(tmp_path / "tuned", "me/tuned").new_bytes == 0
    assert contents(tmp_path / "tuned") == contents(restored(store, ref, tmp_path / "again"))
    assert [each.name for each in store.ls()] == ["base", "me/tuned"]
    assert store.verify([ref]).objects == 2
    with pytest.raises(OptionError, match="no model"):
        store.open("me/other")
    store.rm("base")
    assert store.gc().objects == 0
    store.rebase()
    assert store.gc().objects == 2
    assert contents(tmp_path / "tuned") == contents(restored(store, ref, tmp_path / "again"))
    store.rm(ref)
    assert store.gc().objects == 1 and store.stored_bytes() == 0


def test_a_tensor_by_few_ranges(url, tmp_path, monkeypatch):
    store, base = Store(url, make=True), some_weights()
    store.add(model(tmp_path / "base", base, "F32"))
    store.add(model(tmp_path / "tuned", steps(base, 10), "F32"))
    counting = Counting(store._storage)
    monkeypatch.setattr(store, "_storage", counting)
    with store.open("tuned") as opened:
        opened.get_slice("layer.0.weight").get_shape()
        assert counting.reads == []
        opened.get_tensor("layer.0.weight")
    assert len(counting.reads) == 2


@pytest.mark.long
def test_two_adders_at_once(url, tmp_path):
    store, results = Store(url, make=True), []
    folder = model(tmp_path / "base", some_weights())

    def add(number):
        try:
            results.append(Store(url).add(folder).commit)
        except BaseException as error:
            results.append(error)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [store.manifest("base").commit] * 2
    assert store.verify(["base"]).objects == 1


@pytest.mark.long
def test_another_model_of_the_name_loses(url, tmp_path):
    """The manifest is put on condition that there is none, whoever looked before."""
    store = Store(url, make=True)
    first = store.add(model(tmp_path / "base", some_weights()))
    assert not store._storage.put("models/base/@00000000.json", [b"{}"])
    assert store.manifest("base").commit == first.commit


def test_leases_lapse_by_age(url, tmp_path, monkeypatch):
    store = Store(url, make=True)
    folder = model(tmp_path / "base", some_weights())
    pack = store._pack_units

    def collect_and_pack(units, tell):
        with pytest.raises(OptionError, match="at work"):
            Store(url).gc()
        monkeypatch.setattr(leases, "LAPSES_AFTER", -1.0)
        Store(url).gc()
        return pack(units, tell)

    monkeypatch.setattr(store, "_pack_units", collect_and_pack)
    with pytest.raises(LosslessError, match="not heard of"):
        store.add(folder)
    assert store.ls() == []
