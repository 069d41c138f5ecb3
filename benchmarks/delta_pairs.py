# SPDX-License-Identifier: Apache-2.0
"""Pairs of files, target given base: real fine-tunes and checkpoints of MiniLM, their parts, and what else happens to models."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from delta_adapter import read_header, read_tensors

ROOT = Path(__file__).resolve().parents[1]
BUILDERS = [ROOT / "shared" / "corpus" / "build_corpus.py", ROOT.parent / "shared" / "corpus" / "build_corpus.py"]
FULL, PURE = "minilm-l6-finetune", "minilm-l6-finetune-bf16"
Tensors = dict[str, tuple[str, list[int], np.ndarray]]


@dataclass(frozen=True, slots=True)
class Pair:
    """`target` and `base` name files of the folder `models`, or parts of them, `FILE#PREFIX*SUFFIX`; or are made by a function. `timed`: else sizes only."""

    name: str
    target: str | Callable[[Path], Tensors]
    base: str | None
    timed: bool = True


def _weights(models: Path, name: str = "step-300.bf16.safetensors") -> Tensors:
    return read_tensors(models / FULL / name)


def _embeddings(tensors: Tensors, change: Callable[[np.ndarray], np.ndarray]) -> Tensors:
    """Change the rows of the word embeddings."""
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    dtype, shape, data = tensors[name]
    rows = change(data.reshape(shape[0], -1))
    return {**tensors, name: (dtype, [len(rows), *shape[1:]], np.ascontiguousarray(rows).reshape(-1))}


def more_rows(models: Path) -> Tensors:
    """16 rows more at the end, each the mean of two others: what resize_token_embeddings and a user's initialisation give."""

    def change(rows: np.ndarray) -> np.ndarray:
        values = (rows[1000:1032].copy().view("<u2").astype(np.uint32) << 16).view(np.float32)
        means = (values[0::2] + values[1::2]) / 2
        return np.concatenate([rows, (means.view(np.uint32) >> 16).astype("<u2").view(np.uint8)])

    return _embeddings(_weights(models), change)


def fewer_rows(models: Path) -> Tensors:
    return _embeddings(_weights(models), lambda rows: np.delete(rows, slice(10000, 10100), axis=0))


def one_tensor(models: Path) -> Tensors:
    base, tuned = _weights(models, "base.bf16.safetensors"), _weights(models)
    name = next(name for name in base if name.endswith("layer.3.output.dense.weight"))
    return {**base, name: tuned[name]}


def renamed(models: Path) -> Tensors:
    return {f"model.bert.{name}": tensor for name, tensor in _weights(models).items()}


def _reordered(models: Path) -> Tensors:
    return dict(reversed(_weights(models).items()))


_STEP_250, _STEP_300, _BASE = f"{FULL}/step-250.full.safetensors", f"{FULL}/step-300.full.safetensors", f"{FULL}/base.bf16.safetensors"
_PURE_150 = f"{PURE}/step-150.full.safetensors"

