# SPDX-License-Identifier: Apache-2.0
"""What order-0 models of a difference can give: entropies in bits an element, tables free, over the floats that have a pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from delta_adapter import ELEM_BYTES, FLOATS, cast_base, planes, read_tensors

BLOCK_ELEMS = 128
N_STEPS = 15
MODELS = {
    "alone": "byte planes of the target, exponent's first",
    "xor": "byte planes of the XOR",
    "difference": "difference as integers, in the order of the floats: sign, length, two bits; the other bits as they are",
    "given exponent": "the same, given the base's exponent",
    "given block": "the same, given the base's exponent and the mean length in 128 elements, whose entropy is included",
    "frequent steps": f"the same, and the {N_STEPS} most frequent differences, away from zero or to it, are symbols of their own, without other bits",
}


def entropy(symbols: np.ndarray, contexts: np.ndarray | None = None) -> float:
    """Order-0 entropy of all symbols together in bits, given contexts of which each has a table of its own."""
    if contexts is None:
        counts = np.bincount(symbols).astype(np.float64)
        counts = counts[counts > 0]
        return float((counts * np.log2(counts.sum() / counts)).sum())
    n_symbols = int(symbols.max()) + 1
    joint = np.bincount(contexts.astype(np.int64) * n_symbols + symbols).astype(np.float64)
    joint = np.pad(joint, (0, -joint.size % n_symbols)).reshape(-1, n_symbols)
    totals = np.broadcast_to(joint.sum(axis=1, keepdims=True), joint.shape)
    seen = joint > 0
    return float((joint[seen] * np.log2(totals[seen] / joint[seen])).sum())


def ordered(words: np.ndarray) -> np.ndarray:
    """Integers in the order of the floats."""
    n_bits = 8 * words.itemsize
    values = words.astype(np.int64)
    return np.where(values >> (n_bits - 1), (1 << n_bits) - 1 - values, values | 1 << (n_bits - 1))


def difference_bits(target: np.ndarray, base: np.ndarray, dtype: str) -> dict[str, float]:
    """Bits of the whole difference under each model of it."""
    words = base.view(f"<u{ELEM_BYTES[dtype]}")
    change = ordered(target.view(words.dtype)) - ordered(words)
    size = np.abs(change)
    length = np.frexp(size.astype(np.float64))[1].astype(np.int64)  # exact: below 2^53
    raw = np.maximum(length - 3, 0)
    symbols = (length * 4 + (size >> raw & 3)) * 2 + (change < 0)
    exponent = (words >> {"F32": 23, "BF16": 7, "F16": 10}[dtype]).astype(np.int64) & {"F32": 255, "BF16": 255, "F16": 31}[dtype]
    blocks = np.add.reduceat(length, np.arange(0, length.size, BLOCK_ELEMS)) * 4 // BLOCK_ELEMS
    classes = np.repeat(blocks, BLOCK_ELEMS)[: length.size]
    n_raw = float(raw.sum())
    steps = np.where(words >> (8 * words.itemsize - 1), -change, change)  # decay takes all to zero
    values, counts = np.unique(steps, return_counts=True)
    with_steps, rest = symbols.copy(), raw.copy()
    for i, step in enumerate(values[np.argsort(-counts, kind="stable")[:N_STEPS]]):
        at = steps == step
        with_steps[at], rest[at] = symbols.max() + 1 + i, 0
    return {
        "difference": entropy(symbols) + n_raw,
        "given exponent": entropy(symbols, exponent) + n_raw,
        "given block": entropy(symbols, classes << 8 | exponent) + entropy(blocks) + n_raw,
        "frequent steps": entropy(with_steps, classes << 8 | exponent) + entropy(blocks) + float(rest.sum()),
    }


def ideals(target: Path, base: Path | None) -> dict[str, float]:
    """Bits an element under each model, and how many elements it is about."""
    before = read_tensors(base) if base else {}
    groups: dict[str, list[tuple[np.ndarray, np.ndarray | None]]] = {}
    for name, (dtype, shape, data) in read_tensors(target).items():
        pair = cast_base(dtype, before[name]) if name in before else None
        paired = pair is not None and pair[:2] == (dtype, shape)
        if dtype in FLOATS and data.size and (paired or base is None):
            groups.setdefault(dtype, []).append((data, pair[2] if paired and pair else None))
    total, n = dict.fromkeys(MODELS, 0.0), 0
    for dtype, members in groups.items():
        data = np.concatenate([one for one, _ in members])
        n += data.size // ELEM_BYTES[dtype]
        total["alone"] += sum(entropy(plane) for plane in planes(data, dtype))
        if base is not None:
            other = np.concatenate([two for _, two in members if two is not None])
            total["xor"] += sum(entropy(plane) for plane in planes(data ^ other, dtype))
            for model, bits in difference_bits(data, other, dtype).items():
                total[model] += bits
    return {"elements": n, **{model: bits / n for model, bits in total.items() if n and (base is not None or model == "alone")}}
