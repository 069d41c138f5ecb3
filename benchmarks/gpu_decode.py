#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Decoding on a GPU: the kernel alone, whole files, and nvCOMP, in one run on the same weights. Everything is compared before it is timed.

    python benchmarks/gpu_decode.py MODEL.safetensors [--gigabytes 1.5] [--to results/gpu_decode.json]

Of the model's matrices a shard is made, as large as asked: copies whose lowest mantissa bits (1 of bf16, 3 of fp16, 16 of fp32) are drawn anew, so that no
two are equal; in trained weights these bits are as good as random. Files lie on tmpfs, so that no disk is measured. Times are medians.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import weightpack  # noqa: E402
import weightpack.torch as wt  # noqa: E402
from weightpack.gpu.decoder import READ_PAST, decoder_or_reason, describe  # noqa: E402
from weightpack.io.files import LocalFile  # noqa: E402
from weightpack.options import load_profile  # noqa: E402
from weightpack.reading.packed_file import PackedFile  # noqa: E402

os.environ["WEIGHTPACK_GPU"] = "1"
DEVICE = torch.device("cuda", 0)
_DRAWN_BITS = {torch.bfloat16: 1, torch.float16: 3, torch.float32: 16}


def gpu_seconds(work: Callable[[], object], repeats: int = 25) -> float:
    """Return the median of what the GPU takes."""
    work()
    times = []
    for _ in range(repeats):
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        work()
        after.record()
        torch.cuda.synchronize()
        times.append(before.elapsed_time(after) / 1000)
    return statistics.median(times)


def wall_seconds(work: Callable[[], object], repeats: int = 7) -> float:
    work()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        result = work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
        del result
    return statistics.median(times)


def make_shard(model: Path, n_bytes: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    matrices = {name: tensor.to(dtype) for name, tensor in load_file(model).items() if tensor.is_floating_point() and tensor.ndim == 2}
    generator, shard, total, copy = torch.Generator().manual_seed(1), {}, 0, 0
    while total < n_bytes:
        for name, tensor in matrices.items():
            words = tensor.clone().view(torch.int16 if tensor.itemsize == 2 else torch.int32)
            words ^= torch.randint(0, 1 << _DRAWN_BITS[dtype], words.shape, generator=generator, dtype=torch.int32).to(words.dtype)
            shard[f"{copy:03}.{name}"] = words.view(dtype)
            total += words.nbytes
        copy += 1
    return shard


def copies() -> dict[str, float]:
    """What the GPU's memory and the way to it give: bytes written a second."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    target, pinned = torch.empty_like(source), torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
    return {
        "copy_gb_per_second": (1 << 30) / gpu_seconds(lambda: target.copy_(source)) / 1e9,
        "upload_gb_per_second": (1 << 28) / gpu_seconds(lambda: source[: 1 << 28].copy_(pinned, non_blocking=True)) / 1e9,
    }


def decode_alone(path: Path, shard: dict[str, torch.Tensor]) -> dict[str, object]:
    """All chunks of a packed file, which is in the GPU's memory, in one launch for each layout."""
    decoder = decoder_or_reason(DEVICE)
    assert not isinstance(decoder, str), decoder
    packed = PackedFile(LocalFile(path))
    data = torch.from_numpy(np.concatenate([np.fromfile(path, np.uint8), np.zeros(READ_PAST, np.uint8)])).to(DEVICE)
    outs, groups = {}, {}
    for name, stored in packed.tensors.items():
        if stored.storage != "p":
            continue
        head = packed.record_head(stored)
        outs[name] = torch.full((stored.tensor.n_bytes,), 0xEE, dtype=torch.uint8, device=DEVICE)
        chunks = describe(head, 0, head.n_chunks, data.data_ptr() + stored.begin + int(head.offsets[0]), outs[name].data_ptr())
        groups.setdefault(head.layout.id, []).append(chunks)
    launches = []
    for layout, parts in groups.items():
        chunks = np.concatenate(parts)
        launches.append((layout, torch.from_numpy(chunks.view(np.uint8)).to(DEVICE), len(chunks), torch.ones(len(chunks), dtype=torch.int32, device=DEVICE)))

    def launch() -> None:
        for layout, on_device, n, status in launches:
            decoder.launch(layout, on_device.data_ptr(), n, status.data_ptr())

    launch()
    torch.cuda.synchronize()
    n_back = sum(int((status != 0).sum()) for *_, status in launches)
    if n_back == 0:
        for name, out in outs.items():
            assert torch.equal(out.cpu(), shard[name].reshape(-1).view(torch.uint8)), name
    n_bytes = sum(out.numel() for out in outs.values())
    seconds = gpu_seconds(launch)
    return {"layouts": [layout.name for layout, *_ in launches], "chunks": sum(n for _, _, n, _ in launches), "chunks_given_back": n_back,
            "bytes": n_bytes, "seconds": seconds, "gb_per_second": n_bytes / seconds / 1e9}  # fmt: skip


def whole_files(plain: Path, packed: Path, shard: dict[str, torch.Tensor]) -> dict[str, object]:
    """From files in the page cache to tensors on the GPU."""
    from safetensors.torch import load_file

    def on_cpu() -> dict[str, torch.Tensor]:
        os.environ["WEIGHTPACK_GPU"] = "0"
        try:
            return wt.load_file(packed, device="cuda")
        finally:
            os.environ["WEIGHTPACK_GPU"] = "1"

    ways: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
        "plain": lambda: load_file(plain, device="cuda"),
        "packed, GPU decodes": lambda: wt.load_file(packed, device="cuda"),
        "packed, CPU decodes": on_cpu,
    }
    for way, load in ways.items():
        loaded = load()
        assert loaded.keys() == shard.keys(), way
        for name, tensor in loaded.items():
            assert torch.equal(tensor.cpu().view(torch.uint8), shard[name].view(torch.uint8)), (way, name)
        del loaded
    n_bytes = sum(tensor.nbytes for tensor in shard.values())
    return {way: {"seconds": seconds, "gb_per_second": n_bytes / seconds / 1e9} for way, load in ways.items() for seconds in (wall_seconds(load),)}


