# SPDX-License-Identifier: Apache-2.0
"""Work for other processes that read a packed file; a module of its own, because spawned ones import it by name."""

from __future__ import annotations

import hashlib
import os

import torch

import weightpack


class OpensInside(torch.utils.data.Dataset):
    """Each worker opens the file at its first item."""

    def __init__(self, path, names):
        self.path, self.names, self.opened = path, names, None

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        if self.opened is None:
            self.opened = weightpack.safe_open(self.path, "pt", threads=1)
        return self.names[i], os.getpid(), bytes_of(self.opened.get_tensor(self.names[i]))


class Inherits(OpensInside):
    """The file is opened before there are workers: forked ones share it, spawned ones get it pickled."""

    def __init__(self, path, names):
        super().__init__(path, names)
        self.opened = weightpack.safe_open(path, "pt")


def shape_and_digest(opened, name):
    """Return what a process says of a tensor."""
    tensor = opened.get_tensor(name)
    return tensor.shape, hashlib.sha256(tensor.tobytes()).hexdigest()


def bytes_of(tensor):
    """Return a tensor's bytes."""
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
