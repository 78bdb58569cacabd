"""Whole networks on a photograph beside torch: ``cnnext bench --only networks`` over a list of batch sizes.

python benchmarks/networks.py --model resnet50 resnet18 googlenet --batches 1 16
python benchmarks/networks.py --model resnet50 --batches 16 --mode train --json benchmarks/results
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cnnext.bench


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--json", metavar="FOLDER", help="one file per batch size goes here")
    options, rest = parser.parse_known_args()

    bench = argparse.ArgumentParser(prog="networks.py", add_help=False)
    cnnext.bench.add_arguments(bench)
    for batch in options.batches:
        arguments = ["--only", "networks", "--batch", str(batch), *rest]
        if options.json:
            Path(options.json).mkdir(parents=True, exist_ok=True)
            arguments += ["--json", str(Path(options.json) / f"networks_n{batch}.json")]
        status = cnnext.bench.main(bench.parse_args(arguments))
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
