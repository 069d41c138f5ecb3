# SPDX-License-Identifier: Apache-2.0
"""Chunks -> elements on a GPU: CUDA source that is compiled where it is first used (docs/GPU.md). What it can't decode is the CPU's."""
