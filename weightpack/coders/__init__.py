# SPDX-License-Identifier: Apache-2.0
"""Coders: one plane of symbols -> one stream. Decoding is the kernels' job, in one pass with the merge; see `weightpack.kernels`."""

from weightpack.coders.choose import encode_plane

__all__ = ["encode_plane"]
