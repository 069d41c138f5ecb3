# SPDX-License-Identifier: Apache-2.0
"""What is said of a packed file without decoding it."""

from __future__ import annotations

import samples

import weightpack
from weightpack.io.files import LocalFile
from weightpack.reading.inspect import inspect_planes
from weightpack.reading.packed_file import PackedFile


def test_planes_account_for_every_byte_of_a_record(tmp_path):
    (tmp_path / "source").write_bytes(samples.mixed_file())
    weightpack.pack(tmp_path / "source", tmp_path / "packed", options=weightpack.PackOptions(chunk_elems=1280))
    with LocalFile(tmp_path / "packed") as file:
        packed = PackedFile(file)
        reports = {report.name: report for report in inspect_planes(packed)}
        assert set(reports) == {name for name, stored in packed.tensors.items() if stored.storage != "t" and stored.tensor.n_bytes}
        for name, report in reports.items():
            assert sum(report.planes.values()) == packed.tensors[name].packed_bytes
            assert min(report.planes.values()) >= 0
        assert {"exponents", "sign and mantissa", "widths", "byte 0", "kept", "tables"} <= {name for report in reports.values() for name in report.planes}
