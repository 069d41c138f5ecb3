# SPDX-License-Identifier: Apache-2.0
"""Can this machine mount?"""

from __future__ import annotations

import os

import pytest

from weightpack.errors import WeightpackError
from weightpack.integrations.mount import fuse_library


def why_not():
    """Return why nothing can be mounted here; empty if it can."""
    try:
        fuse_library()
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except (WeightpackError, OSError) as error:
        return f"nothing can be mounted here: {error}"
    return ""


REASON = why_not()
needed = pytest.mark.skipif(bool(REASON), reason=REASON or "it can")
