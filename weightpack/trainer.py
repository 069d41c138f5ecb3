# SPDX-License-Identifier: Apache-2.0
"""transformers' Trainer: `WeightpackCallback` packs its checkpoints as they are saved, `WeightpackTrainer` also resumes from them, bit for bit, and logs sizes.

Where the trainer has a class of its own, the mixin goes in front: `class MyTrainer(WeightpackTrainerMixin, SFTTrainer)`. Packing is `weightpack.series`. It
reads files that the trainer has finished, so it goes on beside the training loop; it is waited for wherever the trainer may delete or read checkpoints.
Importing this module calls `weightpack.enable`: weights are read through safetensors.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightpack import series
from weightpack.errors import MissingExtraError, OptionError, TruncatedError
from weightpack.integrations.swap import enable
from weightpack.io.parallel import thread_count
from weightpack.models.jobs import Job
from weightpack.options import PackOptions, load_profile

try:
    import torch
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise MissingExtraError(f"weightpack.trainer needs transformers, 4.57 or later, accelerate and PyTorch: {error}") from None

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object

__all__ = ["PackedCheckpoint", "WeightpackCallback", "WeightpackTrainer", "WeightpackTrainerMixin"]

_logger = logging.getLogger(__name__)
_UPLOADS_CHECKPOINTS = ("checkpoint", "all_checkpoints")


@dataclass(frozen=True, slots=True)
class PackedCheckpoint:
    """What packing a checkpoint did, over its weights and its optimizer's state."""

    step: int
    source_bytes: int
    packed_bytes: int
    seconds: float

    @property
    def ratio(self) -> float:
        """Packed bytes / source bytes: smaller is better."""
        return self.packed_bytes / self.source_bytes if self.source_bytes else 1.0

    def logs(self) -> dict[str, float]:
        """Return what the trainer's loggers are told."""
        values = {"step": self.step, "ratio": self.ratio, "source_bytes": self.source_bytes, "packed_bytes": self.packed_bytes, "seconds": self.seconds}
        return {f"weightpack/{name}": value for name, value in values.items()}


def _meet() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


