# SPDX-License-Identifier: Apache-2.0
"""What the numpy kernels take, and what they refuse: in the order of the native core, so that damage gives the same exception on every backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from weightpack.errors import CorruptionError, TruncatedError, WeightpackError

if TYPE_CHECKING:
    from weightpack.format.buffers import Buffer, Bytes


def u8(data: Buffer) -> Bytes:
    return np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)


def expect(ok: bool, what: str) -> None:
    """Refuse what only a caller inside weightpack can get wrong: the native core refuses it too, and wrong bytes would be worse."""
    if not ok:
        raise WeightpackError(f"{what}: this is a bug in weightpack")


def need(ok: bool, what: str, error: type[CorruptionError | TruncatedError] = CorruptionError) -> None:
    if not ok:
        raise error(f"{what} {'ends early' if error is TruncatedError else 'contradicts the format'}: the file is damaged")
