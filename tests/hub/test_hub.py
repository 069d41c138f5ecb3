# SPDX-License-Identifier: Apache-2.0
"""To a Hub and back with the stock client, which runs in processes of their own, as its settings are read when it is imported."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import hub_double
import pytest
import samples

import weightpack

ROOT = Path(__file__).resolve().parents[2]
REPO = "me/tiny-wp"


@pytest.fixture
def client(tmp_path):
    with hub_double.serve() as hub:
        yield hub_double.Client(hub, tmp_path)


def sharded(folder):
    """A model in two shards, with a config without dtype and a card."""
    folder.mkdir()
    weight_map = {}
    for i in (1, 2):
        name = f"model-{i:05}-of-00002.safetensors"
        (folder / name).write_bytes(samples.bf16_file(seed=i, name=f"layer.{i}.weight"))
        weight_map[f"layer.{i}.weight"] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text('{"architectures": ["BertModel"], "model_type": "bert"}\n')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- bert\n---\n# Tiny\n\nA model.\n")
    return folder


def same_folder(a, b):
    names = {p.relative_to(a).as_posix() for p in a.rglob("*") if p.is_file()}
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in names)


def test_push_pull_unpack(client, tmp_path):
    source = sharded(tmp_path / "tiny")
    told = client.ok("push", source, REPO, "--base-model", "org/tiny")
    assert "saved" in told
    assert client.hub.paths(REPO) >= {"weightpack.json", "README.md", "config.json", "tokenizer.json", "model-00001-of-00002.safetensors"}
    card = client.hub.file(REPO, "README.md").decode()
    metadata = ("license: apache-2.0", "- bert", "- weightpack", "base_model: org/tiny", "base_model_relation: quantized", "library_name: transformers")
    for line in (*metadata, "A model."):
        assert line in card
    assert f'BertModel.from_pretrained("{REPO}")' in card
    assert client.hub.file(REPO, "config.json") == (source / "config.json").read_bytes()
    client.ok("pull", REPO, "packed")
    client.ok("verify", "packed", "--against", source)
    client.ok("pull", REPO, "restored", "--unpack")
    assert same_folder(source, tmp_path / "restored")


def test_push_again_sends_nothing(client, tmp_path):
    source = sharded(tmp_path / "tiny")
    first = json.loads(client.ok("push", source, REPO, "--json"))
    branch = client.hub.repos[REPO].branches["main"]
    client.hub.requests.clear()
    second = json.loads(client.ok("push", source, REPO, "--json"))
    assert not [line for line in client.hub.log() if line.startswith("PUT")]
    assert client.hub.repos[REPO].branches["main"] == branch
    assert {**first, "commit": ""} == {**second, "commit": ""}


def test_push_of_a_packed_folder_and_of_a_repo(client, tmp_path):
    source = sharded(tmp_path / "tiny")
    weightpack.pack(source, tmp_path / "tiny-wp")
    client.ok("push", "tiny-wp", REPO)
    client.hub.add("org/tiny", source)
    client.ok("push", "org/tiny", "me/again", "--private")
    assert client.hub.repos["me/again"].private
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "config.json"):
        assert client.hub.file(REPO, name) == client.hub.file("me/again", name) == (tmp_path / "tiny-wp" / name).read_bytes()
    assert "base_model: org/tiny" in client.hub.file("me/again", "README.md").decode()
    client.ok("pull", "me/again", "restored", "--unpack")
    assert same_folder(source, tmp_path / "restored")


def test_revision_and_pull_request(client, tmp_path):
    source = sharded(tmp_path / "tiny")
    client.ok("push", source, REPO, "--revision", "v2")
    assert client.hub.paths(REPO) == {".gitattributes"}
    client.ok("pull", REPO, "v2", "--unpack", "--revision", "v2")
    assert same_folder(source, tmp_path / "v2")
    assert "discussions/1" in client.ok("push", source, REPO, "--create-pr")
    assert client.hub.paths(REPO) == {".gitattributes"}


def large(folder, mebibytes=24):
    """A model that a push takes a moment over: two shards, each larger than what the Hub takes with the commit."""
    folder.mkdir()
    for i in (1, 2):
        (folder / f"part{i}.safetensors").write_bytes(samples.bf16_file(seed=i, name=f"w{i}", n=mebibytes << 18))
    return folder


def test_scratch_that_others_planted_is_not_followed(client, tmp_path, monkeypatch):
    """A name that can be foreseen was a link's: what it led to was deleted."""
    source = sharded(tmp_path / "tiny")
    temporary, precious = tmp_path / "temporary", tmp_path / "precious"
    temporary.mkdir()
    precious.mkdir()
    (precious / "thesis").write_text("precious")
    foreseen = hashlib.sha256(f"{source.resolve()}\0{REPO}\0{os.getuid()}".encode()).hexdigest()[:16]
    links = {temporary / f"weightpack-push-{foreseen}", temporary / f".weightpack-push.{foreseen}.wp-partial"}
    for link in links:
        link.symlink_to(precious)
    monkeypatch.setenv("TMPDIR", str(temporary))
    client.ok("push", source, REPO)
    assert (precious / "thesis").read_text() == "precious"
    assert list(precious.iterdir()) == [precious / "thesis"]
    assert set(temporary.iterdir()) == links


