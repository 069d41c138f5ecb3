# SPDX-License-Identifier: Apache-2.0
"""Files on the disk: what a system may lack, and files that change while they are read."""

from __future__ import annotations

import os
import sys

import pytest
import samples

import weightpack
from weightpack.errors import TruncatedError
from weightpack.io.files import LocalFile


@pytest.mark.parametrize("threads", [1, 4])
def test_without_positioned_reads_and_writes_and_locks_as_on_windows(tmp_path, monkeypatch, threads):
    source = samples.mixed_file()
    (tmp_path / "source").write_bytes(source)
    weightpack.pack(tmp_path / "source", tmp_path / "expected")
    for name in ("pread", "preadv", "pwrite", "pwritev", "posix_fallocate"):
        monkeypatch.delattr(os, name)
    monkeypatch.setitem(sys.modules, "fcntl", None)  # an import fails
    weightpack.pack(tmp_path / "source", tmp_path / "packed", threads=threads)
    weightpack.unpack(tmp_path / "packed", tmp_path / "back", threads=threads)
    assert (tmp_path / "packed").read_bytes() == (tmp_path / "expected").read_bytes()
    assert (tmp_path / "back").read_bytes() == source


def test_local_file_shorter_than_read_is_truncated(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345678")
    with LocalFile(path) as file:
        path.write_bytes(b"1234")
        with pytest.raises(TruncatedError):
            file.read_into(0, memoryview(bytearray(8)))
