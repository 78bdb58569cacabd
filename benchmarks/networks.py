"""Whole networks on a photograph beside torch: ``cnnext bench --only networks`` over a list of batch sizes.

python benchmarks/networks.py --model resnet50 resnet18 googlenet --batches 1 16
python benchmarks/networks.py --model resnet50 --batches 16 --mode train --json benchmarks/results
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cnnext.bench
from cnnext._options import output_folder, whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", nargs="+", type=whole(1), default=[1, 16])
    parser.add_argument("--json", type=output_folder, metavar="FOLDER", help="one file per batch size goes here")
    options, rest = parser.parse_known_args()

    bench = argparse.ArgumentParser(prog="networks.py", add_help=False)
    cnnext.bench.add_arguments(bench)
    runs = []  # nothing is measured where one of them cannot be
    for batch in options.batches:
        arguments = ["--only", "networks", "--batch", str(batch), *rest]
        if options.json:
            arguments += ["--json", str(Path(options.json) / f"networks_n{batch}.json")]
        runs.append(bench.parse_args(arguments))
    return next(filter(None, map(cnnext.bench.main, runs)), 0)


if __name__ == "__main__":
    sys.exit(main())
