# SPDX-License-Identifier: Apache-2.0
"""Tiny models with random weights that vLLM takes on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file

VOCAB = 512


def llama(folder: Path, dtype: torch.dtype = torch.bfloat16, n_layers: int = 2, hidden: int = 128, seed: int = 0, **save) -> Path:
    """Save a LLaMA."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=n_layers, num_attention_heads=hidden // 32, num_key_value_heads=hidden // 64,
        vocab_size=VOCAB, max_position_embeddings=128, tie_word_embeddings=False, initializer_range=0.1,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).to(dtype).save_pretrained(folder, **save)
    return folder


def bert(folder: Path) -> Path:
    """Save a BERT that embeds."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCAB, max_position_embeddings=128
    )
    transformers.BertModel(config).to(torch.float32).save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", model_max_length=128).save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes: object) -> Path:
    """Change keys of a model's config.json; None takes one away."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def without_dtype(folder: Path) -> Path:
    """A LLaMA in float16, of which config.json does not tell."""
    return edit_config(llama(folder, torch.float16), dtype=None, torch_dtype=None)


def gptq(folder: Path) -> Path:
    """A LLaMA with the attention of 4 bits (GPTQ) and the MLPs as they were; config.json does not say which, and vLLM finds it out by the dtypes."""
    llama(folder, torch.float16)
    tensors, group = load_file(folder / "model.safetensors"), 32
    for name in [name for name in tensors if "self_attn" in name and name.endswith("proj.weight")]:
        n_out, n_in = tensors.pop(name).shape
        stem = name.removesuffix(".weight")
        any_bits = torch.iinfo(torch.int32)
        tensors[f"{stem}.qweight"] = torch.randint(any_bits.min, any_bits.max, (n_in // 8, n_out), dtype=torch.int32)
        tensors[f"{stem}.qzeros"] = torch.full((n_in // group, n_out // 8), 0x77777777, dtype=torch.int32)
        tensors[f"{stem}.scales"] = (torch.rand(n_in // group, n_out) * 0.02 + 0.01).half()
        tensors[f"{stem}.g_idx"] = torch.arange(n_in, dtype=torch.int32) // group
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    method = {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": False, "sym": True, "checkpoint_format": "gptq"}
    return edit_config(folder, quantization_config=method)


def mistral(folder: Path) -> Path:
    """A model in Mistral's own format, in float16, of which params.json does not tell."""
    llama(folder, torch.float16)
    tensors, renamed = load_file(folder / "model.safetensors"), {}
    names = {
        "model.embed_tokens": "tok_embeddings", "lm_head": "output", "model.norm": "norm", "model.layers": "layers", "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3", "post_attention_layernorm": "ffn_norm", "input_layernorm": "attention_norm",
    }  # fmt: skip
    for name, tensor in tensors.items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        renamed[name] = tensor
    for path in folder.iterdir():
        path.unlink()
    save_file(renamed, folder / "consolidated.safetensors", {"format": "pt"})
    params = {"dim": 128, "n_layers": 2, "head_dim": 32, "hidden_dim": 256, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-6, "vocab_size": VOCAB,
              "rope_theta": 10000.0, "max_position_embeddings": 128}  # fmt: skip
    (folder / "params.json").write_text(json.dumps(params))
    return folder


def lora(folder: Path) -> Path:
    """Save an adapter for the LLaMA, as peft does."""
    torch.manual_seed(1)
    tensors = {}
    for layer in range(2):
        for target in ("q_proj", "v_proj"):
            stem = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(8, 128) * 0.1
            tensors[f"{stem}.lora_B.weight"] = torch.randn(128 if target == "q_proj" else 64, 8) * 0.1
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "bias": "none", "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
