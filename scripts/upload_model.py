#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Pack one model and upload it: a directory, or a repo of the Hub, becomes a packed repo.

    python scripts/upload_model.py bert-base-uncased me/bert-base-uncased-wp
    python scripts/upload_model.py ./my-model me/my-model-wp --private

Run it again if it was interrupted. The token is that of `hf auth login`, or HF_TOKEN.
"""

from __future__ import annotations

import argparse
import sys

import weightpack
from weightpack._humane import human_bytes, percent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a model directory, or the id of a repo")
    parser.add_argument("repo", help="the repo to make or update: owner/name")
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--profile", default="fast")
    arguments = parser.parse_args()
    try:
        result = weightpack.push(arguments.source, arguments.repo, private=arguments.private or None, options=weightpack.load_profile(arguments.profile))
    except (weightpack.WeightpackError, OSError) as error:
        print(f"upload_model: {error}", file=sys.stderr)
        return 1
    share = percent(result.packed_bytes, result.source_bytes)
    print(f"{result.url}: {human_bytes(result.source_bytes)} -> {human_bytes(result.packed_bytes)} ({share})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
