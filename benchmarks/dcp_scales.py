#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What scales of rows and columns take off a distributed checkpoint of an optimizer's state: Adam's, of a real checkpoint (Resemblyzer's, 11 MB).

    python benchmarks/dcp_scales.py      # results in benchmarks/results/dcp_scales.json

Each checkpoint is loaded again and compared by bits. Needs torch; the checkpoint comes from the package `resemblyzer` (scripts/fetch_models.py).
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import fetch_models

import weightpack.dcp
from weightpack.options import PackOptions, load_profile

RESULTS = Path(__file__).resolve().parent / "results" / "dcp_scales.json"


def checkpoint_bytes(state: dict[str, torch.Tensor], options: PackOptions) -> int:
    """Return the bytes of a packed checkpoint; it is loaded again, and has to be the state."""
    with tempfile.TemporaryDirectory() as folder:
        dcp.save(state, storage_writer=weightpack.dcp.writer(folder, options=options))
        n_bytes = sum(file.stat().st_size for file in Path(folder).iterdir())
        loaded = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        dcp.load(loaded, storage_reader=weightpack.dcp.reader(folder))
    for name, tensor in state.items():
        if not torch.equal(loaded[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)):
            raise SystemExit(f"{name} is not what was saved")
    return n_bytes


def main() -> None:
    warnings.filterwarnings("ignore", "torch.distributed is disabled")
    logging.disable(logging.WARNING)
    checkpoint = torch.load(fetch_models.fetch_file("resemblyzer"), map_location="cpu", weights_only=True)
    moments = checkpoint["optimizer_state"]["state"]
    state = {f"{number}.{name}": value for number, values in moments.items() for name, value in values.items() if torch.is_tensor(value)}
    result = {
        "state": "Adam's of resemblyzer==0.1.4",
        "tensors": len(state),
        "source_bytes": sum(tensor.nbytes for tensor in state.values()),
        "checkpoint_bytes": {},
    }
    for profile in ("fast", "dense"):
        options = load_profile(profile)
        result["checkpoint_bytes"][profile] = {"scales": checkpoint_bytes(state, options), "without": checkpoint_bytes(state, replace(options, scales=False))}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
