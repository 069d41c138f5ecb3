# SPDX-License-Identifier: Apache-2.0
"""`safetensors.torch` for packed files: the same names and arguments, so that a change of import is a change of format. Plain files are read too."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from weightpack.arrays.contents import contents, is_torch
from weightpack.arrays.memory import TorchFramework
from weightpack.errors import MissingExtraError, OptionError, located
from weightpack.io.files import MemoryFile
from weightpack.options import DEFAULT_LIMITS, DEFAULT_PROFILE, Limits, load_profile
from weightpack.reading.frame import decode_bytes
from weightpack.reading.shards import load_tensors
from weightpack.reading.tensors import SafeOpen
from weightpack.reading.tensors import safe_open as _safe_open
from weightpack.writing.frame import encode_bytes
from weightpack.writing.save import pack_tensors, save_tensors

try:
    import torch
except ImportError:
    raise MissingExtraError("weightpack.torch needs PyTorch: `pip install weightpack[torch]`") from None

if TYPE_CHECKING:
    from weightpack.options import PackOptions

from weightpack.resident.modules import PackedEmbedding, PackedLinear, compress
from weightpack.resident.tensor import PackedTensor

__all__ = [
    "HuffmanCompressor", "HuffmanDecompressor", "PackedEmbedding", "PackedLinear", "PackedTensor", "compress", "load", "load_file", "load_model", "safe_open",
    "save", "save_file", "save_model",
]  # fmt: skip


def safe_open(
    filename: str | os.PathLike[str], framework: Literal["pt", "torch", "pytorch"] = "pt", device: str | int = "cpu", *, threads: int | None = None,
    limits: Limits = DEFAULT_LIMITS, base: str | os.PathLike[str] | None = None,
) -> SafeOpen[torch.Tensor]:  # fmt: skip
    """See `weightpack.safe_open`."""
    return _safe_open(filename, framework, device, threads=threads, limits=limits, base=base)


def load_file(
    filename: str | os.PathLike[str], device: str | int = "cpu", *, threads: int | None = None, base: str | os.PathLike[str] | None = None,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Load every tensor of a packed or plain file, in the order of their bytes, or of a directory's files; `base` as in `weightpack.safe_open`.

    Of a directory it is the files that transformers would take: `model.safetensors`; or the shards that an index names; or, where neither is, all
    `*.safetensors` in it.
    """
    return load_tensors(filename, lambda path: safe_open(path, device=device, threads=threads, base=base))


def load(data: bytes, *, threads: int | None = None) -> dict[str, torch.Tensor]:
    """Load every tensor from the bytes of a packed or plain file."""
    opened = SafeOpen(MemoryFile([data]), TorchFramework(), threads=threads)
    return opened.get_tensors(opened.offset_keys())


def save_file(
    tensors: Mapping[str, torch.Tensor], filename: str | os.PathLike[str], metadata: Mapping[str, str] | None = None, *,
    options: PackOptions | None = None, threads: int | None = None,
) -> None:  # fmt: skip
    """Save tensors as a packed file; `weightpack unpack` turns it into a plain safetensors file."""
    save_tensors(_buffers(tensors), filename, metadata, options=options, threads=threads)


def save(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None, *, options: PackOptions | None = None) -> bytes:
    """Return the bytes of a packed file."""
    return pack_tensors(_buffers(tensors), metadata, options=options)


def save_model(model: torch.nn.Module, filename: str, metadata: dict[str, str] | None = None, force_contiguous: bool = True) -> None:
    """Save a module, shared tensors once, by the rules of `safetensors.torch.save_model`."""
    rules = _safetensors_torch()
    state_dict = model.state_dict()
    metadata = dict(metadata or {})
    for kept, dropped in rules._remove_duplicate_names(state_dict).items():
        for name in dropped:
            metadata.setdefault(name, kept)
            del state_dict[name]
    if force_contiguous:
        state_dict = {name: tensor.contiguous() for name, tensor in state_dict.items()}
    save_file(state_dict, filename, metadata or None)