class WeightpackCallback(TrainerCallback):
    """Packs each checkpoint in place when the trainer has saved it: weights and optimizer, as deltas to the checkpoint before.

    Parameters
    ----------
    profile
        A profile's name, the path of a .toml file, or options.
    anchor_every
        Each so many checkpoints one is packed whole. Restoring a delta decodes all down to the last of these.
    background
        Pack in a thread beside the training loop; the last checkpoint is packed in the loop.
    threads
        Default: 1 in the background, which leaves the CPUs to training; else the CPUs of this process.
    on_error
        When a checkpoint can't be packed it stays plain; "warn": and training goes on, "raise": and it stops.

    Attributes
    ----------
    packed : list of PackedCheckpoint
        All so far.
    report : callable or None
        Told of each, from the thread that trains. `WeightpackTrainerMixin` sets it to `trainer.log`. With the callback alone set it yourself for figures in the
        trainer's loggers: callbacks are not told of their trainer.
    """

    def __init__(
        self, *, profile: str | PackOptions = "fast", anchor_every: int = series.ANCHOR_EVERY, background: bool = True, threads: int | None = None,
        on_error: str = "warn",
    ) -> None:  # fmt: skip
        if on_error not in ("warn", "raise"):
            raise OptionError(f"on_error is {on_error!r}: 'warn' or 'raise'")
        if anchor_every < 1:
            raise OptionError(f"anchor_every is {anchor_every}: it must be at least 1")
        self.anchor_every, self.background, self.on_error = anchor_every, background, on_error
        self.options = profile if isinstance(profile, PackOptions) else load_profile(profile)
        self.threads = 1 if background and threads is None else thread_count(threads)
        self.packed: list[PackedCheckpoint] = []
        self.report: Callable[[dict[str, float]], None] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._work: Future[list[PackedCheckpoint]] | None = None
        self._reported = 0

    # ---- packing

    def _job(self) -> Job:
        return Job(threads=self.threads, options=self.options)

    def _pack(self, run: Path, step: int) -> list[PackedCheckpoint]:
        start = time.perf_counter()
        done = series.pack_checkpoint(run, step, self._job(), anchor_every=self.anchor_every)
        return [PackedCheckpoint(step, done.source_bytes, done.packed_bytes, time.perf_counter() - start)]

    def _finish_killed(self, run: Path, last: int) -> list[PackedCheckpoint]:
        """Pack what a killed run had saved and not packed; tidy up behind it."""
        series.pack_run(run, self._job(), anchor_every=self.anchor_every, unfinished=True, last=last)
        return []

    def _start(self, work: Callable[[Path, int], list[PackedCheckpoint]], run: Path, step: int) -> None:
        self.wait()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="weightpack")
        self._work = self._pool.submit(work, run, step)

    def wait(self) -> None:
        """Wait until nothing is packed any more; then a checkpoint may be deleted, moved or read by other means."""
        work, self._work = self._work, None
        if work is None:
            return
        try:
            self.packed += work.result()
        except Exception as error:
            if self.on_error == "raise":
                raise
            # A checkpoint that was deleted meanwhile comes here too: there is nothing to pack any more.
            warnings.warn(f"a checkpoint was not packed, it stays as the trainer wrote it: {error}", RuntimeWarning, stacklevel=2)

    def _wait_together(self) -> None:
        """Wait, and let the other processes of a distributed run wait, which would read what is packed here."""
        try:
            self.wait()
        finally:
            _meet()

    def _deliver(self) -> None:
        """Hand over figures. Not while the trainer is about to log: `log` would take its turn for done."""
        new, self._reported = self.packed[self._reported :], len(self.packed)
        for done in new:
            _logger.info("checkpoint-%d packed to %.2f %% in %.2f s", done.step, 100 * done.ratio, done.seconds)
            if self.report is not None:
                self.report(done.logs())

    # ---- what the trainer calls

    def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        enable()
        if args.push_to_hub and str(getattr(args.hub_strategy, "value", args.hub_strategy)) in _UPLOADS_CHECKPOINTS:
            raise OptionError(
                "with this hub_strategy the trainer uploads the checkpoint's own folder while it is packed: take 'every_save' or 'end', and "
                "`weightpack push` for packed checkpoints"
            )
        if args.deepspeed or args.fsdp:
            warnings.warn(
                "weights are packed; the optimizer's state, which DeepSpeed and FSDP write in files of their own, stays as it is: see weightpack.dcp",
                RuntimeWarning, stacklevel=2,
            )  # fmt: skip

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        enable()
        _meet()  # others may still be loading the checkpoint
        run = Path(args.output_dir)
        if args.should_save and run.is_dir():
            series.unshare(run, state.global_step)  # before the first save, which may be over a checkpoint of an earlier run
            if (run / series.STORE).is_dir():
                self._start(self._finish_killed, run, state.global_step)
        if not self.background:
            self.wait()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._work is not None and self._work.done():
            self.wait()
        self._deliver()

    def _before_save(self, args: Any, state: Any) -> None:
        """The trainer is about to write a checkpoint and to delete the oldest ones."""
        self.wait()
        if args.should_save and (Path(args.output_dir) / f"checkpoint-{state.global_step}").is_dir():
            series.unshare(args.output_dir, state.global_step - 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_save:
            self._before_save(args, state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_save:
            self._before_save(args, state)
        elif control.should_training_stop:  # the best checkpoint is loaded before on_train_end
            self._wait_together()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if getattr(args.save_strategy, "value", args.save_strategy) == "best":  # it decides now
            self._before_save(args, state)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.wait()
        ending = control.should_training_stop or state.global_step >= state.max_steps
        if args.should_save:
            self._start(self._pack, Path(args.output_dir), state.global_step)
        if ending or not self.background:
            self._wait_together()
        self._deliver()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "train_runtime" in logs:  # the last: loggers close behind it
            self.wait()
            self._deliver()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.wait()
        self._deliver()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        if args.should_save:
            series.collect(args.output_dir)  # the trainer has deleted what save_total_limit does not keep


class WeightpackTrainerMixin(_Base):
    """In front of a Trainer: it resumes from packed checkpoints, and logs what `WeightpackCallback` packs.

    What stock Trainer does not notice is an error here: a checkpoint without the optimizer's or the scheduler's state, or one that was cut when the trainer was
    killed. `resume_from_checkpoint=True` takes the newest whole one.
    """

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        enable()
        if resume_from_checkpoint is True:
            last = series.last_checkpoint(self.args.output_dir, weights_only=self.args.save_only_model)
            if last is None:
                raise OptionError("no checkpoint to resume from", path=str(self.args.output_dir))
            resume_from_checkpoint = str(last)
        elif resume_from_checkpoint:
            self._refuse_incomplete(resume_from_checkpoint)
        callbacks = [callback for callback in self._weightpack_callbacks() if callback.report is None]
        for callback in callbacks:
            callback.report = self.log
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            for callback in callbacks:
                callback.report = None

    def _weightpack_callbacks(self) -> list[WeightpackCallback]:
        return [callback for callback in self.callback_handler.callbacks if isinstance(callback, WeightpackCallback)]

    def _refuse_incomplete(self, checkpoint: str | os.PathLike[str]) -> None:
        path = Path(checkpoint)
        if path.is_dir() and (problem := series.checkpoint_problem(path, weights_only=self.args.save_only_model)):
            raise TruncatedError(f"not a checkpoint to resume from: {problem}", path=str(path))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        with series.plain_files(Path(resume_from_checkpoint), ("pytorch_model", "adapter_model"), thread_count(None)) as folder:
            super()._load_from_checkpoint(str(folder), *args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        self._refuse_incomplete(checkpoint)
        with series.plain_files(Path(checkpoint), ("optimizer",), thread_count(None)) as folder:
            super()._load_optimizer_and_scheduler(str(folder))

    def _load_best_model(self) -> None:
        for callback in self._weightpack_callbacks():
            callback.wait()
        best = self.state.best_model_checkpoint
        with series.plain_files(Path(best), ("pytorch_model", "adapter_model"), thread_count(None)) as folder:
            self.state.best_model_checkpoint = str(folder)
            try:
                super()._load_best_model()
            finally:
                self.state.best_model_checkpoint = best

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        for callback in self._weightpack_callbacks():
            callback._before_save(self.args, self.state)
        super()._save_checkpoint(*args, **kwargs)


class WeightpackTrainer(WeightpackTrainerMixin, Trainer):
    """`transformers.Trainer` that resumes from packed checkpoints, and logs what `WeightpackCallback` packs."""


enable()
