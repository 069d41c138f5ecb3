# SPDX-License-Identifier: Apache-2.0
from weightpack.cli import main

main()
