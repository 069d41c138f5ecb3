# SPDX-License-Identifier: Apache-2.0
"""Bytes in and out of disks and networks, names of files in work, and threads."""
