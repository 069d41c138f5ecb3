# SPDX-License-Identifier: Apache-2.0
"""One open file for many threads, forked children and pickles; jobs side by side; nothing of the process is left changed."""

from __future__ import annotations

import contextlib
import hashlib
import locale
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import samples
import torch
from other_processes import Inherits, OpensInside, bytes_of, shape_and_digest

import weightpack
import weightpack.numpy
import weightpack.torch
from weightpack import kernels
from weightpack.arrays.memory import NumpyFramework
from weightpack.errors import FormatError, OptionError
from weightpack.io.files import MemoryFile
from weightpack.reading.tensors import SafeOpen

THREADS = 8
FORKS = 12
NEEDS_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture(scope="module")
def tensors():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(900, 700, generator=generator) * 0.05
    return {
        "w.f32": weight, "w.bf16": weight.bfloat16(), "w.tied": weight.bfloat16(), "w.f16": weight[:100].half(), "w.f64": weight[:20].double(),
        "ids": torch.arange(3000), "zeros": torch.zeros(300, 200), "scalar": torch.tensor(0.25), "empty": torch.empty(0, 4),
        "noise": torch.randint(0, 256, (2_500_000,), dtype=torch.uint8, generator=generator),
    }  # fmt: skip


@pytest.fixture(scope="module")
def path(tensors, tmp_path_factory):
    """A packed file with every kind of storage, tensors of one chunk and of several, and chunks with zstd streams."""
    path = tmp_path_factory.mktemp("concurrency") / "model.safetensors"
    weightpack.torch.save_file(tensors, path, options=weightpack.PackOptions(chunk_elems=1 << 15))
    codecs = " ".join(tensor.codec for tensor in weightpack.inspect(path, codecs=True)[0].tensors)
    assert all(name in codecs for name in ("kept", "tied", "constant", "rans128x8", "huffman", "zstd"))
    return path


@pytest.fixture(scope="module")
def plain_path(tensors, path):
    plain = path.with_name("plain.safetensors")
    weightpack.unpack(path, plain)
    return plain


def in_threads(work, n=THREADS):
    """Run `work(i)` in n threads that begin together; return the results."""
    together = threading.Barrier(n)

    def run(i):
        together.wait()
        return work(i)

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(run, range(n)))


@pytest.mark.parametrize("storage", ["packed", "plain"])
@pytest.mark.parametrize("inner", [1, 2])
@pytest.mark.parametrize("framework", ["torch", "numpy"])
def test_one_open_file_is_read_by_eight_threads_at_once(request, path, plain_path, tensors, storage, inner, framework):
    names = [name for name in tensors if framework == "torch" or name not in ("w.bf16", "w.tied")]
    with weightpack.safe_open(path if storage == "packed" else plain_path, framework, threads=inner) as opened:

        def read(i):
            right = 0
            for name in names[i % len(names) :] + names[: i % len(names)]:
                got, want = opened.get_tensor(name), tensors[name]
                got = got if framework == "torch" else torch.from_numpy(got)
                assert (got.dtype, got.shape) == (want.dtype, want.shape)
                assert bytes_of(got) == bytes_of(want)
                if want.dim() > 1 and len(want) > i + 20:
                    rows = torch.as_tensor(opened.get_slice(name)[i : i + 20])
                    assert bytes_of(rows) == bytes_of(want[i : i + 20].contiguous())
                right += 1
            return right

        assert in_threads(read) == [len(names)] * THREADS


