# SPDX-License-Identifier: Apache-2.0
"""A model's folder, packed and unpacked beside the source or in its place."""
