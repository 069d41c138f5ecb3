# SPDX-License-Identifier: Apache-2.0
"""A packed sentence encoder through transformers: one more import, the same embeddings."""

from __future__ import annotations

import shutil

import fetch_models
import plain_and_packed
import torch
from transformers import AutoModel, AutoTokenizer

import weightpack.transformers

SENTENCES = ["Not one bit is lost.", "The exponents of trained weights hold 2.6 bits of information.", "Packed and plain give the same embedding."]


def embed(folder) -> torch.Tensor:
    """Return (sentences, 384) embeddings: the mean of the last hidden states, as sentence-transformers has it."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), plain_and_packed.settle(AutoModel.from_pretrained(folder).eval())
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))


def main() -> None:
    source = fetch_models.fetch("minilm")
    target = fetch_models.DEFAULT_FOLDER.parent / "minilm-packed"
    shutil.rmtree(target, ignore_errors=True)
    job = weightpack.pack(source, target)
    print(f"{job.source_bytes / 1e6:.1f} MB packed to {job.packed_bytes / 1e6:.1f} MB in {target}")
    plain, packed = embed(source), embed(target)
    print(f"similarity of the sentences:\n{packed @ packed.T}")
    assert torch.equal(plain.view(torch.int32), packed.view(torch.int32)), "the embeddings differ"
    print("embeddings of the packed model: equal to the original's to the last bit")


if __name__ == "__main__":
    main()
