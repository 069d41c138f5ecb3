# SPDX-License-Identifier: Apache-2.0
"""Source -> packed file: which tensors, which bases, how each chunk is coded."""
