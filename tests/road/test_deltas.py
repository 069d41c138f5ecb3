# SPDX-License-Identifier: Apache-2.0
"""Files as differences from a base: packed, chained, loaded; and optimizer state, predicted from the scales of its rows and columns."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys

import hub_double
import numpy as np
import pytest
import samples
import torch
from finetunes import COLS, ROWS, model_file, pair_of_files, restored, stepped, weights

import weightpack
import weightpack.numpy
import weightpack.torch
from weightpack.errors import BaseNotFoundError, LimitError, WrongBaseError
from weightpack.io.files import LocalFile
from weightpack.reading.packed_file import PackedFile


@pytest.fixture
def pair(tmp_path):
    return pair_of_files(tmp_path)


def packed_size(source, base, **options):
    target = source.with_suffix(".out")
    result = weightpack.pack(source, target, base=base, overwrite=True, **options)
    assert restored(target, base) == source.read_bytes()
    return result.packed_bytes


# ---- sizes


def test_a_difference_is_much_smaller(pair):
    base, tuned = pair
    alone = weightpack.pack(tuned, tuned.with_suffix(".alone")).packed_bytes
    assert packed_size(tuned, base) < alone / 3


def test_an_identical_file_costs_its_header(pair):
    """And is read in every way that others are."""
    base, _ = pair
    copy = base.with_name("copy.safetensors")
    shutil.copy(base, copy)
    for of in (base, base.with_name("packed.safetensors")):
        if of != base:
            weightpack.pack(base, of)
        assert packed_size(copy, of) < 1500
        packed = copy.with_suffix(".out")
        expected, tensors = weightpack.torch.load_file(copy), weightpack.torch.load_file(packed, base=of)
        assert expected.keys() == tensors.keys()
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in expected.items())
        with weightpack.torch.safe_open(packed, base=of) as file:
            assert torch.equal(file.get_slice("layer.2.weight")[5:9, 3:], expected["layer.2.weight"][5:9, 3:])
        (report,) = weightpack.inspect(packed)
        assert {tensor.codec for tensor in report.tensors} == {"as in the base"}
    weightpack.pack(copy, copy.with_name("chain"), base=packed)  # what is a difference from it
    assert restored(copy.with_name("chain")) == base.read_bytes()
    other = base.parent.parent / "other.safetensors"
    other.write_bytes(model_file({"w": weights(9)}))
    with pytest.raises(WrongBaseError):
        weightpack.unpack(packed, base.with_name("x"), base=other)
    with LocalFile(packed) as file, pytest.raises(BaseNotFoundError):
        PackedFile(file).decode_piece(
            PackedFile(file).tensors["layer.2.weight"], PackedFile(file).pieces(PackedFile(file).tensors["layer.2.weight"])[0], bytearray(8)
        )


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


def test_matrices_that_are_turned(tmp_path):
    """Chunks of the tensor are columns of the base, which may be packed itself, and of another dtype."""
    values = weights(1, 512 * 1024).reshape(512, 1024)
    base, tuned = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    base.write_bytes(model_file({"w": values}, "F32", values.shape))
    tuned.write_bytes(model_file({"w": stepped(np.ascontiguousarray(values.T).reshape(-1), 2)}, "BF16", (1024, 512)))
    options = weightpack.PackOptions(chunk_elems=1 << 15)
    alone = weightpack.pack(tuned, tmp_path / "alone", options=options).packed_bytes
    assert packed_size(tuned, base, options=options, threads=3) < 0.6 * alone
    packed_base = tmp_path / "base.wp.safetensors"
    weightpack.pack(base, packed_base)
    assert packed_size(tuned, packed_base, options=options) < 0.6 * alone
    opened = weightpack.torch.safe_open(tuned.with_suffix(".out"), base=packed_base)
    assert opened.get_tensor("w").shape == (1024, 512)
    assert (opened.get_slice("w")[100:101] == opened.get_tensor("w")[100:101]).all()
    assert PackedFile(LocalFile(tuned.with_suffix(".out"))).index.minor_version == 5


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
    assert packed_size(other, base) <= alone
    integers = samples.safetensors_file({"w": ("I64", (4,), bytes(32)), "empty": ("F32", (0,), b""), "s": ("F32", (), b"abcd")})
    other.write_bytes(integers)
    packed_size(other, base)
    assert PackedFile(LocalFile(other.with_suffix(".out"))).index.base is None  # nothing differs from anything: it stands alone


def test_a_base_is_left_out_where_it_costs_more_than_it_saves(tmp_path):
    """Where rows are in an order of their own, the index says of each where it was; if rows are short that costs more than their bytes."""
    rows = np.random.default_rng(1).integers(-128, 128, (4000, 4), np.int8)
    base, other = tmp_path / "base.safetensors", tmp_path / "other.safetensors"
    base.write_bytes(samples.safetensors_file({"w": ("I8", rows.shape, rows.tobytes())}))
    other.write_bytes(samples.safetensors_file({"w": ("I8", rows.shape, rows[np.random.default_rng(2).permutation(4000)].tobytes())}))
    alone = weightpack.pack(other, tmp_path / "alone").packed_bytes
    assert packed_size(other, base) == alone
    assert PackedFile(LocalFile(other.with_suffix(".out"))).index.base is None


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


def test_tensors_load_from_a_difference(pair, tmp_path):
    import torch

    base, tuned = pair
    weightpack.pack(tuned, tmp_path / "x.safetensors", base=base)
    plain, packed = weightpack.torch.load_file(tuned), weightpack.torch.load_file(tmp_path / "x.safetensors")
    assert plain.keys() == packed.keys()
    assert all(torch.equal(plain[name].view(torch.int16), packed[name].view(torch.int16)) for name in plain)


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


@pytest.fixture
def far_from_its_base(pair, tmp_path):
    """A hub that has a base, a client, and a difference from it which is away from any file that could be its base."""
    base, tuned = pair
    with hub_double.serve() as hub:
        client = hub_double.Client(hub, tmp_path)
        (base.parent / "config.json").write_text("{}")
        client.python("import sys, huggingface_hub as h; h.create_repo('me/base'); h.upload_folder(repo_id='me/base', folder_path=sys.argv[1])", base.parent)
        client.ok("pack", tuned, "--base", "me/base", "-o", tmp_path / "far.wp.safetensors")
        commit = PackedFile(LocalFile(tmp_path / "far.wp.safetensors")).index.base
        assert (commit.repo, len(commit.revision)) == ("me/base", 40)
        far = tmp_path / "far" / "away"
        far.mkdir(parents=True)
        shutil.move(tmp_path / "far.wp.safetensors", far)
        shutil.rmtree(tmp_path / "hf")
        hub.requests.clear()
        yield client, far / "far.wp.safetensors", tuned.read_bytes()


def test_a_difference_asks_no_hub_by_itself(far_from_its_base):
    client, path, _ = far_from_its_base
    for verb in ("unpack", "verify", "inspect"):
        done = client(verb, path)
        assert done.returncode == (0 if verb == "inspect" else 2)
        assert verb == "inspect" or "--base me/base@" in done.stderr
    assert client.hub.requests == []
    assert not path.with_name("far.safetensors").exists()


def test_a_base_on_a_hub_is_fetched_if_the_user_says_so(far_from_its_base, monkeypatch):
    client, path, content = far_from_its_base
    client.ok("unpack", path, "--base", "me/base")
    assert path.with_name("far.safetensors").read_bytes() == content
    shutil.rmtree(client.folder / "hf")
    monkeypatch.setenv("WEIGHTPACK_FETCH_BASES", "1")
    client.hub.requests.clear()
    client.ok("unpack", path, "--force")
    assert path.with_name("far.safetensors").read_bytes() == content
    assert client.hub.requests
    client.hub.requests.clear()
    client.ok("unpack", path, "--force")  # from the client's cache
    assert client.hub.requests == []


def test_a_base_of_a_packed_repo_is_fetched_with_it(far_from_its_base):
    """What came from a Hub may ask that Hub."""
    client, path, content = far_from_its_base
    folder = path.parent / "up"
    folder.mkdir()
    shutil.copy(path, folder / "model.safetensors")
    client.python("import sys, huggingface_hub as h; h.create_repo('me/tuned'); h.upload_folder(repo_id='me/tuned', folder_path=sys.argv[1])", folder)
    shutil.rmtree(client.folder / "hf", ignore_errors=True)
    code = (
        "import sys, huggingface_hub as h, weightpack.numpy as w; p = h.hf_hub_download('me/tuned', 'model.safetensors')\n"
        "weights = w.load_file(p); print(len(weights)); weights = w.load_file('hf://me/tuned/model.safetensors'); print(len(weights))"
    )
    assert client.python(code).split() == [str(len(weightpack.numpy.load(content)))] * 2


@pytest.mark.parametrize("change", ["longer", "other bytes"])
def test_what_is_no_base_is_not_downloaded(far_from_its_base, monkeypatch, change):
    client, path, _ = far_from_its_base
    monkeypatch.setenv("WEIGHTPACK_FETCH_BASES", "1")
    (entry,) = [entry for tree in client.hub.repos["me/base"].commits.values() for name, entry in tree.items() if name.endswith(".safetensors")]
    old = client.hub.blobs[entry.oid]
    data = old + bytes(10_000_000) if change == "longer" else bytes([old[0] ^ 1]) + old[1:]
    changed = client.hub.put(data, lfs=True)
    entry.oid, entry.size = changed.oid, changed.size
    done = client("unpack", path)
    assert done.returncode == 2
    assert "--base" in done.stderr
    assert sum(request.n_sent for request in client.hub.requests) < 1000
    assert not path.with_name("far.safetensors").exists()


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
