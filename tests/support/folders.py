# SPDX-License-Identifier: Apache-2.0
"""Model directories for tests, and what is in a directory."""

from __future__ import annotations

import json
import stat

import samples


def write(path, data=b""):
    """Write a file, and the folders that it is in; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def sharded(folder, shards=2, n=4000):
    """A model of some shards with an index, a config without dtype, and a tokenizer."""
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    for i, name in enumerate(names):
        write(folder / name, samples.bf16_file(seed=i, name=f"w{i}", n=n))
    write(folder / "model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": {f"w{i}": name for i, name in enumerate(names)}}))
    write(folder / "config.json", '{"model_type": "bert"}')
    write(folder / "tokenizer.json", '{"vocab": ["a", "b"]}')
    return folder


def contents(folder):
    """Path -> bytes of every file below a folder, None for a folder; links are followed, `.git` and the like are not left out."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            found[path.name] = None
            found |= {f"{path.name}/{name}": data for name, data in contents(path).items()}
        else:
            found[path.name] = path.read_bytes()
    return found


def states(folder):
    """Path -> (permissions, modification time in ns) of every file below a folder, and permissions of every folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.stat()
        found[path.relative_to(folder).as_posix()] = (oct(stat.S_IMODE(state.st_mode)), None if path.is_dir() else state.st_mtime_ns)
    return found
