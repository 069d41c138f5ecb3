# SPDX-License-Identifier: Apache-2.0
"""A small training run, the same whenever it is run: a BERT with dropout learns to tell apart sequences. Also a program, which tests kill."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
import transformers as t

STEPS, SAVE = 12, 2


def model(hidden=64):
    torch.manual_seed(0)
    config = t.BertConfig(hidden_size=hidden, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=500, max_position_embeddings=32)
    return t.BertForSequenceClassification(config)


def data(n=96, length=16):
    ids = torch.arange(n * length).reshape(n, length) * 37 % 499
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row.sum() % 2} for row in ids]


def arguments(folder, **changes):
    wanted = {
        "output_dir": str(folder), "max_steps": STEPS, "save_steps": SAVE, "save_strategy": "steps", "per_device_train_batch_size": 8, "logging_steps": 1,
        "learning_rate": 1e-3, "warmup_steps": 3, "seed": 7, "report_to": "none", "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False,
    }  # fmt: skip
    return t.TrainingArguments(**{**wanted, **changes})


def trainer(folder, callbacks=(), cls=t.Trainer, hidden=64, **changes):
    """Return a trainer that has not begun."""
    torch.set_num_threads(1)
    return cls(model=model(hidden), args=arguments(folder, **changes), train_dataset=data(), eval_dataset=data(16), callbacks=list(callbacks))


def state(trained):
    """Return all tensors of a trainer's model and optimizer, and the scheduler's state."""
    tensors = {f"model.{name}": tensor for name, tensor in trained.model.state_dict().items()}
    for i, values in trained.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": value for name, value in values.items()}
    tensors["random"] = torch.get_rng_state()
    return {name: tensor.clone() for name, tensor in tensors.items()}, dict(trained.lr_scheduler.state_dict())


def same(a, b):
    """Assert that two states are equal bit for bit."""
    assert list(a[0]) == list(b[0])
    for name, tensor in a[0].items():
        other = b[0][name]
        assert tensor.dtype == other.dtype and tensor.shape == other.shape, name
        assert torch.equal(tensor.reshape(-1).contiguous().view(torch.uint8), other.reshape(-1).contiguous().view(torch.uint8)), name
    assert a[1].keys() == b[1].keys()
    assert all(a[1][name] == b[1][name] for name in a[1] if name != "lr_lambdas")


class Crash(Exception):
    """Training ends here."""


class CrashAt(t.TrainerCallback):
    """Raises when a step begins."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            raise Crash


def main(folder, final, crash=None, **changes):
    """Train with packed checkpoints from wherever the last process came to, and save the final state; each process of a distributed run its own."""
    from weightpack import series
    from weightpack.trainer import WeightpackCallback, WeightpackTrainer

    warnings.filterwarnings("ignore", message=".*is passed over")
    last = series.last_checkpoint(folder) if folder.exists() else None
    callbacks = [WeightpackCallback(anchor_every=3)] + ([CrashAt(int(crash))] if crash else [])
    run = trainer(folder, callbacks, WeightpackTrainer, **{"save_steps": 1, "save_total_limit": 3, **changes})
    run.train(resume_from_checkpoint=None if last is None else True)
    torch.save(state(run), f"{final}.{run.args.process_index}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
