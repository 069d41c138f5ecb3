# SPDX-License-Identifier: Apache-2.0
"""The checkpoints of a training run, `RUN/checkpoint-STEP/`, packed in place under their own names, each as a delta to the one before.

What a packed file needs below it (FORMAT: its base) may be in a checkpoint that the trainer deletes later. So every packed file is a hard link of one in
`RUN/_weightpack/`, the store, where it is named by the SHA-256 of what it restores to. `collect` takes out of the store what no checkpoint needs any more. (The
name begins with an underscore because the Hub client of transformers' Trainer does not upload such names.)

Whatever is killed when: a file of a checkpoint is either as the trainer wrote it, or packed, proven and synced; and what it is packed against is in the store
before.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from weightpack.errors import FormatError, OptionError, TruncatedError, WeightpackError, located
from weightpack.format.constants import MAX_HEADER_BYTES
from weightpack.format.safetensors import check_tiles
from weightpack.integrations.swap import is_packed_file
from weightpack.io.atomic import replace_file, sync_folder
from weightpack.io.files import LocalFile
from weightpack.io.folder import private_folder, work_folder
from weightpack.io.working_names import is_working_name, leftovers, lock, remove, working_name
from weightpack.models.directory import carry_over, model_files
from weightpack.models.jobs import FileResult, Job, JobResult, open_packed, pack_one, unpack_one
from weightpack.reading.bases import Base
from weightpack.reading.packed_file import PackedFile, read_header
from weightpack.reading.verify import VerifyResult, verify_file

STORE = "_weightpack"
ANCHOR_EVERY = 8

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_STORED = re.compile(r"[0-9a-f]{64}\.safetensors")
_STAGING, _STEPS = "staging", "steps.json"
# What is worth packing, at the top of a checkpoint. Schedulers, random states and arguments have some kilobytes.
_PACKABLE = re.compile(r".+\.safetensors|(optimizer|pytorch_model.*|adapter_model)\.(pt|bin)")
_SHARDED_STATE = re.compile(r"global_step\d+|pytorch_model_fsdp.*|optimizer_\d+|.+_fsdp\.bin")  # DeepSpeed's and FSDP's own
_STATE, _SENTINEL = "trainer_state.json", "checkpoint-is-incomplete.txt"  # written last; there while transformers answers SIGTERM with a checkpoint
_NOTE = "Bases of the packed checkpoints beside this folder: without them these are lost. weightpack itself removes what is no longer needed.\n"


@dataclass(frozen=True, slots=True)
class SeriesFile:
    """A file of a checkpoint that is or could be packed. Of a plain one `sha256` is not known, and both lengths are the same.

    `depth`: how many files must be decoded below it: 0 for a full one. `bases`: the SHA-256 of each that it is a delta to.
    """

    name: str
    packed: bool
    source_bytes: int
    packed_bytes: int
    sha256: str | None = None
    depth: int = 0
    bases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint of a run. `problem` says what is not whole of it; None if nothing.

    `base_step`: the step of the checkpoint that it is a delta to, which may have been deleted since: its files are in the store then.
    """

    step: int
    path: str
    files: tuple[SeriesFile, ...]
    problem: str | None
    resumable: bool
    base_step: int | None = None

    @property
    def source_bytes(self) -> int:
        return sum(file.source_bytes for file in self.files)

    @property
    def packed_bytes(self) -> int:
        return sum(file.packed_bytes for file in self.files)

    @property
    def depth(self) -> int:
        return max((file.depth for file in self.files), default=0)

    @property
    def is_packed(self) -> bool:
        """Is all of it packed that could be?"""
        return bool(self.files) and all(file.packed for file in self.files)


@dataclass(frozen=True, slots=True)
class Series:
    """A run's checkpoints, by step. `store_bytes`: what the bases of deleted checkpoints occupy."""

    path: str
    checkpoints: tuple[Checkpoint, ...]
    store_bytes: int