def nvcomp(shard: dict[str, torch.Tensor]) -> dict[str, object]:
    """nvCOMP's entropy coders on the same bytes, all in one buffer; as many of them as this release takes."""
    try:
        import cupy
        from nvidia import nvcomp as library
    except ImportError as error:
        return {"not measured": str(error)}
    source = torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in shard.values()]).to(DEVICE)
    results: dict[str, object] = {"version": library.__version__}
    settings = {
        "ANS, bytes": {"algorithm": "ANS"},
        "ANS, float16": {"algorithm": "ANS", "data_type": "<f2"},
        "Bitcomp": {"algorithm": "Bitcomp", "data_type": "<u2"},
        "GDeflate": {"algorithm": "GDeflate"},
        "Zstd": {"algorithm": "Zstd"},
    }
    for name, options in settings.items():
        try:
            codec = library.Codec(**options, bitstream_kind=library.BitstreamKind.NVCOMP_NATIVE)
            array = library.as_array(cupy.from_dlpack(source))
            coded = codec.encode(array)
            decoded = codec.decode(coded)
            assert torch.equal(torch.from_dlpack(decoded).view(torch.uint8).reshape(-1), source), "other bytes"
            seconds = gpu_seconds(lambda codec=codec, coded=coded: codec.decode(coded), repeats=9)
            results[name] = {"of_original": coded.buffer_size / source.numel(), "seconds": seconds, "gb_per_second": source.numel() / seconds / 1e9}
        except Exception as error:  # a rival's own; it is told, not hidden
            results[name] = {"not measured": f"{type(error).__name__}: {error}"[:200]}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--gigabytes", type=float, default=1.5)
    parser.add_argument("--to", type=Path, default=ROOT / "benchmarks" / "results" / "gpu_decode.json")
    arguments = parser.parse_args()
    properties = torch.cuda.get_device_properties(DEVICE)
    report: dict[str, object] = {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}", "gpu": properties.name, "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cpus": len(os.sched_getaffinity(0)), "torch": torch.__version__, "weightpack": weightpack.__version__,
        "model": arguments.model.name,
    }  # fmt: skip
    report |= copies()
    shm = "/dev/shm" if Path("/dev/shm").is_dir() else None
    shards = [(torch.bfloat16, "fast", 1.0), (torch.bfloat16, "dense", 0.5), (torch.float16, "fast", 0.5), (torch.float32, "fast", 0.5)]
    for dtype, profile, share in shards:
        name = f"{dtype}, {profile}".removeprefix("torch.")
        with tempfile.TemporaryDirectory(dir=shm) as folder:
            shard = make_shard(arguments.model, int(arguments.gigabytes * share * 1e9), dtype)
            plain, packed = Path(folder) / "plain.safetensors", Path(folder) / "packed.safetensors"
            from safetensors.torch import save_file

            save_file(shard, plain)
            wt.save_file(shard, packed, options=load_profile(profile))
            entry = {
                "of_original": packed.stat().st_size / plain.stat().st_size,
                "decode_alone": decode_alone(packed, shard),
                "load_file": whole_files(plain, packed, shard),
            }
            if name == "bfloat16, fast":
                entry["nvcomp"] = nvcomp(shard)
            report[name] = entry
            print(name, json.dumps(entry, indent=1), flush=True)
            arguments.to.parent.mkdir(parents=True, exist_ok=True)
            arguments.to.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
