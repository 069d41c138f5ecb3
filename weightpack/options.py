# SPDX-License-Identifier: Apache-2.0
"""What a caller may choose: pack options (a profile and overrides) and limits for untrusted files."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from weightpack.errors import OptionError, PathNotFoundError
from weightpack.format.constants import BLOCK_ELEMS, MAX_CHUNK_BLOCKS
from weightpack.format.layouts import Layout, layout_of

__all__ = ["Limits", "PackOptions", "load_profile", "profile_descriptions", "profiles"]

CODEC_CHOICES = ("rans", "huffman", "zstd")
DEFAULT_PROFILE = "fast"
_LEAD_ELEMS = 1 << 15  # from here on the codec `context` gains more than its 305 bytes


@dataclass(frozen=True, slots=True)
class PackOptions:
    """How to pack. The keys of a profile in `configs/` are these fields.

    Parameters
    ----------
    codecs
        Which of rans, huffman and zstd may be used; constant and raw always may.
    chunk_elems
        Elements of a chunk: a multiple of 128. A chunk is the unit of threads and of random access.
    zstd_level
        Where zstd is used.
    exhaustive
        Try every codec on every plane, instead of those that its statistics suggest.
    tables
        How many rANS codebooks a plane may have, 1 to 16: with more than one, rows of different scale get their own. Slower to pack, as fast to unpack.
    lead
        Code the two leading mantissa bits of floats as well, in the context of the exponent: smaller, and slower to pack and unpack.
    quantised
        Look for weights that were quantised once and written out again, and store them as codes and scales.
    scales
        Predict elements from scales of rows and columns where that helps much, as it does for the state of optimizers.
    """

    codecs: tuple[str, ...] = CODEC_CHOICES
    chunk_elems: int = 1 << 18
    zstd_level: int = 9
    exhaustive: bool = False
    tables: int = 1
    lead: bool = False
    quantised: bool = True
    scales: bool = True

    @property
    def minor_version(self) -> int:
        """Of the format, that knows all that these options may bring about."""
        return int(self.lead or self.tables > 1)

    def layout(self, dtype: str, n_bytes: int) -> Layout:
        """Return the layout for a tensor of `n_bytes`."""
        layout = layout_of(dtype)
        return layout_of(dtype, lead=True) if self.lead and n_bytes >= _LEAD_ELEMS * layout.elem_bytes else layout

    def __post_init__(self) -> None:
        unknown = set(self.codecs) - set(CODEC_CHOICES)
        if unknown:
            raise OptionError(f"unknown codec {sorted(unknown)[0]!r}: there are {', '.join(CODEC_CHOICES)}")
        if self.chunk_elems % BLOCK_ELEMS or not 0 < self.chunk_elems <= 1 << 20:
            raise OptionError(f"chunk_elems is {self.chunk_elems}: it must be a multiple of {BLOCK_ELEMS}, at most {1 << 20}")
        if not 1 <= self.tables <= 16:
            raise OptionError(f"tables is {self.tables}: it must be 1 to 16")
        if not 1 <= self.zstd_level <= 22:
            raise OptionError(f"zstd_level is {self.zstd_level}: it must be 1 to 22")


assert MAX_CHUNK_BLOCKS * BLOCK_ELEMS >= 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What a packed file may claim before it is refused; raise a limit for a file that you trust.

    Parameters
    ----------
    max_tensors
        Tensors in a file.
    max_source_bytes
        Length of the restored file.
    max_gap_bytes
        Bytes of the source outside its tensors, all together; they are held in memory.
    max_json_memory
        Memory that a header's objects may take, estimated before it is parsed.
    max_depth
        How many files may have to be decoded, one from the other, where each is a difference.
    """

    max_tensors: int = 10_000_000
    max_source_bytes: int = 1 << 44
    max_gap_bytes: int = 256 << 20
    max_json_memory: int = 1 << 30
    max_depth: int = 64


DEFAULT_LIMITS = Limits()


def _folder() -> Path:
    """Return where the profiles are: inside an installed package, or `configs/` of a checkout."""
    here = Path(__file__).resolve().parent
    return here / "configs" if (here / "configs").is_dir() else here.parent / "configs"


def profiles() -> list[str]:
    """Return the names of the profiles that come with the package."""
    return sorted(path.stem for path in _folder().glob("*.toml"))


def profile_descriptions() -> dict[str, str]:
    """Return what each profile that comes with the package costs and buys, the default first."""
    return {name: str(_table(_folder() / f"{name}.toml").get("description", "")) for name in sorted(profiles(), key=lambda name: name != DEFAULT_PROFILE)}


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: not TOML: {error}") from None
    except FileNotFoundError:
        raise PathNotFoundError("no such profile", path=str(path)) from None


@cache
def _load(path: Path) -> dict[str, Any]:
    table = _table(path)
    table.pop("description", None)
    unknown = set(table) - {field.name for field in fields(PackOptions)}
    if unknown:
        raise OptionError(f"{path}: unknown key {sorted(unknown)[0]!r}")
    if "codecs" in table:
        table["codecs"] = tuple(table["codecs"])
    return table


def load_profile(profile: str | os.PathLike[str] = DEFAULT_PROFILE, *, codec: str = "auto") -> PackOptions:
    """Return the options of a profile: the name of one that comes with the package, or the path of a TOML file.

    `codec` other than "auto" allows that codec alone; "raw" allows none, so that tensors are kept unless they are constant.
    """
    path = Path(profile)
    if path.suffix != ".toml":
        if str(profile) not in profiles():
            raise OptionError(f"unknown profile {str(profile)!r}: there are {', '.join(profiles())}, or name a .toml file")
        path = _folder() / f"{profile}.toml"
    options = PackOptions(**_load(path))
    if codec == "auto":
        return options
    if codec not in (*CODEC_CHOICES, "raw"):
        raise OptionError(f"unknown codec {codec!r}: there are auto, {', '.join(CODEC_CHOICES)} and raw")
    return replace(options, codecs=() if codec == "raw" else (codec,))