def load_model(model: torch.nn.Module, filename: str | os.PathLike[str], strict: bool = True, device: str | int = "cpu") -> tuple[list[str], list[str]]:
    """Load a file into a module; returns (missing, unexpected) names, by the rules of `safetensors.torch.load_model`."""
    rules = _safetensors_torch()
    state_dict = load_file(filename, device=device)
    duplicates = rules._remove_duplicate_names(model.state_dict(), preferred_names=state_dict.keys())
    missing, unexpected = model.load_state_dict(state_dict, strict=False)
    left = set(missing)
    for group in duplicates.values():
        for name in group:
            if name in left:
                left.remove(name)
            else:
                unexpected.append(name)
    if strict and (left or unexpected):
        lines = [f"Error(s) in loading state_dict for {model.__class__.__name__}:"]
        lines += [f"    {what} key(s) in state_dict: {', '.join(sorted(names))}" for what, names in (("Missing", left), ("Unexpected", unexpected)) if names]
        raise RuntimeError("\n".join(lines))
    return sorted(left), list(unexpected)


class HuffmanCompressor(torch.nn.Module):
    """Packs a tensor of any dtype that safetensors has (weights, activations, a KV cache) into a tensor of bytes, without losing a bit.

    What it gives is a tensor frame (FORMAT section 9): dtype and shape are in it, and `HuffmanDecompressor` needs nothing else. Codec and profile are part of a
    `state_dict`, as extra state. No gradient flows through.

    Parameters
    ----------
    codec
        "huffman", "rans", "zstd", "raw", or "auto": the smallest of them for each plane.
    profile
        As `weightpack.load_profile`.
    threads
        Of large tensors.
    """

    def __init__(self, codec: str = "huffman", profile: str = DEFAULT_PROFILE, threads: int | None = 1) -> None:
        super().__init__()
        self.codec, self.profile, self.threads = codec, profile, threads
        load_profile(profile, codec=codec)  # refuses names that do not exist

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the packed bytes: (n,) uint8, on the CPU."""
        ((dtype, shape, data),) = _buffers({"tensor": tensor.contiguous()}).values()
        options = load_profile(self.profile, codec=self.codec)
        frame = encode_bytes(np.frombuffer(data, np.uint8), dtype, shape, options=options, threads=self.threads)
        return torch.frombuffer(bytearray(frame), dtype=torch.uint8)

    def extra_repr(self) -> str:
        return f"codec={self.codec!r}, profile={self.profile!r}"

    def get_extra_state(self) -> dict[str, str]:
        return {"codec": self.codec, "profile": self.profile}

    def set_extra_state(self, state: dict[str, str]) -> None:
        load_profile(state["profile"], codec=state["codec"])
        self.codec, self.profile = state["codec"], state["profile"]


class HuffmanDecompressor(torch.nn.Module):
    """The inverse of `HuffmanCompressor`, whatever its codec was.

    Parameters
    ----------
    device
        Where the tensors go.
    max_bytes
        What a packed tensor may claim to hold.
    """

    def __init__(self, device: torch.device | str = "cpu", threads: int | None = 1, max_bytes: int = 1 << 40) -> None:
        super().__init__()
        self._framework, self.threads, self.max_bytes = TorchFramework(device), threads, max_bytes

    def forward(self, packed: torch.Tensor) -> torch.Tensor:
        """Return the tensor that was packed into `packed`, (n,) uint8; FormatError if those bytes are damaged."""
        if packed.dtype != torch.uint8 or packed.ndim != 1:
            raise OptionError(f"a packed tensor is 1-D uint8, got {packed.dtype} of {packed.ndim} dimensions")
        data, dtype, shape = decode_bytes(packed.detach().cpu().contiguous().numpy().tobytes(), threads=self.threads, max_bytes=self.max_bytes)
        tensor, memory = self._framework.empty(dtype, shape)
        memory[:] = data
        return self._framework.finish(tensor)


def _safetensors_torch() -> Any:
    """Which of several names of one storage is the model's own is safetensors' rule, so it is asked."""
    try:
        import safetensors.torch
    except ImportError:
        raise MissingExtraError("saving or loading a whole module needs safetensors: `pip install weightpack[torch]`") from None
    return safetensors.torch


def _buffers(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, tuple[int, ...], memoryview]]:
    if not isinstance(tensors, Mapping):
        raise OptionError(f"expected a dict of tensors, got {type(tensors).__name__}")
    result = {}
    for name, tensor in tensors.items():
        if not is_torch(tensor):
            raise OptionError(f"expected a tensor, got {type(tensor).__name__}", tensor=name)
        if not tensor.is_contiguous():
            raise OptionError("the tensor is not contiguous: call .contiguous() first", tensor=name)
        with located(tensor=name):
            dtype, shape, data = contents(tensor)
        result[name] = (dtype, shape, memoryview(data))
    return result
