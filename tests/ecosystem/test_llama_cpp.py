# SPDX-License-Identifier: Apache-2.0
"""llama.cpp, which maps its file, on a packed GGUF that `weightpack mount` shows: the same logits and the same text as of the plain file, to the last bit.

scripts/test-programs builds llama-cpp-python.
"""

from __future__ import annotations

import signal
import subprocess

import fuse
import numpy as np
import pytest
from command import PROGRAM

import weightpack

gguf = pytest.importorskip("gguf", reason="scripts/test-programs installs gguf")
pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("default")]
WIDTH, HEADS, LAYERS, HIDDEN = 256, 4, 2, 512


def tiny_llama(path, quantisation):
    """A LLaMA with random weights and a vocabulary of bytes."""
    rng, writer = np.random.default_rng(3), gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *(chr(i) for i in range(33, 127))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, *[gguf.TokenType.BYTE] * 256, *[gguf.TokenType.NORMAL] * 94]
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

    def add(name, *shape):
        values = (rng.standard_normal(shape) * 0.08).astype(np.float32)
        writer.add_tensor(name, gguf.quants.quantize(values, quantisation), raw_dtype=quantisation)

    def add_norm(name):
        writer.add_tensor(name, (1 + 0.1 * rng.standard_normal(WIDTH)).astype(np.float32))

    add("token_embd.weight", len(tokens), WIDTH)
    add("output.weight", len(tokens), WIDTH)
    add_norm("output_norm.weight")
    for i in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{i}.{name}.weight", WIDTH, WIDTH)
        add(f"blk.{i}.ffn_gate.weight", HIDDEN, WIDTH)
        add(f"blk.{i}.ffn_up.weight", HIDDEN, WIDTH)
        add(f"blk.{i}.ffn_down.weight", WIDTH, HIDDEN)
        add_norm(f"blk.{i}.attn_norm.weight")
        add_norm(f"blk.{i}.ffn_norm.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def answers(llama_cpp, path, use_mmap):
    """Return the logits of a prompt and a greedy continuation."""
    model = llama_cpp.Llama(str(path), n_ctx=128, n_threads=1, n_threads_batch=1, n_batch=32, logits_all=True, use_mmap=use_mmap, seed=1, verbose=False)
    try:
        prompt = model.tokenize(b"one two three")
        model.eval(prompt)
        logits = np.array(model.scores[: len(prompt)], np.float32)
        text = model.create_completion("one two", max_tokens=24, temperature=0.0)["choices"][0]["text"]
        return logits, text
    finally:
        model.close()


@fuse.needed
@pytest.mark.parametrize("quantisation", ["BF16", "F16", "Q8_0", "Q4_0"])
def test_packed_gguf_through_a_mount(tmp_path, quantisation):
    llama_cpp = pytest.importorskip("llama_cpp", reason="scripts/test-programs builds llama-cpp-python")
    plain = tmp_path / "tiny.gguf"
    tiny_llama(plain, gguf.GGMLQuantizationType[quantisation])
    packed = weightpack.pack(plain)
    assert packed.ratio < 1
    process = subprocess.Popen([*PROGRAM, "mount", packed.target, tmp_path / "mnt"], stdout=subprocess.PIPE, text=True)
    try:
        assert " shows 1 file" in process.stdout.readline()
        seen = tmp_path / "mnt" / "tiny.gguf"
        assert seen.read_bytes() == plain.read_bytes()
        for use_mmap in (True, False):
            (expected, text), (logits, seen_text) = (answers(llama_cpp, path, use_mmap) for path in (plain, seen))
            assert expected.shape[0] > 5
            assert np.ptp(expected) > 0.1
            assert np.array_equal(logits.view(np.uint32), expected.view(np.uint32))
            assert (seen_text, len(text) > 0) == (text, True)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        process.stdout.close()
