# SPDX-License-Identifier: Apache-2.0
"""The public surface, name by name: what is added or taken away here is a change that users see, and belongs in the changelog."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import sys

import pytest

import weightpack
from weightpack import errors

SURFACE = {
    "weightpack": [
        "Limits", "PackOptions", "Store", "WeightpackError", "decode", "disable", "enable", "encode", "estimate", "inspect", "load_file", "load_profile",
        "pack", "pull", "push", "safe_open", "save_file", "unpack", "verify",
    ],
    "weightpack.dcp": ["WeightpackExtension", "reader", "registry", "writer"],
    "weightpack.delta": ["apply", "encode", "encode_buckets"],
    "weightpack.errors": [
        "BaseNotFoundError", "ChecksumError", "CorruptionError", "FolderError", "FormatError", "LimitError", "LosslessError", "MissingExtraError",
        "NotPackedError", "OptionError", "PathNotFoundError", "TensorNotFoundError", "TruncatedError", "UnsupportedError", "WeightpackError", "WrongBaseError",
    ],
    "weightpack.hub": ["PushResult", "pull", "push"],
    "weightpack.kernels": [
        "ConditionalBooks", "DifferenceCode", "EncodedChunks", "EncodedPlane", "FittedTiles", "Grid", "Kernels", "MAX_ANCHORS", "MAX_BATCH", "NativeCodecs",
        "Product", "RansBook", "SplitChunk", "SplitPlanes", "active", "available_isas", "chunk_crc", "crc32c_of", "isa", "use_isa",
    ],
    "weightpack.numpy": ["load", "load_file", "safe_open", "save", "save_file"],
    "weightpack.options": ["Limits", "PackOptions", "load_profile", "profile_descriptions", "profiles"],
    "weightpack.series": [
        "ANCHOR_EVERY", "Checkpoint", "STORE", "Series", "SeriesFile", "checkpoint", "checkpoint_problem", "collect", "has_sharded_state", "last_checkpoint",
        "pack_checkpoint", "pack_run", "plain_files", "restore", "series", "unshare", "verify",
    ],
    "weightpack.store": ["Branch", "Collected", "Ref", "Store", "Usage", "Verified"],
    "weightpack.torch": [
        "HuffmanCompressor", "HuffmanDecompressor", "PackedEmbedding", "PackedLinear", "PackedTensor", "compress", "load", "load_file", "load_model",
        "safe_open", "save", "save_file", "save_model",
    ],
    "weightpack.trainer": ["PackedCheckpoint", "WeightpackCallback", "WeightpackTrainer", "WeightpackTrainerMixin"],
    "weightpack.transformers": ["WeightpackConfig", "disable", "enable", "is_enabled", "save_pretrained"],
}  # fmt: skip
NEEDS = {"weightpack.trainer": "transformers", "weightpack.transformers": "transformers"}


def listed(name):
    """Return the `__all__` of a module as its source has it: a list of strings, for those whose libraries are not installed, too."""
    with open(importlib.util.find_spec(name).origin, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    (members,) = [
        ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
    ]
    return members


@pytest.mark.parametrize("name", SURFACE)
def test_exported_members(name):
    assert sorted(listed(name)) == SURFACE[name]


@pytest.mark.parametrize("name", SURFACE)
def test_what_is_exported_is_there(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"scripts/test-ecosystem installs {NEEDS[name]}")
    module = importlib.import_module(name)
    for member in SURFACE[name]:
        assert getattr(module, member) is not None, member


def test_attributes_of_the_package():
    """Members and modules that need no import of their own."""
    modules = ["delta", "errors", "kernels", "numpy", "reference", "torch"]
    assert set(dir(weightpack)) >= {*SURFACE["weightpack"], *modules, "__version__"}
    program = f"import weightpack\nfor name in {[*SURFACE['weightpack'], *modules]}:\n    getattr(weightpack, name)\n"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False).stderr == ""
    with pytest.raises(AttributeError, match="nothing_like_it"):
        weightpack.nothing_like_it  # noqa: B018


def test_errors():
    """Each class that is defined is exported, and stands in the tree that the module shows; each is a WeightpackError."""
    defined = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, BaseException)}
    assert defined == set(errors.__all__)
    assert defined == set(re.findall(r"^[ │├└─]+(\w+Error)", errors.__doc__, re.M))
    assert all(issubclass(getattr(errors, name), errors.WeightpackError) for name in defined)
