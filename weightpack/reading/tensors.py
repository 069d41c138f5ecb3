# SPDX-License-Identifier: Apache-2.0
"""Tensors of a packed or plain file by name, whole or in part, as safetensors' `safe_open` gives them. Frameworks come in as a `Framework`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, overload

import numpy as np

from weightpack.arrays.memory import Framework, NumpyFramework, T, TorchFramework
from weightpack.errors import OptionError, PathNotFoundError, TensorNotFoundError, located
from weightpack.format.safetensors import check_tiles
from weightpack.io.files import LocalFile, RandomReader, read_at
from weightpack.io.parallel import ordered_map, thread_count
from weightpack.io.remote import RemoteFile, is_url
from weightpack.options import DEFAULT_LIMITS, Limits
from weightpack.reading.bases import open_with_bases, weights_below
from weightpack.reading.on_gpu import fill_on_gpu, gpu_decoder
from weightpack.reading.packed_file import Piece, StoredTensor
from weightpack.reading.restored import close_packed
from weightpack.sources.model import Tensor
from weightpack.sources.safetensors import is_packed, read_header, segments_of

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from weightpack.format.buffers import Bytes
    from weightpack.gpu.decoder import GpuDecoder


class TensorReader:
    """Reads tensors' bytes from a packed or a plain safetensors file."""

    def __init__(self, file: RandomReader, limits: Limits = DEFAULT_LIMITS, base: str | os.PathLike[str] | None = None) -> None:
        self.file = file
        with located(path=file.name):
            header = read_header(file, limits.max_json_memory)
            found = None if base is None else weights_below(Path(base))
            self.packed = open_with_bases(file, limits, base=found) if is_packed(header) else None
            if self.packed:
                self.tensors = {name: stored.tensor for name, stored in self.packed.tensors.items()}
                self.metadata = self.packed.metadata
            else:
                check_tiles(header, file.size - header.data_begin)
                self.tensors = {tensor.name: tensor for tensor in segments_of(header, file.size).tensors}
                self.metadata = header.metadata

    def close(self) -> None:
        """Close the file, and the bases that it needs."""
        if self.packed is not None:
            close_packed(self.packed)
        else:
            self.file.close()

    def tensor(self, name: str) -> Tensor:
        """Return a tensor's description."""
        if name not in self.tensors:
            raise TensorNotFoundError("the file has no such tensor", path=self.file.name, tensor=name)
        return self.tensors[name]

    def check(self, name: str) -> None:
        """Refuse a tensor whose record can't hold as much as the header claims, before memory for it is asked for."""
        if self.packed is not None:
            holder = self.packed.stored(self.packed.stored(name).holder)
            if holder.has_record:
                self.packed.record_head(holder)

    def record(self, name: str) -> Bytes | None:
        """Return the record of a tensor that has one of its own, which needs no base: mapped, where the file is on this machine; None of any other tensor."""
        if self.packed is None:
            return None
        holder = self.packed.stored(self.packed.stored(name).holder)
        if holder.storage != "p":
            return None
        if isinstance(self.file, LocalFile):
            return self.file.mapped()[holder.begin : holder.end]
        return np.frombuffer(read_at(self.file, holder.begin, holder.packed_bytes), np.uint8)

    def read(self, wanted: Sequence[tuple[str, int, Bytes]], threads: int = 1) -> None:
        """Fill buffers: for each (name, begin, out), `len(out)` bytes of the tensor from byte `begin`. Of packed tensors only the chunks that hold them are
        decoded; all chunks of all tensors are one queue for the threads."""
        if self.packed is None:
            for name, begin, out in wanted:
                with located(path=self.file.name, tensor=name):
                    self.file.read_into(self.tensor(name).offset + begin, memoryview(out))
            return
        packed = self.packed

        def work(task: tuple[StoredTensor, Piece, int, Bytes]) -> None:
            packed.decode_part(*task)

        tasks = []
        for name, begin, out in wanted:
            whole, within = packed.place(packed.stored(name))
            tasks += [(whole, piece, within + begin, out) for piece in packed.pieces(whole, within + begin, within + begin + len(out))]
        for _ in ordered_map(work, tasks, threads, lambda task: task[1].n_bytes):
            pass


