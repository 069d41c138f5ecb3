# SPDX-License-Identifier: Apache-2.0
"""decode.cu -> code for the GPU at hand, by NVRTC through cuda-bindings (both come with torch's CUDA wheels), kept on disk for the next process."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from weightpack.format.layouts import Layout
from weightpack.io.atomic import replace_file

SOURCE = Path(__file__).with_name("decode.cu")


class CudaError(Exception):
    """A call of the driver or of the compiler failed; caught inside this room, where it means that the CPU decodes."""


def layout_arguments(layout: Layout) -> str:
    """Return the arguments of decode.cu's template Layout: bytes of an element, symbol planes, bits of each (two at most), bits of the raw word."""
    first, second = (*layout.plane_bits, 0)[:2]
    return f"{layout.elem_bytes},{len(layout.plane_bits)},{first},{second},{layout.raw_bits}"


def checked(result: tuple[Any, ...]) -> Any:
    """Return what a call of cuda-bindings gave after its status: nothing, a value, or a tuple."""
    status, *values = result
    if int(status) != 0:
        raise CudaError(str(status))
    return values[0] if len(values) == 1 else tuple(values)


def cubin(capability: tuple[int, int], layout: Layout) -> bytes:
    """Return the machine code of one layout's kernel for GPUs of a compute capability, from the cache or compiled (about two seconds)."""
    from cuda.bindings import nvrtc

    source = SOURCE.read_bytes()
    options = [f"--gpu-architecture=sm_{capability[0]}{capability[1]}".encode(), b"--std=c++17", f"-DWP_LAYOUT={layout_arguments(layout)}".encode()]
    key = hashlib.sha256(repr((source, options, checked(nvrtc.nvrtcVersion()))).encode()).hexdigest()
    kept = _folder() / f"decode-{key[:32]}.cubin"
    try:
        return kept.read_bytes()
    except OSError:
        pass
    code = _compile(nvrtc, source, options)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        replace_file(kept, code)
    except OSError:
        pass  # it is compiled again next time
    return code


def _folder() -> Path:
    """Return where caches are by the XDG base directory specification."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "weightpack"


def _compile(nvrtc: Any, source: bytes, options: list[bytes]) -> bytes:
    program = checked(nvrtc.nvrtcCreateProgram(source, SOURCE.name.encode(), 0, [], []))
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(status) != 0:
            log = b" " * checked(nvrtc.nvrtcGetProgramLogSize(program))
            checked(nvrtc.nvrtcGetProgramLog(program, log))
            raise CudaError(f"{status}: {log.decode(errors='replace').strip()}")
        code: bytes = b" " * checked(nvrtc.nvrtcGetCUBINSize(program))
        checked(nvrtc.nvrtcGetCUBIN(program, code))
        return code
    finally:
        nvrtc.nvrtcDestroyProgram(program)
