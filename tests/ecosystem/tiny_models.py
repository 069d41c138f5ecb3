# SPDX-License-Identifier: Apache-2.0
"""Small models with random weights of the families that people load, with inputs for a forward pass."""

from __future__ import annotations

import torch
import transformers as t


def _ids(n=12, vocab=2000):
    return torch.arange(2 * n).reshape(2, n) * 37 % vocab


def gpt2():
    return t.GPT2LMHeadModel(t.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=2000, n_positions=64)), {"input_ids": _ids()}


def llama():
    config = t.LlamaConfig(
        hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=2000,
        max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    return t.LlamaForCausalLM(config), {"input_ids": _ids()}


def t5():
    config = t.T5Config(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, vocab_size=2000)
    return t.T5ForConditionalGeneration(config), {"input_ids": _ids(), "decoder_input_ids": _ids(6)}


def clip():
    config = t.CLIPConfig(
        text_config={
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 2000,
            "max_position_embeddings": 16, "projection_dim": 32,
        },
        vision_config={
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8,
            "projection_dim": 32,
        },
        projection_dim=32,
    )  # fmt: skip
    return t.CLIPModel(config), {"input_ids": _ids(), "pixel_values": torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)}


def mixtral():
    config = t.MixtralConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=2000,
        max_position_embeddings=64, num_local_experts=4,
    )  # fmt: skip
    return t.MixtralForCausalLM(config), {"input_ids": _ids()}


FAMILIES = {f.__name__: f for f in (gpt2, llama, t5, clip, mixtral)}


def make(family: str, folder, dtype=torch.float32, **save):
    """Save a model of a family; return (class, inputs)."""
    torch.manual_seed(0)
    model, inputs = FAMILIES[family]()
    model.to(dtype).eval().save_pretrained(folder, **save)
    return type(model), inputs


def same_state(a, b) -> bool:
    """Are two modules' tensors equal by name, dtype, shape and bits?"""
    a, b = a.state_dict(), b.state_dict()

    def bits(x):
        return x.contiguous().reshape(-1).view(torch.uint8)

    return list(a) == list(b) and all(a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and torch.equal(bits(a[k]), bits(b[k])) for k in a)


def outputs(model, inputs):
    """Return the tensors that a forward pass gives."""
    with torch.no_grad():
        return [x for x in model(**inputs).to_tuple() if isinstance(x, torch.Tensor)]


def settle(model):
    """Copy a model's weights into memory of torch's own: where a mapped file has them at another alignment, sums may differ in the last bit."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


def same_outputs(a, b, inputs) -> bool:
    """Do two models, settled, say the same to the last bit?"""
    return all(torch.equal(x, y) for x, y in zip(outputs(settle(a), inputs), outputs(settle(b), inputs), strict=True))


def close_outputs(a, b, inputs) -> bool:
    """The same but for the last bits: weights that stay on the disk, or are split, can't be settled."""
    return all(torch.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in zip(outputs(a, inputs), outputs(b, inputs), strict=True))
