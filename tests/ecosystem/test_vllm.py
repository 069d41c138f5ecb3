# SPDX-License-Identifier: Apache-2.0
"""Packed models in the real vLLM: what they say is what the plain ones say, tokens and log-probabilities to the last bit.

Each engine runs in a process of its own. Plain models are asked in one where vLLM loads no plugin, so that nothing of weightpack is there.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("scripts/test-vllm installs vLLM and runs this", allow_module_level=True)

import hub_double
import vllm_models
from safetensors.torch import load_file, save_file

import weightpack

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("default")]

PROGRAM = Path(__file__).parent / "vllm_answers.py"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "TORCH_COMPILE_DISABLE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1",
}  # fmt: skip


class Engines:
    """Runs engines one after the other, each in a process of its own. `hub`: where they look for repos (variables that are read when vLLM is imported)."""

    def __init__(self, folder, **hub):
        self.log, environment = folder / "log", {**os.environ, **ENVIRONMENT, **hub}
        self.program = subprocess.Popen([sys.executable, str(PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def run(self, model, *, plugin=True, **job):
        """Return the exit status of an engine, and what it logs; `plugin`: with weightpack's entry point."""
        environment = {**job.pop("environment", {}), **({} if plugin else {"VLLM_PLUGINS": ""})}
        self.program.stdin.write(json.dumps({"model": str(model), "log": str(self.log), **job, "environment": environment}) + "\n")
        self.program.stdin.flush()
        return int(self.program.stdout.readline()), self.log.read_text(errors="replace")

    def answer(self, model, **job):
        """Return what a model says, and what the engine logs."""
        status, log = self.run(model, **job)
        assert status == 0, log[-5000:]
        return json.loads(log.splitlines()[-1]), log

    def failure(self, model, **job):
        """Return what an engine logs that must fail."""
        status, log = self.run(model, **job)
        assert status == 1, log[-5000:]
        return log

    def same(self, plain, ours, **job):
        """Ask a plain model, in vLLM as it is, and the packed one; return what the packed one said, and the log."""
        expected, _ = self.answer(plain, plugin=False, **job)
        told, log = self.answer(ours, **job)
        assert said(told) == said(expected)
        assert "weights" in told or "tokens" in told
        return told, log

    def close(self):
        with self.program:  # it ends when there are no more jobs
            pass


@pytest.fixture(scope="module")
def vllm(tmp_path_factory):
    engines = Engines(tmp_path_factory.mktemp("engines"))
    yield engines
    engines.close()


def said(answered):
    """What a model says, without how it was loaded."""
    return {key: value for key, value in answered.items() if key not in ("load_format", "grown")}


def packed(folder, **options):
    return Path(weightpack.pack(folder, f"{folder}-wp", **options).target)


@pytest.fixture(scope="module")
def tiny(vllm, tmp_path_factory):
    """A tiny LLaMA, and what it says."""
    folder = vllm_models.llama(tmp_path_factory.mktemp("tiny") / "m")
    return folder, packed(folder), vllm.answer(folder, plugin=False)[0]


def test_no_flag_is_needed(vllm, tiny):
    _, ours, expected = tiny
    told, _ = vllm.answer(ours)
    assert said(told) == said(expected)
    assert (expected["load_format"], told["load_format"]) == ("auto", "weightpack")


def test_a_plain_model_is_left_to_vllm(vllm, tiny):
    plain, _, expected = tiny
    assert said(vllm.answer(plain)[0]) == said(expected)


@pytest.mark.parametrize("load_format", ["weightpack", "hf", "safetensors"])
def test_load_formats(vllm, tiny, load_format):
    _, ours, expected = tiny
    told, _ = vllm.answer(ours, options={"load_format": load_format})
    assert said(told) == said(expected)
    assert told["load_format"] == load_format


@pytest.mark.parametrize("strategy", ["eager", "prefetch"])
def test_load_strategies(vllm, tiny, strategy):
    _, ours, expected = tiny
    assert said(vllm.answer(ours, options={"safetensors_load_strategy": strategy})[0]) == said(expected)


@pytest.mark.parametrize("load_format", ["fastsafetensors", "instanttensor", "runai_streamer"])
def test_load_formats_with_readers_of_their_own_read_packed_files_by_weightpack(vllm, tiny, load_format):
    """These read by themselves. The first two need CUDA for plain files."""
    _, ours, expected = tiny
    told, log = vllm.answer(ours, options={"load_format": load_format})
    assert said(told) == said(expected)
    assert f"packed files are read by weightpack, not by {load_format}" in log


def test_shards(vllm, tmp_path):
    plain = vllm_models.llama(tmp_path / "m", max_shard_size="200KB")
    assert len(list(plain.glob("*.safetensors"))) > 3
    vllm.same(plain, packed(plain))


