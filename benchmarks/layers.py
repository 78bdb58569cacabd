"""Every distinct layer of a model beside torch's, in chosen directions, at one batch size.

A suite is a model (see ``cnnext.models.names()``), whose layers are found by running it, or the layers of many:
``dense``, ``dilated``, ``grouped``, ``few_channels``, ``linear``, ``pooling`` (see ``cnnext.bench.suites``).

    python benchmarks/layers.py --suite resnet50 --batch 16
    python benchmarks/layers.py --suite resnet18 googlenet --layout channels_last --direction forward,grad_weight
    python benchmarks/layers.py --suite pooling --batch 16 --json benchmarks/results/pooling_n16.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cnnext.bench
import cnnext.models
from cnnext._options import output_file, output_folder
from cnnext.bench.suites import SUITES


def new_file(text: str) -> str:
    """A file to write, in folders that are made where they are missing."""
    output_folder(str(Path(text).parent))
    return output_file(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", nargs="+", default=["resnet50"], choices=[*cnnext.models.names(), *SUITES])
    parser.add_argument("--batch", default="1")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="folders are made where they are missing")
    options, rest = parser.parse_known_args()

    bench = argparse.ArgumentParser(prog="layers.py", add_help=False)
    cnnext.bench.add_arguments(bench)
    arguments = ["--only", "layers", "--mode", "train", "--batch", options.batch, "--model", *options.suite]
    if options.json:
        arguments += ["--json", options.json]
    # --mode train takes every direction of the training step's layers; whatever else bench understands passes through
    return cnnext.bench.main(bench.parse_args([*arguments, *rest]))


if __name__ == "__main__":
    sys.exit(main())
