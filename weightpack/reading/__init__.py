# SPDX-License-Identifier: Apache-2.0
"""Packed file -> the source's bytes: whole, by tensor, or proven. Nothing here knows how a file is packed."""
