# SPDX-License-Identifier: Apache-2.0
"""Coders: which codec for a plane, and the code lengths of Huffman's. The coding itself, and all decoding, is the kernels' job; see `weightpack.kernels`."""
