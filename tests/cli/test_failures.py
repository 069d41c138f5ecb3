# SPDX-License-Identifier: Apache-2.0
"""What goes wrong is one line and an exit code; the same mistake is the same exception through every function; no name does anything to a terminal."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import samples
from command import PROGRAM, call, refused, run

import weightpack
import weightpack.numpy
import weightpack.series
import weightpack.torch
from weightpack import errors
from weightpack._humane import printable
from weightpack.io.fetch import is_repo_id


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "plain.safetensors").write_bytes(samples.mixed_file())
    weightpack.pack(tmp_path / "plain.safetensors", tmp_path / "packed.safetensors")
    return tmp_path


# ---- one mistake, one exception

DOORS = {
    "pack": lambda path: weightpack.pack(path),
    "unpack": lambda path: weightpack.unpack(path),
    "verify": lambda path: weightpack.verify(path),
    "inspect": lambda path: weightpack.inspect(path),
    "estimate": lambda path: weightpack.estimate(path),
    "safe_open": lambda path: weightpack.safe_open(path),
    "load_file": lambda path: weightpack.load_file(path),
    "numpy.safe_open": lambda path: weightpack.numpy.safe_open(path),
    "numpy.load_file": lambda path: weightpack.numpy.load_file(path),
    "torch.safe_open": lambda path: weightpack.torch.safe_open(path),
    "torch.load_file": lambda path: weightpack.torch.load_file(path),
}
VERBS = ("pack", "unpack", "verify", "inspect", "estimate", "bench")
READERS = ("safe_open", "load_file", "numpy.safe_open", "numpy.load_file", "torch.safe_open", "torch.load_file")


@pytest.mark.parametrize("door", DOORS)
def test_a_missing_file(folder, door):
    path = str(folder / "none.safetensors")
    with pytest.raises(errors.PathNotFoundError) as caught:
        DOORS[door](path)
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, errors.OptionError)
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert (error.errno, error.filename, error.path) == (errno.ENOENT, path, path)
        assert str(error).startswith(f"{path}: no such file")


@pytest.mark.parametrize("door", ["inspect", "estimate", "safe_open", "load_file", "torch.load_file"])
def test_a_missing_remote_file(door):
    with pytest.raises(errors.PathNotFoundError, match="no such file"):
        DOORS[door]("memory://nowhere/none.safetensors")


@pytest.mark.parametrize(("door", "call_it"), [
    ("pack", lambda path, base: weightpack.pack(path / "plain.safetensors", path / "x", base=base)),
    ("unpack", lambda path, base: weightpack.unpack(path / "packed.safetensors", path / "x", base=base)),
    ("verify", lambda path, base: weightpack.verify(path / "packed.safetensors", base=base)),
    ("safe_open", lambda path, base: weightpack.safe_open(path / "packed.safetensors", base=base)),
    ("torch.load_file", lambda path, base: weightpack.torch.load_file(path / "packed.safetensors", base=base)),
])  # fmt: skip
def test_a_missing_base(folder, door, call_it):
    with pytest.raises(errors.PathNotFoundError):
        call_it(folder, str(folder / "./none"))


@pytest.mark.parametrize("door", ["inspect", "verify", "unpack", *READERS])
def test_no_packed_or_safetensors_file(folder, door):
    (folder / "text.wp.safetensors").write_text("a text, and a long one at that " * 10)
    with pytest.raises(errors.FormatError, match=r"text\.wp\.safetensors"):
        DOORS[door](str(folder / "text.wp.safetensors"))


@pytest.mark.parametrize("door", [door for door in READERS if "load_file" not in door])  # which read the shards of a directory
def test_a_directory_where_a_file_is_wanted(folder, door):
    with pytest.raises(IsADirectoryError) as caught:
        DOORS[door](str(folder))
    assert caught.value.filename == str(folder)


def test_a_missing_tensor(folder):
    for opened in (weightpack.numpy.safe_open(folder / "packed.safetensors"), weightpack.torch.safe_open(folder / "plain.safetensors")):
        with opened as f, pytest.raises(errors.TensorNotFoundError, match="none"):
            f.get_tensor("none")
    refused(call("cat", "packed.safetensors", "none", cwd=folder), 2, "'none'")


def test_a_missing_run_or_model_to_push(folder):
    for do in (
        lambda path: weightpack.series.series(path), lambda path: weightpack.push(path, "me/x"), lambda path: weightpack.pack(folder, folder / "x", base=path),
    ):  # fmt: skip
        with pytest.raises(errors.PathNotFoundError):
            do(str(folder / "none"))
    refused(call("series", "none", cwd=folder), 2, "none: no such")


def test_starting_needs_no_arrays():
    """Help and completions come at once: what a verb needs is imported when it runs."""
    program = "import sys, weightpack.cli; print(sorted({'numpy', 'torch', 'huggingface_hub', 'tqdm', 'zstandard'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("path", ["./nonexistent", "/nonexistent", "~/x", "a/b/c", "../x", "model.bin", "model.gguf", "-x/y", "a/", "a/.b", ".hidden"])
def test_a_path_is_no_repo(folder, path):
    """Such are said to be missing, and no Hub is asked."""
    assert not is_repo_id(path)
    for verb in (*VERBS, "push"):
        done = call(verb, "--", path, *(["me/x"] if verb == "push" else []), cwd=folder)
        refused(done, 2, path, "no such")


def test_repo_ids_are_still_repos():
    for repo in ("bert-base-uncased", "google/bert", "TheBloke/some.gguf", "a/b.c-d_e", "t5", "org/v1.0"):
        assert is_repo_id(repo)


# ---- what the system runs out of


def limited(limit, n_bytes):
    def set_limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(limit, (n_bytes, n_bytes))

    return set_limit


def test_a_full_disk_names_the_target(folder):
    """A limit of file sizes stands in for it: writes fail the same way, in the middle. A full disk itself is in road/test_recovery.py."""
    for arguments in (("pack", "plain.safetensors", "-o", "goal"), ("unpack", "packed.safetensors", "-o", "goal"), ("pack", "-", "-o", "goal")):
        done = run(*arguments, cwd=folder, preexec_fn=limited(resource.RLIMIT_FSIZE, 60_000), stdin=samples.mixed_file())
        refused(done, 3, "goal: " if "-" not in arguments[1:2] else "the copy of standard input in .: ", "File too large")
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited as Linux does it")
def test_memory_that_runs_out(folder):
    """How much a process has when it begins depends on the machine, so limits count from there."""
    program = (
        "import resource, sys, numpy, tqdm, weightpack.api, weightpack.cli\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv.pop(1)),) * 2)\n"
        "weightpack.cli.main()\n"
    )
    (folder / "large.safetensors").write_bytes(samples.bf16_file(seed=4, name="w", n=8_000_000))
    for megabytes, code in ((1, 3), (1024, 0)):
        done = subprocess.run(
            [sys.executable, "-c", program, str(megabytes << 20), "pack", "large.safetensors", "-o", "goal", "--threads", "1", "-f"],
            cwd=folder, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        refused(done, code, *(["not enough memory"] if code else []))
        assert len(done.stderr.splitlines()) == (code > 0)
        assert (folder / "goal").exists() == (code == 0)


@pytest.mark.skipif(sys.platform != "linux", reason="stacks are limited as Linux does it")
def test_threads_that_can_not_start(folder):
    """Their stacks are larger than the address space."""

    def limit():
        resource.setrlimit(resource.RLIMIT_STACK, (1 << 40, resource.getrlimit(resource.RLIMIT_STACK)[1]))
        resource.setrlimit(resource.RLIMIT_AS, (64 << 30, 64 << 30))

    (folder / "large.safetensors").write_bytes(samples.bf16_file(seed=4, name="w", n=8_000_000))
    env = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = run("pack", "large.safetensors", "-o", "goal", "--threads", "4", cwd=folder, preexec_fn=limit, env=env)
    refused(done, 3, "no more threads", "--threads")
    assert len(done.stderr.splitlines()) == 1
    assert run("pack", "large.safetensors", "-o", "goal", "--threads", "1", cwd=folder, preexec_fn=limit, env=env).returncode == 0


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_any_terminal_shows_any_name(folder, encoding):
    """Names beyond its letters come out as escapes."""
    name = "zéro.名前"
    done = subprocess.run(
        [*PROGRAM, "inspect", "packed.safetensors", "--tensors"], cwd=folder, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert name.encode(encoding, "backslashreplace") in done.stdout
    (folder / "packed.safetensors").rename(folder / os.fsdecode(b"\xff\xfe.wp.safetensors"))
    command = [*PROGRAM, "verify", b"\xff\xfe.wp.safetensors", b"\xff.none"]
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True, timeout=60)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert rb"\udcff" in done.stderr
    assert rb"\udcff\udcfe.wp.safetensors restores to" in done.stdout


def test_a_bug_says_so(folder, monkeypatch):
    """Exit code 1 means that data is bad, so it is another one."""
    monkeypatch.setattr(weightpack.api, "inspect", lambda *_, **__: 1 // 0)
    done = call("inspect", "packed.safetensors", cwd=folder)
    assert done.returncode == 70
    assert "ZeroDivisionError" in done.stderr
    assert done.stderr.splitlines()[-1] == "weightpack: this is a bug: please report it with the lines above"


# ---- names that do something to a terminal

HOSTILE = "w\x1b[2J\x1b]52;c;cm0=\x07\r\nok: restores to 1 GB\u202eevil\u2066\x9b31m\x00\u200f\u2028x"


def harmless(text):
    """Nothing but letters, signs and spaces, in lines that are ours."""
    return all(c == "\n" or c == " " or unicodedata.category(c)[0] not in "CZ" for c in text)


def test_printable():
    assert printable(HOSTILE) == (r"w\x1b[2J\x1b]52;c;cm0=\x07\r\nok: restores to 1 GB\u202eevil\u2066\x9b31m\x00\u200f\u2028x")
    assert printable("zéro.名前 \U0001f600") == "zéro.名前 \U0001f600"
    for code in range(sys.maxunicode + 1):
        assert harmless(printable(chr(code))), hex(code)


def test_names_in_files_do_nothing_to_a_terminal(folder):
    """Names of tensors, files and bases in everything that is printed, on both streams."""
    one = samples.safetensors_file({HOSTILE: ("F32", (3000,), samples.weights(3000, "F32"))}, {HOSTILE: HOSTILE})
    (folder / "one.safetensors").write_bytes(one)
    weightpack.pack(folder / "one.safetensors", folder / "one.wp.safetensors")
    file_name = HOSTILE.replace("\x00", "").replace("/", "") + ".wp.safetensors"
    (folder / file_name).write_bytes((folder / "one.wp.safetensors").read_bytes())
    two = np.frombuffer(samples.weights(3000, "F32"), "<f4") * np.float32(1.5)
    (folder / "two.safetensors").write_bytes(samples.safetensors_file({HOSTILE: ("F32", (3000,), two.tobytes())}))
    damaged = bytearray((folder / "one.wp.safetensors").read_bytes())
    damaged[-200] ^= 1
    (folder / "damaged.wp.safetensors").write_bytes(damaged)
    for arguments, code in [
        (("inspect", "one.wp.safetensors", "--tensors"), 0), (("inspect", file_name), 0), (("verify", file_name, "one.wp.safetensors"), 0),
        (("verify", "damaged.wp.safetensors"), 1), (("unpack", file_name, "-v", "-o", "x\x1b]0;y\x07"), 0), (("pack", HOSTILE.replace("\x00", "")), 2),
        (("estimate", "one.safetensors"), 0), (("diff", "one.safetensors", "two.safetensors"), 1), (("cat", "one.safetensors", "none\x1b[2J"), 2),
        (("pack", "--no\x1b[2Jption", "x"), 2), (("pack", "x", "--codec", "\x1b[2J\u202e"), 2), (("pack", "one.safetensors", "--profile", "\x1b[2J.toml"), 2),
    ]:  # fmt: skip
        done = call(*arguments, cwd=folder)
        assert done.returncode == code, done.stderr
        assert harmless(done.stdout + done.stderr), (arguments, done.stdout, done.stderr)
        assert not any(line.startswith("ok: restores to 1 GB") for line in (done.stdout + done.stderr).splitlines())
    for arguments in (("inspect", "one.wp.safetensors", "--json"), ("diff", "one.safetensors", "two.safetensors", "--json")):
        done = call(*arguments, cwd=folder)
        assert done.stdout.isascii()
        assert harmless(done.stdout)
        assert HOSTILE in _strings(json.loads(done.stdout))


def _strings(value):
    if isinstance(value, dict):
        return [text for each in value.values() for text in _strings(each)]
    if isinstance(value, list):
        return [text for each in value for text in _strings(each)]
    return [value] if isinstance(value, str) else []


def test_an_empty_name_is_not_the_folder_that_one_is_in(folder):
    """A variable that is not set, as in `weightpack pack "$MODEL" --in-place`."""
    before = sorted(path.name for path in folder.iterdir())
    for verb in (
        ("pack", ""), ("pack", "", "--in-place"), ("pack", ".", "-o", ""), ("unpack", ""), ("verify", ""), ("inspect", ""), ("estimate", ""), ("cat", "", "x"),
        ("diff", "", "."), ("series", "", "--pack"), ("push", "", "me/x"), ("verify", "packed.safetensors", "--against", ""),
        ("pack", "plain.safetensors", "--base", ""),
    ):  # fmt: skip
        refused(call(*verb, cwd=folder), 2, "empty")
    with contextlib.chdir(folder):
        for door in DOORS.values():
            with pytest.raises(errors.PathNotFoundError):
                door("")
        for call_it in (weightpack.series.series, lambda path: weightpack.pack(".", path), lambda path: weightpack.push(path, "me/x")):
            with pytest.raises(errors.PathNotFoundError):
                call_it("")
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_file_is_not_compared_with_a_directory(folder):
    (folder / "m").mkdir()
    (folder / "plain.safetensors").rename(folder / "m" / "plain.safetensors")
    weightpack.pack(folder / "m")
    for packed, original in (("packed.safetensors", "m"), ("m-wp", "m/plain.safetensors")):
        refused(call("verify", packed, "--against", original, cwd=folder), 2, packed, original, "directory")


def test_what_is_remote_is_not_packed(folder):
    for url in ("https://example.org/x.safetensors", "hf://me/x/model.safetensors"):
        refused(call("pack", url, cwd=folder), 2, url, "download it first")


@pytest.mark.skipif(importlib.util.find_spec("aiohttp") is not None, reason="what reads URLs is installed")
def test_the_extra_for_urls_is_named(folder):
    refused(call("inspect", "http://localhost:9/x.safetensors", cwd=folder), 2, "http://localhost:9/x.safetensors", "weightpack[http]")
