# SPDX-License-Identifier: Apache-2.0
"""What models say in vLLM. Reads jobs, a line of JSON each, and runs an engine for each in a process of its own; answers with a line: its exit status.

The process is a fork of this one, which has imported vLLM, since that takes most of the time. What it prints goes to the file that the job names (`log`), and
ends with what the model said, as JSON. A job has `model`, a folder or a repo, and may have `environment`, `options` of vllm.LLM, `lora`, the folder of an
adapter, `pool`, for models that embed, and `without`, functions of vLLM (`module:name`) that are to be gone before its plugins are called.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path

import torch

PROMPTS = [[1, 17, 260, 3], [5] * 20, list(range(40, 10, -1))]


def resident(key: str) -> int:
    """Return a figure of this process's memory, in bytes: VmRSS, or VmHWM, its highest."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def watched_loading() -> dict:
    """Return what is to hold, when a model has been loaded: a digest of its weights, and by how many bytes the process was larger meanwhile than before."""
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    load_model, seen = BaseModelLoader.load_model, {}

    def watched(self, **options):
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the highest is the present one
        model = load_model(self, **options)
        seen["grown"] = resident("VmHWM") - before
        digest = hashlib.sha256()
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
        seen["weights"] = digest.hexdigest()
        return model

    BaseModelLoader.load_model = watched
    return seen


def answer(job: dict) -> dict:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    for place in job.get("without", []):
        module, name = place.split(":")
        delattr(importlib.import_module(module), name)
    options = {"enforce_eager": True, "skip_tokenizer_init": not job.get("pool"), "max_model_len": 64, "disable_log_stats": True, **job.get("options", {})}
    if job.get("lora"):
        options.update(enable_lora=True, max_lora_rank=8)
    llm = LLM(model=job["model"], **options)
    config = llm.llm_engine.vllm_config
    said = {"dtype": str(config.model_config.dtype), "load_format": config.load_config.load_format}
    prompts = [{"prompt_token_ids": ids} for ids in PROMPTS]
    if job.get("pool"):
        said["embeddings"] = [output.outputs.data.float().flatten().tolist() for output in llm.encode(prompts, pooling_task="embed", use_tqdm=False)]
        return said
    lora = LoRARequest("adapter", 1, job["lora"]) if job.get("lora") else None
    given = None if lora else 2  # on a CPU, vLLM fails when it is asked for both
    sampling = SamplingParams(temperature=0, max_tokens=12, logprobs=4, prompt_logprobs=given, ignore_eos=True, detokenize=False)
    said["tokens"], said["logprobs"] = [], []
    for output in llm.generate(prompts, sampling, lora_request=lora, use_tqdm=False):
        said["tokens"].append(list(output.outputs[0].token_ids))
        places = [*(output.prompt_logprobs or []), *output.outputs[0].logprobs]
        said["logprobs"].append([{str(token): logprob.logprob for token, logprob in place.items()} for place in places if place])
    return said


def run(job: dict) -> None:
    """In a child: answer, with all that is printed in the job's log."""
    signal.alarm(400)
    with Path(job["log"]).open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.update(job.get("environment", {}))
    loaded = watched_loading()
    try:
        said = answer(job)
    except AttributeError as error:
        if "cpu_gemm_wna16" not in str(error):
            raise
        said = {}  # vLLM's product of matrices of 4 bits needs AVX-512: what was loaded has to do
    print("\n" + json.dumps({**loaded, **said}), flush=True)


def main() -> None:
    import vllm.entrypoints.llm
    import vllm.model_executor.models.llama
    import vllm.v1.engine.llm_engine  # noqa: F401

    replies = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                run(json.loads(line))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=replies, flush=True)


if __name__ == "__main__":  # vLLM's workers import this file too
    main()
