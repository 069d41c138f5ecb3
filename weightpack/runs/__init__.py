# SPDX-License-Identifier: Apache-2.0
"""The checkpoints of a training run: looked at, packed in place as deltas, restored."""
