# SPDX-License-Identifier: Apache-2.0
"""Entry points that serving engines call in each of their processes, so that they read packed models with no flag (see pyproject.toml).

vLLM calls the group `vllm.general_plugins`, SGLang `sglang.srt.plugins`; both may call more than once.
"""

from weightpack.integrations.sglang import plug_in as sglang
from weightpack.integrations.vllm import plug_in as vllm

__all__ = ["sglang", "vllm"]
