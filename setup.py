# SPDX-License-Identifier: Apache-2.0
"""The native core as an extension. Everything else is in pyproject.toml.

The extension is optional: where it can't be compiled the package still installs and runs on numpy, slowly, and says so. WEIGHTPACK_REQUIRE_NATIVE=1
(set by CI) makes a failed build fail.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError, CompileError

REQUIRED = os.environ.get("WEIGHTPACK_REQUIRE_NATIVE") == "1"


class BuildCore(build_ext):
    """Says what is missing where the core can't be compiled; setuptools goes on without it unless it is required."""

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except (BaseError, CCompilerError) as error:
            outcome = "WEIGHTPACK_REQUIRE_NATIVE=1 does not allow to go on without it" if REQUIRED else "weightpack will run on numpy, slowly"
            raise CompileError(
                f"weightpack's native core can't be compiled, {outcome}: install a C11 compiler (gcc, clang or MSVC) and Python's headers ({error})"
            ) from error


sources = sorted(path.as_posix() for path in Path("native/src").glob("*.c"))
core = Extension(
    "weightpack._core",
    ["native/python/module.c", *sources],
    include_dirs=["native/include", "native/src"],
    depends=sorted(path.as_posix() for path in Path("native").rglob("*.h")),
    extra_compile_args=["/O2", "/std:c11"] if sys.platform == "win32" else ["-std=c11", "-O3", "-g0", "-fvisibility=hidden"],
    py_limited_api=True,
    optional=not REQUIRED,
)
setup(ext_modules=[core], cmdclass={"build_ext": BuildCore}, options={"bdist_wheel": {"py_limited_api": "cp311"}})
