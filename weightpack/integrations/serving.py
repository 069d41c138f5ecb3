# SPDX-License-Identifier: Apache-2.0
"""Entry points that serving engines call in each of their processes, so that they read packed models with no flag (see pyproject.toml).

vLLM calls the group `vllm.general_plugins`, SGLang `sglang.srt.plugins`; both may call more than once. They read weights through safetensors, whose
`safe_open` is what `enable` exchanges.
"""

from __future__ import annotations

from contextlib import suppress

from weightpack.integrations.swap import enable


def vllm() -> None:
    """Let this vLLM process read packed models."""
    with suppress(ImportError):  # of another vLLM, which keeps its reader of headers elsewhere
        import vllm.transformers_utils.utils  # noqa: F401
    enable()


def sglang() -> None:
    """Let this SGLang process read packed models."""
    enable()
