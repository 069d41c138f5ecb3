# SPDX-License-Identifier: Apache-2.0
"""Files as differences from a base: packed, found again, chained, refused; and optimizer state, predicted from the scales of its rows and columns."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import hub_double
import numpy as np
import pytest
import samples
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hub import Client

import weightpack
import weightpack.numpy
import weightpack.torch
from weightpack.errors import BaseNotFoundError, FormatError, LimitError, OptionError, WrongBaseError
from weightpack.io.files import LocalFile
from weightpack.reading import bases
from weightpack.reading.convert import convert
from weightpack.reading.packed_file import PackedFile
from weightpack.reading.restored import RestoredFile
from weightpack.sources import segment
from weightpack.writing import match

ROWS, COLS = 96, 320


def weights(seed, n=ROWS * COLS, scale=0.03):
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype("<f4")


def stepped(values, seed, size=2e-5):
    """What some steps of training make of weights."""
    return (values + np.random.default_rng(seed).standard_normal(values.size).astype("<f4") * np.float32(size)).astype("<f4")


def encoded(values, dtype):
    return {"F32": values.tobytes, "BF16": lambda: samples.bf16(values).tobytes(), "F16": lambda: values.astype("<f2").tobytes()}[dtype]()


def model_file(tensors, dtype="BF16", shape=(ROWS, COLS), **more):
    return samples.safetensors_file({name: (dtype, shape, encoded(values, dtype)) for name, values in tensors.items()}, {"format": "pt"}, **more)


@pytest.fixture
def pair(tmp_path):
    """A base and what it was trained to: paths."""
    base = {f"layer.{i}.weight": weights(i) for i in range(4)}
    tuned = {name: stepped(values, 10 + i) for i, (name, values) in enumerate(base.items())}
    (tmp_path / "base").mkdir()
    (tmp_path / "tuned").mkdir()
    (tmp_path / "base" / "model.safetensors").write_bytes(model_file(base))
    (tmp_path / "tuned" / "model.safetensors").write_bytes(model_file(tuned))
    return tmp_path / "base" / "model.safetensors", tmp_path / "tuned" / "model.safetensors"


def packed_size(source, base, **options):
    target = source.with_suffix(".out")
    result = weightpack.pack(source, target, base=base, overwrite=True, **options)
    assert restored(target, base) == source.read_bytes()
    return result.packed_bytes


def restored(packed, base=None):
    target = Path(packed).with_suffix(".again")
    weightpack.unpack(packed, target, base=base, overwrite=True)
    return target.read_bytes()


# ---- sizes


def test_a_difference_is_much_smaller(pair):
    base, tuned = pair
    alone = weightpack.pack(tuned, tuned.with_suffix(".alone")).packed_bytes
    assert packed_size(tuned, base) < alone / 3


def test_an_identical_file_costs_its_index(pair):
    base, _ = pair
    copy = base.with_name("copy.safetensors")
    shutil.copy(base, copy)
    assert packed_size(copy, base) < base.stat().st_size / 60


@pytest.mark.parametrize(("from_dtype", "to_dtype"), [("F32", "BF16"), ("F32", "F16"), ("BF16", "F32"), ("F16", "BF16"), ("F32", "F32"), ("F16", "F16")])
def test_dtypes_may_differ(tmp_path, from_dtype, to_dtype):
    values = weights(1)
    base, tuned = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    base.write_bytes(model_file({"w": values}, from_dtype))
    tuned.write_bytes(model_file({"w": stepped(values, 2)}, to_dtype))
    assert packed_size(tuned, base) < weightpack.pack(tuned, tmp_path / "alone").packed_bytes


def test_a_vocabulary_that_grew_or_shrank(tmp_path):
    table = weights(3, 4096 * 64).reshape(4096, 64)
    base = tmp_path / "base.safetensors"
    base.write_bytes(model_file({"embeddings": table}, "F32", table.shape))
    n_bytes = base.stat().st_size
    grown = np.concatenate([table, weights(4, 7 * 64).reshape(7, 64)])
    inserted = np.concatenate([table[:1000], weights(5, 5 * 64).reshape(5, 64), table[1000:]])
    for name, new in {"grown": grown, "inserted": inserted, "cut": table[:3000], "without": np.delete(table, slice(100, 200), axis=0)}.items():
        tuned = tmp_path / f"{name}.safetensors"
        tuned.write_bytes(model_file({"embeddings": new}, "F32", new.shape))
        assert packed_size(tuned, base) < n_bytes / 20, name


def test_renamed_and_nameless_tensors_are_found(pair, tmp_path):
    base, tuned = pair
    values = {f"layer.{i}.weight": stepped(weights(i), 20 + i) for i in range(4)}
    best = packed_size(tuned, base)
    for rename in (lambda n: f"bert.{n}", lambda n: f"other-{hashlib.md5(n.encode()).hexdigest()}"):
        target = tmp_path / "renamed.safetensors"
        target.write_bytes(model_file({rename(name): v for name, v in values.items()}))
        assert packed_size(target, base) < best * 1.2
    longer = tmp_path / "longer.safetensors"
    longer.write_bytes(model_file({f"bert.{name}": v for name, v in values.items()}))
    assert packed_size(tuned, longer) < best * 1.5  # the base has the prefix


def test_what_has_nothing_in_common_is_no_larger_than_alone(tmp_path):
    base, other = tmp_path / "base.safetensors", tmp_path / "other.safetensors"
    base.write_bytes(model_file({"w": weights(1)}))
    other.write_bytes(model_file({"w": weights(2)}))
    alone = weightpack.pack(other, tmp_path / "alone").packed_bytes
    assert packed_size(other, base) <= alone + 400
    integers = samples.safetensors_file({"w": ("I64", (4,), bytes(32)), "empty": ("F32", (0,), b""), "s": ("F32", (), b"abcd")})
    other.write_bytes(integers)
    packed_size(other, base)
    assert PackedFile(LocalFile(other.with_suffix(".out"))).index.base is None  # nothing differs from anything: it stands alone


def test_upcast_values_cost_what_they_hold(tmp_path):
    values = weights(6)
    narrow = (samples.bf16(values).astype("<u4") << 16).view("<f4")
    tuned = (samples.bf16(stepped(values, 7)).astype("<u4") << 16).view("<f4")
    for name, content in (("base", narrow), ("tuned", tuned)):
        (tmp_path / f"{name}.safetensors").write_bytes(model_file({"w": content}, "F32"))
        (tmp_path / f"{name}16.safetensors").write_bytes(model_file({"w": content}, "BF16"))
    wide = packed_size(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors")
    assert wide < 1.1 * packed_size(tmp_path / "tuned16.safetensors", tmp_path / "base16.safetensors") + 200


def test_packed_bytes_do_not_depend_on_threads_and_backend(pair, tmp_path, isa):
    base, tuned = pair
    results = set()
    for threads in (1, 2, 5):
        weightpack.pack(tuned, tmp_path / "out", base=base, threads=threads, overwrite=True, options=weightpack.PackOptions(chunk_elems=8192))
        results.add((tmp_path / "out").read_bytes())
    (result,) = results
    with weightpack.kernels.use_isa("numpy"):
        weightpack.pack(tuned, tmp_path / "out", base=base, overwrite=True, options=weightpack.PackOptions(chunk_elems=8192))
    assert (tmp_path / "out").read_bytes() == result


# ---- which base


def test_unpack_needs_the_base_and_writes_nothing_without(pair, tmp_path, monkeypatch):
    monkeypatch.delenv("WEIGHTPACK_BASES", raising=False)
    base, tuned = pair
    lonely = tmp_path / "far" / "away"
    lonely.mkdir(parents=True)
    weightpack.pack(tuned, lonely / "model.wp.safetensors", base=base)
    with pytest.raises(BaseNotFoundError, match=hashlib.sha256(base.read_bytes()).hexdigest()) as missing:
        weightpack.unpack(lonely / "model.wp.safetensors")
    assert "--base" in str(missing.value)
    assert sorted(path.name for path in lonely.iterdir()) == ["model.wp.safetensors"]
    with pytest.raises(WrongBaseError):
        weightpack.unpack(lonely / "model.wp.safetensors", base=tuned)
    with pytest.raises(WrongBaseError):
        weightpack.safe_open(lonely / "model.wp.safetensors", base=tuned)
    with pytest.raises(BaseNotFoundError):
        weightpack.safe_open(lonely / "model.wp.safetensors")
    with pytest.raises(OptionError):
        weightpack.unpack(lonely / "model.wp.safetensors", base=tmp_path / "nowhere" / "at.all")
    assert sorted(path.name for path in lonely.iterdir()) == ["model.wp.safetensors"]
    monkeypatch.setenv("WEIGHTPACK_BASES", str(base.parent))
    weightpack.unpack(lonely / "model.wp.safetensors")
    assert (lonely / "model.safetensors").read_bytes() == tuned.read_bytes()


def test_a_base_of_the_same_length_is_not_taken_for_the_base(pair, tmp_path):
    base, tuned = pair
    (tmp_path / "d").mkdir()
    weightpack.pack(tuned, tmp_path / "d" / "model.wp.safetensors", base=base)
    changed = bytearray(base.read_bytes())
    changed[-1] ^= 1
    base.write_bytes(changed)
    tuned.unlink()
    with pytest.raises(BaseNotFoundError):
        weightpack.unpack(tmp_path / "d" / "model.wp.safetensors")
    with pytest.raises(WrongBaseError):
        weightpack.verify(tmp_path / "d" / "model.wp.safetensors", base=base)


def test_a_base_is_found_beside_and_in_neighbours_plain_or_packed(pair, tmp_path):
    base, tuned = pair
    weightpack.pack(tuned, tuned.parent / "model.wp.safetensors", base=base)
    content = tuned.read_bytes()
    tuned.unlink()
    assert restored(tuned.parent / "model.wp.safetensors") == content  # ../base/model.safetensors
    weightpack.pack(base, base.with_name("renamed.wp.safetensors"), delete_source=True)
    assert restored(tuned.parent / "model.wp.safetensors") == content  # packed
    (tuned.parent / "below").mkdir()
    shutil.move(base.with_name("renamed.wp.safetensors"), tuned.parent / "below" / "x.safetensors")
    assert restored(tuned.parent / "model.wp.safetensors") == content
    with weightpack.safe_open(tuned.parent / "model.wp.safetensors", "pt") as opened:
        assert opened.get_slice("layer.1.weight")[3:5].shape == (2, COLS)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_neighbours_that_can_not_be_opened_are_passed_over(pair, packed):
    """Other people's files lie around: damaged, hostile, unreadable, of the base's very length."""
    base, tuned = pair
    weightpack.pack(tuned, tuned.parent / "x.wp.safetensors", base=base)
    content, size = tuned.read_bytes(), base.stat().st_size
    tuned.unlink()
    if packed:
        weightpack.pack(base, base.with_name("packed.safetensors"), delete_source=True)
    many = b"[" * 20_000_000  # by what it may take in memory, over a limit; nothing of it is parsed
    for folder in (tuned.parent, base.parent, base.parent.parent):
        (folder / "0-deep.safetensors").write_bytes(len(many).to_bytes(8, "little") + many)
        (folder / "0-empty.safetensors").touch()
        (folder / "0-noise.safetensors").write_bytes(bytes(range(256)) * 10)
        (folder / "0-length.safetensors").write_bytes(bytes(size))
        (folder / "0-folder.safetensors").mkdir()
        (folder / "0-nowhere.safetensors").symlink_to(folder / "no such file")
    with pytest.raises(LimitError):
        weightpack.inspect(tuned.parent / "0-deep.safetensors")
    assert restored(tuned.parent / "x.wp.safetensors") == content
    (report,) = weightpack.inspect(tuned.parent / "x.wp.safetensors")
    assert len(report.lineage) == 1
    weightpack.safe_open(tuned.parent / "x.wp.safetensors").close()


def test_no_path_of_a_file_is_followed(pair, tmp_path):
    """The base's name is for people: one that leads elsewhere leads nowhere."""
    base, tuned = pair
    weightpack.pack(tuned, tmp_path / "x.wp.safetensors", base=base)
    data = (tmp_path / "x.wp.safetensors").read_bytes()
    hidden = tmp_path / "hidden" / "deep" / "model.safetensors"
    hidden.parent.mkdir(parents=True)
    shutil.move(base, hidden)
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    index = json.loads(header["__metadata__"]["weightpack"])
    index["base"]["files"][0][0] = "hidden/deep/model.safetensors"
    text = json.dumps(index)
    header["__metadata__"] |= {"weightpack": text, "weightpack.crc32c": f"{weightpack.kernels.active().crc32c(text.encode()):08x}"}
    head = json.dumps(header).encode()
    (tmp_path / "x.wp.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + data[8 + n :])
    with pytest.raises(BaseNotFoundError):
        weightpack.unpack(tmp_path / "x.wp.safetensors", tmp_path / "out")
    assert restored(tmp_path / "x.wp.safetensors", hidden) == tuned.read_bytes()


def test_a_base_that_changes_while_it_is_used_is_noticed(pair, tmp_path):
    base, tuned = pair
    weightpack.pack(tuned, tmp_path / "x", base=base)
    with weightpack.safe_open(tmp_path / "x", base=base) as opened:
        data = bytearray(base.read_bytes())
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
        with base.open("r+b") as file:
            file.write(data)
        with pytest.raises(FormatError):
            opened.get_tensors()


# ---- chains


def test_chains(tmp_path):
    values, contents = weights(1), []
    for i in range(6):
        (tmp_path / f"{i}").mkdir()
        contents.append(model_file({"w": values, "b": values[:COLS].repeat(ROWS)}))
        (tmp_path / f"{i}" / "model.safetensors").write_bytes(contents[-1])
        values = stepped(values, i)
    for i in range(5, 0, -1):
        weightpack.pack(tmp_path / f"{i}" / "model.safetensors", tmp_path / f"{i}" / "model.wp.safetensors", base=tmp_path / f"{i - 1}" / "model.safetensors")
    for i in range(1, 6):  # only the first is left plain
        (tmp_path / f"{i}" / "model.safetensors").unlink()
    for i in range(1, 6):
        assert restored(tmp_path / f"{i}" / "model.wp.safetensors") == contents[i]
        weightpack.verify(tmp_path / f"{i}" / "model.wp.safetensors")
    (report,) = weightpack.inspect(tmp_path / "5" / "model.wp.safetensors")
    assert len(report.lineage) == 5
    # Packed against the packed: how deep it is stands in the index.
    (tmp_path / "6").mkdir()
    (tmp_path / "6" / "model.safetensors").write_bytes(model_file({"w": values}))
    weightpack.pack(tmp_path / "6" / "model.safetensors", tmp_path / "6" / "model.wp.safetensors", base=tmp_path / "5" / "model.wp.safetensors")
    with LocalFile(tmp_path / "6" / "model.wp.safetensors") as file:
        assert PackedFile(file).index.base.depth == 2  # 5 was packed when 4 was plain
    with pytest.raises(LimitError):
        weightpack.safe_open(tmp_path / "6" / "model.wp.safetensors", limits=weightpack.Limits(max_depth=3))


# ---- directories, other files, the command line, a Hub


def test_directories_and_shards(tmp_path):
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    values = {f"layer.{i}": weights(i) for i in range(4)}
    for folder, tensors, shards in ((base, values, 2), (tuned, {n: stepped(v, 5) for n, v in values.items()}, 4)):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        names = sorted(tensors)
        index = {}
        for i in range(shards):
            name = f"model-{i + 1:05}-of-{shards:05}.safetensors"
            part = names[i * 4 // shards : (i + 1) * 4 // shards]
            (folder / name).write_bytes(model_file({n: tensors[n] for n in part}))
            index |= dict.fromkeys(part, name)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    result = weightpack.pack(tuned, base=base)
    assert result.ratio < 0.3
    weightpack.unpack(tmp_path / "tuned-wp", tmp_path / "again")
    for path in tuned.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    weightpack.pack(tuned, base=base, in_place=True)
    assert weightpack.verify(tuned)
    weightpack.unpack(tuned, in_place=True, base=base)
    for path in tuned.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_checkpoints_of_torch(tmp_path):
    import torch

    torch.manual_seed(0)
    model = torch.nn.Linear(320, 200)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for step in (1, 2):
        for _ in range(20):
            (model(torch.randn(8, 320) * torch.logspace(-2, 1, 320)) * torch.logspace(-3, 2, 200)).pow(2).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / f"{step}.pt")
    alone = weightpack.pack(tmp_path / "2.pt").packed_bytes
    assert packed_size(tmp_path / "2.pt", tmp_path / "1.pt") < alone * 0.95


def run(*arguments, cwd):
    return subprocess.run([sys.executable, "-m", "weightpack", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300)


def test_command_line(pair, tmp_path):
    base, tuned = pair
    packed = run("pack", tuned, "--base", base, "-o", tmp_path / "d.wp.safetensors", "--json", cwd=tmp_path)
    assert packed.returncode == 0, packed.stderr
    assert json.loads(packed.stdout)["packed_bytes"] < tuned.stat().st_size / 4
    shown = run("inspect", tmp_path / "d.wp.safetensors", "--tensors", cwd=tmp_path)
    assert hashlib.sha256(base.read_bytes()).hexdigest() in shown.stdout
    assert "difference:" in shown.stdout
    assert run("verify", tmp_path / "d.wp.safetensors", "--base", base, "--against", tuned, cwd=tmp_path).returncode == 0
    far = tmp_path / "far" / "away"
    far.mkdir(parents=True)
    shutil.move(tmp_path / "d.wp.safetensors", far)
    refused = run("unpack", far / "d.wp.safetensors", cwd=tmp_path)
    assert refused.returncode == 2
    assert "--base" in refused.stderr and "Traceback" not in refused.stderr
    assert run("unpack", far / "d.wp.safetensors", "--base", tuned, cwd=tmp_path).returncode == 2
    assert not (far / "d.safetensors").exists()
    assert run("unpack", far / "d.wp.safetensors", "--base", base.parent, cwd=tmp_path).returncode == 0
    assert (far / "d.safetensors").read_bytes() == tuned.read_bytes()


def test_a_base_on_a_hub_is_pinned_and_fetched(pair, tmp_path):
    base, tuned = pair
    with hub_double.serve() as hub:
        client = Client(hub, tmp_path)
        (base.parent / "config.json").write_text("{}")
        client.python("import sys, huggingface_hub as h; h.create_repo('me/base'); h.upload_folder(repo_id='me/base', folder_path=sys.argv[1])", base.parent)
        client.ok("pack", tuned, "--base", "me/base", "-o", tmp_path / "far.wp.safetensors")
        commit = PackedFile(LocalFile(tmp_path / "far.wp.safetensors")).index.base
        assert (commit.repo, len(commit.revision)) == ("me/base", 40)
        far = tmp_path / "far" / "away"
        far.mkdir(parents=True)
        shutil.move(tmp_path / "far.wp.safetensors", far)
        content = tuned.read_bytes()
        shutil.rmtree(tmp_path / "hf")
        client.ok("unpack", far / "far.wp.safetensors")
        assert (far / "far.safetensors").read_bytes() == content
        client.ok("unpack", far / "far.wp.safetensors", "--base", "me/base", "--force")


# ---- state of optimizers


def moments(n_rows, n_cols, seed=0):
    generator = np.random.default_rng(seed)
    v = np.exp(generator.normal(-20, 3, (n_rows, 1)) + generator.normal(0, 2, (1, n_cols)) + generator.normal(0, 0.3, (n_rows, n_cols))).astype("<f4")
    v[n_rows // 2 : n_rows // 2 + 40] = 0
    m = (np.sqrt(v) * generator.standard_normal(v.shape)).astype("<f4")
    return v, m


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_second_and_first_moments(tmp_path, dtype, isa):
    v, m = moments(128, 200)
    for name, values in (("v", v), ("m", m)):
        source = tmp_path / f"{name}.safetensors"
        source.write_bytes(model_file({name: values}, dtype, values.shape))
        small = weightpack.pack(source, tmp_path / f"{name}.small", options=weightpack.PackOptions(chunk_elems=8192)).packed_bytes
        plain = weightpack.pack(source, tmp_path / f"{name}.plain", options=weightpack.PackOptions(chunk_elems=8192, scales=False)).packed_bytes
        assert small < plain * 0.97
        assert restored(tmp_path / f"{name}.small") == source.read_bytes()
        (report,) = weightpack.inspect(tmp_path / f"{name}.small")
        assert "scaled:" in report.tensors[0].codec


def test_rows_of_zeros_cost_next_to_nothing(tmp_path):
    v = np.zeros((4096, 64), "<f4")
    v[:64] = moments(64, 64)[0]
    source = tmp_path / "v.safetensors"
    source.write_bytes(model_file({"v": v}, "F32", v.shape))
    assert weightpack.pack(source).packed_bytes < 64 * 64 * 4 + 3000


def test_weights_are_not_slowed_down(tmp_path):
    """Where scales gain little, files stay what they were."""
    source = tmp_path / "w.safetensors"
    source.write_bytes(model_file({"w": weights(1)}))
    packed = tmp_path / "w.wp.safetensors"
    weightpack.pack(source)
    with LocalFile(packed) as file:
        assert PackedFile(file).index.minor_version == 0


# ---- parts


@given(st.binary(min_size=4, max_size=400), st.sampled_from(["F32", "BF16", "F16"]), st.sampled_from(["F32", "BF16", "F16"]))
def test_conversion_is_that_of_torch_but_for_payloads(data, from_dtype, to_dtype):
    import torch

    names = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    size = 4 if from_dtype == "F32" else 2
    data = data[: len(data) // size * size]
    ours = convert(np.frombuffer(data, np.uint8), from_dtype, to_dtype)
    source = torch.frombuffer(bytearray(data), dtype=names[from_dtype])
    theirs = source.to(names[to_dtype]) if to_dtype != "F32" or from_dtype != "F32" else source
    if {from_dtype, to_dtype} == {"BF16", "F16"}:
        theirs = source.float().to(names[to_dtype])
    got = torch.frombuffer(bytearray(ours.tobytes()), dtype=names[to_dtype])
    assert torch.equal(torch.isnan(got), torch.isnan(theirs))
    numbers = ~torch.isnan(got)
    word = torch.int32 if to_dtype == "F32" else torch.int16
    assert torch.equal(got.view(word)[numbers], theirs.view(word)[numbers])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 30), max_size=60), st.lists(st.integers(0, 30), max_size=60))
def test_moves_stay_inside_and_carry_equal_rows(rows, base_rows):
    digests, base_digests = [bytes([r]) for r in rows], [bytes([r]) for r in base_rows]
    moves = match._moves(digests, base_digests, 1)
    for to, from_, n in moves or ():
        assert to >= 0 and to + n <= len(rows) and from_ >= 0 and from_ + n <= len(base_rows) and n > 0
    starts = [to for to, _, _ in moves or ()]
    assert starts == sorted(set(starts))
    if moves is not None:
        reached = {to + i: from_ + i for to, from_, n in moves for i in range(n)}
        assert all(base_rows[reached[i]] == row for i, row in enumerate(rows) if row in base_rows)


def test_matching_by_name_prefix_and_content(tmp_path):
    values = [weights(i) for i in range(3)]
    (tmp_path / "base.safetensors").write_bytes(model_file({"a.x": values[0], "b.x": values[1], "c": values[2]}))
    (tmp_path / "new.safetensors").write_bytes(model_file({"pre.a.x": values[0], "x": values[1], "what": stepped(values[2], 9), "none": weights(77)}))
    with bases.Base((tmp_path / "base.safetensors",)).opened() as base, LocalFile(tmp_path / "new.safetensors") as new:
        segments = segment(new)
        found = match.match_tensors(new, segments, base)
        offsets = {tensor.name: tensor.offset for tensor in base[0].segments.tensors}
    assert found["pre.a.x"].offset == offsets["a.x"]
    assert found["x"].offset == offsets["b.x"]  # two tails fit by name, the content decides
    assert found["what"].offset == offsets["c"]
    assert "none" not in found


def test_reading_the_source_of_a_packed_file_anywhere(pair):
    _, tuned = pair
    weightpack.pack(tuned, tuned.with_suffix(".p"), options=weightpack.PackOptions(chunk_elems=1280))
    content = tuned.read_bytes()
    file = RestoredFile(bases.open_with_bases(LocalFile(tuned.with_suffix(".p"))))
    generator = np.random.default_rng(1)
    for _ in range(200):
        begin, end = sorted(generator.integers(0, len(content) + 1, 2).tolist())
        buffer = bytearray(end - begin)
        file.read_into(begin, memoryview(buffer))
        assert buffer == content[begin:end]
    file.close()


def test_tensors_load_from_a_difference(pair, tmp_path):
    import torch

    base, tuned = pair
    weightpack.pack(tuned, tmp_path / "x.safetensors", base=base)
    plain, packed = weightpack.torch.load_file(tuned), weightpack.torch.load_file(tmp_path / "x.safetensors")
    assert plain.keys() == packed.keys()
    assert all(torch.equal(plain[name].view(torch.int16), packed[name].view(torch.int16)) for name in plain)