# ---- looking


def series(run: str | os.PathLike[str]) -> Series:
    """List a run's checkpoints; only headers and indexes are read.

    Raises
    ------
    OptionError
        There is no such directory.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise OptionError("no such directory", path=str(folder))
    checkpoints: list[Checkpoint] = []
    steps_of = {sha: step for step, files in _stored_steps(folder).items() for sha in files.values()}
    for step, path in _steps(folder):
        try:
            found = checkpoint(path, step)
        except FileNotFoundError:
            continue  # deleted while it was looked at
        wanted = {sha for file in found.files for sha in file.bases}
        steps_of.update({file.sha256: step for file in found.files if file.sha256 is not None})
        checkpoints.append(replace(found, base_step=max((steps_of[sha] for sha in wanted if sha in steps_of), default=None)))
    kept = [path.stat() for path in _stored(folder)]
    return Series(str(folder), tuple(checkpoints), sum(state.st_size for state in kept if state.st_nlink == 1))


def checkpoint(path: Path, step: int) -> Checkpoint:
    """Describe one checkpoint."""
    files, problem = [], None
    for name in _packable(path):
        try:
            files.append(_described(path / name))
        except WeightpackError as error:
            n_bytes = (path / name).stat().st_size
            files.append(SeriesFile(name, True, n_bytes, n_bytes))
            problem = problem or f"{name} is cut or damaged: {error.reason}"
    return Checkpoint(step, str(path), tuple(files), problem or _problem(path, step, tuple(files)), _resumable(path))


def last_checkpoint(run: str | os.PathLike[str], *, weights_only: bool = False) -> Path | None:
    """Return the newest checkpoint that is whole, and warn of newer ones that are not; None if there is none.

    Parameters
    ----------
    weights_only
        Also take checkpoints without an optimizer's state, as `save_only_model` writes them.
    """
    folder = Path(run)
    for step, path in reversed(_steps(folder)):
        problem = checkpoint_problem(path, weights_only=weights_only)
        if problem is None:
            return path
        warnings.warn(f"checkpoint-{step} is passed over: {problem}", RuntimeWarning, stacklevel=2)
    return None


def checkpoint_problem(path: Path, *, weights_only: bool = False) -> str | None:
    """Return why training can't go on at a checkpoint, None if it can."""
    match = _CHECKPOINT.fullmatch(path.name)
    found = checkpoint(path, int(match[1]) if match else -1)
    if found.problem is None and not weights_only and not found.resumable:
        return "it has no state of the optimizer and the scheduler: training would begin anew with these weights"
    return found.problem


def _steps(run: Path) -> list[tuple[int, Path]]:
    paths = list(run.iterdir()) if run.is_dir() else []
    return sorted((int(match[1]), path) for path in paths if (match := _CHECKPOINT.fullmatch(path.name)) and path.is_dir())


def _packable(path: Path) -> list[str]:
    names = sorted(entry.name for entry in path.iterdir())
    sharded = any(_SHARDED_STATE.fullmatch(name) for name in names)
    return [
        name for name in names
        if _PACKABLE.fullmatch(name) and not is_working_name(name) and (path / name).is_file() and (name.endswith(".safetensors") or not sharded)
    ]  # fmt: skip


def has_sharded_state(path: Path) -> bool:
    """Did DeepSpeed or FSDP write the optimizer's state into a checkpoint?"""
    return any(_SHARDED_STATE.fullmatch(entry.name) for entry in path.iterdir())


def _described(path: Path) -> SeriesFile:
    n_bytes = path.stat().st_size
    if not is_packed_file(path):
        return SeriesFile(path.name, False, n_bytes, n_bytes)
    with LocalFile(path) as file:
        index = PackedFile(file).index
    depth, bases = (0, ()) if index.base is None else (index.base.depth, tuple(base.sha256 for base in index.base.files))
    return SeriesFile(path.name, True, index.source_bytes, n_bytes, index.source_sha256, depth, bases)


