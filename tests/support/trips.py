# SPDX-License-Identifier: Apache-2.0
"""There and back."""

from __future__ import annotations

import weightpack


def round_trip(folder, data, **options):
    """Pack `data` and unpack it, all in `folder`: FOLDER/source, FOLDER/packed, FOLDER/back. Return the packed bytes."""
    (folder / "source").write_bytes(data)
    weightpack.pack(folder / "source", folder / "packed", overwrite=True, **options)
    weightpack.unpack(folder / "packed", folder / "back", overwrite=True)
    assert (folder / "back").read_bytes() == data
    return (folder / "packed").read_bytes()
