# SPDX-License-Identifier: Apache-2.0
"""from_pretrained on packed models beside from_pretrained on the plain ones: tensors by bits, logits of settled models by bits, reports word by word."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers", reason="scripts/test-ecosystem installs transformers and runs this")

import safetensors  # noqa: E402
import safetensors.torch  # noqa: E402
import tiny_models  # noqa: E402
import torch  # noqa: E402

import weightpack  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # the libraries' own
HERE = Path(__file__).parent
V5 = int(transformers.__version__.split(".")[0]) >= 5


@pytest.fixture(params=sorted(tiny_models.FAMILIES))
def family(request):
    return request.param


def packed(folder, **kwargs):
    return weightpack.pack(folder, f"{folder}-wp", **kwargs).target


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_family(family, dtype, tmp_path, enabled):
    cls, inputs = tiny_models.make(family, tmp_path / "m", dtype)
    plain, ours = cls.from_pretrained(tmp_path / "m"), cls.from_pretrained(packed(tmp_path / "m"))
    if dtype is torch.bfloat16 and "pixel_values" in inputs:
        inputs = {**inputs, "pixel_values": inputs["pixel_values"].bfloat16()}
    assert tiny_models.same_state(plain, ours)
    assert tiny_models.same_outputs(plain.eval(), ours.eval(), inputs)


def test_sharded(family, tmp_path, enabled):
    cls, inputs = tiny_models.make(family, tmp_path / "m", max_shard_size="300KB")
    assert (tmp_path / "m" / "model.safetensors.index.json").exists()
    plain, ours = cls.from_pretrained(tmp_path / "m"), cls.from_pretrained(packed(tmp_path / "m"))
    assert tiny_models.same_state(plain, ours)
    assert tiny_models.same_outputs(plain.eval(), ours.eval(), inputs)


def test_minilm(model, tmp_path, enabled):
    """A real BERT, whose config names no dtype; its embeddings to the last bit."""
    source = model("minilm")
    target = weightpack.pack(source, tmp_path / "minilm-wp").target
    plain, ours = transformers.AutoModel.from_pretrained(source), transformers.AutoModel.from_pretrained(target)
    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    inputs = tokenizer(["Packed, and not one bit lost.", "So say both."], padding=True, return_tensors="pt")
    assert tiny_models.same_state(plain, ours)
    assert tiny_models.same_outputs(plain.eval(), ours.eval(), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_fine_tune_stored_as_its_difference(tmp_path, dtype, enabled):
    """The base stands beside it, plain or packed; without it, the load says what is missing."""
    cls, inputs = tiny_models.make("llama", tmp_path / "base", dtype)
    tuned = cls.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 1e-4 * torch.randn_like(parameter)
    tuned.save_pretrained(tmp_path / "tuned")
    alone = weightpack.pack(tmp_path / "tuned", tmp_path / "alone").packed_bytes
    assert weightpack.pack(tmp_path / "tuned", base=tmp_path / "base").packed_bytes < alone
    plain = cls.from_pretrained(tmp_path / "tuned")
    (tmp_path / "tuned").rename(tmp_path / "elsewhere")
    for base_is_packed in (False, True):
        if base_is_packed:
            weightpack.pack(tmp_path / "base", in_place=True)
        ours = cls.from_pretrained(tmp_path / "tuned-wp")
        assert tiny_models.same_state(plain, ours)
        assert tiny_models.same_outputs(plain.eval(), ours.eval(), inputs)
    for path in (tmp_path / "base").iterdir():
        path.unlink()
    with pytest.raises(weightpack.errors.BaseNotFoundError, match="SHA-256"):
        cls.from_pretrained(tmp_path / "tuned-wp")


@pytest.mark.parametrize("wanted", [torch.float16, torch.float64, "auto"], ids=str)
def test_dtype(tmp_path, wanted, enabled):
    cls, _ = tiny_models.make("llama", tmp_path / "m", torch.bfloat16)
    assert tiny_models.same_state(cls.from_pretrained(tmp_path / "m", dtype=wanted), cls.from_pretrained(packed(tmp_path / "m"), dtype=wanted))


def mixed(tensors):
    """fp16, and LayerNorms in fp32, as AMP's O2 saves them: most bytes are fp16, but `embeddings.LayerNorm.bias` is the first by name."""
    return {name: tensor if "LayerNorm" in name else tensor.half() for name, tensor in tensors.items()}


