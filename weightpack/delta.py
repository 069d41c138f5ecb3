# SPDX-License-Identifier: Apache-2.0
"""Weights that change in memory, sent as what has changed: from a trainer to the engines that generate with its model, say. No file is written.

::

    import weightpack.delta

    sent = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}  # the trainer's copy of what everyone has
    ...                                                                                 # a step of training
    for bucket in weightpack.delta.encode_buckets(model.state_dict(), sent):
        broadcast(bucket)
        weightpack.delta.apply(bucket, sent)

    weightpack.delta.apply(bucket, weights)                                             # in each engine: tensors change in their place

docs/DELTAS.md says what to expect; the bytes are those of FORMAT section 19.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from weightpack.arrays.contents import address, can_change, contents, memory_of
from weightpack.errors import OptionError, TensorNotFoundError, located
from weightpack.format.delta import Storage
from weightpack.io.parallel import thread_count
from weightpack.options import load_profile
from weightpack.reading.delta import apply_delta, check_base, open_delta
from weightpack.writing.delta import encode_delta

if TYPE_CHECKING:
    from weightpack.format.delta import Entry
    from weightpack.options import PackOptions
    from weightpack.writing.delta import Change

__all__ = ["apply", "encode", "encode_buckets"]

Tensors = Mapping[str, Any] | Iterable[tuple[str, Any]]


def encode(tensors: Tensors, base: Mapping[str, Any], *, options: PackOptions | None = None, threads: int | None = None) -> bytes:
    """Encode what tensors have become since they were `base`.

    Parameters
    ----------
    tensors
        Name -> torch tensor or array, or pairs of them; of any dtype that safetensors has, on any device.
    base
        Name -> what `apply` will find. A tensor that is not in it, or has another dtype or shape there, is stored by itself.
    options
        Default: the profile "fast".
    threads
        Default: the CPUs of this process. The bytes do not depend on it.

    Raises
    ------
    OptionError
        safetensors has no such dtype.
    """
    return encode_delta(_changes(tensors, base), options or load_profile(), thread_count(threads))


def encode_buckets(
    tensors: Tensors, base: Mapping[str, Any], *, bucket_bytes: int = 256 << 20, options: PackOptions | None = None, threads: int | None = None
) -> Iterator[bytes]:
    """Encode tensors in several deltas, one after the other: the first can be sent while the second is made, and neither side holds all of them.

    Parameters
    ----------
    tensors
        Pairs are taken when they are needed: a generator may gather the shards of one tensor after the other.
    bucket_bytes
        A delta is ended when its tensors have so many bytes.

    Others as in `encode`; every bucket is applied by itself, in any order.
    """
    options, n_threads = options or load_profile(), thread_count(threads)
    if bucket_bytes < 1:
        raise OptionError("a bucket has a byte at least")
    bucket: list[Change] = []
    n_bytes = 0
    for change in _changes(tensors, base):
        bucket.append(change)
        n_bytes += change[3].size
        if n_bytes >= bucket_bytes:
            yield encode_delta(bucket, options, n_threads)
            bucket, n_bytes = [], 0
    if bucket:
        yield encode_delta(bucket, options, n_threads)


def apply(delta: bytes | bytearray | memoryview, tensors: Mapping[str, Any], *, threads: int | None = None) -> list[str]:
    """Change tensors to what a delta says, in their place; return the names of those that it names.

    Everything is checked before the first tensor is changed: the delta, that there are tensors of its names, dtypes and shapes, and that they hold what it
    was made from.

    Parameters
    ----------
    tensors
        Name -> torch tensor or numpy array. Others than those of the delta are left alone. Tensors on other devices, and those that are not contiguous, are
        changed through a copy in CPU memory.

    Raises
    ------
    TensorNotFoundError
        There is no tensor of a name.
    OptionError
        One has another dtype or shape, or can't be written to.
    WrongBaseError
        One does not hold what the delta was made from.
    FormatError
        The delta is damaged.
    """
    opened, n_threads = open_delta(delta), thread_count(threads)
    by_memory: dict[int, tuple[Entry, memoryview]] = {}
    for entry, body in opened:
        if entry.name not in tensors:
            raise TensorNotFoundError("there is no such tensor to be changed", tensor=entry.name)
        tensor = tensors[entry.name]
        with located(tensor=entry.name):
            dtype, shape, data = contents(tensor)
        if not can_change(tensor):
            raise OptionError(
                "only torch tensors, and numpy arrays that can be written to, are changed in their place, and none that is expanded", tensor=entry.name
            )
        if (dtype, shape) != (entry.dtype, entry.shape):
            raise OptionError(f"the delta is of {entry.dtype}{list(entry.shape)}, the tensor is {dtype}{list(shape)}", tensor=entry.name)
        check_base(entry, data)
        first, first_body = by_memory.setdefault(address(tensor), (entry, body)) if data.size else (entry, body)
        if (first.storage, first_body) != (entry.storage, body):
            raise OptionError(f"the tensor shares its memory with {first.name!r}, and is to become another", tensor=entry.name)
    for entry, body in opened:
        tensor = tensors[entry.name]
        if entry.n_bytes and entry.storage != Storage.UNCHANGED and by_memory[address(tensor)][0] is entry:
            with memory_of(tensor) as memory:
                apply_delta(entry, body, memory, n_threads)
    return [entry.name for entry, _ in opened]


def _changes(tensors: Tensors, base: Mapping[str, Any]) -> Iterator[Change]:
    names: set[str] = set()
    for name, tensor in tensors.items() if isinstance(tensors, Mapping) else tensors:
        if not isinstance(name, str) or name in names or any("\ud800" <= character <= "\udfff" for character in name):
            raise OptionError(f"names of tensors differ, and are text, not {name!r}")
        names.add(name)
        with located(tensor=name):
            dtype, shape, data = contents(tensor)
            before = contents(base[name]) if name in base else None
        yield name, dtype, shape, data, before[2] if before is not None and before[:2] == (dtype, shape) else None
