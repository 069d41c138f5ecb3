# SPDX-License-Identifier: Apache-2.0
"""transformers' Trainer with packed checkpoints: what it resumes to, what it refuses, what it logs, what a kill costs. States are compared by bits."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers", reason="scripts/test-ecosystem installs transformers and runs this")
pytest.importorskip("accelerate", reason="scripts/test-ecosystem installs it: Trainer needs it")

import safetensors  # noqa: E402
import tiny_training  # noqa: E402
import torch  # noqa: E402
from tiny_training import Crash, CrashAt  # noqa: E402

import weightpack  # noqa: E402
from weightpack import series  # noqa: E402
from weightpack.errors import OptionError, TruncatedError  # noqa: E402
from weightpack.models.jobs import Job  # noqa: E402
from weightpack.trainer import WeightpackCallback, WeightpackTrainer, WeightpackTrainerMixin  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("default"),  # the libraries' own
    pytest.mark.filterwarnings("error::RuntimeWarning:weightpack"),
    pytest.mark.filterwarnings("error:.*(a checkpoint was not packed|is passed over)"),
]
HERE = Path(__file__).parent
V5 = int(transformers.__version__.split(".")[0]) >= 5
BEST = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss", "greater_is_better": True}  # the worst


@pytest.fixture(autouse=True)
def swapped():
    """What importing weightpack.trainer enables is enabled, and stays so behind other tests' `disable`."""
    weightpack.enable()
    yield
    weightpack.disable()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return a stock trainer at its end, its checkpoints plain."""
    trainer = tiny_training.trainer(tmp_path_factory.mktemp("uninterrupted"))
    trainer.train()
    return trainer


def interrupted(folder, step, cls=WeightpackTrainer, **changes):
    """Train until something goes wrong in a step; return the callback, when it has packed what it had begun."""
    packing = {name: changes.pop(name) for name in ("anchor_every", "background", "threads", "profile") if name in changes}
    callback = WeightpackCallback(**packing)
    with pytest.raises(Crash):
        tiny_training.trainer(folder, [callback, CrashAt(step)], cls, **changes).train()
    callback.wait()
    return callback


def tensors_of(folder):
    """Return every tensor of a plain checkpoint."""
    with safetensors.safe_open(folder / "model.safetensors", "pt") as f:
        found = {name: f.get_tensor(name) for name in f.keys()}
    for number, state in torch.load(folder / "optimizer.pt")["state"].items():
        found |= {f"{number}.{name}": value for name, value in state.items()}
    return found


def is_packed(path):
    return weightpack.inspect(path) is not None


# ---- resuming


@pytest.mark.parametrize("limit", [None, pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("anchor_every", "background", "crash"),
    [(3, True, 7), (8, False, 11), pytest.param(1, True, 7, marks=pytest.mark.long), pytest.param(2, True, 3, marks=pytest.mark.long)],
)
def test_resumed_run_equals_the_uninterrupted(uninterrupted, tmp_path, limit, anchor_every, background, crash):
    changes = {"anchor_every": anchor_every, "background": background, "save_total_limit": limit}
    first = interrupted(tmp_path, crash, **changes)
    saved = [done.step for done in first.packed]
    assert saved == list(range(2, crash + 1, 2))
    callback = WeightpackCallback(anchor_every=anchor_every, background=background)
    trainer = tiny_training.trainer(tmp_path, [callback], WeightpackTrainer, save_total_limit=limit)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == tiny_training.STEPS
    assert trainer.model.config == uninterrupted.model.config
    tiny_training.same(tiny_training.state(trainer), tiny_training.state(uninterrupted))

    found = series.series(tmp_path).checkpoints
    assert [each.step for each in found] == [2, 4, 6, 8, 10, 12][-limit if limit else 0 :]
    assert all(each.problem is None and each.is_packed for each in found)
    assert [each.depth for each in found] == [(each.step // 2 - 1) % anchor_every for each in found]
    for each in found:  # and the checkpoints are those of the uninterrupted run
        series.restore(tmp_path, each.step, tmp_path / "plain" / str(each.step), Job())
        ours, plain = (tensors_of(folder) for folder in (tmp_path / "plain" / str(each.step), Path(uninterrupted.args.output_dir) / f"checkpoint-{each.step}"))
        assert ours.keys() == plain.keys()
        assert all(torch.equal(ours[name], plain[name]) for name in ours)
    assert not list(tmp_path.rglob(".*"))


def test_resume_again_and_again(uninterrupted, tmp_path):
    for crash in (3, 5, 5, 9, 11):  # the third gets no further than the second
        callback = WeightpackCallback(anchor_every=4)
        trainer = tiny_training.trainer(tmp_path, [callback, CrashAt(crash)], WeightpackTrainer, save_total_limit=2)
        with pytest.raises(Crash):
            trainer.train(resume_from_checkpoint=True if (tmp_path / "checkpoint-2").exists() or crash > 3 else None)
        callback.wait()
    trainer = tiny_training.trainer(tmp_path, [], WeightpackTrainer)
    trainer.train(resume_from_checkpoint=str(series.last_checkpoint(tmp_path)))
    tiny_training.same(tiny_training.state(trainer), tiny_training.state(uninterrupted))


@pytest.mark.long
def test_go_back_and_train_over_packed_checkpoints(uninterrupted, tmp_path):
    """Resumed at an early step, the trainer saves over files that are links into the store."""
    trainer = tiny_training.trainer(tmp_path, [WeightpackCallback()], WeightpackTrainer)
    trainer.train()
    callback = WeightpackCallback()
    trainer = tiny_training.trainer(tmp_path, [callback, CrashAt(7)], WeightpackTrainer, learning_rate=1e-2)
    with pytest.raises(Crash):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    callback.wait()
    assert len(series.verify(tmp_path, Job())) == 12
    trainer = tiny_training.trainer(tmp_path, [WeightpackCallback()], WeightpackTrainer)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    tiny_training.same(tiny_training.state(trainer), tiny_training.state(uninterrupted))
    assert len(series.verify(tmp_path, Job())) == 12


@pytest.mark.parametrize("limit", [None, pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long)])
def test_best_model_at_the_end(tmp_path, limit):
    """The best checkpoint is read when training ends, by stock code; and stays when others are deleted."""
    plain = tiny_training.trainer(tmp_path / "plain", save_total_limit=limit, **BEST)
    plain.train()
    for cls, folder in ((WeightpackTrainer, tmp_path / "ours"), (transformers.Trainer, tmp_path / "callback alone")):
        ours = tiny_training.trainer(folder, [WeightpackCallback(anchor_every=4)], cls, save_total_limit=limit, **BEST)
        ours.train()
        assert Path(ours.state.best_model_checkpoint).name == Path(plain.state.best_model_checkpoint).name != "checkpoint-12"
        tiny_training.same(tiny_training.state(ours), tiny_training.state(plain))
        assert all(each.is_packed and each.problem is None for each in series.series(folder).checkpoints)
        assert {path.name for path in folder.glob("checkpoint-*")} == {path.name for path in (tmp_path / "plain").glob("checkpoint-*")}
        series.verify(folder, Job())


def test_saved_when_it_is_the_best(tmp_path):
    """save_strategy="best" decides behind the evaluation whether it saves."""
    changes = {**BEST, "eval_steps": 1, "greater_is_better": False, "save_strategy": "best", "save_total_limit": 1}
    plain = tiny_training.trainer(tmp_path / "plain", **changes)
    plain.train()
    ours = tiny_training.trainer(tmp_path / "ours", [WeightpackCallback()], WeightpackTrainer, **changes)
    ours.train()
    tiny_training.same(tiny_training.state(ours), tiny_training.state(plain))
    assert all(each.is_packed for each in series.series(tmp_path / "ours").checkpoints)


def test_each_epoch(tmp_path):
    """The last step of an epoch saves at the epoch's end; the next forks workers while that is packed."""
    changes = {"save_strategy": "epoch", "max_steps": -1, "num_train_epochs": 3, "save_total_limit": 1, "dataloader_num_workers": 2}
    plain = tiny_training.trainer(tmp_path / "plain", **changes)
    plain.train()
    interrupted(tmp_path / "ours", 26, **changes)
    ours = tiny_training.trainer(tmp_path / "ours", [WeightpackCallback()], WeightpackTrainer, **changes)
    ours.train(resume_from_checkpoint=True)
    tiny_training.same(tiny_training.state(ours), tiny_training.state(plain))
    assert [each.is_packed for each in series.series(tmp_path / "ours").checkpoints] == [True]


