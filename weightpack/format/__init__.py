# SPDX-License-Identifier: Apache-2.0
"""The bytes of a packed file: parse and serialise side by side, no arithmetic on weights. Every offset and size is checked here, once."""
