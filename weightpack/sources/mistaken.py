# SPDX-License-Identifier: Apache-2.0
"""What a file that should be a safetensors file is instead, told by its first bytes, for messages: mostly something that was fetched in its place."""

from __future__ import annotations

FIRST_BYTES = 512
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
MOST_POINTER_BYTES = 1024  # "must be less than 1024 bytes": the specification of Git LFS
_AGAIN = "perhaps a server's answer that was saved in its place: fetch the file again"
_BEGINS = {
    LFS_POINTER: "a Git LFS pointer: run `git lfs pull` where it was cloned",
    b"PK\x03\x04": "a zip file, as torch.save writes (.pt, .bin)", b"PK\x05\x06": "an empty zip file", b"\x80\x02": "a pickle, as old torch.save writes",
    b"\x80\x03": "a pickle", b"\x80\x04": "a pickle", b"\x80\x05": "a pickle", b"GGUF": "a GGUF file", b"\x93NUMPY": "a numpy array (.npy)",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file (.h5)", b"\x1f\x8b": "compressed with gzip", b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"BZh": "compressed with bzip2", b"\xfd7zXZ\x00": "compressed with xz",
}  # fmt: skip
_TEXTS = {
    b"<!doctype html": f"an HTML page, {_AGAIN}", b"<html": f"an HTML page, {_AGAIN}", b"<?xml": f"XML, {_AGAIN}", b"<error": f"XML, {_AGAIN}",
    b"{": f"JSON, {_AGAIN}", b"[": f"JSON, {_AGAIN}",
}  # fmt: skip


def kind_of_mistake(first: bytes) -> str | None:
    """Return what a file is that begins like this, and what helps; None if it can't be told.

    Parameters
    ----------
    first
        Up to `FIRST_BYTES` bytes from the file's begin.
    """
    for begin, kind in _BEGINS.items():
        if first.startswith(begin):
            return kind
    if len(first) >= 8 and not any(first):
        return "zeros, as a download leaves that was not finished: fetch the file again"
    text = first.lstrip(b"\xef\xbb\xbf \t\r\n")
    for begin, kind in _TEXTS.items():
        if text.lower().startswith(begin):
            return kind
    if len(text) >= 8 and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in text):
        return f"text, {_AGAIN}"
    return None