def integers_first(tensors):
    """The first tensor by name is of integers, the second bf16, the most fp32."""
    first = {"a.ids": torch.arange(4000), "b.scale": torch.ones(300).bfloat16()}
    return first | tensors


def fp8_first(tensors):
    """float8 is passed over where transformers looks for a dtype."""
    return {"a.scaled": torch.randn(50, 60).to(torch.float8_e4m3fn)} | {name: tensor.bfloat16() for name, tensor in tensors.items()}


def save_bert(folder, change, named, shards):
    """Save a BERT with weights as `change` leaves them, in one file or in two; its config.json has the key `named` with a dtype, or none."""
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=200, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
    model = transformers.BertModel(config)
    model.save_pretrained(folder)
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors = change({name: tensor + torch.randn_like(tensor) * 1e-3 for name, tensor in tensors.items()})
    if shards:
        (folder / "model.safetensors").unlink()
        parts = {"model-00001-of-00002.safetensors": sorted(tensors)[20:], "model-00002-of-00002.safetensors": sorted(tensors)[:20]}
        for shard, names in parts.items():
            safetensors.torch.save_file({name: tensors[name] for name in names}, folder / shard, {"format": "pt"})
        index = {"metadata": {}, "weight_map": {name: shard for shard, names in parts.items() for name in names}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    saved = json.loads((folder / "config.json").read_text())
    saved = {key: value for key, value in saved.items() if key not in ("dtype", "torch_dtype")} | ({named: "float16"} if named else {})
    (folder / "config.json").write_text(json.dumps(saved))


@pytest.mark.parametrize(
    ("shards", "flag"),
    [(False, False), (True, True), pytest.param(False, True, marks=pytest.mark.long), pytest.param(True, False, marks=pytest.mark.long)],
    ids=["one file, as it is", "shards, flagged", "one file, flagged", "shards, as they are"],
)
@pytest.mark.parametrize("named", [None, "dtype", "torch_dtype"])
@pytest.mark.parametrize("change", [mixed, integers_first, fp8_first], ids=lambda change: change.__name__)
def test_the_dtype_is_what_the_plain_model_gets(tmp_path, change, named, shards, flag, enabled):
    """Whatever transformers reads it from: the call, config.json, or the first float of the (first) file."""
    import weightpack.transformers  # noqa: F401

    if change is fp8_first and not V5:
        pytest.skip("transformers 4 takes float8 for a model's dtype, and fails on the plain one")
    save_bert(tmp_path / "m", change, named, shards)
    folder = packed(tmp_path / "m", hf_flag=flag)
    wishes = ({}, {"dtype": "auto"}, {"dtype": None}, {"torch_dtype": None}, {"torch_dtype": "auto"}, {"dtype": torch.float64})
    calls = [(transformers.AutoModel, wish) for wish in wishes]
    calls += [(cls, wish) for cls in (transformers.BertModel, transformers.AutoModelForMaskedLM) for wish in wishes[:2]]
    dtypes = set()
    for cls, wish in calls:
        models = []
        for path in (tmp_path / "m", folder):
            torch.manual_seed(1)  # new heads are drawn
            models.append(cls.from_pretrained(path, **wish))
        plain, ours = models
        assert ours.dtype == plain.dtype
        assert ours.config.dtype == plain.config.dtype
        assert tiny_models.same_state(plain, ours)
        dtypes.add(plain.dtype)
    assert len(dtypes) > 1


def test_packing_leaves_config_json_alone(tmp_path):
    save_bert(tmp_path / "m", mixed, None, False)
    folder = Path(packed(tmp_path / "m"))
    assert (folder / "config.json").read_bytes() == (tmp_path / "m" / "config.json").read_bytes()


def test_device_maps(tmp_path, enabled):
    accelerate = pytest.importorskip("accelerate", reason="scripts/test-ecosystem installs it")
    cls, inputs = tiny_models.make("llama", tmp_path / "m")
    folder = packed(tmp_path / "m")
    plain = cls.from_pretrained(tmp_path / "m")
    for device_map in ("auto", {"": "cpu"}):
        ours = cls.from_pretrained(folder, device_map=device_map)
        assert tiny_models.same_outputs(plain.eval(), ours.eval(), inputs)
    on_disk = dict.fromkeys(["model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb"], "cpu") | {"model.layers.1": "disk", "lm_head": "disk"}
    ours = cls.from_pretrained(folder, device_map=on_disk, offload_folder=tmp_path / "offload")
    assert ours.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    assert tiny_models.close_outputs(plain.eval(), ours.eval(), inputs)
    state = accelerate.utils.modeling.get_state_dict_offloaded_model(ours)
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())


