# SPDX-License-Identifier: Apache-2.0
"""What a killed job of a directory left is proven before it becomes part of the result: damaged, stale or planted files do not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import samples

import weightpack
from weightpack.errors import FolderError, OptionError
from weightpack.io.working_names import PARTIAL

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
SHARDS = ("model-1.safetensors", "model-2.safetensors", "model-3.safetensors")


def model(folder, seed=0):
    folder.mkdir()
    for i, name in enumerate(SHARDS):
        (folder / name).write_bytes(samples.bf16_file(seed=seed + i, name=f"w{i}", n=60_000))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "old_code.py").write_text("old")
    return folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leave(verb, source, target, **options):
    """Die as by kill -9 in the last shard; return the folder that is left."""
    child = os.fork()
    if child == 0:
        try:
            getattr(weightpack, verb)(source, target, threads=1, progress=lambda path, *_: os._exit(7) if SHARDS[2] in path else None, **options)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    (left,) = target.parent.glob(f".{target.name}.*.{PARTIAL}")
    assert {SHARDS[0], SHARDS[1]} <= contents(left).keys()
    return left


def again(verb, source, target, **options):
    """Run the job again; return the shards that it worked on."""
    worked_on = set()
    getattr(weightpack, verb)(source, target, progress=lambda path, *_: worked_on.add(Path(path).name), **options)
    assert not list(target.parent.glob(".*"))
    return worked_on


def test_pack(tmp_path):
    source, other = model(tmp_path / "source"), model(tmp_path / "other", seed=10)
    expected, planted = (Path(weightpack.pack(folder).target) for folder in (source, other))
    target = tmp_path / "target"

    leave("pack", source, target)
    assert again("pack", source, target) == {SHARDS[2]}
    assert contents(target) == contents(expected)

    shutil.rmtree(target)
    left = leave("pack", source, target)
    shutil.copyfile(planted / SHARDS[0], left / SHARDS[0])  # sound in itself, of other weights
    (left / "modeling_evil.py").write_text("print('evil')")
    assert again("pack", source, target) == {SHARDS[0], SHARDS[2]}
    assert contents(target) == contents(expected)

    shutil.rmtree(target)
    left = leave("pack", source, target)
    os.truncate(left / SHARDS[1], 1000)
    assert again("pack", source, target) == {SHARDS[1], SHARDS[2]}
    assert contents(target) == contents(expected)


def test_pack_against_a_base(tmp_path):
    source, base = model(tmp_path / "source"), model(tmp_path / "base")
    target = tmp_path / "target"
    leave("pack", source, target, base=base)
    worked_on = set()
    weightpack.pack(source, target, base=base, progress=lambda path, *_: worked_on.add(Path(path).name))
    assert worked_on == {SHARDS[2]}
    weightpack.verify(target, against=source, base=base)


def test_a_base_is_not_written_over(tmp_path):
    source, base = model(tmp_path / "source"), model(tmp_path / "base")
    before = contents(base)
    with pytest.raises(OptionError, match="base"):
        weightpack.pack(source, base, base=base, overwrite=True)
    assert contents(base) == before


def test_unpack(tmp_path):
    source, other = model(tmp_path / "source"), model(tmp_path / "other", seed=10)
    packed = Path(weightpack.pack(source).target)
    target = tmp_path / "target"

    left = leave("unpack", packed, target)
    shutil.copyfile(other / SHARDS[0], left / SHARDS[0])
    (left / "modeling_evil.py").write_text("print('evil')")
    assert again("unpack", packed, target) == {SHARDS[0], SHARDS[2]}
    assert contents(target) == contents(source)


def test_files_that_were_deleted_from_the_source_do_not_come_back(tmp_path):
    source = model(tmp_path / "source")
    packed = Path(weightpack.pack(source).target)
    for verb, folder in (("pack", source), ("unpack", packed)):
        target = tmp_path / "target"
        left = leave(verb, folder, target)
        shutil.copyfile(folder / "old_code.py", left / "old_code.py")  # as if the job had come to it
        (folder / "old_code.py").unlink()
        again(verb, folder, target, verify=False)  # the packed directory lacks a file that its manifest names
        assert not (target / "old_code.py").exists()
        shutil.rmtree(target)


def test_force_replaces_only_what_is_written(tmp_path):
    source = model(tmp_path / "source")
    target = tmp_path / "target"
    target.mkdir()
    (target / "precious.txt").write_text("theirs")
    (target / SHARDS[0]).write_bytes(b"old")
    weightpack.pack(source, target, overwrite=True)
    assert (target / "precious.txt").read_text() == "theirs"
    with pytest.raises(FolderError, match=r"precious\.txt: is not in"):
        weightpack.verify(target, against=source)
    assert [result.name for result in weightpack.verify(target) if result.state == "not covered"] == ["precious.txt"]
    back = tmp_path / "back"
    back.mkdir()
    (back / "precious.txt").write_text("theirs")
    (target / "precious.txt").unlink()
    weightpack.unpack(target, back, overwrite=True)
    assert contents(back) == {**contents(source), "precious.txt": b"theirs"}


@pytest.mark.parametrize("where", ["in", "around"])
def test_a_target_that_overlaps_with_the_source(tmp_path, where):
    source = model(tmp_path / "source")
    before = contents(tmp_path)
    target = source / "packed" if where == "in" else tmp_path
    with pytest.raises(OptionError, match="lies in"):
        weightpack.pack(source, target, overwrite=True)
    assert contents(tmp_path) == before
