# SPDX-License-Identifier: Apache-2.0
"""`RUN/_weightpack/`, the store: every packed file of a run's checkpoints, named by the SHA-256 of what it restores to.

What a packed file needs below it (FORMAT: its base) may be in a checkpoint that the trainer deletes later. So every packed file is a hard link of one in the
store. `collect` takes out of it what no checkpoint needs any more. (The name begins with an underscore because the Hub client of transformers' Trainer does not
upload such names.)

What stands in the store's files is not believed: names of files are made of SHA-256s alone, and a store that is a link, or another user's, is not changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from weightpack.errors import CorruptionError, FormatError, OptionError, WeightpackError
from weightpack.io.atomic import AtomicFile, kind_of, replace_file, state_of, sync_folder
from weightpack.io.files import LocalFile, named_path, pieces, read_at
from weightpack.io.working_names import belongs_to_user, is_working_name, leftovers, lock, remove, working_name
from weightpack.models.directory import small_file
from weightpack.options import DEFAULT_LIMITS, Limits
from weightpack.runs.files import SeriesFile, described, packable, packed_names, step_of, steps

STORE = "_weightpack"
STAGING = "staging-"
"""How names of files begin that are on their way into the store."""

_STEPS, _LOCK = "steps.json", "lock"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_STORED = re.compile(r"[0-9a-f]{64}\.safetensors")
_COPY_BYTES = 1 << 20
_NOTE = "Bases of the packed checkpoints beside this folder: without them these are lost. weightpack itself removes what is no longer needed.\n"


def make_store(run: Path) -> Path:
    """Return a run's store, which is made if there is none.

    Raises
    ------
    OptionError
        What is there is no directory, or neither this user's nor that of whose the run is: what is done in it would be done elsewhere, or by others.
    """
    store = run / STORE
    state = state_of(store)
    if state is None:
        with contextlib.suppress(FileExistsError):
            store.mkdir()
            (store / "README").write_text(_NOTE)
        state = store.lstat()
    if not stat.S_ISDIR(state.st_mode):
        raise OptionError(f"the store is {kind_of(state)}, and must be a directory of the run's own", path=str(store))
    if not belongs_to_user(state) and state.st_uid != run.stat().st_uid:
        raise OptionError("the store is another user's, who is not the run's owner", path=str(store))
    return store


@contextlib.contextmanager
def locked(run: Path) -> Iterator[Path]:
    """Let one process at a time change a run's packed files; give the store. See `make_store` for what it raises."""
    store = make_store(run)
    fd = os.open(store / _LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        lock(fd, wait=True)
        yield store
    finally:
        os.close(fd)


def stored_file(run: Path, sha256: str) -> Path:
    """Return where the store has, or would have, what restores to a SHA-256."""
    if not _SHA256.fullmatch(sha256):
        raise CorruptionError(f"no SHA-256: {sha256!r}", path=str(run / STORE))
    return run / STORE / f"{sha256}.safetensors"


def stored_files(run: Path) -> list[Path]:
    """Return what the store has."""
    store = run / STORE
    return sorted(path for path in store.iterdir() if _STORED.fullmatch(path.name)) if store.is_dir() else []


def stored_steps(run: Path) -> dict[int, dict[str, str]]:
    """Return step -> name -> SHA-256 of what the store has, of deleted checkpoints too; of a list that is damaged, nothing."""
    try:
        listed = json.loads(small_file(run / STORE / _STEPS))
        checked: dict[int, dict[str, str]] = {}
        for step, files in listed.items():
            number = step_of(Path(f"checkpoint-{step}"))
            if number is None or not all(isinstance(sha, str) and _SHA256.fullmatch(sha) for sha in files.values()):
                return {}
            checked[number] = dict(files)
        return checked
    except (OSError, WeightpackError, ValueError, TypeError, AttributeError, RecursionError):
        return {}  # each is found again by its checkpoint, if that is there


def newest_before(run: Path, name: str, step: int, max_depth: int, limits: Limits = DEFAULT_LIMITS) -> Path | None:
    """Return the file of the store that a file of this step is to be a delta to; None if it is to be full.

    That is the newest of earlier steps, be its checkpoint deleted: with `save_total_limit=1` the trainer has done so when the next one is to be packed.

    Parameters
    ----------
    max_depth
        How many files may have to be decoded below the file.
    """
    shas = {number: files[name] for number, files in stored_steps(run).items() if number < step and name in files}
    for number, path in steps(run):
        if number < step:
            with contextlib.suppress(OSError, WeightpackError):
                if sha := described(path / name, limits).sha256:
                    shas[number] = sha
    for _, sha in sorted(shas.items(), reverse=True):
        stored = stored_file(run, sha)
        with contextlib.suppress(OSError, WeightpackError):
            return stored if described(stored, limits).depth < max_depth else None
    return None


# ---- links


def replace_by_link(target: Path, stored: Path) -> None:
    """Replace a file by a link to one of the store, or by a copy where there are no links. The folder keeps its time: Trainer deletes the oldest by it."""
    times = target.parent.stat()
    temporary = working_name(target)
    if _linked(stored, temporary):
        try:
            os.replace(temporary, target)
        except BaseException:
            remove(temporary)
            raise
        sync_folder(target.parent)
    else:
        _copy(stored, target)
    os.utime(target.parent, ns=(times.st_atime_ns, times.st_mtime_ns))


def _linked(source: Path, target: Path) -> bool:
    """Make a link; False where there are none."""
    try:
        os.link(os.path.realpath(source), target)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True


def _copy(source: Path, target: Path) -> None:
    """Put a copy in the place of a file."""
    with LocalFile(source) as opened, AtomicFile(target, overwrite=True, like=source) as file:
        for offset, n in pieces(opened.size, _COPY_BYTES):
            file.write_at(offset, read_at(opened, offset, n))
        file.commit()


def _has_store(run: Path) -> bool:
    """Is something there that is, or should be, a store? A file in its place holds nothing, and stops nobody but who wants to pack."""
    state = state_of(run / STORE)
    return state is not None and not stat.S_ISREG(state.st_mode)


def unshare(run: str | os.PathLike[str], after: int) -> None:
    """Give checkpoints after a step bytes of their own. A trainer that goes on at that step writes over them in place, and with them into the store."""
    folder = named_path(run)
    if not _has_store(folder):
        return
    with locked(folder):
        for step, path in steps(folder):
            for name in packed_names(path) if step > after else []:
                if (path / name).stat().st_nlink > 1:
                    times = path.stat()
                    _copy(path / name, path / name)
                    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def share(run: Path, limits: Limits = DEFAULT_LIMITS) -> None:
    """See that the store has each packed file of the checkpoints: such as were copied here have none. The run is locked."""
    for path, file in _living(run, limits):
        if file is None or file.sha256 is None:
            continue
        stored = stored_file(run, file.sha256)
        if state_of(stored) is None:
            with contextlib.suppress(FileNotFoundError):  # the trainer deletes it meanwhile
                if not _linked(path, stored):
                    _copy(path, stored)


# ---- what nobody needs


def _living(run: Path, limits: Limits) -> Iterator[tuple[Path, SeriesFile | None]]:
    """Yield the packed files of all checkpoints, whole or not; None with one that is damaged or beyond the limits."""
    for _, path in steps(run):
        with contextlib.suppress(FileNotFoundError):  # the trainer deletes it meanwhile
            for name in packable(path):
                try:
                    file = described(path / name, limits)
                except WeightpackError:
                    yield path / name, None
                else:
                    if file.packed:
                        yield path / name, file


def collect(run: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS) -> None:
    """Remove from the store what no checkpoint of the run needs, and what killed processes left in it. See `make_store` for what it raises."""
    folder = named_path(run)
    if _has_store(folder):
        with locked(folder):
            share(folder, limits)
            collect_locked(folder, limits)


def collect_locked(run: Path, limits: Limits = DEFAULT_LIMITS) -> None:
    """Do what `collect` does, in a run that is locked and shared."""
    stored, listed = {path.stem: path for path in stored_files(run)}, stored_steps(run)
    needed: set[str] = set()
    wanted: list[str] = []
    try:
        for path, living in _living(run, limits):
            step = step_of(path.parent)
            if living is None or living.sha256 is None or step is None:
                raise FormatError("damaged", path=str(path))
            wanted += (living.sha256, *living.bases)
            listed.setdefault(step, {})[path.name] = living.sha256
        while wanted:
            sha = wanted.pop()
            if sha not in needed and sha in stored:
                needed.add(sha)
                wanted += described(stored[sha], limits).bases
    except WeightpackError:
        needed |= stored.keys()  # what a damaged file stands on can't be told: all stays
    for sha, path in stored.items():
        if sha not in needed:
            remove(path)
    kept = {step: {name: sha for name, sha in files.items() if sha in needed and sha in stored} for step, files in sorted(listed.items())}
    kept = {step: files for step, files in kept.items() if files}
    if kept != stored_steps(run):
        replace_file(run / STORE / _STEPS, json.dumps(kept).encode())
    _remove_leftovers(run / STORE)


def _remove_leftovers(store: Path) -> None:
    for path in store.iterdir():
        if path.name.startswith(STAGING):
            remove(path)
        elif is_working_name(path.name):  # of whom nobody holds: killed in the middle of it
            target = path.with_name(path.name[1:].rsplit(".", 2)[0])
            for left, _ in leftovers(target):
                remove(left)
