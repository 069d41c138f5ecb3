# SPDX-License-Identifier: Apache-2.0
"""A program for tests/ecosystem/test_comfyui.py, run in a process of its own, since ComfyUI reads sys.argv and takes the whole process:

    python comfyui_pipeline.py COMFYUI BASE make                write a small Stable Diffusion checkpoint, a LoRA and a VAE with random weights
    python comfyui_pipeline.py COMFYUI BASE off|on NAME...      for each NAME, text -> image through ComfyUI's own nodes; print the SHA-256 of the pixels
                                                                and of the tensors that were loaded, as JSON

`on`: weights are loaded as with Dynamic VRAM, by ComfyUI's own reader (it needs comfy-aimdo); the sampling is on the CPU all the same. COMFYUI is a checkout
of github.com/Comfy-Org/ComfyUI, BASE what it calls its base directory, with the folders models and custom_nodes. Where torchvision and torchaudio are not
installed, they are stubs: Stable Diffusion needs neither.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
import types
from pathlib import Path

COMFYUI, BASE = (Path(folder).resolve() for folder in sys.argv[1:3])
MODELS, WHAT, NAMES = BASE / "models", sys.argv[3], sys.argv[4:]
sys.argv = ["main.py", "--cpu", "--base-directory", str(BASE)]
sys.path.insert(0, str(COMFYUI))
os.chdir(COMFYUI)

FOLDERS = ("checkpoints", "loras", "vae")


class _Stub(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules that are not there, for those who import them and do not use them."""

    def __init__(self, *names):
        self._names = names

    def find_spec(self, fullname, path=None, target=None):
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] in self._names else None

    def create_module(self, spec):
        module = _Stub(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module):
        pass


sys.meta_path.append(_Stubs(*(name for name in ("torchvision", "torchaudio") if importlib.util.find_spec(name) is None)))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402


def randomise(module, generator):
    """Return a module's weights at random, as float16: those of norms about 1."""
    weights = {}
    for name, value in module.state_dict().items():
        if not value.is_floating_point():
            weights[name] = value.clone()
            continue
        noise = torch.randn(value.shape, generator=generator) * 0.03
        weights[name] = (noise + 1 if value.dim() == 1 and name.endswith("weight") else noise).half()
    return weights


def make():
    """The narrowest network that ComfyUI takes for Stable Diffusion 1, with its whole text encoder and VAE."""
    import comfy.clip_model
    import comfy.ops
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    generator, operations = torch.Generator().manual_seed(7), comfy.ops.disable_weight_init
    unet = UNetModel(
        image_size=32, in_channels=4, model_channels=320, out_channels=4, num_res_blocks=[1, 1], channel_mult=[1, 1], num_heads=8, use_spatial_transformer=True,
        transformer_depth=[1, 1], transformer_depth_output=[1, 1, 1, 1], transformer_depth_middle=1, context_dim=768, use_linear_in_transformer=False,
        legacy=False, dtype=torch.float32, operations=operations,
    )  # fmt: skip
    config = json.loads((COMFYUI / "comfy" / "sd1_clip_config.json").read_text())
    clip = comfy.clip_model.CLIPTextModel(config, torch.float32, "cpu", operations)
    sizes = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2,
             "attn_resolutions": [], "dropout": 0.0}  # fmt: skip
    vae = randomise(AutoencoderKL(ddconfig=sizes, embed_dim=4), generator)
    checkpoint = {f"model.diffusion_model.{name}": value for name, value in randomise(unet, generator).items()}
    checkpoint |= {f"cond_stage_model.transformer.{name}": value for name, value in randomise(clip, generator).items()}
    checkpoint |= {f"first_stage_model.{name}": value for name, value in vae.items()}
    lora = {}
    for name in ("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q", "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_v"):
        lora[f"{name}.lora_up.weight"] = (torch.randn(320, 64, generator=generator) * 0.5).half()
        lora[f"{name}.lora_down.weight"] = (torch.randn(64, 320, generator=generator) * 0.5).half()
        lora[f"{name}.alpha"] = torch.tensor(64.0).half()
    for folder, tensors in {"checkpoints": checkpoint, "loras": lora, "vae": vae}.items():
        (MODELS / folder).mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in tensors.items()}, MODELS / folder / "plain.safetensors", {"format": "pt", "of": folder})


def digest(data):
    return hashlib.sha256(data).hexdigest()


def digest_of_tensors(tensors):
    state = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        state.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        state.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def image(nodes, name):
    """Return what a workflow of ComfyUI's own nodes makes: checkpoint, LoRA, prompts, sampler, and two VAEs, the checkpoint's and that of a file."""

    def run(node, **inputs):
        cls = nodes.NODE_CLASS_MAPPINGS[node]
        return getattr(cls(), cls.FUNCTION)(**inputs)

    model, clip, vae = run("CheckpointLoaderSimple", ckpt_name=name)[:3]
    model, clip = run("LoraLoader", model=model, clip=clip, lora_name=name, strength_model=1.0, strength_clip=1.0)[:2]
    positive, negative = (run("CLIPTextEncode", clip=clip, text=text)[0] for text in ("a boat on a lake", "blurred"))
    latent = run("EmptyLatentImage", width=64, height=64, batch_size=1)[0]
    sampled = run("KSampler", model=model, seed=5, steps=3, cfg=4.0, sampler_name="euler", scheduler="normal", positive=positive, negative=negative,
                  latent_image=latent, denoise=1.0)[0]  # fmt: skip
    images = [run("VAEDecode", samples=sampled, vae=decoder)[0] for decoder in (vae, run("VAELoader", vae_name=name)[0])]
    return [(picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy() for picture in images]


def main():
    import comfy.utils
    import nodes

    asyncio.run(nodes.init_external_custom_nodes())
    if WHAT == "on":
        import comfy.memory_management
        import comfy_aimdo.control

        assert comfy_aimdo.control.init()
        comfy.memory_management.aimdo_enabled = True
    results = {}
    for name in NAMES:
        pictures = image(nodes, name)
        tensors = {folder: comfy.utils.load_torch_file(str(MODELS / folder / name), safe_load=True) for folder in FOLDERS}
        results[name] = {
            "pixels": [digest(picture.tobytes()) for picture in pictures],
            "spread": [int(picture.max()) - int(picture.min()) for picture in pictures],
            "tensors": {folder: digest_of_tensors(state) for folder, state in tensors.items()},
            "metadata": comfy.utils.load_torch_file(str(MODELS / "checkpoints" / name), return_metadata=True)[1],
            "header": json.loads(comfy.utils.safetensors_header(str(MODELS / "checkpoints" / name)))["__metadata__"],
            "mapped": any(hasattr(tensor.untyped_storage(), "_comfy_tensor_mmap_refs") for tensor in tensors["loras"].values()),
        }
    print(json.dumps(results))


if WHAT == "make":
    with torch.no_grad():
        make()
else:
    with torch.inference_mode():
        main()
