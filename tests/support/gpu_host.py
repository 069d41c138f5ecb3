# SPDX-License-Identifier: Apache-2.0
"""The GPU's decoder compiled for the host: 32 fibres in lock step are a warp (native/tests/gpu_host.cpp)."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from weightpack.format.layouts import LAYOUTS
from weightpack.gpu.compiler import layout_arguments
from weightpack.gpu.decoder import READ_PAST, decodable

SOURCE = Path(__file__).resolve().parents[2] / "native" / "tests" / "gpu_host.cpp"
FLAGS = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Wno-maybe-uninitialized"]  # GCC does not see that a lane that rests is not looked at


def compile_host(target: Path, *flags: str) -> Path:
    """Compile it with the layouts that the package names; skip where there is no C++ compiler."""
    compiler = shlex.split(os.environ.get("CXX", "")) or [found for found in map(shutil.which, ("c++", "g++", "clang++")) if found][:1]
    if not compiler:
        pytest.skip("no C++ compiler here")
    names = " ".join(f'WP_NAME("{layout.name.lower()}", {layout_arguments(LAYOUTS[layout])}),' for layout in sorted(decodable))
    listed = target.with_suffix(".h")
    listed.write_text(names + "\n")
    subprocess.run([*compiler, *FLAGS, *flags, f'-DWP_NAMES="{listed}"', "-o", str(target), str(SOURCE)], check=True)
    return target


class HostDecoder:
    """Decodes chunks as the GPU would."""

    def __init__(self, library: Path) -> None:
        self._decode = ctypes.CDLL(str(library)).wp_gpu_host_decode
        self._decode.argtypes = [ctypes.c_char_p, ctypes.c_void_p, *[ctypes.c_uint32] * 4, ctypes.c_void_p]

    def __call__(self, layout, chunk, n_elems, number, crc):
        """Return (status, decoded bytes)."""
        room = np.zeros(len(chunk) + READ_PAST + 16, np.uint8)
        begin = -room.ctypes.data % 16
        room[begin : begin + len(chunk)] = np.frombuffer(chunk, np.uint8)
        fenced = np.full(n_elems * layout.elem_bytes + 48, 0xEE, np.uint8)
        to = 16 + -fenced.ctypes.data % 16
        out = fenced[to : to + n_elems * layout.elem_bytes]
        status = self.at(layout, room.ctypes.data + begin, len(chunk), n_elems, number, crc, out.ctypes.data)
        assert (fenced[:to] == 0xEE).all(), "bytes before the output were written"
        assert (fenced[to + out.size :] == 0xEE).all(), "bytes after the output were written"
        return status, out

    def at(self, layout, src, src_bytes, n_elems, number, crc, dst):
        """Decode from an address to an address; return the status."""
        status = self._decode(layout.id.name.lower().encode(), src, src_bytes, n_elems, number, crc, dst)
        assert status in (0, 1), "the layout is not compiled"
        return status