@pytest.mark.long
def test_resume_after_a_dropped_connection(client, tmp_path):
    source = large(tmp_path / "large")
    client.hub.drop_uploads = 1000
    stopped = client("push", source, REPO)
    assert stopped.returncode == 3
    assert "run it again" in stopped.stderr or "try again" in stopped.stderr
    assert client.hub.paths(REPO) == {".gitattributes"}
    client.hub.drop_uploads = 0
    client.ok("push", source, REPO)
    client.ok("pull", REPO, "restored", "--unpack")
    assert same_folder(source, tmp_path / "restored")


def test_resume_after_kill(client, tmp_path):
    """Killed when the first shard is up: the second run does not send it again."""
    source = large(tmp_path / "large")
    process = subprocess.Popen(client.command("push", source, REPO), cwd=tmp_path, env=client.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any(line.startswith("PUT") for line in client.hub.log()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    while len(client.hub.blobs) < 2 and process.poll() is None and time.monotonic() < deadline:  # .gitattributes and the first shard
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert client.hub.paths(REPO) == {".gitattributes"}
    sent = {oid for oid in client.hub.blobs if len(oid) == 64}
    assert sent
    client.hub.requests.clear()
    client.ok("push", source, REPO)
    assert not sent & {line.rsplit("/")[-1] for line in client.hub.log() if line.startswith("PUT")}
    client.ok("pull", REPO, "restored", "--unpack")
    assert same_folder(source, tmp_path / "restored")


def test_push_and_pull_killed_at_random_moments(client, tmp_path, kills):
    source = large(tmp_path / "large", mebibytes=8)
    rng = random.Random(2)
    seconds = {}
    for what in ("push", "pull"):
        for attempt in range(1 + kills):
            arguments = ("push", source, f"me/{what}{attempt}") if what == "push" else ("pull", "me/push0", f"pulled{attempt}", "--unpack")
            start = time.perf_counter()
            process = subprocess.Popen(client.command(*arguments), cwd=tmp_path, env=client.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds[what] * rng.uniform(0.3, 1) if attempt else None)
            process.kill()
            process.wait()
            seconds.setdefault(what, time.perf_counter() - start)
            if what == "push" or not (tmp_path / f"pulled{attempt}").exists():
                client.ok(*arguments)
        if what == "push":
            assert len({client.hub.file(f"me/push{i}", "part1.safetensors") for i in range(1 + kills)}) == 1
        else:
            assert all(same_folder(source, tmp_path / f"pulled{i}") for i in range(1 + kills))
    assert not list(tmp_path.glob(".pulled*"))
    assert not list(Path(tempfile.gettempdir()).glob(".weightpack-push.*"))


@pytest.mark.parametrize(
    ("token", "word"), [("", "log in"), ("hf_wrong", "valid --token"), (hub_double.READ_TOKEN, "write access")], ids=["none", "wrong", "read-only"]
)
def test_push_refused(client, tmp_path, token, word):
    source = sharded(tmp_path / "tiny")
    client.token = token
    done = client("push", source, REPO)
    assert done.returncode == 2, done.stderr
    assert word in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not token or token not in done.stderr


@pytest.mark.parametrize(
    ("status", "code", "word"), [(409, 2, "someone else"), (412, 2, "committed meanwhile"), (400, 2, "not accepted"), (500, 3, "run it again")]
)
def test_commit_refused(client, tmp_path, status, code, word):
    source = sharded(tmp_path / "tiny")
    client.hub.refuse_commits = status
    done = client("push", source, REPO)
    assert done.returncode == code, done.stderr
    assert word in done.stderr
    assert client.hub.paths(REPO) == {".gitattributes"}


def test_flag(client, tmp_path):
    source = sharded(tmp_path / "tiny")
    client.ok("push", source, REPO, "--hf-flag")
    assert json.loads(client.hub.file(REPO, "config.json"))["quantization_config"]["quant_method"] == "weightpack"
    client.ok("pull", REPO, "restored", "--unpack")
    assert same_folder(source, tmp_path / "restored")


def test_what_is_not_there(client, tmp_path):
    source = sharded(tmp_path / "tiny")
    client.hub.add("org/tiny", source)
    assert "no repo" in client("pull", "org/none").stderr
    assert "no revision" in client("pull", "org/tiny", "--revision", "v9").stderr
    assert "not packed" in client("pull", "org/tiny", "x", "--unpack").stderr
    assert "no repo" in client("inspect", "org/none").stderr
    assert client("push", tmp_path / "none", REPO).returncode == 2
    assert client("push", source, "not a repo").returncode == 2
    assert not (tmp_path / "x").exists()


def test_pull_into_a_folder_that_is_there_without_a_network(client, tmp_path):
    """Such a folder passes for the repo with the stock client; nothing was fetched, so this fails."""
    source = sharded(tmp_path / "tiny")
    client.hub.add("org/tiny", source)
    client.ok("pull", "org/tiny", "here")
    assert same_folder(source, tmp_path / "here")
    client.ok("pull", "org/tiny", "here")
    for env in ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}):
        done = subprocess.run(client.command("pull", "org/tiny", "here"), cwd=tmp_path, env={**client.env, **env}, capture_output=True, text=True, timeout=300)
        assert done.returncode == 3, done.stderr
        assert done.stdout == ""
        assert len([line for line in done.stderr.splitlines() if line.startswith("weightpack: ")]) == 1, done.stderr
        assert "Traceback" not in done.stderr
    assert "no revision" in client("pull", "org/tiny", "here", "--revision", "v9").stderr


