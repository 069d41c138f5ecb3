# SPDX-License-Identifier: Apache-2.0
"""Models whose weights stay packed in memory, and are decoded where they are used."""