def test_mixin_in_front_of_a_trainer_of_its_own(uninterrupted, tmp_path):
    class Mine(WeightpackTrainerMixin, transformers.Trainer):  # type: ignore[name-defined]  # where it is not installed
        pass

    interrupted(tmp_path, 5, Mine)
    trainer = tiny_training.trainer(tmp_path, [], Mine)
    trainer.train(resume_from_checkpoint=True)
    tiny_training.same(tiny_training.state(trainer), tiny_training.state(uninterrupted))


def test_restored_checkpoint_resumes_stock_trainer(uninterrupted, tmp_path):
    """Without any of this at hand: the checkpoint as it was."""
    interrupted(tmp_path / "run", 7)
    series.restore(tmp_path / "run", 6, tmp_path / "six", Job())
    weightpack.disable()
    trainer = tiny_training.trainer(tmp_path / "run")
    trainer.train(resume_from_checkpoint=str(tmp_path / "six"))
    tiny_training.same(tiny_training.state(trainer), tiny_training.state(uninterrupted))


def test_packed_checkpoint_loads_as_a_model(tmp_path):
    interrupted(tmp_path, 7)
    series.restore(tmp_path, 6, tmp_path / "six", Job())
    ours, plain = (transformers.AutoModelForSequenceClassification.from_pretrained(path) for path in (tmp_path / "checkpoint-6", tmp_path / "six"))
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), plain.state_dict().values(), strict=True))


