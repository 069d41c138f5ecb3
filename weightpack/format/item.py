# SPDX-License-Identifier: Apache-2.0
"""An item of a distributed checkpoint, its head and its table (FORMAT section 16)."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass

from weightpack.errors import CorruptionError, LimitError, NotPackedError, TruncatedError, UnsupportedError

MAGIC = b"\x89WPD"
VERSION = 1
_KEPT, _PACKED = 0, 1
_HEAD = struct.Struct("<4sBBI")
_COVERED_BYTES = 6  # of the head: all but the CRC
_SIZES = struct.Struct("<QQI")
_PART = struct.Struct("<QQQI")

# What `torch.save` writes about a tensor is a kilobyte and a half, nearly the same for each. These are names of storages, and the zip file of one tensor
# without its storage; given them, zstd needs some hundred bytes. They are part of the format (16.3).
DICTIONARY = zlib.decompress(base64.b85decode(
    "c-o~@&x_MQ7@aizWrXgoAd8DG-GflU?KWwXwu&yq5|j#dcUdW3LYhw7V45_OX=ObLvIqYGkDmM=yn6E}%7PccgCKbF>d~2IlP0O#qWeKJ^QH5?_r94ok!{;Nz&6tQFfSir=+EyBG~~|@1~$Te^1u"
    "qF4{fXO&l~o*V+QE^n%N7gDyFSrUh?xp3m=VO*H2XhJ7dG_sv`|)Lx>@oy~5CPZKO`h`5vuNQ(<LT?pZ-54uyQH$tD5FX2D#nf=fU{`oNgLovwzp;^?WV$T{#N5-$=uQKAou>KGfQ%gvDsoC6Alc"
    "7{}RJ<Sf|LAYsWr;Tt<qRo&sC5LUZWYkAvC)s4MliF*7CUfkh=_B(>*KN~;IyP*}<sP9fM6la1bj&%~8~e@$>~Q<e#bT?O$zHp>ee#-AqQA4dTnE>KE{i=I4K=JzAaY54Mc#@v`<LJ;)w^F`UsCb"
    "RLaGf=ol%|cg{qlG-x@*-D{^@`+k8kBDq#1S^D{vx5(@>af!#nrhnUr-+o#C4|A*HP)4<q-RKxL|?^n`<CB0BX4&05nYNw>gx6UDeGGG1H*dlZwxsZ7!)O~Qm=jy%8QT9)7`iIN+eiI0@!=E<pLS"
    "&HBf38t4t43Fmi~lHw7pp>zuh&JMuZb0@QZ5NnsaoReLR~7At2MF43l&iksLICM_g@M`M`5axp<)A_;hVBLr#$`*h@->iUymSvgwV0O6)zGt@J6J_9s?HKns}YC3D+WZK8NZA=8wa}PRd2#j}su~"
    "+c-AtgOv#OB!oSq|M2l_M!@?lSYn)3Go8Na+l<`~keS%{k@3dgtTz(e^sf&oFZaG)skDd5OxJsB{{Tf#pr!"
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class ItemPart:
    """An entry of the table: `gap` bytes of the rest, then `n_bytes` of the source, stored in `stored_bytes`."""

    gap: int
    n_bytes: int
    stored_bytes: int
    crc: int


@dataclass(frozen=True, slots=True)
class ItemTable:
    """What a packed item holds: the source's length, the stored rest's, and the parts in the source's order."""

    n_bytes: int
    stored_rest_bytes: int
    parts: tuple[ItemPart, ...]

    @property
    def rest_bytes(self) -> int:
        """Bytes of the source outside its parts."""
        return self.n_bytes - sum(part.n_bytes for part in self.parts)

    def to_bytes(self) -> bytes:
        """Serialise; the same table gives the same bytes."""
        sizes = _SIZES.pack(self.n_bytes, self.stored_rest_bytes, len(self.parts))
        return sizes + b"".join(_PART.pack(part.gap, part.n_bytes, part.stored_bytes, part.crc) for part in self.parts)


def covered_head(*, packed: bool) -> bytes:
    """Return the bytes of the head that its CRC is of, before those of the item."""
    return _HEAD.pack(MAGIC, VERSION, _PACKED if packed else _KEPT, 0)[:_COVERED_BYTES]


def head_with(crc: int, *, packed: bool) -> bytes:
    """Serialise a head."""
    return _HEAD.pack(MAGIC, VERSION, _PACKED if packed else _KEPT, crc)


def parse_head(item: memoryview) -> tuple[bool, int, memoryview]:
    """Return whether an item is packed, its CRC, and what follows the head."""
    if len(item) < _HEAD.size:
        raise TruncatedError("the item ends inside its header")
    magic, version, storage, crc = _HEAD.unpack_from(item)
    if magic != MAGIC:
        raise NotPackedError("not a packed item of a distributed checkpoint: wrong magic")
    if version != VERSION or storage not in (_KEPT, _PACKED):
        raise UnsupportedError("an item of a newer version, or damaged: if its file is whole, upgrade weightpack")
    return storage == _PACKED, crc, item[_HEAD.size :]


def parse_table(body: memoryview, max_bytes: int) -> tuple[ItemTable, int]:
    """Parse and check the table of a packed item; return it, and where in the body the stored rest begins.

    Raises
    ------
    TruncatedError
        The item ends before its last part does.
    CorruptionError
        Parts overlap, leave the source, or are stored in more bytes than they have; or something follows the last.
    LimitError
        The source has more than `max_bytes`.
    """
    if len(body) < _SIZES.size:
        raise TruncatedError("the item ends inside its header")
    n_bytes, stored_rest_bytes, n_parts = _SIZES.unpack_from(body)
    table_end: int = _SIZES.size + n_parts * _PART.size
    if table_end + stored_rest_bytes > len(body):
        raise TruncatedError("the item ends inside its table, or inside what lies between its parts")
    if n_bytes > max_bytes:
        raise LimitError(f"the item has {n_bytes} bytes, the limit is {max_bytes}")
    parts: list[ItemPart] = []
    position, free = table_end + stored_rest_bytes, n_bytes
    for fields in _PART.iter_unpack(body[_SIZES.size : table_end]):
        part = ItemPart(*fields)
        if not 0 < part.stored_bytes <= part.n_bytes or part.gap + part.n_bytes > free:
            raise CorruptionError("an entry of the item's table is damaged")
        position, free = position + part.stored_bytes, free - part.gap - part.n_bytes
        if position > len(body):
            raise TruncatedError("the item ends inside a part")
        parts.append(part)
    if position != len(body):
        raise CorruptionError("the item has bytes behind its last part")
    return ItemTable(n_bytes, stored_rest_bytes, tuple(parts)), table_end