def test_tensor_parallelism_shares_the_cpus(vllm, tiny, tmp_path):
    plain, ours, _ = tiny
    unbound = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # vLLM would bind each worker to a NUMA node of its own
    _, log = vllm.same(plain, ours, options={"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}, environment=unbound)
    n_threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert log.count(f"weightpack decodes with {n_threads} thread") == 2


def test_threads_can_be_named(vllm, tiny):
    _, ours, expected = tiny
    told, log = vllm.answer(ours, options={"model_loader_extra_config": {"num_threads": 3}})
    assert said(told) == said(expected)
    assert "weightpack decodes with 3 threads" in log


def test_options_are_checked(vllm, tiny):
    assert "bse" in vllm.failure(tiny[1], options={"model_loader_extra_config": {"bse": "x"}})


def test_lora(vllm, tmp_path, tiny):
    plain, ours, expected = tiny
    adapter = vllm_models.lora(tmp_path / "lora")
    adapted, _ = vllm.answer(plain, plugin=False, lora=str(adapter))
    assert adapted["tokens"] != expected["tokens"]
    assert said(vllm.answer(ours, lora=str(packed(adapter)))[0]) == said(adapted)


def test_pooling(vllm, tmp_path):
    plain = vllm_models.bert(tmp_path / "m")
    vllm.same(plain, packed(plain), pool=True, options={"runner": "pooling"})


def test_quantised_layers_are_found_by_their_dtypes(vllm, tmp_path):
    plain = vllm_models.gptq(tmp_path / "m")
    vllm.same(plain, packed(plain))


def test_dtype_of_mistrals_format(vllm, tmp_path):
    plain = vllm_models.mistral(tmp_path / "m")
    told, _ = vllm.same(plain, packed(plain))
    assert told["dtype"] == "torch.float16"


def test_dtype_that_config_does_not_name(vllm, tmp_path):
    plain = vllm_models.without_dtype(tmp_path / "m")
    told, _ = vllm.same(plain, packed(plain))
    assert told["dtype"] == "torch.float16"


@pytest.mark.parametrize("make", [vllm_models.llama, vllm_models.gptq], ids=["none", "gptq"])
def test_flagged_config(vllm, tmp_path, make):
    """`--hf-flag` puts a quantisation method around the model's own."""
    plain = make(tmp_path / "m")
    vllm.same(plain, packed(plain, hf_flag=True))


def test_delta_against_a_base_that_is_named(vllm, tmp_path):
    base, tuned = (vllm_models.llama(tmp_path / name / "m") for name in ("base", "tuned"))
    tensors = load_file(tuned / "model.safetensors")
    save_file({name: tensor * (1 + 2**-7) for name, tensor in tensors.items()}, tuned / "model.safetensors", {"format": "pt"})
    ours = packed(tuned, base=base)
    expected, _ = vllm.answer(tuned, plugin=False)
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    assert "is a difference from a base that is not here" in vllm.failure(ours)
    told, _ = vllm.answer(ours, options={"model_loader_extra_config": {"base": str(tmp_path / "elsewhere" / "m")}})
    assert said(told) == said(expected)


@contextmanager
def elsewhere(folder, **hub):
    """Engines that look for repos elsewhere."""
    folder.mkdir()
    engines = Engines(folder, HF_HOME=str(folder), HF_HUB_CACHE=str(folder / "hub"), HF_HUB_DISABLE_XET="1", HF_TOKEN="", **hub)
    try:
        yield engines
    finally:
        engines.close()


def test_repos(tmp_path, vllm):
    """vLLM asks the Hub for headers before anything is downloaded. What is in the Hub's cache is seen to be packed."""
    plain = vllm_models.without_dtype(tmp_path / "m")
    expected, _ = vllm.answer(plain, plugin=False)
    with hub_double.serve() as hub, elsewhere(tmp_path / "hf", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0") as online:
        hub.add("org/packed", packed(plain))
        for load_format in ("auto", "weightpack"):
            told, _ = online.answer("org/packed")
            assert said(told) == said(expected)
            assert told["load_format"] == load_format


def test_loading_in_threads_takes_no_more_memory_than_plain(vllm, tmp_path):
    plain = vllm_models.llama(tmp_path / "m", hidden=768, n_layers=8, max_shard_size="16MB")
    ours = packed(plain)
    job = {"options": {"model_loader_extra_config": {"enable_multithread_load": True}}}
    expected, _ = vllm.answer(plain, plugin=False, **job)
    told, _ = vllm.answer(ours, **job)
    assert said(told) == said(expected)
    assert told["grown"] <= 1.2 * expected["grown"]


def test_without_the_plugin_a_flagged_model_says_what_it_wants(vllm, tmp_path):
    flagged = packed(vllm_models.llama(tmp_path / "m"), hf_flag=True)
    assert "Unknown quantization method: weightpack" in vllm.failure(flagged, plugin=False)


def test_without_the_plugin_no_model_is_loaded(vllm, tiny):
    assert "AssertionError" in vllm.failure(tiny[1], plugin=False)


WITHOUT = [
    "vllm.transformers_utils.utils:parse_safetensors_file_metadata",
    "vllm.model_executor.model_loader.weight_utils:fastsafetensors_weights_iterator",
    "vllm.model_executor.model_loader:register_model_loader",
]


def test_another_version_of_vllm_is_no_error(vllm, tiny):
    """Functions that the plugin looks for are gone: it says so, and what does not need them works."""
    _, ours, expected = tiny
    told, log = vllm.answer(ours, without=WITHOUT)
    assert said(told) == said(expected)
    assert told["load_format"] == "auto"
    for what in ("dtypes that it takes from the headers", "some load formats do not read packed files", "there is no --load-format weightpack"):
        assert what in log