class TensorSlice(Generic[T]):
    """What `get_slice` returns: shape and dtype without decoding, and indexing that decodes only the rows asked for.

    `whole`, if it is set, makes what `[...]` gives, for who holds the tensor in another form.
    """

    def __init__(self, opened: SafeOpen[T], tensor: Tensor) -> None:
        self._opened, self._tensor = opened, tensor
        self.whole: Callable[[], T] | None = None

    def get_record(self) -> Bytes | None:
        """Return the tensor's record, if it has one that needs nothing else."""
        return self._opened._open().record(self._tensor.name)

    def get_shape(self) -> list[int]:
        """Return the shape."""
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        """Return the dtype in safetensors' spelling."""
        return self._tensor.dtype

    def __getitem__(self, key: Any) -> T:
        """Index as the framework does; what comes has memory of its own. Rows outside the first index's range are not decoded."""
        if self.whole is not None and key is Ellipsis:
            return self.whole()
        shape = self._tensor.shape
        keys = key if isinstance(key, tuple) else (key,)
        first = keys[0] if keys else Ellipsis
        if not shape or isinstance(first, bool) or not (isinstance(first, (int, np.integer)) or (isinstance(first, slice) and first.step in (None, 1))):
            return self._opened._framework.part(self._opened.get_tensor(self._tensor.name), key)
        if isinstance(first, slice):
            begin, end, _ = first.indices(shape[0])
            rows = self._opened._rows(self._tensor, begin, max(begin, end))
            return self._opened._framework.part(rows, (slice(None), *keys[1:]))
        row = int(first) + (shape[0] if first < 0 else 0)
        if not 0 <= row < shape[0]:
            raise IndexError(f"index {int(first)} is out of range for {shape[0]} rows")
        return self._opened._framework.part(self._opened._row(self._tensor, row), keys[1:] or Ellipsis)


