# SPDX-License-Identifier: Apache-2.0
"""A Hub repo id -> a local directory, through huggingface_hub (its cache, its HF_ENDPOINT, its token)."""

from __future__ import annotations

import re
from pathlib import Path

from weightpack.errors import OptionError

_REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
# The same weights in other formats: hundreds of megabytes that packing would only copy.
_OTHER_WEIGHTS = [
    "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.ot", "*.onnx", "*.onnx_data", "*.gguf", "*.tflite", "*.ckpt",
    "*.mlmodel", "*.mlpackage/*", "openvino/*",
]  # fmt: skip


def is_repo_id(text: str) -> bool:
    """Could this be a repo id (`name` or `owner/name`)?"""
    return _REPO_ID.fullmatch(text) is not None and not text.endswith((".safetensors", "."))


def fetch_repo(repo_id: str, *, revision: str | None = None, token: str | None = None, cache_dir: str | None = None) -> Path:
    """Download a model repo's safetensors weights and small files; return the snapshot's folder.

    Raises
    ------
    OptionError
        The Hub has no such repo or revision, or it can't be read with this token.
    OSError
        The Hub can't be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(repo_id, revision=revision, token=token, cache_dir=cache_dir, ignore_patterns=_OTHER_WEIGHTS))
    except RepositoryNotFoundError:
        raise OptionError(f"no file or directory of that name, and no repo {repo_id!r} on the Hub (or it is private: log in with `hf auth login`)") from None
    except RevisionNotFoundError:
        raise OptionError(f"the repo {repo_id!r} has no revision {revision!r}") from None
    except HFValidationError as error:
        raise OptionError(str(error)) from None
    except LocalEntryNotFoundError as error:
        raise OSError(f"{repo_id!r} is no file or directory, and the Hub can't be reached: {error.__cause__ or error}") from None
    except (EntryNotFoundError, HfHubHTTPError) as error:
        raise OSError(f"the Hub did not give {repo_id!r}: {error}") from None
