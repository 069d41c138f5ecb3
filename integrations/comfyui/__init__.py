# SPDX-License-Identifier: Apache-2.0
"""weightpack for ComfyUI: packed .safetensors files load like plain ones, in every loader. There is no node to add to a workflow."""

from weightpack.integrations.comfyui import enable

enable()

NODE_CLASS_MAPPINGS: dict[str, type] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
