# SPDX-License-Identifier: Apache-2.0
"""Elements of every layout, of the statistics that kernels treat apart: as weights are, and as no weights are."""

from __future__ import annotations

import numpy as np

from weightpack.format.layouts import LayoutId

KINDS_OF_WEIGHTS = ["weights", "weights_with_rows", "weights_capped", "few_symbols"]
ANY_KINDS = ["gaussian", "zeros", "constant", "noise", "all256", "one_escape", "many_escapes"]
FLOAT_KINDS = ["trailing7", "trailing7_in_some_blocks", "nan_payloads", "minus_zero", "subnormals"]
F32_KINDS = ["bf16_in_f32", "f16_in_some_rows_of_f32"]


def kinds_of(layout):
    return ANY_KINDS + (FLOAT_KINDS if layout.raw_bits else []) + (F32_KINDS if layout.id == LayoutId.F32 else [])


def skewed(rng, n, n_symbols):
    """Symbols 100, 101, ... of falling frequency."""
    return (100 + np.minimum(rng.geometric(0.4, n) - 1, n_symbols - 1)).astype(np.uint8)


def symbols_of(kind, rng, n):
    """Symbols of 8 bits."""
    if kind == "zeros":
        return np.zeros(n, np.uint8)
    if kind == "constant":
        return np.full(n, 0xA7, np.uint8)
    if kind == "all256":
        return rng.permutation(np.arange(n) % 256).astype(np.uint8)
    if kind == "one_escape":
        symbols = skewed(rng, n, 15)
        symbols[n // 2] = 250
        return symbols
    if kind == "many_escapes":
        return np.where(rng.random(n) < 0.3, 120, rng.integers(0, 256, n)).astype(np.uint8)
    if kind == "gaussian":
        return np.clip(rng.standard_normal(n) * 4 + 118, 0, 255).astype(np.uint8)
    return rng.integers(0, 256, n, np.uint8)


def _weights(layout, n, kind, rng):
    size = n * layout.elem_bytes
    if kind == "few_symbols":
        return rng.choice(np.array([0, 1, 2, 0x3F, 0x80, 0xFF], np.uint8), size)
    if layout.mantissa_bits is None:
        return np.clip(rng.standard_normal(size) * 9 + 128, 0, 130 if kind == "weights_capped" else 255).astype(np.uint8)
    values = (rng.standard_normal(n) * 0.03).astype("<f8").view("<u8")  # exponent and mantissa are taken apart, and put together narrower
    exponent_bits = sum(layout.plane_bits)
    bias = (1 << (exponent_bits - 1)) - 1
    exponent = np.clip((values >> np.uint64(52) & np.uint64(0x7FF)).astype(np.int64) - 1023 + bias + (bias // 2 if bias < 20 else 0), 0, 2 * bias + 1)
    mantissa = (values & np.uint64((1 << 52) - 1)) >> np.uint64(52 - layout.mantissa_bits)
    if kind == "weights_with_rows":  # some blocks have trailing zeros
        mantissa[n // 3 : n // 2] &= np.uint64(~0 << max(0, layout.mantissa_bits - 2) & (1 << 64) - 1)
    words = values >> np.uint64(63) << np.uint64(8 * layout.elem_bytes - 1) | exponent.astype(np.uint64) << np.uint64(layout.mantissa_bits) | mantissa
    return words.astype(f"<u{layout.elem_bytes}").view(np.uint8)


def elements(layout, n, kind):
    """Return the bytes of n elements, (n * elem_bytes,) uint8, of the statistics that `kind` names."""
    rng = np.random.default_rng([n, layout.id, len(kind)])
    if kind in KINDS_OF_WEIGHTS:
        return _weights(layout, n, kind, rng)
    if layout.mantissa_bits is None:
        return symbols_of(kind, rng, n * layout.elem_bytes)
    if kind == "noise":
        return rng.integers(0, 256, n * layout.elem_bytes, np.uint8)
    if kind in F32_KINDS:
        weights = (rng.standard_normal(n) * 0.03).astype("<f4")
        if kind == "bf16_in_f32":
            return (weights.view("<u4") & np.uint32(0xFFFF0000)).view(np.uint8)
        rows = np.arange(n) // 200 % 3 == 1  # not at blocks' borders
        weights[rows] = weights[rows].astype("<f2").astype("<f4")
        return weights.view(np.uint8)
    exponent_bits, mantissa_bits = sum(layout.plane_bits), layout.mantissa_bits
    sign = rng.integers(0, 2, n, np.uint64)
    mantissa = rng.integers(0, 1 << mantissa_bits, n, np.uint64)
    top = (1 << exponent_bits) - 1
    if kind in ("zeros", "constant"):
        exponent = sign = mantissa = np.full(n, kind == "constant", np.uint64)
    elif kind == "nan_payloads":
        exponent, mantissa = np.full(n, top, np.uint64), mantissa | np.uint64(1)
    elif kind == "minus_zero":
        exponent, mantissa, sign = np.zeros(n, np.uint64), np.zeros(n, np.uint64), sign | np.uint64(1)
    elif kind == "subnormals":
        exponent = np.zeros(n, np.uint64)
    elif kind in ("all256", "one_escape", "many_escapes"):
        low = symbols_of(kind, rng, n).astype(np.uint64)
        exponent = low << np.uint64(exponent_bits - 8) if exponent_bits >= 8 else low & np.uint64(top)
    else:
        exponent = np.clip(rng.standard_normal(n) * 2 + top // 2 - 4, 0, top).astype(np.uint64)
    if kind.startswith("trailing7"):
        low_bits = min(7, mantissa_bits)
        blocks = np.arange(n) // 128 % 3 == 1 if kind == "trailing7_in_some_blocks" else np.ones(n, bool)
        mantissa[blocks] = mantissa[blocks] >> np.uint64(low_bits) << np.uint64(low_bits)
    words = (sign << np.uint64(exponent_bits) | exponent) << np.uint64(mantissa_bits) | mantissa
    return words.astype(f"<u{layout.elem_bytes}").view(np.uint8)


def moved(data, offset):
    """Copy `data` to an address that is `offset` beyond a multiple of 64."""
    room = np.empty(len(data) + 128, np.uint8)
    begin = -room.ctypes.data % 64 + offset
    room[begin : begin + len(data)] = np.frombuffer(data, np.uint8) if len(data) else 0
    return room[begin : begin + len(data)]


def elements_in_rows(layout, n, n_scales, length):
    """Elements in rows of `length`, each of one of a few scales."""
    rng = np.random.default_rng([n, n_scales])
    scale = rng.integers(0, n_scales, -(-n // length)).repeat(length)[:n]
    bits = sum(layout.plane_bits)
    exponent = np.clip(rng.standard_normal(n) * 1.3 + (1 << bits - 1) - 2.5 * scale, 0, (1 << bits) - 1).astype(np.uint64)
    low = layout.mantissa_bits or 0
    words = exponent << np.uint64(low) | rng.integers(0, 1 << low, n, np.uint64) | rng.integers(0, 2, n, np.uint64) << np.uint64(8 * layout.elem_bytes - 1)
    return words.astype(f"<u{layout.elem_bytes}").view(np.uint8)
