# SPDX-License-Identifier: Apache-2.0
"""How libraries that read safetensors come to read packed files."""
