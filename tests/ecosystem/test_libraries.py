# SPDX-License-Identifier: Apache-2.0
"""Libraries that load weights through safetensors, each with its own call, on packed files."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="scripts/test-ecosystem installs the libraries and runs this")

import tiny_models
import torch

import weightpack

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("enabled")]


def packed(folder):
    return weightpack.pack(folder, f"{folder}-wp").target


def needs(name):
    return pytest.importorskip(name, reason=f"scripts/test-ecosystem installs {name} beside transformers 5")


def test_accelerate(tmp_path):
    accelerate = needs("accelerate")
    import transformers

    cls, inputs = tiny_models.make("llama", tmp_path / "m", max_shard_size="300KB")
    folder, models = packed(tmp_path / "m"), []
    for path in (tmp_path / "m", folder):
        with accelerate.init_empty_weights():
            empty = cls(transformers.AutoConfig.from_pretrained(path))
        device_map = {name: "disk" if name == "lm_head" else "cpu" for name in ("model", "lm_head")}
        models.append(accelerate.load_checkpoint_and_dispatch(empty, path, device_map=device_map, offload_folder=tmp_path / "offload"))
    assert tiny_models.close_outputs(models[0].eval(), models[1].eval(), inputs)
    plain, ours = (accelerate.utils.modeling.get_state_dict_offloaded_model(model) for model in models)
    assert plain.keys() == ours.keys()
    assert all(torch.equal(plain[name], ours[name]) for name in plain)


def test_peft(tmp_path):
    peft = needs("peft")
    torch.manual_seed(0)
    model, inputs = tiny_models.llama()
    model.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    folder = packed(tmp_path / "adapter")
    loaded = [peft.PeftModel.from_pretrained(type(model).from_pretrained(tmp_path / "base"), path) for path in (tmp_path / "adapter", folder)]
    assert tiny_models.same_outputs(loaded[0].eval(), loaded[1].eval(), inputs)


def test_diffusers(tmp_path):
    diffusers = needs("diffusers")
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(sample_size=16, block_out_channels=(32, 64), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                                  up_block_types=("AttnUpBlock2D", "UpBlock2D"), norm_num_groups=8)  # fmt: skip
    model.save_pretrained(tmp_path / "m")
    plain, ours = (diffusers.UNet2DModel.from_pretrained(path).eval() for path in (tmp_path / "m", packed(tmp_path / "m")))
    assert tiny_models.same_state(plain, ours)
    sample = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(tiny_models.settle(plain)(sample, 3).sample, tiny_models.settle(ours)(sample, 3).sample)


def test_sentence_transformers(tmp_path, model):
    sentence_transformers = needs("sentence_transformers")
    source = model("minilm")
    plain, ours = (sentence_transformers.SentenceTransformer(str(path), device="cpu") for path in (source, weightpack.pack(source, tmp_path / "wp").target))
    sentences = ["Packed, and not one bit lost.", "So say both."]
    assert (tiny_models.settle(plain).encode(sentences) == tiny_models.settle(ours).encode(sentences)).all()


def test_hub_mixin(tmp_path):
    from huggingface_hub import PyTorchModelHubMixin

    class Net(torch.nn.Module, PyTorchModelHubMixin):
        def __init__(self, width: int = 300):
            super().__init__()
            self.layer = torch.nn.Linear(width, width)

    torch.manual_seed(0)
    net = Net()
    net.save_pretrained(tmp_path / "m")
    assert tiny_models.same_state(net, Net.from_pretrained(packed(tmp_path / "m")))
