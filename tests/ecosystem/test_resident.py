# SPDX-License-Identifier: Apache-2.0
"""Models of transformers whose weights stay packed, beside the plain ones: logits, gradients and saved files to the last bit."""

from __future__ import annotations

import copy
import hashlib

import pytest

transformers = pytest.importorskip("transformers", reason="scripts/test-ecosystem installs transformers and runs this")

import tiny_models  # noqa: E402
import torch  # noqa: E402

import weightpack  # noqa: E402
from weightpack.errors import OptionError  # noqa: E402
from weightpack.torch import PackedTensor, compress  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("enabled")]
V5 = int(transformers.__version__.split(".")[0]) >= 5
IDS = torch.arange(24).reshape(2, 12) * 37 % 2000
HEADS = {"num_attention_heads": 4, "vocab_size": 2000}


def bert():
    return transformers.BertForMaskedLM(transformers.BertConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=2, **HEADS))


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=256, n_layer=2, n_head=4, vocab_size=2000, n_positions=256))


def llama():
    config = {"intermediate_size": 520, "num_key_value_heads": 2, "max_position_embeddings": 64, **HEADS}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(hidden_size=256, num_hidden_layers=2, **config))


def gemma():
    """Its embedding has a forward of its own, and is tied to the head."""
    config = {"intermediate_size": 520, "num_key_value_heads": 2, "head_dim": 64, **HEADS}
    return transformers.GemmaForCausalLM(transformers.GemmaConfig(hidden_size=256, num_hidden_layers=2, **config))


def t5():
    return transformers.T5ForConditionalGeneration(transformers.T5Config(d_model=256, d_kv=64, d_ff=512, num_layers=2, num_heads=4, vocab_size=2000))


def bart():
    halves = {f"{half}_{name}": n for half in ("encoder", "decoder") for name, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 512))}
    return transformers.BartForConditionalGeneration(transformers.BartConfig(d_model=256, vocab_size=2000, max_position_embeddings=300, **halves))


def mixtral():
    """Its experts' weights are neither of Linear modules nor of two dimensions, in transformers 5: they stay plain."""
    config = {"intermediate_size": 384, "num_key_value_heads": 2, "num_local_experts": 4, **HEADS}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(hidden_size=256, num_hidden_layers=2, **config))


FAMILIES = {family.__name__: family for family in (bert, gpt2, llama, gemma, t5, bart, mixtral)}


def inputs_of(family):
    return {"input_ids": IDS, **({"decoder_input_ids": IDS[:, :6]} if family in ("t5", "bart") else {})}


def resident(model_class, folder, **kwargs):
    import weightpack.transformers

    return model_class.from_pretrained(folder, quantization_config=weightpack.transformers.WeightpackConfig(resident=True), **kwargs)


def packed_parameters(model):
    return [parameter for parameter in model.parameters() if isinstance(parameter, PackedTensor)]


def saved(model, folder):
    """Save a model; return the digest of each file."""
    model.save_pretrained(folder)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def same_logits(a, b, inputs):
    with torch.no_grad():
        return torch.equal(a(**inputs).logits, b(**inputs).logits)


def settle(model):
    """As `tiny_models.settle`, for what is not packed."""
    for tensor in (*model.parameters(), *model.buffers()):
        if not isinstance(tensor, PackedTensor):
            tensor.data = tensor.data.clone()
    return model.eval()


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, id="fp32", marks=pytest.mark.long), pytest.param(torch.bfloat16, id="bf16")])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family(family, dtype, tmp_path):
    torch.manual_seed(0)
    model = FAMILIES[family]().to(dtype)
    model.save_pretrained(tmp_path / "m", max_shard_size="1MB")
    weightpack.pack(tmp_path / "m", tmp_path / "p")
    plain, ours = settle(type(model).from_pretrained(tmp_path / "m", dtype="auto")), settle(resident(type(model), tmp_path / "p", dtype="auto"))
    packed = packed_parameters(ours)
    assert packed and len(packed) == len(packed_parameters(compress(copy.deepcopy(plain))))
    if V5:  # records of the file, mapped
        assert not any(parameter.packed.record.flags.writeable for parameter in packed)
    assert same_logits(plain, ours, inputs_of(family)) and tiny_models.same_state(plain, ours)
    assert saved(plain, tmp_path / "a") == saved(ours, tmp_path / "b")
    if family == "llama":
        answers = [model.generate(IDS[:1], max_new_tokens=4, do_sample=False) for model in (plain, ours)]
        assert torch.equal(*answers)


