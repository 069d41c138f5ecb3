# SPDX-License-Identifier: Apache-2.0
"""A training run without transformers, with files such as its Trainer writes, in that order; a program too, which packs as it goes and which tests kill."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import safetensors.torch
import torch

from weightpack import series
from weightpack.models.jobs import Job


class Training:
    """A small model, AdamW, a schedule; the data are drawn from torch's generator, whose state is part of a checkpoint."""

    def __init__(self, width: int) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.width = width
        self.model = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Dropout(0.1), torch.nn.ReLU(), torch.nn.Linear(width, width))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4)
        self.scheduler = torch.optim.lr_scheduler.LinearLR(self.optimizer)

    def step(self) -> None:
        x = torch.randn(8, self.width)
        (self.model(x) - x).pow(2).mean().backward()
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()

    def save(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(self.model.state_dict(), folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text('{"model_type": "bert"}')
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
        torch.save(self.scheduler.state_dict(), folder / "scheduler.pt")
        torch.save({"cpu": torch.get_rng_state()}, folder / "rng_state.pth")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": [{"loss": 0.1}] * step}))

    def load(self, folder: Path) -> None:
        self.model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
        self.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
        self.scheduler.load_state_dict(torch.load(folder / "scheduler.pt", weights_only=True))
        torch.set_rng_state(torch.load(folder / "rng_state.pth", weights_only=True)["cpu"])


def plain(run: Path, steps: int, width: int = 120, every: int = 1) -> Path:
    """Make a run whose checkpoints are plain."""
    training = Training(width)
    for step in range(1, steps + 1):
        training.step()
        if step % every == 0:
            training.save(run / f"checkpoint-{step}", step)
    return run


def main(run: Path, steps: int, limit: int) -> None:
    """Train to the end from wherever the last process came to; pack each checkpoint as it is saved, delete the oldest before."""
    warnings.filterwarnings("ignore", message=".*is passed over", category=RuntimeWarning)
    training, done, job = Training(120), 0, Job()
    if (last := series.last_checkpoint(run)) is not None:
        done = int(last.name.rpartition("-")[2])
        with tempfile.TemporaryDirectory(dir=run) as folder:
            series.restore(run, done, Path(folder) / "plain", job)
            training.load(Path(folder) / "plain")
    series.unshare(run, done)
    print("begin", flush=True)
    series.pack_run(run, job, unfinished=True, last=done, anchor_every=3)
    for step in range(done + 1, steps + 1):
        training.step()
        training.save(run / f"checkpoint-{step}", step)
        for old in sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))[:-limit]:
            shutil.rmtree(old)
        series.pack_checkpoint(run, step, job, anchor_every=3)
    print("end", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