@pytest.mark.skipif(V5, reason="transformers 5 writes safetensors only")
def test_pytorch_model_bin(tmp_path):
    changes = {"save_safetensors": False, **BEST}
    plain = tiny_training.trainer(tmp_path / "plain", **changes)
    plain.train()
    interrupted(tmp_path / "ours", 7, **changes)
    ours = tiny_training.trainer(tmp_path / "ours", [WeightpackCallback()], WeightpackTrainer, **changes)
    ours.train(resume_from_checkpoint=True)
    assert {file.name for each in series.series(tmp_path / "ours").checkpoints for file in each.files} == {"pytorch_model.bin", "optimizer.pt"}
    tiny_training.same(tiny_training.state(ours), tiny_training.state(plain))


# ---- refusals


def test_stock_trainer_does_not_resume_from_packed_optimizer(tmp_path):
    """Never in silence with a fresh one: the packed bytes stand under its name."""
    interrupted(tmp_path, 7)
    with pytest.raises(pickle.UnpicklingError):
        tiny_training.trainer(tmp_path).train(resume_from_checkpoint=True)
    weightpack.disable()
    with pytest.raises(RuntimeError, match=r"size mismatch|shape"):
        tiny_training.trainer(tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "trainer_state.json", "model.safetensors"])
def test_missing_state_is_refused(tmp_path, name):
    interrupted(tmp_path, 5)
    (tmp_path / "checkpoint-4" / name).unlink()
    trainer = tiny_training.trainer(tmp_path, [], WeightpackTrainer)
    with pytest.raises(TruncatedError, match=name if name != "model.safetensors" else "no weights"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    with pytest.warns(RuntimeWarning, match="checkpoint-4 is passed over"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(OptionError, match="no checkpoint"):
        tiny_training.trainer(tmp_path / "other", [], WeightpackTrainer).train(resume_from_checkpoint=True)


def test_missing_optimizer_is_what_stock_trainer_does_not_see(uninterrupted, tmp_path):
    """The hazard itself; if this fails, transformers has mended it."""
    trainer = tiny_training.trainer(tmp_path, [CrashAt(7)])
    with pytest.raises(Crash):
        trainer.train()
    (tmp_path / "checkpoint-6" / "optimizer.pt").unlink()
    trainer = tiny_training.trainer(tmp_path)
    trainer.train(resume_from_checkpoint=True)
    with pytest.raises(AssertionError):
        tiny_training.same(tiny_training.state(trainer), tiny_training.state(uninterrupted))


def test_save_only_model(tmp_path):
    trainer = tiny_training.trainer(tmp_path, [WeightpackCallback()], WeightpackTrainer, save_only_model=True)
    trainer.train()
    assert all(each.is_packed and len(each.files) == 1 for each in series.series(tmp_path).checkpoints)
    tiny_training.trainer(tmp_path, [], WeightpackTrainer, save_only_model=True).train(resume_from_checkpoint=True)
    with pytest.raises(TruncatedError, match="begin anew"):
        tiny_training.trainer(tmp_path, [], WeightpackTrainer).train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))


