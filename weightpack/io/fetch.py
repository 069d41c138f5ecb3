# SPDX-License-Identifier: Apache-2.0
"""A Hub repo id -> a local directory, or a list of its weights; through huggingface_hub (its cache, its HF_ENDPOINT, its token)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from weightpack.errors import OptionError, PathNotFoundError

_REPO_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)  # no part is hidden, or `.`, `..` or an option
_FILE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".npz", ".npy", ".wp", ".")
# The same weights in other formats: hundreds of megabytes that packing would only copy.
_OTHER_WEIGHTS = [
    "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.ot", "*.onnx", "*.onnx_data", "*.gguf", "*.tflite", "*.ckpt",
    "*.mlmodel", "*.mlpackage/*", "openvino/*",
]  # fmt: skip


def is_repo_id(text: str) -> bool:
    """Could this be a repo id (`name` or `owner/name`)? A name alone that ends as files of weights do is none, nor is any path that shows that it is one."""
    return _REPO_ID.fullmatch(text) is not None and not text.endswith((".safetensors", ".wp", ".") if "/" in text else _FILE_SUFFIXES)


@contextmanager
def hub_errors(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turn what huggingface_hub raises into plain messages.

    Raises
    ------
    OptionError
        The Hub has no such repo or revision, or it can't be read or written with this token.
    OSError
        The Hub can't be reached, or has trouble of its own.
    """
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except RepositoryNotFoundError:
        raise PathNotFoundError(
            "no such file or directory here, and no repo of that name on the Hub (or it is private: log in with `hf auth login`)", path=repo_id
        ) from None
    except RevisionNotFoundError:
        raise OptionError(f"the repo {repo_id!r} has no revision {revision!r}") from None
    except HFValidationError as error:
        raise OptionError(str(error)) from None
    except LocalEntryNotFoundError as error:
        raise OSError(f"{repo_id!r} is no file or directory, and the Hub can't be reached: {error.__cause__ or error}") from None
    except EntryNotFoundError as error:
        raise OSError(f"the Hub did not give {repo_id!r}: {error}") from None
    except Exception as error:
        plain = _plain(error, repo_id)
        if plain is None:
            raise
        raise plain from None


def _plain(error: BaseException, repo_id: str) -> Exception | None:
    """Return our word for an error of the Hub or of the network, or for one that was caused by such; None if it is something else."""
    from huggingface_hub.errors import HfHubHTTPError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code if cause.response is not None else 0
            if status in _REASONS:
                return OptionError(f"the Hub refuses {repo_id!r}: {_REASONS[status]}")
            return OSError(f"the Hub has trouble with {repo_id!r}: {_first_line(cause)}; run it again")
        if type(cause).__module__.split(".")[0] in _HTTP_LIBRARIES:
            what = f"{type(cause).__name__}: {_first_line(cause)}"
            return OSError(f"the Hub can't be asked for the repo {repo_id!r} ({what}); run it again")
        cause = cause.__cause__ or cause.__context__
    return None


_HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
_REASONS = {
    400: "the request was not accepted; is the name right?",
    401: "log in with `hf auth login`, or give a valid --token",
    403: "this token may not write there: make one with write access at https://huggingface.co/settings/tokens",
    409: "it exists already and is not the kind of repo that is wanted, or someone else is creating it",
    412: "someone committed meanwhile: run it again",
}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def commit_of(repo_id: str, *, revision: str | None = None, token: str | None = None) -> str:
    """Return the commit that a repo's revision is, as the Hub says now. See `hub_errors` for what it raises."""
    from huggingface_hub import HfApi

    with hub_errors(repo_id, revision):
        return str(HfApi(token=token).model_info(repo_id, revision=revision).sha)


def fetch_repo(
    repo_id: str, *, revision: str | None = None, token: str | None = None, cache_dir: str | None = None, target: Path | None = None,
    include: Sequence[str] | None = None,
) -> Path:  # fmt: skip
    """Download a model repo's safetensors weights and small files (or the files that match `include`) into the Hub client's cache, or into `target`; return
    the folder. See `hub_errors` for what it raises."""
    from huggingface_hub import snapshot_download

    with hub_errors(repo_id, revision):
        return Path(
            snapshot_download(
                repo_id, revision=revision, token=token, cache_dir=cache_dir, local_dir=target, allow_patterns=list(include) if include else None,
                ignore_patterns=None if include else _OTHER_WEIGHTS,
            )
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file of a repo as the Hub lists it: `url` for reading ranges of it; `sha256` where it is stored as LFS or Xet, else None."""

    path: str
    url: str
    n_bytes: int
    sha256: str | None


def published_weights(repo_id: str, *, revision: str | None = None, token: str | None = None) -> list[PublishedFile]:
    """List a repo's safetensors files, and packed ones of other kinds, by path. The URLs have the owner, where an old name lacks one, and pin one commit.
    See `hub_errors` for what it raises."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(token=token)
    with hub_errors(repo_id, revision):
        info = api.model_info(repo_id, revision=revision)
        entries = list(api.list_repo_tree(repo_id, recursive=True, revision=info.sha))
    files = [entry for entry in entries if isinstance(entry, RepoFile) and entry.path.endswith((".safetensors", ".wp"))]
    if not files:
        raise OptionError(f"the repo {repo_id!r} has no .safetensors file")
    return [
        PublishedFile(file.path, f"hf://{info.id}@{info.sha}/{file.path}", file.size, file.lfs.sha256 if file.lfs else None)
        for file in sorted(files, key=lambda file: file.path)
    ]


def cached_repo(path: str) -> str | None:
    """Return the repo whose snapshot in the Hub client's cache a file stands in; None if it stands elsewhere."""
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface") / "hub").expanduser()
    try:
        parts = Path(path).absolute().relative_to(cache.absolute()).parts  # not resolved: a snapshot's files are links
    except ValueError:
        return None
    if ".." in parts or len(parts) < 4 or not parts[0].startswith("models--") or parts[1] != "snapshots":
        return None
    return "/".join(parts[0].split("--")[1:])


def cached_file(repo_id: str, name: str, revision: str | None) -> Path | None:
    """Return a repo's file from the Hub client's cache, without asking the Hub."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo_id, name, revision=revision)
    return Path(path) if isinstance(path, str) else None


def published_file(repo_id: str, name: str, revision: str | None, *, use_token: bool) -> PublishedFile:
    """Ask the Hub how long a file is, and for its SHA-256; nothing of it is downloaded. Without `use_token` the Hub is asked as by anybody."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    found = get_hf_file_metadata(hf_hub_url(repo_id, name, revision=revision), token=None if use_token else False)
    sha256 = found.etag if found.etag is not None and len(found.etag) == 64 else None  # of a file in git it is another hash
    return PublishedFile(name, f"hf://{repo_id}@{found.commit_hash or revision or 'main'}/{name}", found.size or 0, sha256)


def download_file(repo_id: str, name: str, revision: str | None, *, use_token: bool) -> Path:
    """Download a repo's file into the Hub client's cache; return where it is."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo_id, name, revision=revision, token=None if use_token else False))