PAIRS = [
    Pair("fine-tune, fp32: base -> step 300", f"{FULL}/finetuned.safetensors", f"{FULL}/base.safetensors"),
    Pair("fine-tune, bf16: base -> step 200", f"{FULL}/step-200.bf16.safetensors", _BASE),
    Pair("fine-tune, bf16: base -> step 300", f"{FULL}/step-300.bf16.safetensors", _BASE),
    Pair("fine-tune, changed dtype: fp32 base -> bf16 step 300", f"{FULL}/step-300.bf16.safetensors", f"{FULL}/base.safetensors"),
    Pair("checkpoints, bf16: step 250 -> step 300", f"{FULL}/step-300.bf16.safetensors", f"{FULL}/step-250.bf16.safetensors"),
    Pair("checkpoints, bf16: step 299 -> step 300", f"{FULL}/step-300.bf16.safetensors", f"{FULL}/step-299.bf16.safetensors"),
    Pair("trained in bf16: base -> step 150", f"{_PURE_150}#model.*", f"{PURE}/base.safetensors"),
    Pair("trained in bf16: step 149 -> step 150", f"{_PURE_150}#model.*", f"{PURE}/step-149.bf16.safetensors"),
    Pair("checkpoint with AdamW's state, fp32: step 250 -> step 300", _STEP_300, _STEP_250),
    Pair("its weights: step 250 -> step 300", f"{_STEP_300}#model.*", f"{_STEP_250}#model.*"),
    Pair("its exp_avg: step 250 -> step 300", f"{_STEP_300}#*.exp_avg", f"{_STEP_250}#*.exp_avg"),
    Pair("its exp_avg_sq: step 250 -> step 300", f"{_STEP_300}#*.exp_avg_sq", f"{_STEP_250}#*.exp_avg_sq"),
    Pair("checkpoint with AdamW's state, fp32: step 300 alone", _STEP_300, None),
    Pair("its exp_avg alone", f"{_STEP_300}#*.exp_avg", None),
    Pair("its exp_avg_sq alone", f"{_STEP_300}#*.exp_avg_sq", None),
    Pair("checkpoint with AdamW's state, trained in bf16: step 150 alone", _PURE_150, None),
    Pair("its exp_avg alone, bf16", f"{_PURE_150}#*.exp_avg", None),
    Pair("its exp_avg_sq alone, bf16", f"{_PURE_150}#*.exp_avg_sq", None),
    Pair("vocabulary, 16 rows more at the end: base -> step 300, bf16", more_rows, _BASE, timed=False),
    Pair("vocabulary, 100 rows less from the middle: base -> step 300, bf16", fewer_rows, _BASE, timed=False),
    Pair("renamed, a prefix before all: base -> step 300, bf16", renamed, _BASE, timed=False),
    Pair("reordered: base -> step 300, bf16", _reordered, _BASE, timed=False),
    Pair("one tensor of 103 changed, bf16", one_tensor, _BASE, timed=False),
    Pair("the same file, bf16", _BASE, _BASE, timed=False),
]


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Write a safetensors file, tensors in the order given."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + data.size]}
        offset += data.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, _, data in tensors.values():
            file.write(data)


def place(source: str | Callable[[Path], Tensors] | None, models: Path, path: Path) -> Path | None:
    """Write a pair's side to `path`. Names of parts lose what is given before and behind the star, so that weights have their base's."""
    if source is None:
        return None
    if not isinstance(source, str):
        write_tensors(path, source(models))
        return path
    file, _, pattern = source.partition("#")
    before, _, behind = pattern.partition("*")
    chosen = {name: tensor for name, tensor in read_tensors(models / file).items() if name.startswith(before) and name.endswith(behind)}
    if pattern:
        write_tensors(path, {name[len(before) : len(name) - len(behind)]: tensor for name, tensor in chosen.items()})
    else:
        path.write_bytes((models / file).read_bytes())
    return path


def n_elements(path: Path) -> int:
    return sum(int(np.prod(entry["shape"], dtype=np.int64)) for entry in read_header(path)[1].values())


def models_folder(corpus: Path, make_python: Callable[[], Path], names: tuple[str, ...] = (PURE, FULL)) -> Path:
    """Return the folder of the fine-tunes, training them first if they are not there: ten minutes, real training, whose bytes differ between CPUs."""
    missing = [name for name in names if not (corpus / "models" / name / "loss.json").exists()]  # written last
    if missing:
        builder = next((path for path in BUILDERS if path.exists()), None)
        if builder is None:
            needed = sorted({s.partition("#")[0] for pair in PAIRS for s in (pair.target, pair.base) if isinstance(s, str)})
            where = " or ".join(map(str, BUILDERS))
            sys.exit(f"no {where}; put these files, and a loss.json beside them, under {corpus}/models yourself: {', '.join(needed)}")
        corpus.mkdir(parents=True, exist_ok=True)
        only = [argument for name in missing for argument in ("--only", name)]
        subprocess.run([make_python(), builder, "--root", corpus, *only], check=True)
    return corpus / "models"