# ---- remote reading


OPEN = """
import json, sys, weightpack
from weightpack.io.remote import RemoteFile
with weightpack.safe_open(sys.argv[1]) as f:
    name = f.keys()[-1]
    part = f.get_slice(name)[3:5] if sys.argv[2] == "rows" else f.get_tensor(name)
    print(json.dumps([name, part.tobytes().hex(), f._reader.file.bytes_read]))
"""


@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_tensors_of_a_remote_file_are_read_by_range(client, tmp_path, model, kind):
    """One tensor out of 91 MB; what the server sent is counted."""
    folder = tmp_path / "minilm"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((model("minilm") / "model.safetensors").read_bytes())
    repo = folder if kind == "plain" else Path(weightpack.pack(folder, tmp_path / "minilm-wp").target)
    client.hub.add("org/minilm", repo)
    url = "hf://org/minilm@main/model.safetensors"
    with weightpack.safe_open(folder / "model.safetensors") as f:
        name = f.keys()[-1]
        whole, rows = f.get_tensor(name), f.get_slice(name)[3:5]
    for what, expected in (("whole", whole), ("rows", rows)):
        client.hub.requests.clear()
        got_name, data, n_read = json.loads(client.python(OPEN, url, what))
        assert (got_name, bytes.fromhex(data)) == (name, expected.tobytes())
        sent = sum(request.n_sent for request in client.hub.requests if request.path.endswith("model.safetensors") and request.method == "GET")
        assert sent == n_read
        assert sent < whole.nbytes + 400_000


