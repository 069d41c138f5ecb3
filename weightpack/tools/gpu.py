# SPDX-License-Identifier: Apache-2.0
"""Tries the GPU's decoder on this machine's card: the work of `weightpack doctor --gpu`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from weightpack.errors import MissingExtraError
from weightpack.format.layouts import LAYOUTS, Layout
from weightpack.format.record import parse_chunk, parse_record_head
from weightpack.gpu.decoder import READ_PAST, GpuDecoder, decodable, decoder_or_reason, decodes, describe
from weightpack.options import PackOptions
from weightpack.writing.record import encode_record

_N_ELEMS = 1 << 21
_OPTIONS = PackOptions(codecs=("rans",), tables=4)


@dataclass(frozen=True, slots=True)
class LayoutCheck:
    """Chunks of one layout on the card: how many it decoded, was to give back, and got wrong; seconds of the decoding, without upload, of `n_bytes`."""

    layout: str
    n_decoded: int
    n_for_cpu: int
    n_wrong: int
    n_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class GpuReport:
    """`reason` says why there is no decoder; None if there is one."""

    name: str | None
    capability: str | None
    reason: str | None
    seconds_to_compile: float
    layouts: tuple[LayoutCheck, ...]

    @property
    def is_right(self) -> bool:
        """Did every layout come out right?"""
        return self.reason is None and not any(check.n_wrong for check in self.layouts)


def check_gpu() -> GpuReport:
    """Decode weights of every layout on the first CUDA device and compare; without one, say why."""
    try:
        import torch
    except ImportError:
        raise MissingExtraError("this needs PyTorch: `pip install weightpack[cuda]`") from None
    device, begin = torch.device("cuda"), time.perf_counter()
    decoder = decoder_or_reason(device)
    seconds = time.perf_counter() - begin
    has_device = torch.cuda.is_available()
    name = torch.cuda.get_device_name(device) if has_device else None
    capability = ".".join(map(str, torch.cuda.get_device_capability(device))) if has_device else None
    if isinstance(decoder, str):
        return GpuReport(name, capability, decoder, seconds, ())
    return GpuReport(name, capability, None, seconds, tuple(_check(decoder, LAYOUTS[id_]) for id_ in sorted(decodable)))


def _check(decoder: GpuDecoder, layout: Layout) -> LayoutCheck:
    import torch

    source = _weights(layout)
    record = np.frombuffer(encode_record(source, layout, _OPTIONS, threads=1), np.uint8)
    head = parse_record_head(record, source.size, record.size)
    packed = torch.from_numpy(np.concatenate([record, np.zeros(READ_PAST, np.uint8)])).to(decoder.device)
    out = torch.full((source.size,), 0xEE, dtype=torch.uint8, device=decoder.device)
    chunks, size = describe(head, 0, head.n_chunks, packed.data_ptr() + int(head.offsets[0]), out.data_ptr()), head.chunk_elems * layout.elem_bytes
    on_device = torch.from_numpy(chunks.view(np.uint8)).to(decoder.device)
    status = torch.ones(head.n_chunks, dtype=torch.int32, device=decoder.device)
    stream = torch.cuda.current_stream(decoder.device)
    times = []
    for _ in range(5):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        before.record(stream)
        decoder.launch(layout.id, on_device.data_ptr(), head.n_chunks, status.data_ptr())
        after.record(stream)
        after.synchronize()
        times.append(before.elapsed_time(after) / 1000)
    decoded, statuses = out.cpu().numpy(), status.cpu().numpy()
    wrong = for_cpu = 0
    for i, (begin, end) in enumerate(pairwise(head.offsets.tolist())):
        if not decodes(parse_chunk(record[begin:end].tobytes(), layout), layout):
            for_cpu += 1
            wrong += int(statuses[i] == 0)
        else:
            wrong += int(statuses[i] != 0 or not np.array_equal(decoded[i * size : (i + 1) * size], source[i * size : (i + 1) * size]))
    return LayoutCheck(layout.id.name, head.n_chunks - for_cpu, for_cpu, wrong, source.size, sorted(times)[2])


def _weights(layout: Layout) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Return elements of the statistics of weights: normal, rows of different scale, cut to the layout's exponent and mantissa."""
    rng = np.random.default_rng(layout.id)
    if not layout.is_float:
        n_bytes = _N_ELEMS * layout.elem_bytes
        return np.clip(rng.standard_normal(n_bytes) * 3 + 128, 122, 134).astype(np.uint8)
    values = (rng.standard_normal(_N_ELEMS) * 0.02 * np.repeat(2.0 ** rng.integers(-2, 2, _N_ELEMS // 512), 512)).astype(np.float32)
    bits, exponent_bits, mantissa_bits = values.view(np.uint32), layout.exponent_bits, 8 * layout.elem_bytes - 1 - layout.exponent_bits
    exponent = np.clip((bits >> 23 & 255).astype(np.int64) - 127 + (1 << exponent_bits - 1) - 1 + (4 if exponent_bits < 8 else 0), 0, (1 << exponent_bits) - 2)
    words = (bits >> 31).astype(np.uint64) << np.uint64(8 * layout.elem_bytes - 1) | exponent.astype(np.uint64) << np.uint64(mantissa_bits)
    words |= (bits & 0x7FFFFF).astype(np.uint64) >> np.uint64(23 - mantissa_bits)
    return words.astype(f"<u{layout.elem_bytes}").view(np.uint8)
