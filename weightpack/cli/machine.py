# SPDX-License-Identifier: Apache-2.0
"""Verbs on this machine: bench, doctor."""

from __future__ import annotations

import os
import platform
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click

from weightpack._humane import human_bytes, percent
from weightpack._version import __version__
from weightpack.cli.options import PATH, json_option, profile_option, threads_option
from weightpack.cli.output import say, say_aside, say_json, say_table


@click.command()
@click.argument("src", required=False, type=PATH)
@click.option("--megabytes", default=128, show_default=True, type=click.IntRange(min=1), help="Measure up to this much of each dtype.")
@click.option("--folder", type=click.Path(exists=True, file_okay=False), help="Where files are written; its disk is what is measured. [default: temporary]")
@profile_option
@threads_option
@json_option
def bench(src: str | None, megabytes: int, folder: str | None, profile: str, threads: int | None, as_json: bool) -> None:
    """Measure this machine on the weights of SRC (a file, directory or Hub repo; without it, on synthetic ones): size, speed, and speed of memcpy.

    In memory each ISA, all threads, and each codec alone; then files, beside a plain copy. Round trips are compared before anything is timed; times are
    medians; checksums are included.
    """
    from pathlib import Path

    from weightpack.tools import bench as measure

    def step(what: str) -> None:
        if sys.stderr.isatty():
            say_aside(f"measuring {what} ...")

    report = measure.bench(src, max_bytes=megabytes * 1_000_000, threads=threads, profile=profile, folder=Path(folder) if folder else None, step=step)
    if as_json:
        say_json(asdict(report))
        return
    say(report.source)
    for m in report.memory:

        def rate(seconds: float, m: measure.MemoryReport = m) -> list[str]:
            return [f"{m.source_bytes / seconds / 1e9:.2f}", f"{m.memcpy_seconds / seconds:.2f}"]

        rows = [["ISA", "codec", "threads", "of original", "encode GB/s", "/memcpy", "decode GB/s", "/memcpy"]]
        rows += [[s.isa, s.codec, str(s.threads), percent(s.packed_bytes, m.source_bytes), *rate(s.encode_seconds), *rate(s.decode_seconds)] for s in m.speeds]
        say()
        say(f"{m.dtype}, {human_bytes(m.source_bytes)} in memory; memcpy {rate(m.memcpy_seconds)[0]} GB/s")
        say_table(rows, right="llrrrrrr")
    rows = [["threads", "of original", "copy GB/s", "pack GB/s", "unpack GB/s", "unpack / copy"]]
    for f in report.files:
        rates = [f"{f.source_bytes / seconds / 1e9:.2f}" for seconds in (f.copy_seconds, f.pack_seconds, f.unpack_seconds)]
        rows.append([str(f.threads), percent(f.packed_bytes, f.source_bytes), *rates, f"{f.copy_seconds / f.unpack_seconds:.2f}"])
    f = report.files[0]
    say()
    say(f"a file of {human_bytes(f.source_bytes)} in {f.folder}; packing includes SHA-256 and verification")
    say_table(rows, right="rrrrrr")


@click.command()
@click.option("--gpu", is_flag=True, help="Decode on the first CUDA device, compare with what was encoded, and show its speed.")
@json_option
def doctor(gpu: bool, as_json: bool) -> int | None:
    """Show versions, the CPU's kernels, what is installed, and what each profile costs and buys."""
    if gpu:
        return _doctor_gpu(as_json)
    from importlib import metadata

    from weightpack import kernels, options
    from weightpack.format.constants import VERSION

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        in_use = kernels.isa()
    available = kernels.available_isas()
    state: dict[str, Any] = {
        "weightpack": __version__,
        "format": f"reads and writes {VERSION[0]}.{VERSION[1]}",
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "isa": in_use,
        "isas_available": available,
        "native": len(available) > 1,
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "profiles": options.profile_descriptions(),
        "packages": {name: version(name) for name in ("numpy", "zstandard", "huggingface_hub", "safetensors", "torch", "mfusepy")},
    }
    if as_json:
        say_json(state)
        return None
    show: Callable[[Any], str] = lambda v: ", ".join(v) if isinstance(v, list) else str(v)  # noqa: E731
    for key, value in state.items():
        if key == "packages":
            for name, installed in value.items():
                say(f"{name:20}{installed or 'not installed'}")
        elif key == "profiles":
            for name, description in value.items():
                say(f"{f'profile {name}':20}{description}")
        elif key == "native":
            say(f"{'native core':20}{'built' if value else 'not built: numpy is used, slowly. Install a C compiler and reinstall'}")
        else:
            say(f"{key:20}{show(value)}")
    return None


def _doctor_gpu(as_json: bool) -> int:
    """Say what the GPU's decoder does here: 0 if it is right, or there is none; 1 if something came out wrong."""
    from weightpack.tools.gpu import check_gpu

    report = check_gpu()
    if as_json:
        say_json(asdict(report))
    elif report.reason is not None:
        say(f"no decoder on a GPU: {report.reason}. The CPU decodes.")
    else:
        say(f"{report.name}, compute capability {report.capability}; ready after {report.seconds_to_compile:.1f} s")
        rows = [["layout", "chunks decoded", "left to the CPU", "wrong", "GB/s"]]
        rows += [[c.layout, str(c.n_decoded), str(c.n_for_cpu), str(c.n_wrong), f"{c.n_bytes / c.seconds / 1e9:.0f}"] for c in report.layouts]
        say_table(rows, right="lrrrr")
        say("decoding alone, of few chunks: a whole shard is faster (docs/GPU.md)")
    return 0 if report.is_right or report.reason is not None else 1
