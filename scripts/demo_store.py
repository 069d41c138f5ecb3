# SPDX-License-Identifier: Apache-2.0
"""A store of a real model, real fine-tunes of it, another dtype and a stranger: by the command line as a user would type it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import fetch_models
import torch
from transformers import AutoModel, AutoTokenizer

WORK = fetch_models.DEFAULT_FOLDER.parent / "store"
PROGRAM = [sys.executable, "-m", "weightpack"]
PAIRS = [
    ("A pack of lossless weights.", "Weights that lose nothing when they are packed."),
    ("The exponent says how large a number is.", "How big a float is stands in its exponent."),
    ("Fine-tunes differ little from their base.", "What was trained further is near what it was trained from."),
]
LOAD = """
import sys, torch
from transformers import AutoModel
torch.save(AutoModel.from_pretrained(sys.argv[1]).state_dict(), sys.argv[2])
"""


def run(*arguments: str) -> None:
    print(f"$ weightpack {' '.join(arguments)}", flush=True)
    subprocess.run([*PROGRAM, *arguments], cwd=WORK, check=True)
    print()


def tune(source: Path, target: Path, steps: int) -> None:
    """Fine-tune for some steps: sentences that mean the same come nearer to each other than to the rest."""
    torch.manual_seed(0)
    tokenizer, model = AutoTokenizer.from_pretrained(source), AutoModel.from_pretrained(source)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    inputs = [tokenizer(list(texts), padding=True, return_tensors="pt") for texts in zip(*PAIRS, strict=True)]
    for _ in range(steps):
        one, other = (torch.nn.functional.normalize(model(**each).last_hidden_state.mean(1)) for each in inputs)
        loss = torch.nn.functional.cross_entropy(one @ other.T * 20, torch.arange(len(PAIRS)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def same(one: Path, other: Path) -> bool:
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    return names == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file()) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


def main() -> None:
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    os.environ["WEIGHTPACK_CACHE"] = str(WORK / "cache")
    shutil.copytree(fetch_models.fetch("minilm"), WORK / "minilm")
    shutil.copytree(fetch_models.fetch("mgm"), WORK / "mgm")
    print("fine-tuning all-MiniLM-L6-v2 for real ...\n", flush=True)
    tune(WORK / "minilm", WORK / "tuned", 4)
    tune(WORK / "tuned", WORK / "tuned-again", 4)
    AutoModel.from_pretrained(WORK / "tuned", dtype=torch.bfloat16).save_pretrained(WORK / "tuned-bf16")

    run("store", "init", "zoo")
    run("store", "add", "zoo", "minilm", "tuned", "tuned-again", "tuned-bf16", "mgm")
    run("store", "add", "zoo", "tuned")
    run("store", "log", "zoo")
    run("store", "du", "zoo")
    run("store", "get", "zoo", "tuned-again", "-o", "restored")
    assert same(WORK / "tuned-again", WORK / "restored"), "a file differs"
    print("the restored folder is identical to the one that was added\n")

    print("$ weightpack store serve zoo --port 0", flush=True)
    server = subprocess.Popen([*PROGRAM, "store", "serve", "zoo", "--port", "0"], cwd=WORK, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        name, _, endpoint = server.stdout.readline().strip().partition("=")
        print(f"{name}={endpoint}\n$ {name}={endpoint} python -c 'AutoModel.from_pretrained(\"tuned\")'", flush=True)
        environment = {**os.environ, name: endpoint, "HF_HOME": str(WORK / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        subprocess.run([sys.executable, "-c", LOAD, "tuned", str(WORK / "loaded.pt")], env=environment, cwd=WORK / "cache", check=True)
    finally:
        server.terminate()
        server.wait()
    loaded, plain = torch.load(WORK / "loaded.pt"), AutoModel.from_pretrained(WORK / "tuned").state_dict()
    assert loaded.keys() == plain.keys() and all(torch.equal(loaded[key], plain[key]) for key in plain), "a tensor differs"
    print(f"{len(loaded)} tensors that from_pretrained got from the store: equal to the fine-tune's to the last bit")


if __name__ == "__main__":
    main()
