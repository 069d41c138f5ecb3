# SPDX-License-Identifier: Apache-2.0
"""Bytes as tensors of numpy and torch."""
