# SPDX-License-Identifier: Apache-2.0
"""`weightpack store`, as a user runs it."""

from __future__ import annotations

import json

import pytest
from command import call, refused, run
from folders import contents
from stores import model, some_weights, steps


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with two models."""
    monkeypatch.setenv("WEIGHTPACK_CACHE", str(tmp_path / "cache"))
    base = some_weights()
    model(tmp_path / "base", base)
    model(tmp_path / "tuned", steps(base, 10))
    return tmp_path


def said(folder, *arguments):
    done = call("store", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_init_to_gc(folder):
    assert said(folder, "init", "zoo") == ""
    assert said(folder, "ls", "zoo") == "no models\n"
    added = said(folder, "add", "zoo", "base", "tuned").splitlines()
    assert [line.split(":")[0] for line in added] == ["base", "tuned"] and "3 of 3 tensors are new" in added[1]
    assert "0 of 3 tensors are new" in said(folder, "add", "zoo", "base")
    assert said(folder, "log", "zoo").splitlines()[3].startswith("└─ tuned")
    (tree,) = [json.loads(said(folder, "log", "zoo", "--json"))]
    assert [(branch["name"], branch["parent"]) for branch in tree] == [("base", None), ("tuned", "base")]
    usage = json.loads(said(folder, "du", "zoo", "--json"))
    assert usage["stored_bytes"] < sum(row["source_bytes"] for row in usage["models"])
    assert said(folder, "du", "zoo").splitlines()[-1].startswith("the store")
    assert len(said(folder, "du", "zoo", "tuned").splitlines()) == 3
    assert said(folder, "get", "zoo", "tuned", "-o", "again").startswith("again: ")
    assert contents(folder / "again") == contents(folder / "tuned")
    assert said(folder, "verify", "zoo", "tuned").startswith("ok: 2 models")
    assert json.loads(said(folder, "verify", "zoo", "--json", "--no-decode"))["objects"] == 2
    assert said(folder, "rebase", "zoo") == "stored 3 tensors anew\n"
    assert json.loads(said(folder, "rebase", "zoo", "--json")) == {"tensors": 0}
    assert said(folder, "gc", "zoo").startswith("removed 1 object, ")
    assert said(folder, "export", "zoo", "--dir", "out") == "2 models in out\n"
    assert json.loads(said(folder, "export", "zoo", "tuned", "--dir", "out", "--json")) == ["out/tuned"]
    assert contents(folder / "out" / "base") == contents(folder / "base")
    said(folder, "rm", "zoo", "tuned")
    assert said(folder, "gc", "zoo", "--dry-run").startswith("would remove 1 object, ")
    assert json.loads(said(folder, "gc", "zoo", "--json"))["objects"] == 1
    assert [row["name"] for row in json.loads(said(folder, "ls", "zoo", "--json"))] == ["base"]


def test_a_picture_of_the_tree(folder):
    pytest.importorskip("matplotlib", reason="scripts/setup test installs it")
    said(folder, "init", "zoo")
    refused(call("store", "log", "zoo", "--plot", "tree.svg", cwd=folder), 2, "1 to 200 models")
    said(folder, "add", "zoo", "base", "tuned")
    assert said(folder, "log", "zoo", "--plot", "tree.svg") == said(folder, "log", "zoo")
    assert (folder / "tree.svg").stat().st_size > 5000
    refused(call("store", "log", "zoo", "--plot", "tree.txt", cwd=folder), 2, ".png, .svg, .pdf")


def test_in_a_process_of_its_own(folder):
    assert run("store", "init", "zoo", cwd=folder).returncode == 0
    done = run("store", "add", "zoo", "base", "--json", cwd=folder)
    assert json.loads(done.stdout)[0]["tensors"] == 3 and done.stderr == ""


def test_what_is_refused(folder):
    refused(call("store", "ls", "zoo", cwd=folder), 2, "no store here", "weightpack store init")
    said(folder, "init", "zoo")
    refused(call("store", "init", "zoo", cwd=folder), 2, "a store already")
    refused(call("store", "add", "zoo", "base", "tuned", "--name", "x", cwd=folder), 2, "one by one")
    refused(call("store", "add", "zoo", "base", "--name", "../x", cwd=folder), 2, "--name")
    refused(call("store", "get", "zoo", "base", cwd=folder), 2, "no model 'base'", "store ls")
    refused(call("store", "add", "zoo", "nothing/at/all", cwd=folder), 2, "no such file")
    said(folder, "add", "zoo", "base")
    refused(call("store", "get", "zoo", "base", cwd=folder), 2, "exists", "--force")
    (object_,) = (folder / "zoo" / "objects").rglob("*.safetensors")
    object_.unlink()
    refused(call("store", "verify", "zoo", cwd=folder), 1, "problems", "is missing")
    refused(call("store", "get", "zoo", "base", "-o", "again", cwd=folder), 1, "is not there", "store verify")
