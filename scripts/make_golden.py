#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write golden files for cases that have none. A golden file is never written again: what one release wrote, every later one reads.

    python scripts/make_golden.py

Each case is a source (tests/support/samples.py), pack options, and the cases whose golden files are its base; the manifest holds the SHA-256 of the packed
file and of its source.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import zstandard

import weightpack
from weightpack.format.constants import VERSION

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))
import finetunes  # noqa: E402
import samples  # noqa: E402
import stores  # noqa: E402

GOLDEN = ROOT / "tests" / "golden"
STORE = ROOT / "tests" / "store" / "golden" / "1"
FOLDER = GOLDEN / f"{VERSION[0]}.{VERSION[1]}"


Case = tuple[bytes, weightpack.PackOptions] | tuple[bytes, weightpack.PackOptions, tuple[str, ...]]


def cases() -> dict[str, Case]:
    """Return name -> (source, options[, bases])."""
    options = weightpack.PackOptions
    result: dict[str, Case] = {"mixed-fast": (samples.mixed_file(), weightpack.load_profile())}
    result |= {"mixed-small-chunks": (samples.mixed_file(), options(chunk_elems=1280))}
    weights = {dtype: (dtype, (700,), samples.weights(700, dtype)) for dtype in ("BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2")} | {
        "ids": ("I64", (300,), b"".join(i.to_bytes(8, "little") for i in range(300))),
        "noise": ("U8", (50,), bytes(range(0, 250, 5))),
    }
    for codec in ("rans", "huffman", "zstd"):
        result[f"weights-{codec}"] = (samples.safetensors_file(weights, {"format": "pt"}), options(codecs=(codec,), exhaustive=True))
    result["weights-raw"] = (samples.safetensors_file(weights), options(codecs=()))
    result["specimen"] = (samples.specimen_file(), options(codecs=("rans", "huffman"), exhaustive=True))
    lead = {dtype: (dtype, (1 << 15,), samples.weights(1 << 15, dtype)) for dtype in ("BF16", "F16", "F32", "F8_E4M3", "F8_E5M2")}
    result["weights-lead"] = (samples.safetensors_file(lead), weightpack.load_profile("dense"))
    rows = {"rows.2": ("BF16", (128, 256), samples.rows("BF16", 128, 256)), "rows.4": ("F8_E4M3", (512, 256), samples.rows("F8_E4M3", 512, 256))}
    result["weights-tables"] = (samples.safetensors_file(rows), options(tables=4))
    result["gguf-fields"] = (samples.other_files()["gguf"], weightpack.load_profile("dense"))
    for name, source in samples.other_files().items():
        result[f"other-{name}"] = (source, weightpack.load_profile("dense"))
    for name, source in samples.foreign_files().items():
        result[f"foreign-{name.replace(' ', '-')}"] = (source, weightpack.load_profile())
    of_case = {"tuned-small-chunks": options(chunk_elems=1280), "tuned-lead": weightpack.load_profile("dense")}
    of_case |= dict.fromkeys(("tuned-rans", "tuned-decay"), options(codecs=("rans",)))
    for name, (source, bases) in samples.base_files().items():
        result[name] = (source, of_case.get(name, options(tables=4)), bases)
    result["moments"] = (samples.moments_file(), options())
    result["tiny-groups"] = (samples.tiny_file(), weightpack.load_profile())
    result["repeated"] = (samples.repeated_file(), weightpack.load_profile())
    result["quantised"] = (samples.quantised_file(), weightpack.load_profile())
    result["moments-small-chunks"] = (samples.moments_file(), options(chunk_elems=1280))
    return result


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / "manifest.json"
    manifest = json.loads(path.read_text()) if path.exists() else {}
    written = {name for other in GOLDEN.glob("*/manifest.json") for name in json.loads(other.read_text())}
    for name, (source, options, *rest) in cases().items():
        if name in written:
            continue
        bases = rest[0] if rest else ()
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "source").write_bytes(source)
            base = samples.base_path([FOLDER / f"{each}.safetensors" for each in bases], Path(folder) / "base")
            weightpack.pack(Path(folder) / "source", FOLDER / f"{name}.safetensors", base=base, options=options)
        packed = (FOLDER / f"{name}.safetensors").read_bytes()
        manifest[name] = {
            "sha256": hashlib.sha256(packed).hexdigest(),
            "source_sha256": hashlib.sha256(source).hexdigest(),
            "options": asdict(options),
            **({"bases": list(bases)} if bases else {}),
            "written_by": f"weightpack {weightpack.__version__}, zstandard {zstandard.__version__}",
        }
        print(f"{name}: {len(source)} -> {len(packed)} bytes")
    path.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    if not STORE.exists():
        make_store()


def make_store() -> None:
    """Write a store of version 1: a model, a fine-tune of it in another dtype and with more rows, and a step further."""
    STORE.parent.mkdir(exist_ok=True)
    store = weightpack.Store(STORE, make=True, threads=1)
    with tempfile.TemporaryDirectory() as name:
        base = {f"layer.{i}.weight": finetunes.weights(i) for i in range(2)}
        tuned = {key: finetunes.stepped(values, 10 + i) for i, (key, values) in enumerate(base.items())}
        longer = {key: np.concatenate([values, values[: finetunes.COLS]]) for key, values in tuned.items()}
        further = {key: finetunes.stepped(values, 20 + i) for i, (key, values) in enumerate(longer.items())}
        shape = finetunes.ROWS + 1, finetunes.COLS
        stores.model(Path(name) / "base", base, "F32")
        stores.model(Path(name) / "tuned", longer, "BF16", shape)
        stores.model(Path(name) / "further", further, "BF16", shape)
        (Path(name) / "further" / "tokenizer.json").write_bytes(b'{"token": 1}' * 100)
        for model in ("base", "tuned", "further"):
            store.add(Path(name) / model)


if __name__ == "__main__":
    main()
