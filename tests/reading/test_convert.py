# SPDX-License-Identifier: Apache-2.0
"""Elements of a base, converted to the dtype of the tensor."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from weightpack.reading.convert import convert


@given(st.binary(min_size=4, max_size=400), st.sampled_from(["F32", "BF16", "F16"]), st.sampled_from(["F32", "BF16", "F16"]))
def test_conversion_is_that_of_torch_but_for_payloads(data, from_dtype, to_dtype):
    import torch

    names = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    size = 4 if from_dtype == "F32" else 2
    data = data[: len(data) // size * size]
    ours = convert(np.frombuffer(data, np.uint8), from_dtype, to_dtype)
    source = torch.frombuffer(bytearray(data), dtype=names[from_dtype])
    theirs = source.to(names[to_dtype]) if to_dtype != "F32" or from_dtype != "F32" else source
    if {from_dtype, to_dtype} == {"BF16", "F16"}:
        theirs = source.float().to(names[to_dtype])
    got = torch.frombuffer(bytearray(ours.tobytes()), dtype=names[to_dtype])
    assert torch.equal(torch.isnan(got), torch.isnan(theirs))
    numbers = ~torch.isnan(got)
    word = torch.int32 if to_dtype == "F32" else torch.int16
    assert torch.equal(got.view(word)[numbers], theirs.view(word)[numbers])
