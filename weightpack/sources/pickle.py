# SPDX-License-Identifier: Apache-2.0
"""Which dtypes the storages of a checkpoint have, as its pickle says. It is not unpickled: its opcodes are read as text is."""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from itertools import islice

_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "LongStorage": "I64", "IntStorage": "I32",
    "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8", "BoolStorage": "BOOL", "ComplexFloatStorage": "C64",
}  # fmt: skip
_UNTYPED = {
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e8m0fnu": "F8_E8M0",
    "uint16": "U16", "uint32": "U32", "uint64": "U64",
}  # fmt: skip
_MOST_TEXT = 1 << 8  # of a name that means something here
_MOST_DIMS = 64
_OPCODES_A_STORAGE, _OPCODES_BESIDE = 256, 1 << 19  # that are read: the dtypes of a storage take some thirty
_RECENT, _MOST_RECENT = 8, 64  # values that are looked at, and that are held until older ones are dropped
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4, pickletools.TAKEN_FROM_ARGUMENT4U: 4, pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}  # fmt: skip
_BY_NAME = {opcode.name: ord(opcode.code) for opcode in pickletools.opcodes}
_ARGUMENT_BYTES = {ord(opcode.code): opcode.arg.n if opcode.arg else 0 for opcode in pickletools.opcodes}  # as pickletools says it


def _codes(*names: str) -> frozenset[int]:
    return frozenset(_BY_NAME[name] for name in names)


_PUT, _GET = _codes("BINPUT", "LONG_BINPUT"), _codes("BINGET", "LONG_BINGET")
_UNICODE, _LATIN = _codes("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), _codes("SHORT_BINSTRING", "BINSTRING")
_INTEGERS, _SIGNED = _codes("BININT", "BININT1", "BININT2", "LONG1"), _codes("BININT", "LONG1")
_TWO_LINES, _GLOBAL, _STACK_GLOBAL, _MEMOIZE = _codes("GLOBAL", "INST"), _BY_NAME["GLOBAL"], _BY_NAME["STACK_GLOBAL"], _BY_NAME["MEMOIZE"]
_PERSISTENT_ID = _BY_NAME["BINPERSID"]
_TUPLES = {_BY_NAME["EMPTY_TUPLE"]: 0, _BY_NAME["TUPLE"]: 0, _BY_NAME["TUPLE1"]: 1, _BY_NAME["TUPLE2"]: 2, _BY_NAME["TUPLE3"]: 3}


def storage_kinds(pickle: bytes, n_storages: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return storage key -> dtype, and the shape of the first tensor that is made of it.

    A checkpoint's pickle names storages by persistent ids, ('storage', torch.FloatStorage, key, device, length). Newer dtypes have no storage class: there it
    is `UntypedStorage`, and the dtype is named later, among the arguments that make the tensor. After the id stand the tensor's offset in the storage and
    its sizes, a tuple.

    Parameters
    ----------
    pickle
        Perhaps cut or damaged, or a strange one: what it tells until then is enough.
    n_storages
        How many there are. So many more opcodes are read, and no more: time and memory are bounded by the size of the file that the storages are in.
    """
    dtypes: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    untyped: str | None = None
    waiting: str | None = None  # for its sizes
    numbers: list[int] = []
    for recent, opcode in _pushed_values(pickle, _OPCODES_BESIDE + _OPCODES_A_STORAGE * n_storages):
        if waiting is not None:
            if opcode in _TUPLES:
                n = _TUPLES[opcode]
                shapes.setdefault(waiting, tuple(numbers[-n:] if n else numbers[1:]))
                waiting = None
            elif opcode in _INTEGERS:
                value = recent[-1]
                if isinstance(value, int):
                    numbers.append(value)
                if len(numbers) > _MOST_DIMS + 1:
                    waiting = None
        if opcode == _PERSISTENT_ID:
            if len(recent) >= 5 and recent[-5] == "storage" and isinstance(recent[-3], str):
                storage, key = str(recent[-4]).rpartition(" ")[2], recent[-3]
                untyped = key if storage == "UntypedStorage" else None
                waiting, numbers = key, []
                if storage in _STORAGES:
                    dtypes[key] = _STORAGES[storage]
        elif untyped is not None and recent and isinstance(recent[-1], str) and recent[-1].removeprefix("torch ") in _UNTYPED:
            dtypes[untyped] = _UNTYPED[recent[-1].removeprefix("torch ")]
            untyped = None
    return {key: (dtype, shapes.get(key, ())) for key, dtype in dtypes.items()}


def _pushed_values(pickle: bytes, most_opcodes: int) -> Iterator[tuple[list[str | int | None], int]]:
    """Yield, for each opcode, the last values that were pushed (or came from the memo), and the opcode. What is neither a short text nor a number is None."""
    recent: list[str | int | None] = []
    memo: dict[int, str | int | None] = {}
    for opcode, argument in islice(_opcodes(pickle), most_opcodes):
        if argument is None:
            if opcode == _MEMOIZE:
                memo[len(memo)] = recent[-1] if recent else None
            elif opcode == _STACK_GLOBAL:
                recent[-2:] = [_joined(recent[-2:])]
        elif opcode in _GET:
            recent.append(memo.get(int.from_bytes(argument, "little")))
        elif opcode in _PUT:
            memo[int.from_bytes(argument, "little")] = recent[-1] if recent else None
        elif opcode in _INTEGERS and len(argument) <= 8:
            recent.append(int.from_bytes(argument, "little", signed=opcode in _SIGNED))
        elif len(argument) > _MOST_TEXT:
            recent.append(None)
        elif opcode in _UNICODE:
            recent.append(argument.decode("utf-8", "replace"))
        elif opcode in _LATIN:
            recent.append(argument.decode("latin-1"))
        elif opcode == _GLOBAL:
            recent.append(argument.decode("utf-8", "replace").replace("\n", " "))
        else:
            recent.append(None)
        yield recent, opcode
        if len(recent) > _MOST_RECENT:
            del recent[:-_RECENT]


def _joined(parts: list[str | int | None]) -> str | None:
    """Return "module name" of a global. Parts of a hostile pickle come from the memo, where they may have been joined before: they would double each time."""
    text = " ".join(part for part in parts if isinstance(part, str))
    return text if len(text) <= _MOST_TEXT else None


def _opcodes(pickle: bytes) -> Iterator[tuple[int, bytes | None]]:
    """Yield each opcode and its argument, of which no more is read than tells that it is too long; ends where there is no opcode."""
    at, end_of_pickle = 0, len(pickle)
    while at < end_of_pickle:
        opcode = pickle[at]
        n = _ARGUMENT_BYTES.get(opcode)
        at += 1
        if n == 0:
            yield opcode, None
            continue
        if n is None:
            return
        begin = at
        if n > 0:
            at = end = begin + n
        elif n == pickletools.UP_TO_NEWLINE:
            end = pickle.find(b"\n", begin)
            if opcode in _TWO_LINES and end >= 0:
                end = pickle.find(b"\n", end + 1)
            at = end + 1 if end >= 0 else end_of_pickle + 1
        else:
            begin += _LENGTH_BYTES[n]
            at = end = begin + int.from_bytes(pickle[begin - _LENGTH_BYTES[n] : begin], "little")
        if at > end_of_pickle:
            return
        yield opcode, pickle[begin : min(end, begin + _MOST_TEXT + 1)]
