# SPDX-License-Identifier: Apache-2.0
"""A target that is the source, lies in it or holds it is refused before anything is written; `overwrite` replaces files of the names that are written."""

from __future__ import annotations

import os

import folders
import pytest
import samples

import weightpack
import weightpack.series
from weightpack.errors import OptionError
from weightpack.models.jobs import Job


@pytest.fixture
def rep(tmp_path):
    """A folder of models, as people keep them."""
    folders.sharded(tmp_path / "rep" / "models" / "bert")
    folders.write(tmp_path / "rep" / "models" / "notes.txt", "years of work")
    folders.write(tmp_path / "rep" / "thesis.tex", "more of it")
    return tmp_path / "rep"


def refused(folder, source, target, verb=weightpack.pack):
    """Assert that a job is refused, with and without overwriting, and that nothing has changed."""
    before = folders.contents(folder)
    for overwrite in (True, False):
        with pytest.raises(OptionError):
            verb(source, target, overwrite=overwrite)
    assert folders.contents(folder) == before


@pytest.mark.parametrize("target", ["models", "models/bert", "models/bert/new", "models/bert/new/deeper", ".", "models/../models/bert", "link/bert", "link"])
def test_target_that_overlaps_the_source(rep, target):
    (rep / "link").symlink_to("models")
    refused(rep, rep / "models" / "bert", rep / target)
    refused(rep, rep / "link" / "bert", rep / target)


def test_target_that_overlaps_a_packed_source(rep):
    weightpack.pack(rep / "models" / "bert", rep / "models" / "bert-wp")
    for target in ("models", "models/bert-wp", "models/bert-wp/new", "."):
        refused(rep, rep / "models" / "bert-wp", rep / target, weightpack.unpack)


def test_paths_relative_to_the_folder_one_is_in(rep, monkeypatch):
    monkeypatch.chdir(rep / "models" / "bert")
    for target in (".", "..", "new", "../../models"):
        refused(rep, ".", target)


def test_a_link_in_the_source_leads_into_the_target(rep):
    """Packing would replace what the link leads to."""
    folders.write(rep / "shared" / "model.safetensors", samples.bf16_file(seed=5, name="x", n=4000))
    (rep / "models" / "bert" / "encoder").symlink_to(rep / "shared")
    refused(rep, rep / "models" / "bert", rep / "shared")
    refused(rep, rep / "models" / "bert", rep / "shared" / "new")
    (rep / "models" / "bert" / "encoder").unlink()
    (rep / "models" / "bert" / "extra.safetensors").symlink_to(rep / "shared" / "model.safetensors")
    refused(rep, rep / "models" / "bert", rep / "shared")


@pytest.mark.parametrize("how", ["itself", "another spelling", "link", "hard link"])
def test_a_file_onto_itself(tmp_path, how):
    source = folders.write(tmp_path / "a.safetensors", samples.bf16_file(seed=1, name="w", n=4000))
    packed = folders.write(tmp_path / "b.wp.safetensors", (tmp_path / weightpack.pack(source, tmp_path / "p").target).read_bytes())
    for file, verb in ((source, weightpack.pack), (packed, weightpack.unpack)):
        target = {"itself": file, "another spelling": tmp_path / "." / ".." / tmp_path.name / file.name}.get(how, tmp_path / f"of-{file.name}")
        if how == "link":
            target.symlink_to(file)
        elif how == "hard link":
            os.link(file, target)
        refused(tmp_path, file, target, verb)


def test_a_base_is_not_replaced(tmp_path):
    base = folders.write(tmp_path / "base" / "model.safetensors", samples.bf16_file(seed=1, name="w", n=4000))
    tuned = folders.write(tmp_path / "tuned" / "model.safetensors", samples.bf16_file(seed=1, name="w", n=4000))
    before = folders.contents(tmp_path)
    for source, target in ((tuned, base), (tuned.parent, base.parent), (tuned.parent, tmp_path)):
        with pytest.raises(OptionError):
            weightpack.pack(source, target, base=base, overwrite=True)
    assert folders.contents(tmp_path) == before