def _problem(path: Path, step: int, files: tuple[SeriesFile, ...]) -> str | None:
    """Return what is missing or cut. transformers writes weights, optimizer, scheduler, random state and `trainer_state.json`, in this order."""
    if (path / _SENTINEL).exists():
        return f"{_SENTINEL} is there: the trainer was stopped while it wrote the checkpoint"
    try:
        state = json.loads(_small(path / _STATE))
        written = state["global_step"]
    except FileNotFoundError:
        return f"{_STATE} is missing: the trainer was stopped while it wrote the checkpoint"
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{_STATE} is cut: the trainer was stopped while it wrote the checkpoint"
    if step >= 0 and written != step:
        return f"{_STATE} is of step {written}"
    try:
        model_files(path)
    except OptionError:
        if not any(file.name.startswith(("pytorch_model", "adapter_model")) for file in files) and not has_sharded_state(path):
            return "it has no weights"
    except WeightpackError as error:
        return error.reason
    for file in files:
        if not file.packed and (reason := _cut(path / file.name)):
            return f"{file.name} is cut: {reason}"
    saved = {entry.name for entry in path.iterdir()}
    if not has_sharded_state(path) and (("optimizer.pt" in saved) != ("scheduler.pt" in saved) or ("scheduler.pt" not in saved and _random_states(saved))):
        missing = "optimizer.pt" if "optimizer.pt" not in saved else "scheduler.pt"
        return f"{missing} is missing: transformers would go on with a fresh one, silently"
    return None


def _random_states(names: Iterable[str]) -> bool:
    return any(re.fullmatch(r"rng_state(_\d+)?\.pth", name) for name in names)


def _resumable(path: Path) -> bool:
    return ((path / "optimizer.pt").is_file() and (path / "scheduler.pt").is_file()) or has_sharded_state(path)


def _small(path: Path) -> bytes:
    if path.stat().st_size > MAX_HEADER_BYTES:
        raise ValueError("too large")
    return path.read_bytes()


def _cut(path: Path) -> str | None:
    """Return what shows that a plain file is not whole."""
    if path.suffix == ".safetensors":
        try:
            with LocalFile(path) as file:
                header = read_header(file)
                check_tiles(header, file.size - header.data_begin)
        except FormatError as error:
            return error.reason
        return None
    with open(path, "rb") as opened:
        old = opened.read(1) == b"\x80"  # a pickle, as torch.save wrote before version 1.6
    return None if old or zipfile.is_zipfile(path) else "no PyTorch file"  # a zip's directory stands at its end


# ---- packing


def pack_checkpoint(run: str | os.PathLike[str], step: int, job: Job, *, anchor_every: int = ANCHOR_EVERY) -> JobResult:
    """Pack a checkpoint in place, its files one after the other, each decoded and compared before it replaces its source. Then `collect`.

    Parameters
    ----------
    job
        Threads, options, progress; it verifies and overwrites whatever it says.
    anchor_every
        A file is a delta to that of the newest packed checkpoint before, but each `anchor_every`-th is full; 1: all are.

    Returns
    -------
    JobResult
        All packed files of the checkpoint, such as were packed already included.

    Raises
    ------
    OptionError
        There is no such checkpoint, or `anchor_every` is less than 1.
    TruncatedError
        The checkpoint is incomplete.
    LosslessError
        A file changed meanwhile, or does not decode to its source. It stays as it is.
    """
    folder = Path(run)
    path = folder / f"checkpoint-{step}"
    if anchor_every < 1:
        raise OptionError(f"anchor_every is {anchor_every}: it must be at least 1")
    if not path.is_dir():
        raise OptionError("no such checkpoint", path=str(path))
    with _locked(folder):
        found = checkpoint(path, step)
        if found.problem is not None:
            raise TruncatedError(f"incomplete: {found.problem}", path=str(path))
        _share(folder)
        for file in found.files:
            if not file.packed:
                _pack_into(folder, path / file.name, _base(folder, file.name, step, min(anchor_every, job.limits.max_depth + 1)), job)
        result = checkpoint(path, step)
        _collect(folder)
    files = tuple(
        FileResult(str(path / f.name), str(path / f.name), f.source_bytes, f.packed_bytes, f.sha256 or "") for f in result.files if f.packed
    )  # fmt: skip
    return JobResult(str(path), files)


