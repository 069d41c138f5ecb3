# SPDX-License-Identifier: Apache-2.0
"""The native core as an extension. Everything else is in pyproject.toml.

The extension is optional: where it can't be compiled the package still installs and runs on numpy, slowly, and says so. WEIGHTPACK_REQUIRE_NATIVE=1
(set by CI) makes a failed build fail.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup

sources = sorted(path.as_posix() for path in Path("native/src").glob("*.c"))
core = Extension(
    "weightpack._core",
    ["native/python/module.c", *sources],
    include_dirs=["native/include", "native/src"],
    depends=sorted(path.as_posix() for path in Path("native").rglob("*.h")),
    extra_compile_args=["/O2", "/std:c11"] if sys.platform == "win32" else ["-std=c11", "-O3", "-g0", "-fvisibility=hidden"],
    py_limited_api=True,
    optional=os.environ.get("WEIGHTPACK_REQUIRE_NATIVE") != "1",
)
setup(ext_modules=[core], options={"bdist_wheel": {"py_limited_api": "cp311"}})