@pytest.mark.parametrize(
    ("saved", "loaded"), [("LlamaForCausalLM", "LlamaModel"), ("LlamaModel", "LlamaForCausalLM"), ("LlamaForCausalLM", "LlamaForSequenceClassification")]
)
def test_heads_come_and_go(tmp_path, saved, loaded, enabled):
    torch.manual_seed(0)
    model, _ = tiny_models.llama()
    (model if saved == "LlamaForCausalLM" else model.model).save_pretrained(tmp_path / "m")
    models = []
    for folder in (tmp_path / "m", packed(tmp_path / "m")):
        torch.manual_seed(1)  # new heads are drawn
        models.append(getattr(transformers, loaded).from_pretrained(folder, output_loading_info=True))
    assert tiny_models.same_state(models[0][0], models[1][0])
    reports = [{key: sorted(map(str, value)) for key, value in info.items() if isinstance(value, (list, set))} for _, info in models]
    assert reports[0] == reports[1]
    assert reports[0]["missing_keys"] or reports[0]["unexpected_keys"]


def test_missing_tensor_is_reported_as_stock_does(tmp_path, enabled):
    cls, _ = tiny_models.make("gpt2", tmp_path / "m")
    tensors = safetensors.torch.load_file(tmp_path / "m" / "model.safetensors")
    gone = next(name for name in tensors if name.endswith("c_fc.weight"))
    tensors["surplus"] = tensors.pop(gone)
    safetensors.torch.save_file(tensors, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    infos = [cls.from_pretrained(folder, output_loading_info=True)[1] for folder in (tmp_path / "m", packed(tmp_path / "m"))]
    assert sorted(infos[0]["missing_keys"]) == sorted(infos[1]["missing_keys"]) != []
    assert sorted(infos[0]["unexpected_keys"]) == sorted(infos[1]["unexpected_keys"]) != []


def test_tied_weights_stay_tied(tmp_path, enabled):
    cls, _ = tiny_models.make("gpt2", tmp_path / "m")
    ours = cls.from_pretrained(packed(tmp_path / "m"))
    assert ours.lm_head.weight.data_ptr() == ours.transformer.wte.weight.data_ptr()


def test_subfolder(tmp_path, enabled):
    cls, _ = tiny_models.make("llama", tmp_path / "m" / "inner")
    folder = packed(tmp_path / "m")
    assert tiny_models.same_state(cls.from_pretrained(tmp_path / "m", subfolder="inner"), cls.from_pretrained(folder, subfolder="inner"))


def test_meta_device(tmp_path, enabled):
    cls, _ = tiny_models.make("llama", tmp_path / "m")
    with torch.device("meta"):
        empty = cls(transformers.AutoConfig.from_pretrained(packed(tmp_path / "m")))
    loaded = weightpack_torch().load_file(tmp_path / "m-wp" / "model.safetensors")
    empty.load_state_dict(loaded, strict=False, assign=True)
    assert tiny_models.same_state(cls.from_pretrained(tmp_path / "m"), empty)


def weightpack_torch():
    import weightpack.torch

    return weightpack.torch


def test_saving_gives_a_plain_or_a_packed_model(tmp_path, enabled):
    import weightpack.transformers

    cls, _ = tiny_models.make("llama", tmp_path / "m", torch.bfloat16)
    ours = cls.from_pretrained(packed(tmp_path / "m"))
    ours.save_pretrained(tmp_path / "plain")
    weightpack.transformers.save_pretrained(ours, tmp_path / "again", max_shard_size="200KB")
    assert not safetensors_is_packed(tmp_path / "plain" / "model.safetensors")
    assert (tmp_path / "again" / "weightpack.json").exists()
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1
    for name in ("plain", "again"):
        assert tiny_models.same_state(ours, cls.from_pretrained(tmp_path / name))
    assert not list(tmp_path.glob(".again*"))


def safetensors_is_packed(path):
    with path.open("rb") as file:
        return b'"weightpack"' in file.read(int.from_bytes(file.read(8), "little"))


def fp8_model(folder):
    """A LLaMA whose linear weights are fp8 in blocks, as DeepSeek and others ship them."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4, vocab_size=1000,
        max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(folder)
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    for name in [name for name in tensors if "_proj.weight" in name]:
        weight = tensors[name].float()
        rows, columns = weight.shape
        blocks = weight.reshape(rows // 128, 128, columns // 128, 128)
        scale = blocks.abs().amax(dim=(1, 3)) / 448
        tensors[name] = (blocks / scale[:, None, :, None]).reshape(rows, columns).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128], "dequantize": True}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.skipif(not V5, reason="transformers 4 loads fp8 models on GPUs only")
@pytest.mark.parametrize("flag", [False, True], ids=["as it is", "flagged"])
def test_model_with_a_quantisation_of_its_own(tmp_path, flag, enabled):
    import weightpack.transformers  # noqa: F401

    fp8_model(tmp_path / "m")
    folder = packed(tmp_path / "m", hf_flag=flag)
    plain, ours = (transformers.LlamaForCausalLM.from_pretrained(path) for path in (tmp_path / "m", folder))
    assert tiny_models.same_state(plain, ours)
    assert tiny_models.same_outputs(plain.eval(), ours.eval(), {"input_ids": torch.arange(12)[None]})


# ---- the switch


def test_flagged_model_loads_as_a_plain_one(tmp_path):
    import weightpack.transformers

    cls, inputs = tiny_models.make("llama", tmp_path / "m")
    folder = packed(tmp_path / "m", hf_flag=True)
    assert json.loads(Path(folder, "config.json").read_text())["quantization_config"]["quant_method"] == "weightpack"
    weightpack.disable()
    try:
        plain, ours = cls.from_pretrained(tmp_path / "m"), cls.from_pretrained(folder)  # the quantizer enables
        assert weightpack.transformers.is_enabled()
        assert tiny_models.same_outputs(plain.eval(), ours.eval(), inputs)
        ours.save_pretrained(tmp_path / "again")
        assert "quantization_config" not in json.loads((tmp_path / "again" / "config.json").read_text())
    finally:
        weightpack.disable()
    weightpack.unpack(folder, tmp_path / "restored")
    assert (tmp_path / "restored" / "config.json").read_bytes() == (tmp_path / "m" / "config.json").read_bytes()


def test_enable_and_disable(tmp_path):
    import transformers.modeling_utils as modeling

    stock = safetensors.safe_open
    names = [safetensors, safetensors.torch, modeling]
    assert all(module.safe_open is stock for module in names)
    load = safetensors.torch.load
    weightpack.enable()
    weightpack.enable()
    assert not any(module.safe_open is stock for module in names)
    safetensors.torch.save_file({"w": torch.zeros(3)}, tmp_path / "plain.safetensors")
    with modeling.safe_open(tmp_path / "plain.safetensors", "pt") as opened:
        assert type(opened) is stock
    with pytest.raises(FileNotFoundError):
        safetensors.safe_open(tmp_path / "none", "pt")
    weightpack.disable()
    weightpack.disable()
    assert all(module.safe_open is stock for module in names)
    assert safetensors.torch.load is load


def python(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env={**os.environ}, timeout=300)


LOAD = """
import sys, transformers
{}
transformers.LlamaForCausalLM.from_pretrained(sys.argv[1])
"""


@pytest.mark.long
def test_without_weightpack_it_fails_loudly_and_says_what_is_missing(tmp_path):
    tiny_models.make("llama", tmp_path / "m", torch.bfloat16)
    silent = python(LOAD.format("import weightpack"), packed(tmp_path / "m"))  # importing it alone changes nothing
    assert silent.returncode != 0
    assert "size mismatch" in silent.stderr or "mismatched" in silent.stderr or "uint8" in silent.stderr
    named = python(LOAD.format(""), packed(tmp_path / "m", hf_flag=True, overwrite=True))
    assert named.returncode != 0
    assert "got weightpack" in named.stderr + named.stdout
    assert python(LOAD.format("import weightpack.transformers"), tmp_path / "m-wp").returncode == 0


MEMORY = """
import sys, weightpack.transformers, transformers
from pathlib import Path
import threading, time
def anonymous():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) * 1024
base = peak = anonymous()
done = False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
model = transformers.LlamaForCausalLM.from_pretrained(sys.argv[1])
done = True
thread.join()
print(peak - base, sum(p.nbytes for p in model.parameters()), max(p.nbytes for p in model.parameters()))
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is Linux's")
def test_memory_is_the_model_and_a_few_tensors(tmp_path):
    config = transformers.LlamaConfig(
        hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=8, vocab_size=16000, max_position_embeddings=64,
        tie_word_embeddings=False,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path / "m")
    done = python(MEMORY, packed(tmp_path / "m"))
    assert done.returncode == 0, done.stderr
    grown, model_bytes, largest = map(int, done.stdout.split()[-3:])
    assert model_bytes > 200e6
    assert grown < model_bytes + 5 * largest + 30e6