def pack_run(run: str | os.PathLike[str], job: Job, *, anchor_every: int = ANCHOR_EVERY, unfinished: bool = False, last: int | None = None) -> list[JobResult]:
    """Pack the checkpoints of a run that are complete and not packed, the earliest first.

    Parameters
    ----------
    unfinished
        Only what a killed process left: checkpoints of which some files are packed, and such as are newer than the newest packed one.
    last
        Leave checkpoints of later steps alone.
    """
    found = [each for each in series(run).checkpoints if last is None or each.step <= last]
    newest = max([each.step for each in found if each.is_packed] + [step for step in _stored_steps(Path(run)) if last is None or step <= last], default=None)
    results = []
    for each in found:
        wanted = not unfinished or any(file.packed for file in each.files) or (newest is not None and each.step > newest)
        if each.problem is None and each.files and not each.is_packed and wanted:
            results.append(pack_checkpoint(run, each.step, job, anchor_every=anchor_every))
    if not results:
        collect(run)
    return results


def _base(run: Path, name: str, step: int, anchor_every: int) -> Path | None:
    """Return what a file is to be a delta to, in the store; None if it is to be full.

    That is the newest of earlier steps, be its checkpoint deleted: with `save_total_limit=1` the trainer has done so when the next one is to be packed.
    """
    known = {number: files[name] for number, files in _stored_steps(run).items() if number < step and name in files}
    for number, path in _steps(run):
        if number < step:
            with contextlib.suppress(OSError, WeightpackError):
                if sha := _described(path / name).sha256:
                    known[number] = sha
    for _, sha in sorted(known.items(), reverse=True):
        stored = run / STORE / f"{sha}.safetensors"
        with contextlib.suppress(OSError, WeightpackError):
            return stored if _described(stored).depth + 1 < anchor_every else None
    return None


def _pack_into(run: Path, path: Path, base: Path | None, job: Job) -> None:
    """Replace a file by its packed form, by way of the store."""
    staging = run / STORE / f"{_STAGING}-{path.name}"
    one = Job(job.threads, True, job.progress, job.options, base=None if base is None else Base((base,)))
    with located(path=str(path)):
        result = pack_one(path, staging, one)
    stored = run / STORE / f"{result.source_sha256}.safetensors"
    if stored.exists():  # the same bytes were packed before: what others are packed against must not change
        with LocalFile(path) as source, open_packed(stored) as packed:
            verify_file(packed, against=source, threads=job.threads)
        staging.unlink()
    else:
        staging.chmod(stat.S_IMODE(path.stat().st_mode))
        os.replace(staging, stored)
        sync_folder(stored.parent)
    _replace(path, stored)


def _replace(target: Path, source: Path, *, link: bool = True) -> None:
    """Replace a file by a link to another, or by a copy where there are no links. The folder keeps its time: Trainer deletes the oldest by it."""
    for path, _ in leftovers(target):
        remove(path)
    temporary, times = working_name(target), target.parent.stat()
    try:
        if not link or not _linked(source, temporary):
            _copy(source, temporary)
        os.replace(temporary, target)
    except BaseException:
        remove(temporary)
        raise
    sync_folder(target.parent)
    os.utime(target.parent, ns=(times.st_atime_ns, times.st_mtime_ns))


