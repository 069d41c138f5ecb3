# SPDX-License-Identifier: Apache-2.0
"""A store of many models: tensors once, what is alike as differences, in a folder or on object storage. docs/STORE.md says what is where.

::

    from weightpack import Store

    store = Store("s3://bucket/models", make=True)
    ref = store.add("my-model")
    with store.open(ref) as model:
        model.get_tensor("lm_head.weight")
    store.get(ref, "my-model-again")
"""

from __future__ import annotations

from weightpack.store.store import Ref, Store
from weightpack.store.sweep import Collected
from weightpack.store.usage import Branch, Usage
from weightpack.store.verify import Verified

__all__ = ["Branch", "Collected", "Ref", "Store", "Usage", "Verified"]