@pytest.mark.parametrize("case", ["plain", "another dtype", "flagged", "a difference"])
def test_whatever_the_repo_holds(case, tmp_path):
    """What has no record of its own that can be taken as it is is packed while it is loaded."""
    torch.manual_seed(0)
    model = llama()
    model.save_pretrained(tmp_path / "m")
    folder, dtype = tmp_path / "p", torch.float16 if case == "another dtype" else "auto"
    if case == "plain":
        folder = tmp_path / "m"
    elif case == "a difference":
        base = copy.deepcopy(model)
        base.model.embed_tokens.weight.data += 1e-5
        base.save_pretrained(tmp_path / "base")
        weightpack.pack(tmp_path / "m", folder, base=tmp_path / "base")
    else:
        weightpack.pack(tmp_path / "m", folder, hf_flag=case == "flagged")
    if case == "flagged" and not V5:
        pytest.skip("transformers 4 takes no word of the call where config.json has a config")
    plain, ours = settle(type(model).from_pretrained(tmp_path / "m", dtype=dtype)), settle(resident(type(model), folder, dtype=dtype))
    assert len(packed_parameters(ours)) == len(packed_parameters(compress(copy.deepcopy(plain))))
    assert same_logits(plain, ours, inputs_of("llama")) and not hasattr(ours.config, "quantization_config")


def test_minilm(model, tmp_path):
    """A real BERT; one with sentences, and compressed in memory."""
    source = model("minilm")
    weightpack.pack(source, tmp_path / "p")
    plain, ours = settle(transformers.AutoModel.from_pretrained(source)), settle(resident(transformers.AutoModel, tmp_path / "p"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    inputs = tokenizer(["Packed in memory, and not one bit lost.", "So say both."], padding=True, return_tensors="pt")
    with torch.no_grad():
        states = [model(**inputs).last_hidden_state for model in (plain, ours, compress(copy.deepcopy(plain)))]
    assert packed_parameters(ours) and all(torch.equal(states[0], other) for other in states[1:])


def test_a_model_quantised_otherwise_is_refused(tmp_path):
    import weightpack.transformers

    config = weightpack.transformers.WeightpackConfig(inner={"quant_method": "fp8"}, resident=True)
    llama().save_pretrained(tmp_path / "m")
    with pytest.raises(OptionError, match="quantised otherwise"):
        transformers.LlamaForCausalLM.from_pretrained(tmp_path / "m", quantization_config=config)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_adapters_on_top(family):
    """LoRA by peft: logits, gradients, and the adapter merged into packed weights."""
    peft = pytest.importorskip("peft", reason="scripts/test-ecosystem installs peft")
    torch.manual_seed(0)
    plain, targets = FAMILIES[family](), {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn"], "t5": ["q", "wo"]}[family]
    models = []
    for model in (plain, compress(copy.deepcopy(plain))):
        torch.manual_seed(1)
        config = peft.LoraConfig(target_modules=targets, init_lora_weights=False, fan_in_fan_out=family == "gpt2")
        adapted = peft.get_peft_model(model.eval(), config)
        adapted(**inputs_of(family)).logits.float().square().mean().backward()
        models.append(adapted)
    stock, ours = ({name: p.grad for name, p in model.named_parameters() if p.grad is not None} for model in models)
    assert list(stock) == list(ours) and all(torch.equal(stock[name], ours[name]) for name in stock)
    assert same_logits(models[0], models[1], inputs_of(family))
    for change in ("merge_adapter", "unmerge_adapter"):
        for model in models:
            getattr(model, change)()
        assert same_logits(models[0], models[1], inputs_of(family))
    assert packed_parameters(models[1])