def _linked(source: Path, target: Path) -> bool:
    """Make a link; False where there are none."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    shutil.copymode(source, target)
    with open(target, "r+b") as file:
        os.fsync(file.fileno())


def unshare(run: str | os.PathLike[str], after: int) -> None:
    """Give checkpoints behind a step bytes of their own. A trainer that goes on at that step writes over them in place, and with them into the store."""
    folder = Path(run)
    if not (folder / STORE).is_dir():
        return
    with _locked(folder):
        for step, path in _steps(folder):
            for name in _packable(path) if step > after else []:
                if (path / name).stat().st_nlink > 1 and is_packed_file(path / name):
                    _replace(path / name, path / name, link=False)


# ---- the store


@contextlib.contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Let one process at a time change a run's packed files."""
    store = run / STORE
    if not store.is_dir():
        store.mkdir(exist_ok=True)
        (store / "README").write_text(_NOTE)
    fd = os.open(store / "lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        lock(fd, wait=True)
        yield
    finally:
        os.close(fd)


def _stored(run: Path) -> list[Path]:
    store = run / STORE
    return sorted(path for path in store.iterdir() if _STORED.fullmatch(path.name)) if store.is_dir() else []


def _stored_steps(run: Path) -> dict[int, dict[str, str]]:
    """Return step -> name -> SHA-256 of what the store has, of deleted checkpoints too."""
    try:
        found = json.loads(_small(run / STORE / _STEPS))
        return {int(step): {str(name): str(sha) for name, sha in files.items()} for step, files in found.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}  # each is found again by its checkpoint, if that is there


def _living(run: Path) -> Iterator[tuple[Path, SeriesFile | None]]:
    """Yield the packed files of all checkpoints, whole or not; None with one that is damaged."""
    for _, path in _steps(run):
        with contextlib.suppress(FileNotFoundError):  # the trainer deletes it meanwhile
            for name in _packable(path):
                try:
                    file = _described(path / name)
                except WeightpackError:
                    yield path / name, None
                else:
                    if file.packed:
                        yield path / name, file


def _share(run: Path) -> None:
    """See that the store has each packed file of the checkpoints: such as were copied here have none."""
    for path, file in _living(run):
        if file is None:
            continue
        stored = run / STORE / f"{file.sha256}.safetensors"
        if not stored.exists():
            temporary = working_name(stored)
            with contextlib.suppress(FileNotFoundError):
                if not _linked(path, temporary):
                    _copy(path, temporary)
                os.replace(temporary, stored)


def collect(run: str | os.PathLike[str]) -> None:
    """Remove from the store what no checkpoint of the run needs, and what killed processes left in it."""
    folder = Path(run)
    if (folder / STORE).is_dir():
        with _locked(folder):
            _share(folder)
            _collect(folder)


def _collect(run: Path) -> None:
    stored, steps = {path.stem: path for path in _stored(run)}, _stored_steps(run)
    needed: set[str] = set()
    wanted: list[str] = []
    try:
        for path, living in _living(run):
            if living is None:
                raise FormatError("damaged", path=str(path))
            wanted += (str(living.sha256), *living.bases)
            steps.setdefault(int(path.parent.name.rpartition("-")[2]), {})[path.name] = str(living.sha256)
        while wanted:
            sha = wanted.pop()
            if sha not in needed and sha in stored:
                needed.add(sha)
                wanted += _described(stored[sha]).bases
    except WeightpackError:
        needed |= stored.keys()  # what a damaged file stands on can't be told: all stays
    for sha, path in stored.items():
        if sha not in needed:
            remove(path)
    kept = {step: {name: sha for name, sha in files.items() if sha in needed and sha in stored} for step, files in sorted(steps.items())}
    kept = {step: files for step, files in kept.items() if files}
    if kept != _stored_steps(run):
        replace_file(run / STORE / _STEPS, json.dumps(kept).encode())
    for path in (run / STORE).iterdir():
        if path.name.startswith(f"{_STAGING}-"):
            remove(path)
        elif is_working_name(path.name):  # of whom nobody holds: killed in the middle of it
            target = path.with_name(path.name[1:].rsplit(".", 2)[0])
            for left, _ in leftovers(target):
                remove(left)


# ---- restoring


def restore(run: str | os.PathLike[str], step: int, target: str | os.PathLike[str], job: Job) -> JobResult:
    """Restore a checkpoint into a directory, as the trainer wrote it: packed files are unpacked and proven by their SHA-256, others copied.

    Raises
    ------
    OptionError
        There is no such checkpoint, or the target exists.
    FormatError
        A file is damaged, or a base is missing. There is no target then.
    """
    path, goal = Path(run) / f"checkpoint-{step}", Path(target)
    if not path.is_dir():
        steps = ", ".join(str(number) for number, _ in _steps(Path(run))) or "none"
        raise OptionError(f"no checkpoint of step {step}; there are: {steps}", path=str(run))
    one = Job(job.threads, False, job.progress, limits=job.limits)
    packed = {PurePosixPath(name) for name in _packable(path) if is_packed_file(path / name)}
    entries = [(entry.relative_to(path), entry) for entry in path.rglob("*")]
    names = sorted(PurePosixPath(name) for name, entry in entries if entry.is_file() and not any(is_working_name(part) for part in name.parts))
    results = []
    with work_folder(goal, source=path, names=names, job=f"restore {path.resolve()}", overwrite=job.overwrite) as work:
        for name in names:
            (work.path / name).unlink(missing_ok=True)  # of a killed process
            if name in packed:
                done = unpack_one(path / name, work.path / name, one, prove=True)
                results.append(replace(done, target=str(goal / name)))
            else:
                carry_over(path / name, work.path / name)
    return JobResult(str(goal), tuple(results))


def verify(run: str | os.PathLike[str], job: Job) -> list[tuple[str, VerifyResult]]:
    """Prove that each packed file of a run restores to the SHA-256 that its index names; FormatError if one does not, or a checkpoint is incomplete."""
    results = []
    for each in series(run).checkpoints:
        if each.problem is not None:
            raise TruncatedError(f"incomplete: {each.problem}", path=each.path)
        for file in each.files:
            if file.packed:
                path = Path(each.path) / file.name
                with open_packed(path, job.limits) as packed:
                    results.append((str(path), verify_file(packed, threads=job.threads, progress=job.bind(path))))
    return results


@contextlib.contextmanager
def plain_files(path: Path, prefixes: tuple[str, ...], threads: int = 1) -> Iterator[Path]:
    """Give a checkpoint whose PyTorch files with such names are plain: itself, or a temporary directory of restored and linked files.

    Its other packed files that are no safetensors are left out.
    """
    packed = [path / name for name in _packable(path) if not name.endswith(".safetensors") and is_packed_file(path / name)] if path.is_dir() else []
    if not any(file.name.startswith(prefixes) for file in packed):
        yield path
        return
    with _temporary(path.resolve().parent) as folder:
        for entry in path.iterdir():
            if entry in packed:
                if entry.name.startswith(prefixes):
                    unpack_one(entry, folder / entry.name, Job(threads), prove=True)
            elif not is_working_name(entry.name) and entry.suffix != ".safetensors":
                try:
                    (folder / entry.name).symlink_to(entry.resolve())
                except OSError:  # Windows lets only some make them
                    if entry.is_file():
                        shutil.copyfile(entry, folder / entry.name)
        yield folder


@contextlib.contextmanager
def _temporary(run: Path) -> Iterator[Path]:
    """Give a folder on the run's disk, where there is room for a checkpoint; elsewhere if that can't be written to."""
    with contextlib.ExitStack() as stack:
        try:
            (run / STORE).mkdir(exist_ok=True)
            folder = stack.enter_context(private_folder(run / STORE / "resume"))
        except OSError:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        yield folder
