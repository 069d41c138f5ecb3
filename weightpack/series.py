# SPDX-License-Identifier: Apache-2.0
"""The checkpoints of a training run, `RUN/checkpoint-STEP/`, packed in place as deltas: what `weightpack series` shows and does."""

from __future__ import annotations

from weightpack.runs.files import SeriesFile, has_sharded_state
from weightpack.runs.look import Checkpoint, Series, checkpoint, checkpoint_problem, last_checkpoint, series
from weightpack.runs.pack import ANCHOR_EVERY, pack_checkpoint, pack_run
from weightpack.runs.restore import plain_files, restore, verify
from weightpack.runs.store import STORE, collect, unshare

__all__ = [
    "ANCHOR_EVERY", "STORE", "Checkpoint", "Series", "SeriesFile", "checkpoint", "checkpoint_problem", "collect", "has_sharded_state", "last_checkpoint",
    "pack_checkpoint", "pack_run", "plain_files", "restore", "series", "unshare", "verify",
]  # fmt: skip
