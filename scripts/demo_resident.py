# SPDX-License-Identifier: Apache-2.0
"""A packed sentence encoder that stays packed in memory: one more argument, the same embeddings."""

from __future__ import annotations

import shutil
import time

import fetch_models
import plain_and_packed
import torch
from transformers import AutoModel, AutoTokenizer

import weightpack
from weightpack._humane import human_bytes, percent, table
from weightpack.torch import PackedTensor
from weightpack.transformers import WeightpackConfig

SENTENCES = ["Not one bit is lost.", "The weights of this model stay packed in memory.", "Packed and plain give the same embedding."]


def weights(model) -> int:
    """Count the bytes that a model's weights take in memory."""
    return sum(tensor.packed.packed_bytes if isinstance(tensor, PackedTensor) else tensor.nbytes for tensor in model.parameters())


def embed(model, tokenizer) -> tuple[torch.Tensor, float]:
    """Return (sentences, 384) embeddings, the mean of the last hidden states, and how many seconds they took."""
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.inference_mode():
        model(**inputs)
        begin = time.perf_counter()
        hidden = model(**inputs).last_hidden_state
    seconds = time.perf_counter() - begin
    mask = inputs["attention_mask"][..., None]
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)), seconds


def main() -> None:
    plain_and_packed.quiet()
    source = fetch_models.fetch("minilm")
    plain, packed = (fetch_models.DEFAULT_FOLDER.parent / name for name in ("minilm-bf16", "minilm-bf16-packed"))
    tokenizer = AutoTokenizer.from_pretrained(source)
    plain_and_packed.save(AutoModel.from_pretrained(source).bfloat16(), tokenizer, plain)
    shutil.rmtree(packed, ignore_errors=True)
    weightpack.pack(plain, packed)

    models = {"plain": AutoModel.from_pretrained(plain, dtype="auto")}
    for name, fused in (("packed in memory", False), ("packed, sums fused", True)):
        models[name] = AutoModel.from_pretrained(packed, dtype="auto", quantization_config=WeightpackConfig(resident=True, fused=fused))
    results = {name: embed(plain_and_packed.settle(model.eval()), tokenizer) for name, model in models.items()}
    stock, rows = results["plain"][0], []
    for name, (embeddings, seconds) in results.items():
        taken, difference = weights(models[name]), (embeddings.float() - stock.float()).abs().max().item()
        rows.append(
            [name, human_bytes(taken), percent(taken, weights(models["plain"])), f"{1000 * seconds:.0f} ms", f"{difference:.1g}" if difference else "none"]
        )
    print(table([["all-MiniLM-L6-v2 in bf16", "weights in memory", "of plain", "three sentences", "largest difference"], *rows], right="lrrrr"))
    assert plain_and_packed.same_bits(stock, results["packed in memory"][0]), "the embeddings differ"
    assert plain_and_packed.same_weights(models["plain"], models["packed in memory"]), "the weights differ"
    print("weights and embeddings of the model that is packed in memory: equal to the original's to the last bit")


if __name__ == "__main__":
    main()
