# SPDX-License-Identifier: Apache-2.0
"""Packed files in an object store: moto's S3 server, read through s3fs."""

from __future__ import annotations

import secrets

import pytest

pytest.importorskip("moto", reason="scripts/test-ecosystem installs moto and s3fs and runs this")
s3fs = pytest.importorskip("s3fs", reason="scripts/test-ecosystem installs it")

import samples  # noqa: E402
import torch  # noqa: E402

import weightpack  # noqa: E402
from weightpack.errors import OptionError  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def bucket(monkeypatch):
    from fsspec.config import conf
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setitem(conf, "s3", {"endpoint_url": f"http://{host}:{port}", "key": "k", "secret": "s"})
    filesystem = s3fs.S3FileSystem(skip_instance_cache=True)
    name = f"models-{secrets.token_hex(4)}"  # moto keeps its buckets as long as the process lives
    filesystem.mkdir(name)
    yield filesystem, name
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_tensors_by_range(bucket, tmp_path, kind):
    plain, packed = tmp_path / "plain.safetensors", tmp_path / "packed.safetensors"
    plain.write_bytes(samples.bf16_file(seed=1, name="w", n=4_000_000))
    weightpack.pack(plain, packed)
    filesystem, name = bucket
    filesystem.put(str(tmp_path / f"{kind}.safetensors"), f"{name}/m.safetensors")
    url = f"s3://{name}/m.safetensors"
    with weightpack.safe_open(url, "pt") as far, weightpack.safe_open(plain, "pt") as near:
        assert torch.equal(far.get_slice("w")[1000:1010], near.get_slice("w")[1000:1010])
        assert far._reader.file.bytes_read < 1_000_000
        assert torch.equal(far.get_tensor("w"), near.get_tensor("w"))
    (report,) = weightpack.estimate(url) if kind == "plain" else weightpack.inspect(url)
    assert report.source_bytes == plain.stat().st_size


def test_what_is_not_there(bucket):
    with pytest.raises(OptionError, match="no such file"):
        weightpack.safe_open(f"s3://{bucket[1]}/none.safetensors")