def test_a_checkpoint_that_cannot_be_packed(tmp_path):
    """It stays plain, and the caller chooses whether training goes on."""
    for on_error in ("warn", "raise"):
        (tmp_path / on_error).mkdir()
        (tmp_path / on_error / series.STORE).write_text("in the way")
        for background in (True, False):
            trainer = tiny_training.trainer(tmp_path / on_error, [WeightpackCallback(on_error=on_error, background=background)], WeightpackTrainer)
            if on_error == "warn":
                with pytest.warns(RuntimeWarning, match="a checkpoint was not packed"):
                    trainer.train()
                assert [each.problem for each in series.series(tmp_path / on_error).checkpoints] == [None] * 6
            else:
                with pytest.raises(OptionError, match="the store is a file"):
                    trainer.train()
                assert series.last_checkpoint(tmp_path / on_error) == tmp_path / on_error / "checkpoint-2"
    for bad in ({"on_error": "ignore"}, {"anchor_every": 0}, {"threads": 0}, {"profile": "none such"}):
        with pytest.raises(OptionError):
            WeightpackCallback(**bad)


def test_uploads_of_the_folder_in_work_are_refused(tmp_path):
    args = tiny_training.arguments(tmp_path, push_to_hub=True, hub_strategy="checkpoint")
    with pytest.raises(OptionError, match="hub_strategy"):
        WeightpackCallback().on_init_end(args, None, None)
    WeightpackCallback().on_init_end(tiny_training.arguments(tmp_path, push_to_hub=True, hub_strategy="every_save"), None, None)


# ---- loggers


@pytest.mark.long
def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="scripts/test-ecosystem installs it")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    where = {"logging_dir": str(tmp_path / "tb")} if "logging_dir" in transformers.TrainingArguments.__dataclass_fields__ else {}
    callback = WeightpackCallback()
    trainer = tiny_training.trainer(tmp_path / "run", [callback], WeightpackTrainer, report_to=["tensorboard"], **where)
    trainer.train()
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder)).Reload()
    assert [event.value for event in events.Scalars("train/weightpack/step")] == [2, 4, 6, 8, 10, 12]
    for name in ("ratio", "source_bytes", "packed_bytes", "seconds"):
        assert [event.value for event in events.Scalars(f"train/weightpack/{name}")] == pytest.approx([getattr(done, name) for done in callback.packed])
    assert len(events.Scalars("train/loss")) == 12  # packing takes nobody's turn
    assert len(callback.packed) == 6
    assert all(0 < done.ratio < 1 for done in callback.packed)
    logged = [logs for logs in trainer.state.log_history if "weightpack/ratio" in logs]
    assert [logs["weightpack/step"] for logs in logged] == [2, 4, 6, 8, 10, 12]
    assert callback.report is None


def test_callback_alone_reports_to_whom_it_is_told(tmp_path):
    callback = WeightpackCallback()
    trainer = tiny_training.trainer(tmp_path, [callback])
    callback.report = trainer.log
    trainer.train()
    assert [logs["weightpack/step"] for logs in trainer.state.log_history if "weightpack/step" in logs] == [2, 4, 6, 8, 10, 12]
    assert sum("loss" in logs for logs in trainer.state.log_history) == 12


WANDB = """
import json, sys
sys.path.insert(0, sys.argv[1])
import tiny_training, wandb
from weightpack.trainer import WeightpackCallback, WeightpackTrainer
tiny_training.trainer(sys.argv[2], [WeightpackCallback()], WeightpackTrainer, report_to=["wandb"]).train()
print("summary", json.dumps({key: value for key, value in dict(wandb.run.summary).items() if isinstance(value, (int, float))}))
wandb.finish()
"""


