# SPDX-License-Identifier: Apache-2.0
"""The checkpoints of a training run, `RUN/checkpoint-STEP/`, packed in place as deltas: what `weightpack series` shows and does."""

from __future__ import annotations

from weightpack.runs.pack import (
    ANCHOR_EVERY,
    STORE,
    Checkpoint,
    Series,
    SeriesFile,
    checkpoint,
    checkpoint_problem,
    collect,
    has_sharded_state,
    last_checkpoint,
    pack_checkpoint,
    pack_run,
    plain_files,
    restore,
    series,
    unshare,
    verify,
)

__all__ = [
    "ANCHOR_EVERY", "STORE", "Checkpoint", "Series", "SeriesFile", "checkpoint", "checkpoint_problem", "collect", "has_sharded_state", "last_checkpoint",
    "pack_checkpoint", "pack_run", "plain_files", "restore", "series", "unshare", "verify",
]  # fmt: skip
