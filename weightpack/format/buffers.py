# SPDX-License-Identifier: Apache-2.0
"""What holds bytes, by one name each. For type checkers: import it under TYPE_CHECKING."""

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
"""Bytes or symbols in an array, of shape (n,) unless something else is said."""
Words = NDArray[np.uint32]
"""Unsigned integers of 32 bits: elements, differences, counts, registers."""
Buffer = Bytes | bytes | bytearray | memoryview
"""Bytes in one piece of memory, whatever holds them."""
Stream = tuple[int, Buffer]
"""A codec, and the bytes that it makes a plane of (FORMAT section 8)."""
