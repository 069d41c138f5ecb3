#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How fast chunks of differences decode in memory, one core, for each ISA; writes results/delta_decode.json.

    python benchmarks/delta_decode.py --corpus DIR      # DIR/models/minilm-l6-finetune, made by shared/corpus/build_corpus.py

All matrices of the model, chunk after chunk, base in memory, CRC of each chunk checked. What is decoded is compared before anything is timed;
medians of 41 passes, memcpy of the same bytes in the same process.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import numpy as np

from weightpack import kernels
from weightpack.format.layouts import layout_of
from weightpack.io.files import LocalFile, read_at
from weightpack.options import load_profile
from weightpack.reading.chunks import decode_chunks
from weightpack.sources import segment
from weightpack.writing.differences import encode_difference

RESULT = Path(__file__).parent / "results" / "delta_decode.json"
PAIRS = [
    ("fine-tune, bf16: base -> step 200", "base.bf16", "step-200.bf16"), ("checkpoints, bf16: step 250 -> step 300", "step-250.bf16", "step-300.bf16"),
    ("fine-tune, fp32: base -> step 300", "base", "finetuned"),
]  # fmt: skip
CHUNK_ELEMS, PASSES = 1 << 18, 41


def matrices(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    with LocalFile(path) as file:
        return {t.name: (t.dtype, np.frombuffer(read_at(file, t.offset, t.n_bytes), np.uint8)) for t in segment(file).tensors if len(t.shape) == 2}


def measure(base: Path, target: Path) -> dict[str, object]:
    old, new = matrices(base), matrices(target)
    chunks, options = [], load_profile()
    for name, (dtype, data) in new.items():
        layout = layout_of(dtype)
        step = CHUNK_ELEMS * layout.elem_bytes
        for begin in range(0, data.size, step):
            elems, from_ = data[begin : begin + step], old[name][1][begin : begin + step]
            chunks.append((layout, np.frombuffer(encode_difference(elems, from_, layout, options), np.uint8), elems, from_))
    total = sum(elems.size for _, _, elems, _ in chunks)
    out = np.empty(max(elems.size for _, _, elems, _ in chunks), np.uint8)
    result: dict[str, object] = {"bytes": total, "packed_bytes": sum(chunk.size for _, chunk, _, _ in chunks)}
    for isa in kernels.available_isas()[1:]:
        with kernels.use_isa(isa):
            k = kernels.active()
            crcs = [np.array([k.crc32c(elems, k.crc32c(bytes(4)))], np.uint32) for _, _, elems, _ in chunks]

            def one_pass(check=False, crcs=crcs):
                for (layout, chunk, elems, from_), crc in zip(chunks, crcs, strict=True):
                    offsets = np.array([0, chunk.size], np.int64)
                    decode_chunks(layout, chunk, offsets, crc, CHUNK_ELEMS, elems.size // layout.elem_bytes, 0, out[: elems.size], lambda first, n, b=from_: b)
                    if check and not np.array_equal(out[: elems.size], elems):
                        raise SystemExit("the round trip differs")

            one_pass(check=True)
            result[f"{isa} GB/s"] = round(total / 1e9 / seconds(one_pass), 2)

    def copy():
        for _, _, elems, _ in chunks:
            np.copyto(out[: elems.size], elems)

    result["memcpy GB/s"] = round(total / 1e9 / seconds(copy), 2)
    return result


def seconds(work) -> float:
    times = []
    for _ in range(PASSES):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True)
    folder = parser.parse_args().corpus / "models" / "minilm-l6-finetune"
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), platform.machine())
    results = {name: measure(folder / f"{base}.safetensors", folder / f"{target}.safetensors") for name, base, target in PAIRS}
    RESULT.write_text(json.dumps({"cpu": cpu, "chunk_elems": CHUNK_ELEMS, "pairs": results}, indent=1) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