class SafeOpen(Generic[T]):
    """Context manager with the methods of `safetensors.safe_open`, for packed and plain files.

    Safe to use from many threads, and in a child after a fork. Pickled, it is the path or URL: whoever unpickles it opens the file anew, which must be there.
    """

    def __init__(
        self, file: RandomReader, framework: Framework[T], *, threads: int | None = None, limits: Limits = DEFAULT_LIMITS,
        base: str | os.PathLike[str] | None = None,
    ) -> None:  # fmt: skip
        self._reader: TensorReader | None = TensorReader(file, limits, base)
        self._framework = framework
        self._threads = thread_count(threads)
        self._again = (framework, threads, limits, base)  # of another process: it may have other CPUs

    def __reduce__(self) -> tuple[Any, ...]:
        file = self._open().file
        if isinstance(file, LocalFile):
            return _opened, (Path(file.name).absolute(), *self._again)
        if isinstance(file, RemoteFile):
            return _opened, (file.name, *self._again)
        raise OptionError("a file opened from bytes can't be pickled: pickle the bytes, or write them to a file and open that", path=file.name)

    def _open(self) -> TensorReader:
        if self._reader is None:
            raise OptionError("the file is closed")
        return self._reader

    def keys(self) -> list[str]:
        """Return the names, sorted."""
        return sorted(self._open().tensors)

    def offset_keys(self) -> list[str]:
        """Return the names in the order of their bytes in the source."""
        return sorted(self._open().tensors, key=lambda name: (self._open().tensors[name].offset, name))

    def metadata(self) -> dict[str, str] | None:
        """Return the source's own metadata."""
        return self._open().metadata

    def get_tensor(self, name: str) -> T:
        """Return a tensor, decoded straight into its memory."""
        return self.get_tensors([name])[name]

    def get_tensors(self, names: Sequence[str] | None = None) -> dict[str, T]:
        """Return several tensors (all by default)."""
        reader = self._open()
        tensors = {name: reader.tensor(name) for name in (self.keys() if names is None else names)}
        return dict(zip(tensors, self._fill([(tensor, 0, tensor.shape) for tensor in tensors.values()]), strict=True))

    def get_slice(self, name: str) -> TensorSlice[T]:
        """Return a lazy view of a tensor."""
        return TensorSlice(self, self._open().tensor(name))

    def _rows(self, tensor: Tensor, begin: int, end: int) -> T:
        row_bits = tensor.n_bytes * 8 // tensor.shape[0] if tensor.shape[0] else 0
        if row_bits % 8:
            return self._framework.part(self.get_tensor(tensor.name), slice(begin, end))
        return self._fill([(tensor, begin * row_bits // 8, (end - begin, *tensor.shape[1:]))])[0]

    def _row(self, tensor: Tensor, row: int) -> T:
        row_bits = tensor.n_bytes * 8 // tensor.shape[0]
        if row_bits % 8:
            return self._framework.part(self.get_tensor(tensor.name), row)
        return self._fill([(tensor, row * row_bits // 8, tensor.shape[1:])])[0]

    def _fill(self, wanted: Sequence[tuple[Tensor, int, Sequence[int]]]) -> list[T]:
        """Make a tensor of each shape and fill it from a byte of its tensor on."""
        if isinstance(self._framework, TorchFramework) and self._open().packed is not None:
            decoder = gpu_decoder(self._framework.device)
            if decoder is not None:
                return self._fill_on_gpu(wanted, self._framework, decoder)
        made = []
        for tensor, _, shape in wanted:
            with located(path=self._open().file.name, tensor=tensor.name):
                self._open().check(tensor.name)
                made.append(self._framework.empty(tensor.dtype, shape))
        self._open().read([(tensor.name, begin, memory) for (tensor, begin, _), (_, memory) in zip(wanted, made, strict=True)], self._threads)
        return [self._framework.finish(result) for result, _ in made]

    def _fill_on_gpu(self, wanted: Sequence[tuple[Tensor, int, Sequence[int]]], framework: TorchFramework, decoder: GpuDecoder) -> list[Any]:
        reader, made = self._open(), []
        assert reader.packed is not None
        for tensor, _, shape in wanted:
            with located(path=reader.file.name, tensor=tensor.name):
                reader.check(tensor.name)
                made.append(framework.empty_on(decoder.device, tensor.dtype, shape))
        parts = [(tensor.name, begin, memory) for (tensor, begin, _), (_, memory) in zip(wanted, made, strict=True)]
        fill_on_gpu(reader.packed, parts, decoder, self._threads)
        return [result for result, _ in made]

    def close(self) -> None:
        """Close the file."""
        if self._reader is not None:
            self._reader.close()
        self._reader = None

    def __enter__(self) -> SafeOpen[T]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@overload
def safe_open(
    filename: str | os.PathLike[str], framework: Literal["np", "numpy"] = "numpy", device: str | int = "cpu", *, threads: int | None = None,
    limits: Limits = DEFAULT_LIMITS, base: str | os.PathLike[str] | None = None, raw: bool = False,
) -> SafeOpen[NDArray[Any]]: ...  # fmt: skip
@overload
def safe_open(
    filename: str | os.PathLike[str], framework: Literal["pt", "torch", "pytorch"], device: str | int = "cpu", *, threads: int | None = None,
    limits: Limits = DEFAULT_LIMITS, base: str | os.PathLike[str] | None = None,
) -> SafeOpen[torch.Tensor]: ...  # fmt: skip
@overload
def safe_open(
    filename: str | os.PathLike[str], framework: str, device: str | int = "cpu", *, threads: int | None = None, limits: Limits = DEFAULT_LIMITS,
    base: str | os.PathLike[str] | None = None, raw: bool = False,
) -> SafeOpen[Any]: ...  # fmt: skip
def safe_open(
    filename: str | os.PathLike[str], framework: str = "numpy", device: str | int = "cpu", *, threads: int | None = None, limits: Limits = DEFAULT_LIMITS,
    base: str | os.PathLike[str] | None = None, raw: bool = False,
) -> SafeOpen[Any]:  # fmt: skip
    """Open a packed or plain safetensors file as `safetensors.safe_open` does.

    Parameters
    ----------
    filename
        A path, or a URL (`hf://owner/name/model.safetensors`, `s3://...`), of which only the header and the tensors asked for are fetched.
    framework
        "np" or "numpy"; "pt", "torch" or "pytorch".
    device
        Of torch tensors.
    threads
        For decoding; None: the CPUs of this process.
    base
        Of a file that is stored as a difference: a file or a directory. By default it is looked for as `weightpack.unpack` does.
    raw
        Of numpy: give bfloat16 as uint16 and float8 as uint8, the bits as they are, whether `ml_dtypes` is installed or not. By default they have the dtypes
        of `ml_dtypes`, and without it MissingExtraError is raised.

    Raises
    ------
    PathNotFoundError
        There is no such file. It is a FileNotFoundError, too.
    FormatError, LimitError
        The file is damaged, or claims too much.
    BaseNotFoundError, WrongBaseError
        The base that it differs from is not here, or not the one that was named.
    """
    return _opened(filename, framework_named(framework, device, raw=raw), threads, limits, base)


def framework_named(framework: str, device: str | int, *, raw: bool = False) -> Framework[Any]:
    """Return what makes the tensors that `safe_open` is asked for; OptionError if there is none such."""
    if framework in ("np", "numpy"):
        if device != "cpu":
            raise OptionError(f"numpy arrays live on the CPU, not on {device!r}")
        return NumpyFramework(raw)
    if raw:
        raise OptionError("torch has these dtypes: `raw` is for numpy")
    if framework in ("pt", "torch", "pytorch"):
        return TorchFramework(device)
    raise OptionError(f"unknown framework {framework!r}: there are numpy and torch")


def _opened(
    filename: str | os.PathLike[str], framework: Framework[T], threads: int | None, limits: Limits, base: str | os.PathLike[str] | None = None
) -> SafeOpen[T]:
    try:
        file: RandomReader = RemoteFile(filename) if isinstance(filename, str) and is_url(filename) else LocalFile(filename)
    except FileNotFoundError:
        raise PathNotFoundError("no such file", path=os.fspath(filename)) from None
    try:
        return SafeOpen(file, framework, threads=threads, limits=limits, base=base)
    except BaseException:
        file.close()
        raise
