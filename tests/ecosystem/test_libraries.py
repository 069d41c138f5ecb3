# SPDX-License-Identifier: Apache-2.0
"""Libraries that load weights through safetensors, each with its own call, on packed files."""

from __future__ import annotations

import json

import numpy as np
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


def tiny_stable_diffusion(folder):
    """Save a pipeline of Stable Diffusion's parts, each tiny, with random weights."""
    import diffusers
    import transformers

    torch.manual_seed(0)
    words = [chr(i) for i in range(97, 123)]
    vocabulary = [*words, *(f"{word}</w>" for word in words), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    text_config = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=77,
        bos_token_id=len(vocabulary) - 2, eos_token_id=len(vocabulary) - 1, pad_token_id=len(vocabulary) - 1,
    )  # fmt: skip
    pipeline = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                                    latent_channels=4, norm_num_groups=8),
        text_encoder=transformers.CLIPTextModel(text_config),
        tokenizer=transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77),
        unet=diffusers.UNet2DConditionModel(sample_size=16, block_out_channels=(32, 64), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                                            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), norm_num_groups=8, cross_attention_dim=64,
                                            attention_head_dim=8),
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def image(pipeline):
    """Return the pixels that a prompt gives."""
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        tiny_models.settle(part.eval())
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    return pipeline("a boat", height=32, width=32, num_inference_steps=3, generator=generator, output_type="np").images


def test_diffusers_pipeline(tmp_path):
    """Same image, of every part packed."""
    diffusers = needs("diffusers")
    folder = tiny_stable_diffusion(tmp_path / "m")
    plain, ours = (diffusers.StableDiffusionPipeline.from_pretrained(path) for path in (folder, packed(folder)))
    for part in ("unet", "vae", "text_encoder"):
        assert tiny_models.same_state(getattr(plain, part), getattr(ours, part)), part
    expected = image(plain)
    assert np.ptp(expected) > 0.1
    assert np.array_equal(image(ours).view(np.uint32), expected.view(np.uint32))


def test_diffusers_single_file(tmp_path):
    """A file by its path, its config beside it."""
    diffusers = needs("diffusers")
    unet = tiny_stable_diffusion(tmp_path / "m") / "unet"
    plain, ours = unet / "diffusion_pytorch_model.safetensors", tmp_path / "unet.safetensors"
    weightpack.pack(plain, ours)
    models = [diffusers.UNet2DConditionModel.from_single_file(str(path), config=str(unet), local_files_only=True) for path in (plain, ours)]
    assert tiny_models.same_state(*models)


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
