# SPDX-License-Identifier: Apache-2.0
"""Packed models to and from a Hub, through huggingface_hub: its API, its token, its HF_ENDPOINT."""

from weightpack.hub.download import pull
from weightpack.hub.upload import PushResult, push

__all__ = ["PushResult", "pull", "push"]
