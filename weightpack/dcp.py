# SPDX-License-Identifier: Apache-2.0
"""Packed checkpoints of `torch.distributed.checkpoint` (DCP): each item that DCP writes goes through a stream transform, and back when it is read.

::

    import torch.distributed.checkpoint as dcp
    import weightpack.dcp

    dcp.save(state, storage_writer=weightpack.dcp.writer(path))
    dcp.load(state, storage_reader=weightpack.dcp.reader(path))

docs/DCP.md says what to expect; the bytes of a packed item are those of FORMAT section 16.
"""

from __future__ import annotations

import io
import os
from typing import IO, TYPE_CHECKING, Any

from weightpack.errors import MissingExtraError, UnsupportedError
from weightpack.format.item import VERSION
from weightpack.io.parallel import thread_count
from weightpack.io.remote import is_url
from weightpack.options import load_profile
from weightpack.reading.item import MAX_BYTES, unpack_item
from weightpack.writing.item import pack_item

try:
    from torch.distributed.checkpoint._extension import ExtensionRegistry, StreamTransformExtension
    from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
except ImportError as error:
    raise MissingExtraError(
        f"weightpack.dcp needs a PyTorch whose distributed checkpoints have stream extensions, 2.7 or later: `pip install 'torch>=2.7'` ({error})"
    ) from None

if TYPE_CHECKING:
    from collections.abc import Buffer

    from weightpack.options import PackOptions

__all__ = ["WeightpackExtension", "reader", "registry", "writer"]

_NAME = "stream.weightpack"


class WeightpackExtension(StreamTransformExtension):
    """DCP's hook: packs what is written to a stream, and restores it. Give it to a writer as `_extensions=[WeightpackExtension()]`.

    It must be the writer's only extension: PyTorch 2.13 undoes several in the order in which it did them, so that loading fails whatever they are.

    Parameters
    ----------
    options
        Default: the profile "fast".
    threads
        Of items of many MB; None: one a core. DCP's own `thread_count` spreads items.
    verify
        Decode each item when it is written, and compare; LosslessError if anything differs.
    max_bytes
        LimitError for an item that claims more when it is read.
    """

    def __init__(self, options: PackOptions | None = None, *, threads: int | None = 1, verify: bool = True, max_bytes: int = MAX_BYTES) -> None:
        self.options, self.threads, self.verify, self.max_bytes = options or load_profile(), threads, verify, max_bytes
        thread_count(threads)  # refuses what is none

    @staticmethod
    def registry_name() -> str:
        return _NAME

    def get_descriptor(self) -> str:
        return f"{_NAME}/{VERSION}"

    @staticmethod
    def from_descriptor(version: str) -> WeightpackExtension:
        """Return the extension that reads what `get_descriptor` of some release named; UnsupportedError if that release was newer."""
        _check_version(version)
        return WeightpackExtension()

    def transform_to(self, output: IO[bytes]) -> IO[bytes]:
        """Return a stream that writes the packed item to `output` when it is closed, then closes `output`, as DCP wants it."""
        return _PackingStream(output, self)  # type: ignore[return-value]  # IO[bytes] is no protocol

    def transform_from(self, input: IO[bytes]) -> IO[bytes]:
        """Return the item's source in memory, seekable, so that `torch.load` needs no further copy.

        Raises
        ------
        FormatError
            The item is damaged.
        LimitError
            It claims more than `max_bytes`, or more memory than there is.
        """
        return unpack_item(b"".join(iter(input.read, b"")), self.threads, self.max_bytes)


def writer(
    path: str | os.PathLike[str], *, options: PackOptions | None = None, threads: int | None = 1, verify: bool = True, **kwargs: Any
) -> FileSystemWriter:
    """Return DCP's writer for a folder, or for a URL that fsspec knows, with `WeightpackExtension` in it; `kwargs` are the writer's own."""
    extensions = [WeightpackExtension(options, threads=threads, verify=verify)]
    if isinstance(path, str) and is_url(path):
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

        return FsspecWriter(path, _extensions=extensions, **kwargs)
    return FileSystemWriter(path, _extensions=extensions, **kwargs)


def reader(path: str | os.PathLike[str], *, threads: int | None = 1, max_bytes: int = MAX_BYTES, **kwargs: Any) -> FileSystemReader:
    """Return DCP's reader for a folder, or for a URL that fsspec knows, of packed checkpoints and of plain ones; `kwargs` are the reader's own."""
    known = registry(threads=threads, max_bytes=max_bytes)
    if isinstance(path, str) and is_url(path):
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

        found = FsspecReader(path, **kwargs)
        found.transforms = type(found.transforms)(known)  # its constructor has no argument for it
        return found
    return FileSystemReader(path, _extension_registry=known, **kwargs)


def registry(*, threads: int | None = 1, max_bytes: int = MAX_BYTES) -> ExtensionRegistry:
    """Return the registry by which a reader finds `WeightpackExtension`, with these arguments: `FileSystemReader(path, _extension_registry=registry())`."""

    class Configured(WeightpackExtension):
        """DCP makes extensions of descriptors alone."""

        @staticmethod
        def from_descriptor(version: str) -> WeightpackExtension:
            _check_version(version)
            return WeightpackExtension(threads=threads, max_bytes=max_bytes)

    found = ExtensionRegistry()
    found.register(Configured)
    return found


def _check_version(version: str) -> None:
    if version.partition(".")[0] != str(VERSION):
        raise UnsupportedError(f"the checkpoint was packed by a newer weightpack ({_NAME}/{version}): upgrade weightpack")


class _PackingStream(io.RawIOBase):
    """Holds what is written until it is closed: where the storages are, the end of a zip file says."""

    def __init__(self, output: IO[bytes], extension: WeightpackExtension) -> None:
        self._output, self._extension, self._data = output, extension, bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:
        if self.closed:
            raise ValueError("write to a closed stream")
        view = memoryview(data)
        self._data += view  # a copy: what torch.save gives is valid during the call alone
        return view.nbytes

    def close(self) -> None:
        if self.closed:
            return
        super().close()  # first: what fails must not be written in a second attempt
        data, self._data = self._data, bytearray()
        for piece in pack_item(data, self._extension.options, self._extension.threads, verify=self._extension.verify):
            self._output.write(piece)
        self._output.close()

    def __del__(self) -> None:
        """A stream that was never closed belongs to a save that failed: io's destructor would write half an item."""
