# SPDX-License-Identifier: Apache-2.0
"""A packed language model behind vLLM's OpenAI server, asked over HTTP, and the plain one: the same tokens and log-probabilities, to the last bit."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import demo_generate
import fetch_models

import weightpack

STARTS_WITHIN = 300  # seconds
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "TORCH_COMPILE_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}


@contextmanager
def served(folder: Path, log: Path, *, plugin: bool) -> Iterator[str]:
    """Serve a model for the length of a block; give the server's URL. Without the plugin vLLM is as it comes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--served-model-name", "model", "--host", "127.0.0.1"]
    environment = {**os.environ, **ENVIRONMENT, **({} if plugin else {"VLLM_PLUGINS": ""})}
    with log.open("wb") as output:
        server = subprocess.Popen([*command, "--port", str(port), "--enforce-eager"], stdout=output, stderr=output, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(STARTS_WITHIN):
            if server.poll() is not None:
                raise RuntimeError(f"the server ended:\n{log.read_text(errors='replace')[-4000:]}")
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        else:
            raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')[-4000:]}")
        yield url
    finally:
        server.terminate()
        server.wait()


def ask(url: str, prompt: str) -> dict:
    """Return what the model adds to a prompt: text, tokens, and the log-probabilities of each token and of those that came next."""
    question = {"model": "model", "prompt": prompt, "max_tokens": 8, "temperature": 0, "logprobs": 3}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(question).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        choice = json.load(reply)["choices"][0]
    return {"text": choice["text"], **choice["logprobs"]}


def main() -> int:
    source = demo_generate.fetch_mgm()
    target = fetch_models.DEFAULT_FOLDER.parent / "mgm-packed"
    shutil.rmtree(target, ignore_errors=True)
    job = weightpack.pack(source, target)
    print(f"{job.source_bytes / 1e6:.1f} MB packed to {job.packed_bytes / 1e6:.1f} MB in {target}")
    answers = {}
    with tempfile.TemporaryDirectory() as logs:
        for name, folder in (("plain", source), ("packed", target)):
            log = Path(logs) / name
            with served(folder, log, plugin=name == "packed") as url:
                answers[name] = [ask(url, prompt) for prompt in demo_generate.PROMPTS["mgm"]]
            told = next((line.partition("] ")[2] for line in log.read_text(errors="replace").splitlines() if "is packed" in line), "read by vLLM itself")
            print(f"{name}: {told}")
    for prompt, said in zip(demo_generate.PROMPTS["mgm"], answers["packed"], strict=True):
        print(f"  {prompt} ->{said['text']}")
    equal = answers["plain"] == answers["packed"]
    print(f"texts, tokens and log-probabilities of the packed model: {'equal to' if equal else 'DIFFERENT from'} the plain one's")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
