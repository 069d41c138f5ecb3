# SPDX-License-Identifier: Apache-2.0
"""Chunks that a backend leaves to its caller, and why the native core says that it does."""

from __future__ import annotations

import numpy as np
import pytest
from backends import BACKENDS

from weightpack.errors import UnsupportedError
from weightpack.format.constants import Codec, Mode
from weightpack.format.layouts import LAYOUTS, LayoutId
from weightpack.format.record import build_chunk
from weightpack.kernels import native

_core = pytest.importorskip("weightpack._core", reason="the native core is not built")


def chunk_of(mode, codec=Codec.RAW):
    return build_chunk(mode, [(codec, b"ab")] * {Mode.FIELDS: 2, Mode.DIFFERENCE: 3, Mode.SCALED: 5}.get(mode, 1))


OF_THE_CALLER = {
    "zstd": (chunk_of(Mode.SPLIT, Codec.ZSTD), native.Status.NEEDS_ZSTD),
    "zstd of a whole chunk": (chunk_of(Mode.WHOLE, Codec.ZSTD), native.Status.NEEDS_ZSTD),
    "fields": (chunk_of(Mode.FIELDS), native.Status.NEEDS_CALLER),
    "difference": (chunk_of(Mode.DIFFERENCE), native.Status.NEEDS_CALLER),
    "scaled": (chunk_of(Mode.SCALED), native.Status.NEEDS_CALLER),
}
CALL = LAYOUTS[LayoutId.BYTES1], 0, 128, 2, 0  # layout, first chunk, elements of a chunk, elements, first number


def decode(backend, chunk):
    layout, first, chunk_elems, n_elems, number = CALL
    return backend.decode_chunks(layout, chunk, np.array([0, len(chunk)]), np.zeros(1, np.uint32), first, chunk_elems, n_elems, number, np.zeros(2, np.uint8))


def native_status(name, chunk):
    layout, first, chunk_elems, n_elems, number = CALL
    workspace, isa = np.empty(_core.workspace_bytes(), np.uint8), [each for each, _ in _core.isas()].index(name)
    status, _ = _core.decode_chunks(
        isa, layout.id, chunk, np.array([0, len(chunk)]), np.zeros(1, np.uint32), first, chunk_elems, n_elems, number, np.zeros(2, np.uint8), workspace
    )
    return status


@pytest.mark.parametrize(("chunk", "status"), OF_THE_CALLER.values(), ids=OF_THE_CALLER)
def test_chunks_that_are_the_callers_to_take_apart(chunk, status):
    for name, backend in BACKENDS.items():
        assert decode(backend, chunk) == 0, name
        if name != "numpy":
            assert native_status(name, chunk) == status


def test_a_mode_that_nobody_knows_is_unsupported():
    for name, backend in BACKENDS.items():
        with pytest.raises(UnsupportedError):
            decode(backend, chunk_of(len(Mode)))
        if name != "numpy":
            assert native_status(name, chunk_of(len(Mode))) == native.Status.UNSUPPORTED