PARALLEL = """
import json, os, sys, torch, transformers, weightpack.transformers
torch.manual_seed(0)
rank = int(os.environ["RANK"])
logits, local = [], []
for folder in sys.argv[1:3]:
    model = transformers.LlamaForCausalLM.from_pretrained(folder, tp_plan="auto").eval()
    local.append({k: (v.to_local() if hasattr(v, "to_local") else v) for k, v in model.state_dict().items()})
    with torch.no_grad():
        logits.append(model(torch.arange(12)[None]).logits)
sharded = [k for k, v in model.state_dict().items() if hasattr(v, "to_local") and v.to_local().shape != v.shape] or [
    k for k, v in local[0].items() if k.endswith("q_proj.weight") and v.shape[0] < 64]
assert sharded, "nothing was sharded"
assert all(torch.equal(local[0][k], local[1][k]) for k in local[0])
torch.testing.assert_close(*logits)  # sums of weights at other alignments may differ in the last bit
print(f"rank {rank} ok")
"""


@pytest.mark.long
def test_tensor_parallel_on_two_ranks(tmp_path):
    tiny_models.make("llama", tmp_path / "m")
    (tmp_path / "run.py").write_text(PARALLEL)
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2", tmp_path / "run.py",
            tmp_path / "m", packed(tmp_path / "m"),
        ],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rank 0 ok" in done.stdout
    assert "rank 1 ok" in done.stdout


HUB = """
import sys, hashlib, torch, transformers, weightpack.transformers
model = transformers.LlamaForCausalLM.from_pretrained(sys.argv[1], revision=sys.argv[2])
print(hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())).hexdigest())
"""


@pytest.mark.long
def test_straight_from_a_hub(tmp_path):
    import hub_double

    cls, _ = tiny_models.make("llama", tmp_path / "m")
    folder = packed(tmp_path / "m")
    plain = cls.from_pretrained(tmp_path / "m").state_dict()
    expected = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in plain.values())).hexdigest()
    with hub_double.serve() as hub:
        hub.add("org/packed", Path(folder))
        hub.add("org/packed", Path(folder), revision="v2")
        env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": ""}
        done = subprocess.run([sys.executable, "-c", HUB, "org/packed", "v2"], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == expected
