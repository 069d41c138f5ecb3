# SPDX-License-Identifier: Apache-2.0
"""Native kernels never read or write outside their buffers: inputs and outputs end, and begin, at pages that may not be touched.

It runs in a process of its own, because a violation kills it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import samples

from weightpack import kernels
from weightpack.format.layouts import LAYOUTS

PROGRAM = r"""
import ctypes, sys
import numpy as np
sys.path.insert(0, sys.argv[2])
import samples
from elements import elements
from weightpack import kernels
from weightpack.format.layouts import LAYOUTS
from weightpack.kernels import chunk_crc
from weightpack.errors import FormatError
from weightpack.options import PackOptions

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE, ROOM = 4096, 1 << 20
base = [libc.mmap(None, ROOM + 2 * PAGE, 3, 0x22, -1, 0) for _ in range(2)]
for b in base:
    assert libc.mprotect(b, PAGE, 0) == 0 and libc.mprotect(b + PAGE + ROOM, PAGE, 0) == 0

def guarded(which, n_bytes, at_end):
    begin = base[which] + PAGE + (ROOM - n_bytes if at_end else 0)
    return np.frombuffer((ctypes.c_uint8 * n_bytes).from_address(begin), np.uint8)

done = 0
with kernels.use_isa(sys.argv[1]):
    k = kernels.active()
    for layout in LAYOUTS.values():
        for kind in ("weights", "weights_with_rows", "few_symbols"):
            for n in (1, 2, 63, 127, 128, 129, 257, 640, 4096, 4100, 9000):
                data = elements(layout, n, kind)
                for at_end in (True, False):
                    source = guarded(0, data.size, at_end); source[:] = data
                    planes = k.split(layout, source)
                    assert k.crc32c(source) == k.crc32c(data.tobytes())
                    for codecs in (("rans", "huffman"), ("rans",), ("huffman",)):
                        chunk = samples.encode_one(source, layout, PackOptions(codecs=codecs))
                        coded = guarded(1, len(chunk), at_end); coded[:] = np.frombuffer(chunk, np.uint8)
                        # the output's guard: the source's own room, as long as the input is elsewhere
                        out = guarded(0, data.size, at_end); out[:] = 0
                        assert samples.decode_one(k, layout, coded, n, 7, chunk_crc(data, 7), out)
                        assert (out == data).all()
                        for cut in (1, 2, 5, 33, 130):
                            if cut < len(chunk):
                                short = guarded(1, len(chunk) - cut, at_end); short[:] = np.frombuffer(chunk[:-cut], np.uint8)
                                try:
                                    samples.decode_one(k, layout, short, n, 7, 0, out)
                                except FormatError:
                                    pass
                        out[:] = data
                        done += 1
print(done)
"""


@pytest.mark.parametrize("isa", [name for name in kernels.available_isas() if name != "numpy"])
def test_kernels_stay_inside_their_buffers(isa):
    if sys.platform != "linux":
        pytest.skip("guard pages are set up with Linux's mmap")
    result = subprocess.run([sys.executable, "-c", PROGRAM, isa, str(Path(samples.__file__).parent)], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, f"exit {result.returncode}: {result.stderr[-2000:]}"
    assert int(result.stdout) == len(LAYOUTS) * 3 * 11 * 2 * 3