def test_damaged_tensor_fails_in_its_thread_alone(path, tensors, tmp_path):
    from weightpack.io.files import LocalFile
    from weightpack.reading.packed_file import PackedFile

    data = bytearray(path.read_bytes())
    with LocalFile(path) as file:
        stored = PackedFile(file).stored("w.f32")
    data[(stored.begin + stored.end) // 2] ^= 0x40
    (tmp_path / "damaged").write_bytes(data)
    with weightpack.safe_open(tmp_path / "damaged", "pt", threads=2) as opened:

        def read(i):
            if i % 2:
                return bytes_of(opened.get_tensor("w.bf16")) == bytes_of(tensors["w.bf16"])
            with pytest.raises(FormatError, match=r"w\.f32"):
                opened.get_tensor("w.f32")
            return True

        assert all(in_threads(read))


def forked(work):
    """Run `work()` in a forked child; return the child's id."""
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            status = 0 if work() else 2
        os._exit(status)
    return child


@NEEDS_FORK
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_open_file_serves_children_forked_while_threads_read(path, tensors):
    """Parent and children share one descriptor, and read at offsets; no lock can be held for ever in a child."""
    names = ["w.f32", "w.f16", "ids", "noise", "zeros"]
    right = {name: hashlib.sha256(bytes_of(tensors[name])).digest() for name in names}
    with weightpack.safe_open(path, "numpy", threads=2) as opened:

        def good():
            return all(hashlib.sha256(opened.get_tensor(name).tobytes()).digest() == right[name] for name in names)

        assert good()
        stop = threading.Event()

        def read_on(_):
            n = 0
            while not stop.is_set():
                assert good()
                n += 1
            return n

        with ThreadPoolExecutor(3) as pool:
            reading = [pool.submit(read_on, i) for i in range(3)]
            try:
                statuses = []
                for _ in range(FORKS):
                    child = forked(good)
                    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            finally:
                stop.set()
            assert all(future.result() > 0 for future in reading)
        assert statuses == [0] * FORKS
        assert good()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")  # where there is one CPU
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("dataset", [OpensInside, Inherits])
def test_workers_of_a_data_loader(path, tensors, method, dataset):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    names = [name for name in tensors if name != "noise"] * 2
    loader = torch.utils.data.DataLoader(
        dataset(path, names), batch_size=None, num_workers=2, multiprocessing_context=method, timeout=120, pin_memory=False, persistent_workers=False
    )
    seen, workers = [], set()
    for name, worker, data in loader:
        assert data == bytes_of(tensors[name])
        seen.append(name)
        workers.add(worker)
    assert seen == names
    assert len(workers) == 2
    assert os.getpid() not in workers


@pytest.mark.parametrize("framework", ["torch", "numpy"])
def test_pickled_open_file_is_opened_anew(path, plain_path, tensors, framework, monkeypatch):
    monkeypatch.chdir(path.parent)
    for name in (path.name, plain_path.name):
        with weightpack.safe_open(name, framework, threads=2) as opened:
            text = pickle.dumps(opened)
            slice_text = pickle.dumps(opened.get_slice("w.f32"))
        monkeypatch.chdir("/")
        with pickle.loads(text) as again:  # the first is closed
            assert again.keys() == sorted(tensors)
            assert bytes_of(torch.as_tensor(again.get_tensor("w.f32"))) == bytes_of(tensors["w.f32"])
        rows = pickle.loads(slice_text)[5:9]
        assert bytes_of(torch.as_tensor(rows)) == bytes_of(tensors["w.f32"][5:9])
        monkeypatch.chdir(path.parent)


def test_what_can_not_be_pickled_says_so(path, tmp_path):
    from_bytes = SafeOpen(MemoryFile([path.read_bytes()]), NumpyFramework())
    with pytest.raises(OptionError, match="bytes"):
        pickle.dumps(from_bytes)
    with weightpack.safe_open(path) as opened:
        pass
    with pytest.raises(OptionError, match="closed"):
        pickle.dumps(opened)
    gone = tmp_path / "gone.safetensors"
    gone.write_bytes(path.read_bytes())
    with weightpack.safe_open(gone) as opened:
        text = pickle.dumps(opened)
    gone.unlink()
    with pytest.raises(FileNotFoundError, match="gone"):
        pickle.loads(text)


def test_jobs_side_by_side_give_the_bytes_of_jobs_alone(tmp_path):
    sources = [samples.mixed_file(), *(samples.bf16_file(seed=i, name=f"w{i}", n=300_000) for i in range(3))]
    alone = []
    for i, data in enumerate(sources):
        (tmp_path / f"{i}.safetensors").write_bytes(data)
        weightpack.pack(tmp_path / f"{i}.safetensors", tmp_path / f"{i}.alone", threads=1)
        alone.append((tmp_path / f"{i}.alone").read_bytes())

    def job(i):
        source, packed, back = (tmp_path / name for name in (f"{i % len(sources)}.safetensors", f"{i}.packed", f"{i}.back"))
        weightpack.pack(source, packed, threads=1 + i % 3)
        weightpack.unpack(packed, back, threads=1 + i % 2)
        weightpack.verify(packed, against=source, threads=2)
        return packed.read_bytes() == alone[i % len(sources)] and back.read_bytes() == sources[i % len(sources)]

    assert all(in_threads(job))


def test_frames_in_threads(tensors):
    array = tensors["w.f32"].numpy()
    frame = weightpack.encode(array)

    def work(i):
        return weightpack.encode(array, threads=1 + i % 2) == frame and np.array_equal(weightpack.decode(frame, threads=1 + i % 2), array)

    assert all(in_threads(work))


def state_of_process():
    """Return what a library has no business to change."""
    mask = os.umask(0o22)
    os.umask(mask)
    return {
        "folder": Path.cwd(), "environment": dict(os.environ), "umask": mask, "threads": {thread.name for thread in threading.enumerate()},
        "signals": {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}, "numpy errors": np.geterr(),
        "warnings": list(warnings.filters), "locale": locale.setlocale(locale.LC_ALL), "recursion": sys.getrecursionlimit(),
        "digits": sys.get_int_max_str_digits(), "switch": sys.getswitchinterval(), "torch threads": torch.get_num_threads(), "dtype": torch.get_default_dtype(),
        "random": np.random.get_state()[1].tolist(), "torch random": torch.get_rng_state().tolist(), "kernels": kernels.isa(),
        "files": sorted(os.listdir("/proc/self/fd")) if sys.platform == "linux" else None, "hooks": (sys.excepthook, threading.excepthook),
    }  # fmt: skip


def test_nothing_of_the_process_is_left_changed(tmp_path):
    source = tmp_path / "source.safetensors"
    source.write_bytes(samples.mixed_file())

    def everything(i):
        folder = tmp_path / str(i)
        folder.mkdir()
        weightpack.pack(source, folder / "packed.safetensors", threads=2)
        weightpack.unpack(folder / "packed.safetensors", folder / "back", threads=2)
        weightpack.verify(folder / "packed.safetensors", against=source, threads=2)
        weightpack.inspect(folder / "packed.safetensors")
        weightpack.estimate(source)
        weightpack.torch.load_file(folder / "packed.safetensors")
        (folder / "damaged.safetensors").write_bytes((folder / "packed.safetensors").read_bytes()[:-1])
        with pytest.raises(FormatError):
            weightpack.unpack(folder / "damaged.safetensors", folder / "never")

    everything("first")  # what is imported and opened once
    before = state_of_process()
    in_threads(everything, 4)
    after = state_of_process()
    assert before == after


def test_processes_share_nothing_but_the_files(path, tensors):
    """Spawned processes, each with an open file that came by pickle."""
    names = ["w.f32", "w.f16", "ids"]
    with weightpack.safe_open(path) as opened, ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for name, (shape, digest) in zip(names, pool.map(shape_and_digest, [opened] * len(names), names), strict=True):
            assert shape == tuple(tensors[name].shape)
            assert digest == hashlib.sha256(bytes_of(tensors[name])).hexdigest()
