#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Pack a GPT-2-type model, load it plain and packed with from_pretrained, and compare weights and logits by bits and greedy output token by token.

    scripts/demo-generate                                         # installs what it needs
    scripts/demo-generate --model gpt2 --prompt "Not one bit"     # a folder, or an id where there is a Hub; --prompt as often as you like

Without --model it takes MGM out of the package microformer-mgm (MIT): GPT-2's architecture, trained on samples of microbes. Its text is the genera of a sample,
those first that stand out most above their average, so a prompt is how the list of a gut, a mouth or a soil begins.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import fetch_models
import plain_and_packed
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = {
    "mgm": [
        "g__Bacteroides", "g__Bacteroides g__Faecalibacterium", "g__Prevotella g__Bacteroides g__Bifidobacterium", "g__Streptococcus g__Veillonella",
        "g__Staphylococcus g__Cutibacterium", "g__Lactobacillus", "g__Bradyrhizobium g__Sphingomonas", "g__Prochlorococcus g__Synechococcus",
    ],
    "text": ["Not one bit is lost when", "The exponents of trained weights", "Once upon a time", "The capital of France is", "In 1948 Claude Shannon"],
}  # fmt: skip


def fetch_mgm() -> Path:
    """Return a folder that from_pretrained reads: MGM's weights and configuration, and a tokenizer of the names that its package lists, one token a genus."""
    weights = fetch_models.fetch("mgm") / "model.safetensors"
    target = fetch_models.DEFAULT_FOLDER.parent / "mgm"
    if target.exists():
        return target
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    wheel = fetch_models.download(fetch_models.MODELS["mgm"][0])
    rows = wheel.read("mgm/resources/phylogeny.csv").decode().splitlines()[1:]
    names = ["<pad>", "<mask>", "<bos>", "<eos>", *(row.split(",")[0] for row in rows)]  # the order of the package's own tokenizer
    config = json.loads(wheel.read("mgm/resources/general_model/config.json"))
    if len(names) != config["vocab_size"]:
        raise ValueError(f"{len(names)} names for {config['vocab_size']} embeddings")
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<mask>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", names.index("<bos>"))])
    with tempfile.TemporaryDirectory(dir=target.parent) as partial:
        folder = Path(partial) / target.name
        folder.mkdir()
        words.save(str(folder / "tokenizer.json"))
        tokens = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "mask_token": "<mask>", "unk_token": "<mask>"}
        # written here, since transformers 4 does not read what transformers 5 saves
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **tokens}, indent=1))
        for name in ("config.json", "generation_config.json"):
            (folder / name).write_bytes(wheel.read(f"mgm/resources/general_model/{name}"))
        shutil.copy(weights, folder)
        folder.rename(target)
    return target


@torch.no_grad()
def answer(model, tokenizer, prompts: list[str], new_tokens: int, name: str) -> list[dict[str, torch.Tensor]]:
    """Return for each prompt the logits of all its tokens, the greedy continuation, and the logits of each step that led to it."""
    answers = []
    for prompt in tqdm(prompts, desc=f"generating, {name}", unit="prompt", leave=False, disable=None):
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        greedy = model.generate(
            **inputs, do_sample=False, num_beams=1, max_new_tokens=new_tokens, return_dict_in_generate=True, output_logits=True,
            pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        )  # fmt: skip
        answers.append({"logits": model(**inputs).logits, "tokens": greedy.sequences, "steps": torch.stack(greedy.logits), "given": inputs["input_ids"]})
    return answers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", help="a folder or a Hub id with a causal language model; default: MGM from the package microformer-mgm")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="instead of the script's own; may be given several times")
    parser.add_argument("--new-tokens", type=int, help="default: 48; 12 with --quick")
    parser.add_argument("--quick", action="store_true", help="three prompts, short answers")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="of the weights that are saved, packed and compared")
    parser.add_argument("--threads", type=int, help="of PyTorch")
    parser.add_argument("--to", type=Path, default=fetch_models.DEFAULT_FOLDER.parent / "generation", help="its folders plain and packed are replaced")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    arguments = parser.parse_args()
    plain_and_packed.quiet()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    prompts = (arguments.prompt or PROMPTS["text" if arguments.model else "mgm"])[: 3 if arguments.quick else None]
    new_tokens = arguments.new_tokens or (12 if arguments.quick else 48)

    base = arguments.model or fetch_mgm()
    tokenizer = AutoTokenizer.from_pretrained(base)
    folders = {"plain": arguments.to / "plain", "packed": arguments.to / "packed"}
    plain_and_packed.save(AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, arguments.dtype)), tokenizer, folders["plain"])
    sizes = plain_and_packed.pack(folders["plain"], folders["packed"])

    models, times, answers = {}, {}, {}
    for name, loader in (("plain", plain_and_packed.load_plain), ("packed", plain_and_packed.load_packed)):
        models[name], times[name] = loader(AutoModelForCausalLM, folders[name])
        answers[name] = answer(models[name], tokenizer, prompts, new_tokens, name)
    texts = {name: [tokenizer.decode(each["tokens"][0], skip_special_tokens=True) for each in answers[name]] for name in answers}
    for prompt, plain, packed in zip(prompts, texts["plain"], texts["packed"], strict=True):
        print(f"prompt: {prompt}")
        print(f"both: {plain}\n" if plain == packed else f"plain: {plain}\npacked: {packed}\n")
    print(plain_and_packed.sizes_and_times(sizes, times), end="\n\n")

    def all_same(key: str) -> bool:
        return all(plain_and_packed.same_bits(a[key], b[key]) for a, b in zip(answers["plain"], answers["packed"], strict=True))

    equal = {
        "weights": plain_and_packed.same_weights(models["plain"], models["packed"]),
        "logits of the prompts": all_same("logits"),
        "logits of the steps": all_same("steps"),
        "tokens": all_same("tokens"),
        "texts": texts["plain"] == texts["packed"],
    }
    result = {
        "model": str(arguments.model or "MGM (microformer-mgm)"), "quick": arguments.quick, "dtype": arguments.dtype, "prompts": prompts,
        "new_tokens": [each["tokens"].shape[1] - each["given"].shape[1] for each in answers["packed"]], "texts": texts["packed"],
        "bytes": sizes, "load_seconds": times,
    }  # fmt: skip
    return plain_and_packed.conclude(equal, result, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
