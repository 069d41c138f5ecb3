# SPDX-License-Identifier: Apache-2.0
"""`weightpack mount`: what the kernel is told, without FUSE; and real mounts, where this machine lets one mount."""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import folders
import fuse
import pytest
import samples
from command import PROGRAM, call, refused, run

import weightpack
from weightpack.integrations import mount
from weightpack.integrations.source_tree import source_tree
from weightpack.reading.cached import DecodedPieces


@pytest.fixture
def model(tmp_path):
    """A packed directory, and what it was packed from."""
    folder = folders.sharded(tmp_path / "model", n=1_500_000)
    folders.write(folder / "sub" / "model.gguf", samples.gguf_file({"w": (30, (400, 250), samples.weights(100_000, "BF16"))}))
    for i, path in enumerate(sorted(folder.rglob("*.*"))):
        path.chmod(0o640 if i % 2 else 0o644)
        os.utime(path, ns=(10**18 + i, 10**18 + 1000 * i))
    weightpack.pack(folder, hf_flag=True)
    return tmp_path / "model-wp", folder


@pytest.fixture(autouse=True)
def nothing_stays_mounted(tmp_path):
    """Whatever went wrong: a mount whose process is dead would be in the way of whoever clears the folder away."""
    yield
    if sys.platform == "linux":
        for folder in mount.mounted_folders():
            if folder.startswith(str(tmp_path)):
                mount.unmount(Path(folder))


@contextmanager
def files_of(*sources, **options):
    cache, lines = DecodedPieces(8 << 20, 2), []
    files = mount.MountedFiles(source_tree(sources), cache, lines.append, **options)
    try:
        yield files, lines
    finally:
        files.close()
        cache.close()


# ---- without FUSE


