# SPDX-License-Identifier: Apache-2.0
"""The model card of a packed repo."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from weightpack._humane import human_bytes, percent

CARD = "README.md"
TAGS = ("weightpack", "lossless-compression")
_BEGIN, _END = "<!-- weightpack -->", "<!-- end of weightpack -->"


def model_card(text: str, folder: Path, repo_id: str, base_model: str | None, source_bytes: int, packed_bytes: int) -> str:
    """Return a model card: the text there is, its metadata where it has any, and a section of ours."""
    from huggingface_hub import ModelCard

    card = ModelCard(text, ignore_metadata_errors=True)
    data: Any = card.data
    data.tags = [*(data.tags or []), *(tag for tag in TAGS if tag not in (data.tags or []))]
    if data.library_name is None and (folder / "config.json").is_file():
        data.library_name = "transformers"
    if base_model is not None and data.base_model is None:
        data.base_model = base_model
        data.base_model_relation = "quantized"  # the nearest that the Hub knows; it has no word for a lossless copy
    section = _SECTION.format(
        repo_id=repo_id, original=f"[{base_model}](https://huggingface.co/{base_model})" if base_model else "the original", load=_how_to_load(folder, repo_id),
        before=human_bytes(source_bytes), after=human_bytes(packed_bytes), share=percent(packed_bytes, source_bytes),
    )  # fmt: skip
    body = re.sub(f"\n*{re.escape(_BEGIN)}.*?{re.escape(_END)}\n*", "\n", card.text, flags=re.S).strip("\n")
    title = body or f"# {repo_id.rsplit('/')[-1]}"
    return f"---\n{data.to_yaml()}\n---\n\n{title}\n\n{_BEGIN}\n{section}\n{_END}\n"


_SECTION = """## Packed with weightpack

The weights are {original}'s, losslessly packed: {before} are {after} here ({share}), and they load to the last bit as they were.

```python
{load}
```

`pip install weightpack` first, and beside vLLM if that is to serve the repo: it fails without. `weightpack pull {repo_id} --unpack` restores the original
files, byte for byte. The parameter count and the dtypes that the Hub shows are those of the packed bytes (U8), not of the model."""


def _how_to_load(folder: Path, repo_id: str) -> str:
    try:
        config = json.loads((folder / "config.json").read_bytes())
        name = str(config["architectures"][0]) if isinstance(config, dict) and config.get("architectures") else "AutoModel"
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return 'import weightpack.torch\n\ntensors = weightpack.torch.load_file("model.safetensors")'
    known = name if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) else "AutoModel"
    return f'import weightpack.transformers\nfrom transformers import {known}\n\nmodel = {known}.from_pretrained("{repo_id}")'