@pytest.mark.long
def test_wandb_offline(tmp_path):
    pytest.importorskip("wandb", reason="scripts/test-ecosystem installs it")
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", WANDB, str(HERE), str(tmp_path / "run")], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "not packed" not in done.stderr, done.stderr
    summary = json.loads(re.search(r"^summary (.*)$", done.stdout, re.M)[1])
    assert summary["train/weightpack/step"] == 12
    assert summary["train/weightpack/ratio"] == pytest.approx(summary["train/weightpack/packed_bytes"] / summary["train/weightpack/source_bytes"])
    assert summary["train/weightpack/seconds"] > 0
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"weightpack/ratio" in written.read_bytes()


# ---- killed


@pytest.mark.long
def test_killed_at_random_moments(tmp_path, kills):
    """A run whose process is killed over and over comes to the end of one that is not."""
    final, killed, rng = tmp_path / "final.0", tmp_path / "killed.0", random.Random(3)

    def program(run, target):
        return [sys.executable, str(HERE / "tiny_training.py"), str(run), str(target.with_suffix(""))]

    assert subprocess.run(program(tmp_path / "whole", final), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=300).returncode == 0
    left = max(2, kills // 2)
    while not killed.exists():
        process = subprocess.Popen(program(tmp_path / "run", killed), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        if left:
            list(zip(range(rng.randrange(1, 8)), process.stdout, strict=False))  # some steps are logged
            try:
                process.wait(rng.uniform(0, 0.3))
            except subprocess.TimeoutExpired:
                process.kill()
            left -= 1
        process.communicate(timeout=300)
        for each in series.series(tmp_path / "run").checkpoints if (tmp_path / "run").exists() else []:
            if each.problem is None:
                series.restore(tmp_path / "run", each.step, tmp_path / "restored", Job(overwrite=True))
    ours, whole = torch.load(killed), torch.load(final)
    for tensors, _ in (ours, whole):
        tensors.pop("random")  # one that was killed behind its last checkpoint has nothing left to draw, and Trainer does not load the state
    tiny_training.same(ours, whole)
    assert all(each.is_packed and each.problem is None for each in series.series(tmp_path / "run").checkpoints)


@pytest.mark.long
@pytest.mark.skipif(not V5, reason="transformers 4.57 asks torch for the device cpu:0, which plain checkpoints don't load to either")
def test_two_processes_train(tmp_path):
    """Each resumes from the packed optimizer; the first packs while the second goes on."""

    def run(folder, *crash):
        program = [str(HERE / "tiny_training.py"), str(tmp_path / folder), str(tmp_path / f"{folder}.state"), *crash]
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *program]
        return subprocess.run(launch, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})

    whole = run("whole")
    assert whole.returncode == 0, whole.stderr
    assert "Crash" in run("ours", "7").stderr
    resumed = run("ours")
    assert resumed.returncode == 0, resumed.stderr
    for rank in (0, 1):
        ours, plain = (torch.load(tmp_path / f"{folder}.state.{rank}") for folder in ("ours", "whole"))
        tiny_training.same(ours, plain)
    assert all(each.is_packed and each.problem is None for each in series.series(tmp_path / "ours").checkpoints)


# ---- docs/TRAINING.md


PAGE = HERE.parents[1] / "docs" / "TRAINING.md"
SETUP = """
import sys
sys.path.insert(0, {here!r})
import tiny_training
model, args, dataset = tiny_training.model(), tiny_training.arguments("run"), tiny_training.data()
"""


@pytest.mark.long
def test_examples_of_the_page(tmp_path):
    """As they stand there, one behind the other, in one folder."""
    examples = re.findall(r"```(python|sh)\n(.*?)```", PAGE.read_text(), re.S)
    assert [kind for kind, _ in examples] == ["python", "python", "sh", "python"]
    for kind, example in examples:
        program = [["-c", SETUP.format(here=str(HERE)) + example]]
        for arguments in program if kind == "python" else [["-m", *shlex.split(line, comments=True)] for line in example.splitlines()]:
            done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
