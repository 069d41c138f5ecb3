# SPDX-License-Identifier: Apache-2.0
"""Files elsewhere (hf://, s3://, https://, whatever fsspec knows), of which only the ranges asked for are fetched."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from weightpack.errors import MissingExtraError, OptionError, PathNotFoundError, TruncatedError, WeightpackError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z][A-Za-z0-9+.-]*)*://")
_BLOCK_BYTES = 1 << 16  # small reads (headers, record tables) fetch a block: a request costs more than its bytes
_BLOCKS_KEPT = 32


def is_url(text: str) -> bool:
    """Does this name a file by URL?"""
    return _URL.match(text) is not None


class RemoteFile:
    """A file behind a URL, read range by range; safe to use from many threads.

    Parameters
    ----------
    url
        `hf://owner/name[@revision]/path`, or any other that fsspec opens.
    token
        For hf:// URLs; default: the one of `hf auth login`; False: none.

    Raises
    ------
    OptionError
        There is no such file (a PathNotFoundError), or it may not be read.
    MissingExtraError
        fsspec needs another package for this kind of URL.
    OSError
        The other side can't be reached.
    """

    piece_bytes = 16 << 20

    def __init__(self, url: str, *, token: str | bool | None = None) -> None:
        import fsspec

        self.name = url
        options: dict[str, Any] = {"token": token} if token is not None and url.startswith("hf://") else {}
        with explained(self.name):
            self._filesystem, self._path = fsspec.core.url_to_fs(url, **options)
            size = self._filesystem.info(self._path).get("size")
        if size is None:
            raise OptionError("the server does not say how long the file is, so parts of it can't be asked for: download it", path=url)
        self.size = int(size)
        # Filesystems with blocking files would read ahead; the others have no such option.
        self._uncached = {} if getattr(self._filesystem, "async_impl", False) else {"cache_type": "none"}
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes_read = 0  # fetched so far

    def read_into(self, offset: int, buffer: memoryview) -> None:
        end = offset + len(buffer)
        if end > self.size:
            raise TruncatedError(f"bytes to {end} are wanted, there are {self.size}", path=self.name)
        if len(buffer) >= _BLOCK_BYTES:
            buffer[:] = self._fetch(offset, end)
            return
        done = 0
        while done < len(buffer):
            number, begin = divmod(offset + done, _BLOCK_BYTES)
            part = self._block(number)[begin : begin + len(buffer) - done]
            buffer[done : done + len(part)] = part
            done += len(part)

    def _block(self, number: int) -> bytes:
        with self._lock:
            if number in self._blocks:
                self._blocks.move_to_end(number)
                return self._blocks[number]
        block = self._fetch(number * _BLOCK_BYTES, min((number + 1) * _BLOCK_BYTES, self.size))
        with self._lock:
            self._blocks[number] = block
            while len(self._blocks) > _BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        return block

    def _fetch(self, begin: int, end: int) -> bytes:
        with explained(self.name):
            data: bytes = self._filesystem.cat_file(self._path, start=begin, end=end, **self._uncached)
        if len(data) != end - begin:
            raise TruncatedError(f"bytes {begin} to {end} were asked for, {len(data)} came", path=self.name)
        with self._lock:
            self.bytes_read += len(data)
        return data

    def changed(self) -> bool:
        """Each range is checked by its own checksum; the whole can't be watched from here."""
        return False

    def close(self) -> None:
        """Forget what was read."""
        self._blocks.clear()


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn what fsspec's many filesystems raise into our errors, for the file or folder `name`."""
    try:
        yield
    except WeightpackError:
        raise
    except ImportError as error:
        with_what = "`pip install weightpack[http]`" if name.startswith("http") else str(error)
        raise MissingExtraError(f"another package is needed to read this: {with_what}", path=name) from None
    except (FileNotFoundError, NotADirectoryError) as error:
        _raise_other_cause(name, error)
        reason = "no such file (or it is private: log in with `hf auth login`)" if name.startswith("hf://") else "no such file"
        raise PathNotFoundError(reason, path=name) from None
    except PermissionError as error:
        raise OptionError(f"this may not be read: {error}", path=name) from None
    except (ValueError, NotImplementedError) as error:
        raise OptionError(f"fsspec can't open this: {error}", path=name) from None
    except OSError:
        raise
    except Exception as error:  # each has its own: aiohttp, botocore, httpx
        raise OSError(f"{name}: {type(error).__name__}: {error}") from error


def _raise_other_cause(name: str, error: OSError) -> None:
    """Raise what went wrong where that is not that there is no such file: over HTTP fsspec calls everything so, and names the cause."""
    cause = error.__cause__
    status = getattr(cause, "status", None)
    if status in (401, 403):
        raise OptionError(f"this may not be read: the server answers {status}", path=name) from None
    if isinstance(status, int) and status not in (404, 410):
        raise OSError(f"{name}: the server answers {status}: {getattr(cause, 'message', '')}".rstrip(": ")) from error
    if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError | NotADirectoryError):
        raise OSError(f"{name}: {type(cause).__name__}: {cause}") from error
