# SPDX-License-Identifier: Apache-2.0
"""Dtypes, in safetensors' spelling, and layouts: how an element's bits are dealt out to planes (FORMAT section 7)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate

DTYPE_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


class LayoutId(IntEnum):
    """FORMAT section 7."""

    BYTES1 = 1
    BYTES2 = 2
    BYTES4 = 3
    BYTES8 = 4
    BF16 = 5
    F16 = 6
    F32 = 7
    F64 = 8
    F8_E4M3 = 9
    F8_E5M2 = 10
    BF16_LEAD = 11
    F16_LEAD = 12
    F32_LEAD = 13
    F8_E4M3_LEAD = 14
    F8_E5M2_LEAD = 15


@dataclass(frozen=True, slots=True)
class Layout:
    """How an element's bits are dealt out to planes, and what may be done with such elements.

    `plane_bits`: width of each symbol plane, the lowest bits first. `mantissa_bits`: those below them, which make the raw word with the sign; None for
    integers. `exponent_bits`: of what tells how large an element is, below the sign; of bytes the upper four bits, of wider integers none. `lead`: the
    layout with the leading mantissa bits as symbols, too, if there is one.
    """

    id: LayoutId
    elem_bytes: int
    plane_bits: tuple[int, ...]
    mantissa_bits: int | None = None
    exponent_bits: int = 0
    lead: LayoutId | None = None

    @property
    def is_float(self) -> bool:
        """Are its elements a sign, an exponent and a mantissa?"""
        return self.mantissa_bits is not None

    @property
    def raw_bits(self) -> int:
        """Width of the raw word; 0 if there is none."""
        return 0 if self.mantissa_bits is None else self.mantissa_bits + 1

    @property
    def n_streams(self) -> int:
        """Streams of a split chunk."""
        return len(self.plane_bits) + (2 if self.raw_bits else 0)

    @property
    def exponent_shift(self) -> int:
        """Where the exponent begins in an element."""
        return 8 * self.elem_bytes - self.is_float - self.exponent_bits if self.exponent_bits else 0

    @property
    def stream_names(self) -> tuple[str, ...]:
        """Names of a split chunk's streams for people, in their order."""
        if self.mantissa_bits is None:
            return tuple(f"byte {i}" for i in range(len(self.plane_bits)))
        begins = accumulate(self.plane_bits[:-1], initial=self.mantissa_bits)
        symbols = ("exponents" if begin >= self.exponent_shift else "leading mantissa bits" for begin in begins)
        return (*symbols, "widths", "sign and mantissa")

    def has_context(self, plane: int) -> bool:
        """May the codec `context` code this plane (FORMAT 8.6)?"""
        return plane + 1 < len(self.plane_bits) and self.plane_bits[plane] <= 2

    @property
    def has_fields(self) -> bool:
        """May a chunk be blocks of fields (FORMAT 6.6)?"""
        return self.id == LayoutId.BYTES1

    @property
    def has_differences(self) -> bool:
        """May elements be coded as differences (FORMAT section 14)?"""
        return self.elem_bytes <= 4

    @property
    def has_products(self) -> bool:
        """May elements be a value times a scale (FORMAT section 18)? Floats that a single-precision product is rounded to."""
        return self.is_float and self.elem_bytes in (2, 4)

    @property
    def has_scales(self) -> bool:
        """May scales of rows and columns predict elements (FORMAT 14.5)? They make floats of 8 exponent bits."""
        return self.is_float and self.exponent_bits == 8


LAYOUTS = {
    layout.id: layout
    for layout in (
        Layout(LayoutId.BYTES1, 1, (8,), exponent_bits=4),
        Layout(LayoutId.BYTES2, 2, (8,) * 2),
        Layout(LayoutId.BYTES4, 4, (8,) * 4),
        Layout(LayoutId.BYTES8, 8, (8,) * 8),
        Layout(LayoutId.BF16, 2, (8,), 7, 8, LayoutId.BF16_LEAD),
        Layout(LayoutId.F16, 2, (5,), 10, 5, LayoutId.F16_LEAD),
        Layout(LayoutId.F32, 4, (8,), 23, 8, LayoutId.F32_LEAD),
        Layout(LayoutId.F64, 8, (8, 3), 52, 11),
        Layout(LayoutId.F8_E4M3, 1, (4,), 3, 4, LayoutId.F8_E4M3_LEAD),
        Layout(LayoutId.F8_E5M2, 1, (5,), 2, 5, LayoutId.F8_E5M2_LEAD),
        Layout(LayoutId.BF16_LEAD, 2, (2, 8), 5, 8),
        Layout(LayoutId.F16_LEAD, 2, (2, 5), 8, 5),
        Layout(LayoutId.F32_LEAD, 4, (2, 8), 21, 8),
        Layout(LayoutId.F8_E4M3_LEAD, 1, (2, 4), 1, 4),
        Layout(LayoutId.F8_E5M2_LEAD, 1, (2, 5), 0, 5),
    )
}

_LAYOUT_OF_DTYPE = {
    "I16": LayoutId.BYTES2, "U16": LayoutId.BYTES2, "I32": LayoutId.BYTES4, "U32": LayoutId.BYTES4, "I64": LayoutId.BYTES8, "U64": LayoutId.BYTES8,
    "BF16": LayoutId.BF16, "F16": LayoutId.F16, "F32": LayoutId.F32, "C64": LayoutId.F32, "F64": LayoutId.F64,
    "F8_E4M3": LayoutId.F8_E4M3, "F8_E4M3FNUZ": LayoutId.F8_E4M3, "F8_E5M2": LayoutId.F8_E5M2, "F8_E5M2FNUZ": LayoutId.F8_E5M2,
}  # fmt: skip


def layout_of(dtype: str, *, lead: bool = False) -> Layout:
    """Return the layout that writers use for a dtype, bytes for what has no better one; `lead`: the one with a plane of the leading mantissa bits."""
    layout = LAYOUTS[_LAYOUT_OF_DTYPE.get(dtype, LayoutId.BYTES1)]
    return LAYOUTS[layout.lead] if lead and layout.lead else layout


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int | None:
    """Return the length of a tensor of a known dtype; None if it is not a whole count of bytes."""
    n_bits = DTYPE_BITS[dtype]
    for size in shape:
        n_bits *= size
    return n_bits // 8 if n_bits % 8 == 0 else None