def test_what_the_kernel_is_told(model):
    packed, plain = model
    with files_of(packed) as (files, lines):
        assert set(files.readdir("/", 0)) == {".", "..", *(path.name for path in plain.iterdir())}
        assert stat.S_ISDIR(files.getattr("/sub")["st_mode"])
        for path in (path for path in plain.rglob("*") if path.is_file()):
            name, state = f"/{path.relative_to(plain)}", path.stat()
            said = files.getattr(name)
            assert (said["st_size"], said["st_mode"], said["st_mtime"]) == (state.st_size, state.st_mode, state.st_mtime_ns), name
            handle, data = files.open(name, os.O_RDONLY), path.read_bytes()
            for offset in (0, 1, len(data) // 2, len(data)):
                assert files.read(name, 5000, offset, handle) == data[offset : offset + 5000]
            files.release(name, handle)
            with pytest.raises(OSError) as refusal:
                files.open(name, os.O_RDWR)
            assert refusal.value.errno == errno.EROFS
        for ask in (files.getattr, lambda name: files.readdir(name, 0), lambda name: files.open(name, 0)):
            with pytest.raises(OSError) as refusal:
                ask("/none")
            assert refusal.value.errno == errno.ENOENT
        assert files.statfs("/")["f_blocks"] * 4096 >= sum(path.stat().st_size for path in plain.rglob("*.*"))
        assert lines == []


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 1
    path.write_bytes(data)


def test_damage_is_an_error_and_one_line(model):
    shard = model[0] / "model-00002-of-00002.safetensors"
    damage(shard)
    with files_of(model[0]) as (files, lines):
        name, failed = f"/{shard.name}", 0
        for offset in range(0, files.getattr(name)["st_size"], 65536):
            try:
                files.read(name, 65536, offset, 0)
            except OSError as error:
                assert error.errno == errno.EIO
                failed += 1
        assert failed > 1
        (line,) = lines
        assert line.startswith(f"{name}: {shard}, tensor 'w1', chunk ")
        assert line.endswith("the file is damaged")


def test_a_source_that_shrinks(model):
    shard = model[0] / "model-00001-of-00002.safetensors"
    with files_of(model[0]) as (files, lines):
        os.truncate(shard, shard.stat().st_size // 2)
        with pytest.raises(OSError) as failure:
            files.read(f"/{shard.name}", 1000, 2_900_000, 0)
        assert failure.value.errno == errno.EIO
        assert "the file ends at byte" in lines[0]


def test_differences_need_their_base(tmp_path):
    files = samples.base_files()
    for name in ("base-dtypes", "tuned-dtypes"):
        folders.write(tmp_path / name, files[name][0])
    for name in ("packed", "elsewhere"):
        (tmp_path / name).mkdir()
    weightpack.pack(tmp_path / "tuned-dtypes", tmp_path / "packed" / "tuned.wp", base=tmp_path / "base-dtypes")
    (tmp_path / "base-dtypes").rename(tmp_path / "elsewhere" / "base")
    with pytest.raises(weightpack.errors.BaseNotFoundError), files_of(tmp_path / "packed" / "tuned.wp"):
        pass
    with files_of(tmp_path / "packed" / "tuned.wp", base=[tmp_path / "elsewhere" / "base"]) as (mounted, _):
        assert mounted.read("/tuned", 1 << 30, 0, 0) == files["tuned-dtypes"][0]


@pytest.mark.parametrize(("what", "words"), [
    ("import sys; sys.modules['mfusepy'] = None", "pip install weightpack[mount]"),
    ("import ctypes.util; ctypes.util.find_library = lambda name: None", "install the package fuse3"),
    ("from weightpack.integrations import mount; import pathlib; mount._FUSE_DEVICE = pathlib.Path('/none')", "modprobe fuse"),
    ("import os, shutil; os.geteuid = lambda: 1000; shutil.which = lambda name: None", "needs fusermount3"),
])  # fmt: skip
@pytest.mark.skipif(sys.platform != "linux", reason="the advice is Linux's")
def test_what_is_missing_is_said(model, what, words):
    """Before anything else is done."""
    if "mfusepy" not in what and "find_library" not in what and fuse.REASON:
        pytest.skip(fuse.REASON)
    if "find_library" in what and "mfusepy" in fuse.REASON:
        pytest.skip(fuse.REASON)
    program = f"{what}\nfrom weightpack.cli import main\nmain(['mount', 'model-wp', 'mnt'])"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FUSE_LIBRARY")}
    done = subprocess.run([sys.executable, "-c", program], cwd=model[0].parent, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert refused(done, 3 if "modprobe" in words else 2, words)
    assert not (model[0].parent / "mnt").exists()


# ---- real mounts


@contextmanager
def mounted(*arguments, cwd, folder="mnt"):
    """Mount in the foreground; give the process, and see to it that nothing stays mounted."""
    process = subprocess.Popen([*PROGRAM, "mount", *map(str, arguments), folder], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith(f"{folder} shows "), line + process.stderr.read()
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(60)
        process.stdout.close()
        process.stderr.close()


@fuse.needed
def test_mount_shows_the_plain_files(model):
    packed, plain = model
    with mounted(packed, cwd=packed.parent) as process:
        seen = packed.parent / "mnt"
        assert folders.contents(seen) == folders.contents(plain)
        assert folders.states(seen) == folders.states(plain)
        assert subprocess.run(["diff", "-r", seen, plain], check=False).returncode == 0
        with pytest.raises(OSError) as refusal:
            (seen / "new").write_text("no")
        assert refusal.value.errno == errno.EROFS
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""
    assert not seen.exists()


@fuse.needed
def test_maps(model):
    packed, plain = model
    name, rng = "model-00002-of-00002.safetensors", random.Random(5)
    data = (plain / name).read_bytes()
    with mounted(packed, cwd=packed.parent), open(packed.parent / "mnt" / name, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for _ in range(100):
            offset, n_bytes = rng.randrange(len(data)), rng.choice([1, 4096, 200_000])
            assert mapped[offset : offset + n_bytes] == data[offset : offset + n_bytes]


@fuse.needed
def test_many_readers(model):
    packed, plain = model
    names = sorted(path.relative_to(plain) for path in plain.rglob("*.*"))
    with mounted(packed, "--cache", "2", cwd=packed.parent):
        readers = [
            subprocess.Popen(["cmp", packed.parent / "mnt" / name, plain / name, f"--ignore-initial={skip}"])
            for name in names
            for skip in (0, 17)
            if (plain / name).stat().st_size > skip
        ]
        assert [reader.wait(60) for reader in readers] == [0] * len(readers)


@fuse.needed
def test_damage_through_a_mount(model):
    packed = model[0]
    damage(packed / "model-00002-of-00002.safetensors")
    with mounted(packed, cwd=packed.parent) as process:
        with pytest.raises(OSError) as failure:
            (packed.parent / "mnt" / "model-00002-of-00002.safetensors").read_bytes()
        assert failure.value.errno == errno.EIO
        assert (packed.parent / "mnt" / "model-00001-of-00002.safetensors").read_bytes() == (model[1] / "model-00001-of-00002.safetensors").read_bytes()
        process.send_signal(signal.SIGINT)
        lines = process.communicate(timeout=60)[1].splitlines()
        assert len(lines) == 1
        assert "tensor 'w1', chunk" in lines[0]


@fuse.needed
def test_daemon(model):
    """It returns when the folder is ready, and goes on; lines go to a file; `umount` ends it, and the folder that it made is gone."""
    packed, plain = model
    damage(packed / "model-00002-of-00002.safetensors")
    seen = packed.parent / "a folder, new"
    assert run("mount", packed.name, seen.name, "--daemon", "--log", "log", cwd=packed.parent).returncode == 0
    try:
        assert (seen / "config.json").read_bytes() == (plain / "config.json").read_bytes()
        with pytest.raises(OSError):
            (seen / "model-00002-of-00002.safetensors").read_bytes()
    finally:
        assert run("umount", seen.name, cwd=packed.parent).returncode == 0
    assert "tensor 'w1', chunk" in (packed.parent / "log").read_text()
    deadline = time.monotonic() + 60
    while seen.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not seen.exists()


@fuse.needed
def test_a_mount_that_died_is_cleared_away(model):
    packed = model[0]
    with mounted(packed, cwd=packed.parent) as process:
        process.kill()
        process.wait(60)
        refused(call("mount", packed, "mnt", cwd=packed.parent), 2, "weightpack umount")
        assert call("umount", "mnt", cwd=packed.parent).returncode == 0
    (packed.parent / "mnt").rmdir()


@fuse.needed
def test_calls_that_are_refused(model):
    packed, plain = model
    for arguments, code, words in [
        ((packed, plain), 2, "not empty"), ((packed, plain / "config.json"), 2, "no folder"), ((packed,), 2, "Missing argument"),
        (("none", "mnt"), 2, "no such"), ((plain / "config.json", "mnt"), 2, "not packed"),
    ]:  # fmt: skip
        refused(call("mount", *arguments, cwd=packed.parent), code, words)
    refused(call("umount", plain, cwd=packed.parent), 2, "nothing of weightpack is mounted")
    assert not (packed.parent / "mnt").exists()


@fuse.needed
def test_libraries_read_through_a_mount(model):
    """As if it were the plain file: stock safetensors, which maps it."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    packed, plain = model
    with mounted(packed, cwd=packed.parent):
        for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
            seen, original = load_file(packed.parent / "mnt" / name), load_file(plain / name)
            assert seen.keys() == original.keys()
            assert all(torch.equal(seen[key].view(torch.int16), original[key].view(torch.int16)) for key in seen)
            del seen  # it holds the file