def test_overwriting_leaves_a_folder_s_other_files(tmp_path):
    """`unpack m-wp -o precious --force` took away everything that was in `precious`."""
    source = folders.sharded(tmp_path / "m")
    packed = weightpack.pack(source, tmp_path / "m-wp").target
    for verb, what in ((weightpack.pack, source), (weightpack.unpack, packed)):
        target = tmp_path / f"precious-{verb.__name__}"
        mine = {"thesis.tex": b"years of work", "deep/er/notes": b"more", "config.json": b"replaced"}
        for name, data in mine.items():
            folders.write(target / name, data)
        with pytest.raises(OptionError, match="--force"):
            verb(what, target)
        assert {name: data for name, data in folders.contents(target).items() if data is not None} == mine
        verb(what, target, overwrite=True)
        after = folders.contents(target)
        assert after["thesis.tex"] == b"years of work"
        assert after["deep/er/notes"] == b"more"
        assert after["config.json"] != b"replaced"
    restored = folders.contents(tmp_path / "precious-unpack")
    assert {name: restored[name] for name in folders.contents(source)} == folders.contents(source)


def test_shards_of_an_older_pack_that_stay_are_said(tmp_path):
    folders.sharded(tmp_path / "old", shards=3)
    weightpack.pack(tmp_path / "old", tmp_path / "out")
    folders.sharded(tmp_path / "new", shards=2)
    result = weightpack.pack(tmp_path / "new", tmp_path / "out", overwrite=True)
    assert {note.name for note in result.warnings} == {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}


def test_the_target_exists_is_what_a_second_pack_says(tmp_path):
    folders.sharded(tmp_path / "m")
    weightpack.pack(tmp_path / "m")
    with pytest.raises(OptionError, match="m-wp: the target exists"):
        weightpack.pack(tmp_path / "m")


def test_a_packed_file_beside_its_source_is_no_obstacle(tmp_path):
    """As after `weightpack pack m/model.safetensors`."""
    folders.write(tmp_path / "m" / "model.safetensors", samples.bf16_file(seed=1, name="w", n=4000))
    weightpack.pack(tmp_path / "m" / "model.safetensors")
    weightpack.pack(tmp_path / "m", tmp_path / "inner" / "nested")
    result = weightpack.pack(tmp_path / "m")
    assert [(note.name, note.reason) for note in result.kept] == [("model.wp.safetensors", "it is packed already")]
    weightpack.unpack(result.target, tmp_path / "back")
    assert folders.contents(tmp_path / "back") == folders.contents(tmp_path / "m")


def test_packed_directories_inside_of_the_source_stay_packed(tmp_path):
    """As in the folder that scripts/demo leaves: the model, its packed form and others side by side."""
    folders.sharded(tmp_path / "demo" / "minilm")
    weightpack.pack(tmp_path / "demo" / "minilm")
    result = weightpack.pack(tmp_path / "demo")
    assert {note.reason for note in result.kept} == {"it is packed already"}
    weightpack.verify(result.target, against=tmp_path / "demo")
    weightpack.unpack(result.target, tmp_path / "back")
    assert folders.contents(tmp_path / "back") == folders.contents(tmp_path / "demo")


def test_what_is_packed_already_says_so(tmp_path):
    source = folders.sharded(tmp_path / "m")
    packed = weightpack.pack(source).target
    with pytest.raises(OptionError, match=r"packed already: it has a weightpack\.json"):
        weightpack.pack(packed)
    (tmp_path / "m-wp" / "weightpack.json").unlink()
    with pytest.raises(OptionError, match="packed already, file by file"):
        weightpack.pack(packed)


def test_plain_files_are_not_unpacked_into_a_packed_directory(rep):
    """Its manifest would say of them that they are packed: nothing could be done with the directory any more."""
    packed, other = rep / "bert-wp", rep / "other-wp"
    weightpack.pack(rep / "models" / "bert", packed)
    weightpack.pack(rep / "models" / "bert", other)
    before = folders.contents(other)
    with pytest.raises(OptionError, match=r"weightpack\.json"):
        weightpack.unpack(packed, other, overwrite=True)
    assert folders.contents(other) == before
    weightpack.pack(rep / "models" / "bert", other, overwrite=True)
    weightpack.verify(other, against=rep / "models" / "bert")


def test_a_run_is_not_restored_into_its_own_store(tmp_path):
    run = tmp_path / "run"
    folders.write(run / "checkpoint-1" / "model.safetensors", samples.bf16_file(seed=1, name="w", n=4000))
    folders.write(run / "checkpoint-1" / "trainer_state.json", '{"global_step": 1}')
    weightpack.series.pack_run(run, Job())
    before = folders.contents(run)
    (tmp_path / "link").symlink_to(run / "_weightpack")
    for target in (run / "_weightpack", run / "_weightpack" / "x", tmp_path / "link"):
        with pytest.raises(OptionError, match="store"):
            weightpack.series.restore(run, 1, target, Job(overwrite=True))
    assert folders.contents(run) == before