def test_inspect_and_estimate_a_repo_without_its_weights(client, tmp_path, model):
    source = tmp_path / "minilm"
    source.mkdir()
    (source / "model.safetensors").write_bytes((model("minilm") / "model.safetensors").read_bytes())
    client.hub.add("org/minilm", source)
    client.ok("push", source, "me/minilm-wp")
    client.hub.requests.clear()
    (report,) = json.loads(client.ok("inspect", "me/minilm-wp", "--json"))
    assert sum(request.n_sent for request in client.hub.requests) < 400_000
    assert report["source_bytes"] == (source / "model.safetensors").stat().st_size
    assert report["source_sha256"] == hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    assert "%" in client.ok("inspect", "me/minilm-wp", "--tensors")
    client.hub.requests.clear()
    (estimated,) = json.loads(client.ok("estimate", "org/minilm", "--json"))
    assert sum(request.n_sent for request in client.hub.requests) < 50_000_000
    assert abs(estimated["packed_bytes"] / report["packed_bytes"] - 1) < 0.02


def test_a_repo_proves_itself(client, tmp_path):
    source = sharded(tmp_path / "tiny")
    client.hub.add("org/tiny", source)
    client.ok("push", source, REPO)
    for arguments in ([], ["--no-decode"]):
        client.hub.requests.clear()
        assert "org/tiny" in client.ok("verify", REPO, "--against", "org/tiny", *arguments)
        assert not [line for line in client.hub.log() if "org/tiny/resolve" in line]
    other = tmp_path / "other"
    sharded(other)
    (other / "model-00002-of-00002.safetensors").write_bytes(samples.bf16_file(seed=9, name="layer.2.weight"))
    client.hub.add("org/other", other)
    for arguments in ([], ["--no-decode"]):
        refused = client("verify", REPO, "--against", "org/other", *arguments)
        assert refused.returncode == 1
        assert "publishes" in refused.stderr
        assert "model-00002" in refused.stderr


def test_any_fsspec_url(tmp_path):
    """s3fs against a real S3 server is in tests/test_s3.py."""
    import fsspec

    data = samples.bf16_file(seed=1, name="w")
    (tmp_path / "plain.safetensors").write_bytes(data)
    weightpack.pack(tmp_path / "plain.safetensors", tmp_path / "packed.safetensors")
    memory = fsspec.filesystem("memory")
    memory.pipe("/models/packed.safetensors", (tmp_path / "packed.safetensors").read_bytes())
    with weightpack.safe_open("memory://models/packed.safetensors", "pt") as f, weightpack.safe_open(tmp_path / "plain.safetensors", "pt") as plain:
        assert f.get_tensor("w").equal(plain.get_tensor("w"))
    with weightpack.safe_open((tmp_path / "packed.safetensors").as_uri()) as f:
        assert f.keys() == ["w"]
    for url in ("memory://models/none", "gopher://x/y"):
        with pytest.raises(weightpack.WeightpackError, match=url.split(":")[0]):
            weightpack.safe_open(url)


# ---- scripts


def script(client, name, *arguments):
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / name, *map(str, arguments)], cwd=client.folder, env=client.env, capture_output=True, text=True, timeout=300
    )


def test_upload_scripts(client, tmp_path):
    source = sharded(tmp_path / "tiny")
    done = script(client, "upload_model.py", source, REPO)
    assert done.returncode == 0, done.stderr
    client.hub.add("org/second", source)
    (tmp_path / "models.txt").write_text(f"# models\n{source} one\norg/second\norg/missing\n")
    for attempt in (1, 2):
        client.hub.requests.clear()
        done = script(client, "upload_models.py", "models.txt", "me", "--report", "report.md")
        assert done.returncode == 1
        assert "org/missing" in done.stderr + done.stdout
        report = (tmp_path / "report.md").read_text()
        assert "me/one" in report
        assert "me/second-wp" in report
        assert "failed" in report
        assert any("me/one" in line for line in client.hub.log()) == (attempt == 1)
    assert client.hub.file("me/one", "weightpack.json") == client.hub.file("me/second-wp", "weightpack.json")
